# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only code that touches the machine; every part takes its root folder or its handle as an argument."""
