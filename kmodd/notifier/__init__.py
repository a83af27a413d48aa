# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells people and programs elsewhere what happens to kernel modules: webhooks, e-mail, the desktop."""
