# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per D-Bus interface; every member delegates."""
