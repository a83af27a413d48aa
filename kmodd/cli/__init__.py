# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodctl: a plain client of the D-Bus API."""
