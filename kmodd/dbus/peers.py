# SPDX-License-Identifier: LGPL-2.1-or-later
"""Identity of peers, queried from the bus once per connection, and who may use on-behalf-of: root and the gateway's user.

Nothing is authorized by on-behalf-of. But it is recorded in the journal beside every change, so no other user may set it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from kmodd.dbus.marshal import decode
from kmodd.dbus.message import ReceivedMessage
from kmodd.dbus.transport import Transport
from kmodd.errors import InvalidArgs
from kmodd.model import Caller

# A connection went: its unique name has no new owner. The bus sends this for every connection, so it is subscribed only
# while a peer is known: an idle daemon is not woken when others connect and disconnect.
_RULE = "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''"


@dataclass(slots=True, eq=False)
class Peer:
    """A connection that has called us."""

    sender: str
    uid: int | None = None
    """None when the bus did not tell."""
    pid: int = 0
    gone: bool = False
    unknowable: bool = False
    """The bus did not answer who it is: its calls are refused."""
    executable: str | None = None
    """Looked up when first needed, as are the next: only the journal wants them."""
    login_uid: int | None = None
    looking: "asyncio.Task[None] | None" = None
    """The search for the executable."""
    waiting: int = 0
    """Calls of this connection that wait for their turn."""
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    """What can be cancelled when it goes."""


Credentials = Callable[[str], Awaitable[tuple[int | None, int]]]
"""Asks the bus for (uid, pid) of a unique name; raises when it is gone."""


Executable = Callable[[int], Awaitable[str]]
"""The path of a process's program, empty if unknown."""

Identity = Callable[[int], tuple[str, int] | None]
"""Answers what a process calls itself and when it began; None when it has ended."""

Expect = Callable[[str], Callable[[str], None]]
"""Called with a connection whose executable is being looked up; returns the callback for the result, which may be empty."""

EXECUTABLE_TIMEOUT = 0.05
"""Seconds that a call waits for its caller's executable: where a process runs already that can tell, its records are complete
before the reply."""


class Peers:
    """Every connection that has called us and is still there."""

    def __init__(
        self,
        driver: Transport,
        credentials: Credentials,
        executable: Executable,
        login_uid: Callable[[int, int | None], int | None] = lambda pid, uid: None,
        *,
        identity: Identity = lambda pid: None,
        expect: Expect | None = None,
    ) -> None:
        """`executable` answers the path of a process's program, or nothing; it goes to the journal only.

        `login_uid` answers as whom the session of a process of this user logged in, None when that cannot be known. Without
        `expect` every call waits until the executable is known.
        """
        self._driver = driver
        self._credentials = credentials
        self._executable = executable
        self._login_uid = login_uid
        self._identity = identity
        self._expect = expect
        self._clients: dict[str, Peer] = {}
        self._identifying: set[asyncio.Task[None]] = set()
        self.on_gone: Callable[[Peer], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, sender: str) -> Peer | None:
        """The connection, when it is known already."""
        return self._clients.get(sender)

    def identify(self, sender: str, ready: Callable[[Peer], None]) -> Peer:
        """Get to know a new connection; `ready` is called once its user is known, or known to be unknowable."""
        if not self._clients:
            self._driver.call_driver("AddMatch", "s", _RULE)
        client = self._clients[sender] = Peer(sender)
        # The match rule is active before the bus answers, so a connection that goes in between is noticed either way.
        task = asyncio.get_running_loop().create_task(self._identify(client, ready))
        self._identifying.add(task)
        task.add_done_callback(self._identifying.discard)
        return client

    async def _identify(self, client: Peer, ready: Callable[[Peer], None]) -> None:
        try:
            client.uid, client.pid = await self._credentials(client.sender)
        except Exception:  # noqa: BLE001 - gone, no answer, an answer that cannot be read: unidentified peers are denied everything
            client.uid, client.unknowable = None, True
        ready(client)
        if client.unknowable:
            # Its next call asks the bus again.
            self.forget(client.sender)

    def on_signal(self, frame: ReceivedMessage) -> None:
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
            self._driver.call_driver("RemoveMatch", "s", _RULE)

    def caller(self, client: Peer, *, interactive: bool, reason: str = "") -> Caller:
        """The frozen caller of one call, with executable and login uid where they are known already."""
        return Caller(
            client.sender,
            client.uid,
            interactive,
            client.executable or "",
            login_uid=client.login_uid,
            reason=reason,
            pid=client.pid,
        )

    async def with_origin(self, client: Peer, caller: Caller) -> Caller:
        """The caller as it is going to be written down, as far as that is known soon."""
        if client.looking is None:
            client.login_uid = self._login_uid(client.pid, client.uid) if client.pid else None
            report = self._expect(client.sender) if self._expect is not None else lambda _: None
            client.looking = asyncio.get_running_loop().create_task(self._look_up(client, report))
            self._identifying.add(client.looking)
            client.looking.add_done_callback(self._identifying.discard)
        if client.executable is None:
            # Who leaves meanwhile ends its own call, and not the search: others of this connection, and its records, want it.
            await asyncio.wait({client.looking}, timeout=EXECUTABLE_TIMEOUT if self._expect is not None else None)
        return replace(caller, exe=client.executable or "", login_uid=client.login_uid)

    async def _look_up(self, client: Peer, report: Callable[[str], None]) -> None:
        before = self._identity(client.pid)
        path = ""
        try:
            path = await self._executable(client.pid)
        finally:
            if before is not None and (not path or self._identity(client.pid) != before):
                # It ended while it was looked for, and its number may be another's: what it called itself, as `ps` shows it.
                path = f"[{before[0]}]"
            client.executable = path
            report(path)

    def close(self) -> None:
        """Cancel all queries."""
        for task in self._identifying:
            task.cancel()


GATEWAY = "kmodd-gateway"
AGENT = "kmodd-agent"
"""The agent of a Kubernetes cluster, which names its module sets."""


class Delegation:
    """Root, and the users of these names in the machine's own passwd(5) file.

    The file is read instead of getpwuid(3): with users in a directory (sssd, LDAP) that call blocks for seconds while the directory
    is away, and a user whom the directory calls `kmodd-gateway` would be taken for the gateway.
    """

    def __init__(self, passwd: Path, *names: str) -> None:
        self._passwd = passwd
        self._names = [name.encode() for name in names]
        self._stamp: tuple[int, int, int] | None = None
        self._uids: frozenset[int] = frozenset()

    def __call__(self, uid: int | None) -> bool:
        """Whether this user may; only root if the file cannot be read."""
        return uid == 0 or uid in self._users()

    def _users(self) -> frozenset[int]:
        """Ids of the users. The file is read again only when it was replaced: the gateway may be installed later."""
        try:
            status = self._passwd.stat()
            stamp = status.st_mtime_ns, status.st_ino, status.st_size
            if stamp != self._stamp:
                content = self._passwd.read_bytes()
                uids = (_uid_of(name, content) for name in self._names)
                self._uids = frozenset(uid for uid in uids if uid is not None)
                self._stamp = stamp
        except OSError:
            self._stamp, self._uids = None, frozenset()
        return self._uids


def _uid_of(name: bytes, passwd: bytes) -> int | None:
    """The uid in the first entry of this name, as getpwnam(3) would take it."""
    for line in passwd.splitlines():
        match line.split(b":"):
            case [entry, _, uid, *_] if entry == name:
                return int(uid) if uid.isdigit() else None
    return None
