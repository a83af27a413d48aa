# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who decides whether a caller may."""

from collections.abc import Mapping
from typing import Protocol

from kmodd.errors import AccessDenied
from kmodd.model import Caller


class Authority(Protocol):
    """Decides; returning is the only way to say yes."""

    async def check(self, caller: Caller, action: str, details: Mapping[str, str]) -> None:
        """Return when the caller may; AccessDenied or InteractiveAuthorizationRequired otherwise, never anything else."""

    def may_speak_for_others(self, uid: int | None) -> bool:
        """What this user says about whom it asks for is worth being written down; nothing else follows from it."""
        ...


class InsecureSameUserAuthority:
    """FOR A SIMULATED KERNEL ONLY: whoever runs the simulation may do everything, without asking polkit.

    Other users may nothing. Never to be used where there is a real kernel behind it.
    """

    def __init__(self, uid: int) -> None:
        """`uid` is the user that runs the simulation."""
        self._uid = uid

    async def check(self, caller: Caller, action: str, details: Mapping[str, str]) -> None:
        """Compare user ids."""
        if caller.uid is None or caller.uid != self._uid:
            raise AccessDenied(f"only the user who runs this simulation may do this ({action})")

    def may_speak_for_others(self, uid: int | None) -> bool:
        """As for everything."""
        return uid is not None and uid == self._uid
