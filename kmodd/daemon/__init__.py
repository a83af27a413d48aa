# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon process: joins the parts, reads its options, tells systemd."""
