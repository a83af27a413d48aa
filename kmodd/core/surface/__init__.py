# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of a kernel can be loaded by whom, and by which route."""
