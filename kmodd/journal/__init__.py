# SPDX-License-Identifier: LGPL-2.1-or-later
"""The journal: kmodd's records, written and read."""
