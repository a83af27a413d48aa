# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd: a system daemon that loads, unloads and explains kernel modules over D-Bus."""

VERSION = "0.1.0"
"""The version of the daemon, the command line and the D-Bus property `Version`."""
