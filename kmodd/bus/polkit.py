# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks polkit. Whatever is not a well-formed yes in time is a no."""

import asyncio
from collections.abc import Mapping
from itertools import count
from typing import Any, Protocol

from kmodd.bus.speakers import Speakers, root_and_gateway
from kmodd.errors import AccessDenied, InteractiveAuthorizationRequired
from kmodd.model import Caller

NAME = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
INTERFACE = "org.freedesktop.PolicyKit1.Authority"
_ALLOW_USER_INTERACTION = 1


class Bus(Protocol):
    """What is needed of the transport."""

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        *,
        timeout: float = 5.0,
        interactive: bool = False,
    ) -> list[Any]:
        """Call and answer the reply's values."""

    def variant(self, signature: str, value: Any) -> Any:
        """A variant for `call`."""


class Polkit:
    """polkit as the authority of the system bus.

    The subject is always the caller's unique bus name, which cannot be taken by another process; a process id could be
    (CVE-2013-4288). A check that is cancelled, or is not answered in time, is cancelled at polkit too: its prompt goes away.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        timeout: float = 5.0,
        prompt_timeout: float = 120.0,
        speakers: Speakers = root_and_gateway,
    ) -> None:
        """Seconds polkit has for its answer, without and with a password prompt; who may say for whom it asks."""
        self._bus = bus
        self._speakers = speakers
        self._timeout = timeout
        self.prompt_timeout = prompt_timeout
        """May be changed; counts for the next prompt."""
        self._serial = count(1)
        self._withdrawals: set[asyncio.Task[None]] = set()

    def may_speak_for_others(self, uid: int | None) -> bool:
        """Only those whose business it is."""
        return self._speakers(uid)

    async def check(self, caller: Caller, action: str, details: Mapping[str, str]) -> None:
        """Return only on an explicit yes. Root needs none: polkit itself says yes to it without asking its rules."""
        if caller.uid == 0:
            return
        if caller.uid is None:
            raise AccessDenied("it cannot be told who is asking")
        cancellation = f"kmodd-{next(self._serial)}"
        timeout = self.prompt_timeout if caller.interactive else self._timeout
        answered = False
        try:
            answer = await self._bus.call(
                NAME,
                PATH,
                INTERFACE,
                "CheckAuthorization",
                "(sa{sv})sa{ss}us",
                (
                    ["system-bus-name", {"name": self._bus.variant("s", caller.sender)}],
                    action,
                    dict(details),
                    _ALLOW_USER_INTERACTION if caller.interactive else 0,
                    cancellation,
                ),
                timeout=timeout,
            )
            answered = True
        except Exception as error:
            # Whatever went wrong (no polkit, an error reply, time ran out, the bus lost, a reply that cannot be read) is a no.
            raise AccessDenied("polkit could not be asked for authorization") from error
        finally:
            if not answered:
                self._withdraw(cancellation)
        yes, challenge = _decision(answer)
        if yes:
            return
        if challenge:
            raise InteractiveAuthorizationRequired("this needs authentication, and the call does not allow a prompt")
        raise AccessDenied(f"polkit does not allow this ({action})")

    def _withdraw(self, cancellation: str) -> None:
        """Take a question back; nobody waits for what polkit says to that."""
        task = asyncio.get_running_loop().create_task(self._cancel(cancellation))
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawn)

    def _withdrawn(self, task: "asyncio.Task[None]") -> None:
        self._withdrawals.discard(task)
        if not task.cancelled():
            task.exception()  # polkit may be gone or not know the question any more: either way it is taken back

    async def _cancel(self, cancellation: str) -> None:
        await self._bus.call(
            NAME, PATH, INTERFACE, "CancelCheckAuthorization", "s", (cancellation,), timeout=self._timeout
        )


def _decision(answer: list[Any]) -> tuple[bool, bool]:
    """(is authorised, is challenge) of a reply `(bba{ss})`; anything else is no, no."""
    match answer:
        case [[bool() as yes, bool() as challenge, dict()]]:
            return yes, challenge
    return False, False
