# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of this system needs modules: mounts, disks, interfaces, consoles, units and other files."""
