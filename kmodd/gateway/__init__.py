# SPDX-License-Identifier: LGPL-2.1-or-later
"""The HTTP gateway: an unprivileged process of its own, and a plain client of the D-Bus API."""
