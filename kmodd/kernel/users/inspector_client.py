# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's side of the inspector: one search shared by concurrent requests; its answers are treated as untrusted."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kmodd.kernel.users.inspector import ANSWER_MAX, CONSEQUENCES_MAX, EXECUTABLES_MAX, NAMESPACES_MAX
from kmodd.kernel.worker.worker_client import WorkerProcess, WorkerUnit
from kmodd.model import Consequence, ConsequenceKind, Remedy, Usage, User
from kmodd.names import ModuleName

TIMEOUT = 30.0
"""Seconds for one order, with the start of the process on a slow machine; a search itself ends after two."""
NAMING_TIMEOUT = 10.0
"""Seconds for executables: a call waits for them, and can do without."""
KEPT = 0.25
"""Seconds that a search's result answers further questions.

Names in a loop are then one search, and a result of that age is not noticed: a command takes longer to type.
"""
IDLE = 120.0
"""Seconds after which a process without an order is let go, so that a script of commands starts one only once."""
AGE_MAX = 600.0
"""Seconds after which a process gets no further order; systemd ends it after twice that."""
_BYTES_MAX = 8 << 20
_OVERHEAD = 512
_ENDING = 1.0
"""Seconds that the daemon's end waits for the processes'."""
_TEXT_MAX = 4096
_LIST_MAX = 64
_UNANSWERED = "the inspector did not answer"
_NOT_ENTERED = "other network namespaces were not examined"
_TABLE_NAMES = ("ip_tables_names", "ip6_tables_names", "arp_tables_names")
"""Files in /proc/net, each there while the kernel has such tables, and readable to root alone. As in `xtables`, which an idle
daemon does not import.
"""


_Sighting = tuple[tuple[str, ...], User]


@dataclass(slots=True)
class _Place:
    """A network namespace that the inspector has opened."""

    user: User
    """What each user in it gets from it."""
    tables: dict[str, tuple[str, ...]] | None
    file: int


def _close(places: list[_Place]) -> None:
    while places:
        os.close(places.pop().file)


@dataclass(slots=True)
class _Search:
    """What one search answered."""

    users: dict[str, list[User]] = field(default_factory=dict)
    partial: str = ""
    crowded: frozenset[str] = frozenset()


class Inspector:
    """`ports.Inspection` by separate processes, one for each kind of order, started when needed."""

    def __init__(
        self,
        *,
        unit_socket: str = "",
        tables_socket: str = "",
        namespaces_socket: str = "",
        network: Path = Path("/proc/net"),
        modules: Path = Path("/sys/module"),
        program: Sequence[str] = (),
        timeout: float = TIMEOUT,
    ) -> None:
        """`unit_socket` is where systemd starts inspectors, `tables_socket` those for tables, and `namespaces_socket` those that enter
        network namespaces; without them they are children.

        `network` is the folder that shows whether there are tables of iptables-legacy and its like, `modules` of ebtables-legacy.
        """
        command = tuple(program) or (sys.executable, "-I", "-S", str(Path(__file__).with_name("inspector.py")))
        self._network = network
        self._bridges = modules / "ebtables"
        self._tables = _Conversation(tables_socket, command, timeout)
        self._entering = _Conversation(namespaces_socket, command, timeout, unanswered=_NOT_ENTERED)
        self._searching = _Conversation(unit_socket, command, timeout)
        self._naming = _Conversation(unit_socket, command, min(timeout, NAMING_TIMEOUT))
        self._foreseeing = _Conversation(unit_socket, command, timeout)
        self._turn = asyncio.Lock()
        self._next: tuple[set[ModuleName], asyncio.Task[_Reply]] | None = None
        """The look at what goes with modules that has not begun yet, and the modules it is about."""
        self._search: asyncio.Task[_Search] | None = None
        self._wanted: dict[int, asyncio.Future[str]] = {}
        self._lookup: asyncio.Task[None] | None = None

    async def users(self, name: ModuleName) -> Usage:
        """See `ports.Inspection`."""
        if self._search is None:
            self._search = asyncio.get_running_loop().create_task(self._run_search())
            self._search.add_done_callback(self._keep)
        # A caller that leaves must not end the search for the others who wait for it.
        search = await asyncio.shield(self._search)
        crowded = name in search.crowded
        left_out = ["it has more users than are listed"] if crowded else []
        partial = ", ".join([search.partial] * bool(search.partial) + left_out)
        users = search.users.get(name, ())
        if partial:
            # What was left out may be on the disks that a logout takes away.
            users = [replace(user, remedy=Remedy.NONE) if user.remedy is Remedy.LOG_OUT else user for user in users]
        return Usage(tuple(users), partial, crowded)

    async def consequences(self, names: Collection[ModuleName]) -> Mapping[ModuleName, tuple[Consequence, ...]]:
        """See `ports.Inspection`. Requests that arrive while an order is in progress share the next one."""
        wanted = frozenset(names)
        if self._next is None or len(self._next[0] | wanted) > CONSEQUENCES_MAX:
            together = set(wanted)
            self._next = together, asyncio.get_running_loop().create_task(self._run_foresight(together))
        self._next[0].update(wanted)
        reply = await asyncio.shield(self._next[1])
        found: dict[ModuleName, list[Consequence]] = {name: [] for name in wanted}
        for module, row in reply.consequences:
            found.get(ModuleName(module), []).append(row)
        if reply.partial:
            unknown = Consequence(ConsequenceKind.UNKNOWN, "", detail=reply.partial)
            for rows in found.values():
                rows.append(unknown)
        return {name: tuple(rows) for name, rows in found.items()}

    async def executable(self, pid: int) -> str:
        """See `ports.Inspection`. Requests that arrive while an order is in progress share the next one."""
        if pid <= 0:
            return ""
        loop = asyncio.get_running_loop()
        wanted = self._wanted.get(pid)
        if wanted is None:
            wanted = self._wanted[pid] = loop.create_future()
        if self._lookup is None:
            self._lookup = loop.create_task(self._run_lookups())
        return await asyncio.shield(wanted)

    async def close(self) -> None:
        """End the processes; who waits gets what is known, which is nothing."""
        tasks: list[asyncio.Task[Any]] = [task for task in (self._search, self._lookup) if task is not None]
        tasks += [self._next[1]] if self._next is not None else []
        conversations = (self._searching, self._tables, self._entering, self._naming, self._foreseeing)
        await asyncio.gather(*(each.close() for each in conversations), *tasks, return_exceptions=True)

    def _keep(self, search: "asyncio.Task[_Search]") -> None:
        def forget() -> None:
            if self._search is search:
                self._search = None

        if search.cancelled() or search.exception() is not None:
            forget()
        else:
            asyncio.get_running_loop().call_later(KEPT, forget)

    async def _run_search(self) -> _Search:
        elsewhere: list[asyncio.Task[_Reply]] = []

        def listed(places: list[_Place]) -> None:
            # While the inspector looks at processes.
            if places and not elsewhere:
                elsewhere.append(asyncio.get_running_loop().create_task(self._run_elsewhere(places)))
            else:
                _close(places)

        orders = [self._searching.ask({"search": True}, listed=listed)]
        if any(path.exists() for path in (self._bridges, *(self._network / name for name in _TABLE_NAMES))):
            orders.append(self._tables.ask({"tables": True}))
        rest, *tables = await asyncio.gather(*orders)
        rest.users = list(_settled([*(each for reply in tables for each in reply.users), *rest.users]))
        for reply in tables:
            reply.users = []
        entered = [await each for each in elsewhere]
        replies = (*tables, rest, *entered)
        search = _Search(partial=", ".join(dict.fromkeys(reply.partial for reply in replies if reply.partial)))
        for reply in replies:
            search.crowded |= frozenset(reply.crowded)
            for modules, user in reply.users:
                for module in modules if user.kind != "namespace" else ():
                    search.users.setdefault(module, []).append(user)
        # Namespaces that were not examined are listed for a module of which no other user is known.
        known = frozenset(search.users)
        for modules, user in rest.users if not entered or entered[0].partial else ():
            for module in modules if user.kind == "namespace" else ():
                if module not in known:
                    search.users.setdefault(module, []).append(user)
        return search

    async def _run_elsewhere(self, places: list[_Place]) -> "_Reply":
        users = [place.user for place in places]
        reply = await self._entering.ask({"namespaces": [place.tables for place in places]}, places)
        try:
            reply.users = [(modules, _at(user, users[int(user.netns)])) for modules, user in _settled(reply.users)]
        except (ValueError, IndexError):
            reply.users, reply.partial = [], _NOT_ENTERED
        return reply

    async def _run_foresight(self, names: set[ModuleName]) -> "_Reply":
        async with self._turn:
            # Requests from here on are about a later moment.
            if self._next is not None and self._next[0] is names:
                self._next = None
            return await self._foreseeing.ask({"consequences": sorted(names)})

    async def _run_lookups(self) -> None:
        try:
            while self._wanted:
                batch = dict(list(self._wanted.items())[:EXECUTABLES_MAX])
                reply = await self._naming.ask({"executables": list(batch)})
                for pid, wanted in batch.items():
                    del self._wanted[pid]
                    wanted.set_result(reply.executables.get(pid, ""))
        finally:
            self._lookup = None


@dataclass(slots=True)
class _Reply:
    """All answers to one order."""

    users: list[_Sighting] = field(default_factory=list)
    executables: dict[int, str] = field(default_factory=dict)
    consequences: list[tuple[str, Consequence]] = field(default_factory=list)
    partial: str = _UNANSWERED
    crowded: tuple[str, ...] = ()
    size: int = 0
    ended: bool = False
    places: list[_Place] = field(default_factory=list)
    listed: Callable[[list[_Place]], None] = _close
    """Called with these when they are all there."""

    def take(self, data: bytes, files: list[int]) -> None:
        """Read one answer as if a stranger had written it; ValueError, KeyError or TypeError for anything odd.

        `files` are the descriptors that came with it; one that is kept is taken away.
        """
        if self.ended:
            raise ValueError("an answer without an order")
        self.size += len(data) + _OVERHEAD
        if self.size > _BYTES_MAX:
            raise ValueError("too many answers")
        answer = json.loads(data)
        if not isinstance(answer, dict):
            raise TypeError("not an object")
        if "end" in answer:
            self.partial, self.crowded = _text(answer["partial"]), _texts(answer["crowded"])
            self.ended = True
        elif "namespace" in answer:
            if len(files) != 1 or len(self.places) == NAMESPACES_MAX:
                raise ValueError("not one of a few network namespaces")
            self.places.append(_Place(read_user(answer["namespace"]), _read_tables(answer["tables"]), files[0]))
            files.clear()
        elif "namespaces" in answer:
            places, self.places = self.places, []
            self.listed(places)
        elif "consequence" in answer:
            row = read_consequence(answer["consequence"])
            self.consequences += [(module, row) for module in _texts(answer["modules"])]
        elif "user" in answer:
            self.users.append((_texts(answer["modules"]), read_user(answer["user"])))
        else:
            self.executables[_number(answer["pid"])] = _text(answer["executable"])


class _Conversation:
    """One process with orders one after the other; it is started for an order, and let go when it is idle."""

    def __init__(
        self, unit_socket: str, program: Sequence[str], timeout: float, *, unanswered: str = _UNANSWERED
    ) -> None:
        """`unanswered` is what a reply says that did not come, or not all of it."""
        self._unit_socket = unit_socket
        self._program = program
        self._timeout = timeout
        self._unanswered = unanswered
        self._loop = asyncio.get_running_loop()
        self._process: WorkerProcess | None = None
        self._leaving: set[WorkerProcess] = set()
        self._replaced_at = 0.0
        self._reply = _Reply()
        self._done: asyncio.Future[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False

    async def ask(
        self,
        order: Mapping[str, Any],
        places: list[_Place] | None = None,
        *,
        listed: Callable[[list[_Place]], None] = _close,
    ) -> _Reply:
        """All answers until the process exited, sent an invalid one or took too long; never raises.

        `places` go with the order and are closed; `listed` is called with those that the process has opened.
        """
        if self._idle is not None:
            self._idle.cancel()
        reply = self._reply = _Reply(partial=self._unanswered, listed=listed)
        places = places or []
        self._done = done = self._loop.create_future()
        try:
            handed_over = not self._closed and self._hand_over(
                json.dumps(order).encode(), [each.file for each in places]
            )
            _close(places)
            if handed_over:
                async with asyncio.timeout(self._timeout):
                    await done
        except (OSError, TimeoutError):
            pass
        finally:
            self._done = None
            _close(places)
            _close(reply.places)
            if not reply.ended or self._loop.time() > self._replaced_at:
                self._release_waiting()
            if not self._closed:
                self._idle = self._loop.call_later(IDLE, self._release_waiting)
        return reply

    async def close(self) -> None:
        """End it; the order under way is over."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        self._release_waiting()
        self._finish()
        if self._leaving:
            await asyncio.wait([process.gone for process in self._leaving], timeout=_ENDING)
        for process in tuple(self._leaving):
            self._gone(process)

    def _hand_over(self, order: bytes, files: Sequence[int]) -> bool:
        # One that was waiting may have ended meanwhile: then a new one gets the order.
        if self._process is not None and self._process.send(order, files):
            return True
        self._release_waiting()
        kind = _InspectorUnit if self._unit_socket else _InspectorProcess
        program = (self._unit_socket,) if self._unit_socket else self._program
        self._process = kind(program, answered=self._answered, ended=self._ended)
        self._replaced_at = self._loop.time() + AGE_MAX
        return self._process.send(order, files)

    def _answered(self, process: WorkerProcess, data: bytes) -> None:
        if process is not self._process:
            return
        try:
            self._reply.take(data, process.files)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._release_waiting()
            self._finish()
        else:
            if self._reply.ended:
                self._finish()

    def _ended(self, process: WorkerProcess) -> None:
        if process is self._process:
            self._release_waiting()
            self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _release_waiting(self) -> None:
        """Close its socket: it leaves then. A child is ended; one of systemd's has another user, and a time limit."""
        process, self._process = self._process, None
        if process is None:
            return
        if not self._unit_socket:
            process.kill()
        process.dismiss()
        self._leaving.add(process)
        process.gone.add_done_callback(lambda _: self._gone(process))

    def _gone(self, process: WorkerProcess) -> None:
        process.forget()
        self._leaving.discard(process)


class _InspectorProcess(WorkerProcess):
    answer_max = ANSWER_MAX
    files_max = 1


class _InspectorUnit(WorkerUnit):
    answer_max = ANSWER_MAX
    files_max = 1


def _settled(sightings: Sequence[_Sighting]) -> Iterator[_Sighting]:
    """With rules of iptables-legacy as users of the sets that they name, which another process has seen than these.

    A set to which something else refers cannot be destroyed, and has no command.
    """
    rules: dict[tuple[str, int], list[User]] = {}
    for _, user in sightings:
        for index in user.sets if user.kind == "rule" else ():
            rules.setdefault((user.netns, index), []).append(user)
    for modules, user in sightings:
        if user.kind != "set" or not user.references:
            yield modules, user
            continue
        naming = [rule for index in user.sets for rule in rules.get((user.netns, index), ())]
        if len(naming) == user.references:
            # One may name a set more than once.
            for rule in dict.fromkeys(naming):
                yield modules, rule
            yield modules, user
        else:
            detail = f"{user.detail}, which a set of sets or something else refers to"
            yield modules, replace(user, detail=detail, remedy=Remedy.NONE, words=())


def _at(user: User, place: User) -> User:
    """What was found in a network namespace, with where that is, and what ends it there or from outside."""
    # As with what goes with a module (`core.planning.consequence_text`).
    where = f"network namespace {place.netns}"
    if place.netns.startswith("pid "):
        where = f"the network namespace of {place.netns}"
    found = replace(
        user,
        detail=", ".join(filter(None, (user.detail, f"in {where}"))),
        pid=place.pid,
        unit=place.unit,
        container=place.container,
        netns=place.netns,
        owner=place.owner,
        entry=place.entry,
    )
    if place.entry or user.remedy is Remedy.NOT_NEEDED:
        return found
    return replace(found, remedy=place.remedy, target=place.target, words=(), pids=place.pids)


def _read_tables(values: Any) -> dict[str, tuple[str, ...]] | None:
    """Tables of iptables-legacy by the file that names them; errors as of `read_user`."""
    if values is None:
        return None
    if not isinstance(values, Mapping) or set(values) != set(_TABLE_NAMES):
        raise TypeError("not the names of tables")
    return {name: _texts(values[name]) for name in _TABLE_NAMES}


def read_user(values: Any) -> User:
    """A user as the inspector describes it; ValueError, KeyError or TypeError where a field is not what it has to be.

    Text to show is printable. The target of a command may be anything: the code that makes the command checks it.
    """
    if not isinstance(values, Mapping):
        raise TypeError("not an object")
    return User(
        kind=_word(values["kind"]),
        name=_text(values["name"]),
        detail=_text(values["detail"]),
        pid=_number(values["pid"]) if values["pid"] is not None else None,
        exe=_text(values["exe"]),
        unit=_text(values["unit"]),
        container=_text(values["container"]),
        netns=_text(values["netns"]),
        mountns=_text(values["mountns"]),
        file=_text(values["file"]),
        line=_number(values["line"]),
        owner=_number(values["owner"]) if values["owner"] is not None else None,
        remedy=Remedy(values["remedy"]),
        target=_any_text(values["target"]),
        words=tuple(map(_any_text, _list(values["words"]))),
        pids=tuple(map(_number, _list(values["pids"]))),
        level=_number(values["level"]),
        entry=_any_text(values["entry"]),
        sets=tuple(map(_number, _list(values["sets"]))),
        references=_number(values["references"]),
    )


def read_consequence(values: Any) -> Consequence:
    """One thing that goes with a module, as the inspector describes it; errors as of `read_user`."""
    if not isinstance(values, Mapping):
        raise TypeError("not an object")
    return Consequence(
        ConsequenceKind(values["kind"]),
        _text(values["name"]),
        detail=_text(values["detail"]),
        uses=_texts(values["uses"]),
        up=_flag(values["up"]),
        addresses=_texts(values["addresses"]),
        default_route=_flag(values["default_route"]),
        carries=_texts(values["carries"]),
        ports=_texts(values["ports"]),
        netns=_text(values["netns"]),
        automatic=_flag(values["automatic"]),
        owner=_number(values["owner"]) if values["owner"] is not None else None,
    )


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _LIST_MAX:
        raise ValueError("not a short list")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, _list(value)))


def _text(value: Any) -> str:
    if not _any_text(value).isprintable():
        raise ValueError("not a printable text")
    return str(value)


def _word(value: Any) -> str:
    if not _text(value).isalpha() or not value.isascii():
        raise ValueError("not a word")
    return str(value)


def _any_text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_MAX:
        raise ValueError("not a text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError("not a number")
    return value
