# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may say that it asks for somebody else: root and the HTTP gateway's user.

Nothing is decided by what they say. But it is written into the journal beside every change, where an administrator reads it,
so nobody else may put a name there.
"""

import pwd
from collections.abc import Callable

GATEWAY = "kmodd-gateway"

Speakers = Callable[[int | None], bool]
"""Whether this user may."""


def root_and_gateway(uid: int | None) -> bool:
    """The gateway may have been installed since the last question, so its user is looked up each time."""
    if uid == 0:
        return True
    try:
        return uid is not None and pwd.getpwuid(uid).pw_name == GATEWAY
    except KeyError:  # a user without a name
        return False
