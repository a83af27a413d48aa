# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only code that accesses the system; every part takes its root directory or its handle as an argument."""
