# SPDX-License-Identifier: LGPL-2.1-or-later
"""modprobe.d and modules-load.d, read as libkmod and systemd read them."""
