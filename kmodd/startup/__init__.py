# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every process of kmodd that runs on begins with: its options, the machine, word to systemd."""
