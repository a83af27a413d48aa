# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may manage notifications. Whatever is not a well-formed yes in time is a no."""

import asyncio
from itertools import count
from typing import Protocol

from kmodd.client_transport import BUS, Transport, variant
from kmodd.errors import AccessDenied, InteractiveAuthorizationRequired, KmoddError

ACTION = "org.kmodd1.manage-notifications"
POLKIT = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
INTERFACE = "org.freedesktop.PolicyKit1.Authority"
ALLOW_INTERACTION = 1
TIMEOUT = 120.0
"""Seconds for a person to type a password."""


class Authority(Protocol):
    """Decides."""

    async def check(self, sender: str, *, interactive: bool) -> int:
        """Answer the caller's uid, or raise AccessDenied or InteractiveAuthorizationRequired."""


async def user_of(transport: Transport, sender: str) -> int | None:
    """The uid behind a unique name, as the bus knows it; None when it has left."""
    try:
        (uid,) = await transport.call(
            BUS[1], BUS[2], "GetConnectionUnixUser", "s", [sender], timeout=10.0, destination=BUS[0]
        )
    except KmoddError:
        return None
    return uid if isinstance(uid, int) else None


class Polkit:
    """polkit, asked about the sender's unique name, which no other process can take (a process id could be)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._serial = count(1)

    async def check(self, sender: str, *, interactive: bool) -> int:
        """Root needs no polkit: it can do all of this with an editor."""
        uid = await user_of(self._transport, sender)
        if uid is None:
            raise AccessDenied("it cannot be told who is asking")
        if uid == 0:
            return uid
        cancellation = f"kmodd-notifier-{next(self._serial)}"
        try:
            answer = await self._transport.call(
                PATH,
                INTERFACE,
                "CheckAuthorization",
                "(sa{sv})sa{ss}us",
                [
                    ["system-bus-name", {"name": variant("s", sender)}],
                    ACTION,
                    {},
                    ALLOW_INTERACTION if interactive else 0,
                    cancellation,
                ],
                timeout=TIMEOUT,
                destination=POLKIT,
            )
        except (KmoddError, asyncio.CancelledError) as error:
            await self._withdraw(cancellation)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise AccessDenied("polkit could not be asked for authorization") from error
        match answer:
            case ([True, bool(), dict()],):
                return uid
            case ([False, True, dict()],):
                raise InteractiveAuthorizationRequired("this needs authentication")
        raise AccessDenied(f"polkit does not allow this ({ACTION})")

    async def _withdraw(self, cancellation: str) -> None:
        try:
            await self._transport.call(
                PATH, INTERFACE, "CancelCheckAuthorization", "s", [cancellation], timeout=1.0, destination=POLKIT
            )
        except KmoddError:
            return  # polkit does not know it any more, or is gone


class SameUser:
    """For a bus of one's own: whoever is the user that runs this. Never used on the system bus."""

    def __init__(self, transport: Transport, uid: int) -> None:
        self._transport = transport
        self._uid = uid

    async def check(self, sender: str, *, interactive: bool) -> int:
        """Nobody else."""
        uid = await user_of(self._transport, sender)
        if uid is None or uid != self._uid:
            raise AccessDenied("only the user who runs this notifier may do that")
        return uid
