# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kmodctl prints with: tables, trees, progress, pager."""
