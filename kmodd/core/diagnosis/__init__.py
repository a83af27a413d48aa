# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why: the cause of a failure, what holds a module, what to do."""
