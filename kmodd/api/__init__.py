# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus interfaces of the daemon: org.kmodd1.* and the standard ones, each method a line or two."""
