# SPDX-License-Identifier: LGPL-2.1-or-later
"""Users by name."""


def user_name(uid: int | None) -> str:
    """`alice (uid 1000)`, or what is known."""
    if uid is None:
        return "an unknown user"
    from pwd import getpwuid  # may ask name services; only where a user is shown

    try:
        return f"{getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
