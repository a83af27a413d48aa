# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is at the other end: asked of the bus once per connection, forgotten when the connection goes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from kmodd.bus.decoder import decode
from kmodd.bus.frame import Frame
from kmodd.errors import InvalidArgs
from kmodd.model import Caller

# A connection went: its unique name has no new owner. The bus sends this for every connection, so it is asked for only
# while somebody is known: an idle daemon is not woken by the comings and goings of others.
_RULE = "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''"


@dataclass(slots=True, eq=False)
class Client:
    """A connection that has called us."""

    sender: str
    uid: int | None = None
    """None when the bus did not tell."""
    pid: int = 0
    gone: bool = False
    executable: str | None = None
    """Read when first needed: only the journal wants it."""
    waiting: int = 0
    """Calls of this connection that wait for their turn."""
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    """What can be cancelled when it goes."""


class Driver(Protocol):
    """What is needed of the transport."""

    def tell_driver(self, member: str, signature: str, *body: object) -> None:
        """Call the bus without waiting for its reply."""


Credentials = Callable[[str], Awaitable[tuple[int | None, int]]]
"""Asks the bus for (uid, pid) of a unique name; raises when it is gone."""


class Callers:
    """Every connection that has called us and is still there."""

    def __init__(self, driver: Driver, credentials: Credentials, executable: Callable[[int], str]) -> None:
        """`executable` answers the path of a process's program, or nothing; it is told to the journal and to nobody else."""
        self._driver = driver
        self._credentials = credentials
        self._executable = executable
        self._clients: dict[str, Client] = {}
        self._identifying: set[asyncio.Task[None]] = set()
        self.on_gone: Callable[[Client], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, sender: str) -> Client | None:
        """The connection, when it is known already."""
        return self._clients.get(sender)

    def identify(self, sender: str, ready: Callable[[Client], None]) -> Client:
        """Get to know a new connection; `ready` is called once its user is known, or known to be unknowable."""
        if not self._clients:
            self._driver.tell_driver("AddMatch", "s", _RULE)
        client = self._clients[sender] = Client(sender)
        # The rule is in force before the bus answers, so a connection that goes in between is noticed either way.
        task = asyncio.get_running_loop().create_task(self._identify(client, ready))
        self._identifying.add(task)
        task.add_done_callback(self._identifying.discard)
        return client

    async def _identify(self, client: Client, ready: Callable[[Client], None]) -> None:
        try:
            client.uid, client.pid = await self._credentials(client.sender)
        except Exception:  # noqa: BLE001 - gone, no answer, an answer that cannot be read: nobody, and nobody may nothing
            client.uid = None
            self.forget(client.sender)
        ready(client)

    def on_signal(self, frame: Frame) -> None:
        """Notice in a signal of the bus that a connection went."""
        if frame.member != "NameOwnerChanged" or frame.signature != "sss" or not self._clients:
            return
        try:
            name, _, owner = decode("sss", frame.body, little=frame.little)
        except InvalidArgs:  # longer than any name: not one of ours
            return
        if not owner:
            self.forget(name)

    def forget(self, sender: str) -> None:
        """The connection went; everything it has waiting is dropped."""
        client = self._clients.pop(sender, None)
        if client is None:
            return
        client.gone = True
        self.on_gone(client)
        if not self._clients:
            self._driver.tell_driver("RemoveMatch", "s", _RULE)

    def caller(self, client: Client, *, interactive: bool, audited: bool) -> Caller:
        """The frozen caller of one call; the executable is looked up only when it is going to be written down."""
        if audited and client.executable is None:
            client.executable = self._executable(client.pid) if client.pid else ""
        return Caller(client.sender, client.uid, interactive, client.executable or "")

    def close(self) -> None:
        """Ask nobody any more."""
        for task in self._identifying:
            task.cancel()
