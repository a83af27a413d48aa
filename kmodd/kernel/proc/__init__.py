# SPDX-License-Identifier: LGPL-2.1-or-later
"""Readers of /proc and /sys: loaded modules, facts of the kernel, its log, uevents."""
