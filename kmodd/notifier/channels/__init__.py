# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a notification leaves: webhook, mail, desktop."""
