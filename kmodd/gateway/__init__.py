# SPDX-License-Identifier: LGPL-2.1-or-later
"""The HTTP gateway: a separate unprivileged process, and a plain client of the D-Bus API."""
