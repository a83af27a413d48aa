# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's side of the inspectors: one search shared by concurrent requests; their answers are treated as untrusted."""

import asyncio
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kmodd.kernel.users.inspector import ANSWER_MAX, CONSEQUENCES_MAX, ELSEWHERE_MAX, EXECUTABLES_MAX
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
_NETNS_UNANSWERED = "the inspector of network namespaces did not answer"


@dataclass(slots=True)
class _Search:
    """What one search answered."""

    users: dict[str, list[User]] = field(default_factory=dict)
    partial: str = ""
    crowded: frozenset[str] = frozenset()
    elsewhere: frozenset[str] = frozenset()


class _SharedSearch:
    """A search whose result all requests share that arrive before it ends, or shortly after."""

    def __init__(self, conversation: "_Conversation") -> None:
        self._conversation = conversation
        self._task: asyncio.Task[_Search] | None = None

    async def result(self) -> _Search:
        """The one that is under way or has just ended, or else a new one."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._keep)
        # A caller that leaves must not end the search for the others who wait for it.
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        """End the process; who waits gets what is known, which is nothing."""
        tasks = [self._task] if self._task is not None else []
        await asyncio.gather(self._conversation.close(), *tasks, return_exceptions=True)

    def _keep(self, search: "asyncio.Task[_Search]") -> None:
        def forget() -> None:
            if self._task is search:
                self._task = None

        if search.cancelled() or search.exception() is not None:
            forget()
        else:
            asyncio.get_running_loop().call_later(KEPT, forget)

    async def _run(self) -> _Search:
        reply = await self._conversation.ask({"search": True})
        search = _Search(partial=reply.partial, crowded=frozenset(reply.crowded), elsewhere=frozenset(reply.elsewhere))
        for modules, user in reply.users:
            for module in modules:
                search.users.setdefault(module, []).append(user)
        return search


class Inspector:
    """`ports.Inspection` by separate processes, one for each kind of order, started when needed.

    That which enters network namespaces is needed for a module that something in one may hold, as the inspector answers.
    """

    def __init__(
        self,
        *,
        unit_socket: str = "",
        netns_socket: str = "",
        program: Sequence[str] = (),
        netns_program: Sequence[str] = (),
        timeout: float = TIMEOUT,
    ) -> None:
        """`unit_socket` is where systemd starts inspectors, `netns_socket` those of network namespaces; without, they are children."""
        command = tuple(program) or _program("inspector.py")
        netns_command = tuple(netns_program) or _program("netns.py")
        self._searching = _SharedSearch(_Conversation(unit_socket, command, timeout))
        self._entering = _SharedSearch(_Conversation(netns_socket, netns_command, timeout, _NETNS_UNANSWERED))
        self._naming = _Conversation(unit_socket, command, min(timeout, NAMING_TIMEOUT))
        self._foreseeing = _Conversation(unit_socket, command, timeout)
        self._turn = asyncio.Lock()
        self._next: tuple[set[ModuleName], asyncio.Task[_Reply]] | None = None
        """The look at what goes with modules that has not begun yet, and the modules it is about."""
        self._wanted: dict[int, asyncio.Future[str]] = {}
        self._lookup: asyncio.Task[None] | None = None

    async def users(self, name: ModuleName) -> Usage:
        """See `ports.Inspection`."""
        search = await self._searching.result()
        users, partial, crowded = list(search.users.get(name, ())), [search.partial], name in search.crowded
        if name in search.elsewhere:
            entered = await self._entering.result()
            more = entered.users.get(name, ())
            if any(user.remedy is not Remedy.NONE for user in more):
                users = [_ends_with_others(user) for user in users]
            users += more
            partial.append(entered.partial)
            crowded = crowded or name in entered.crowded
        if crowded:
            partial.append("it has more users than are listed")
        return Usage(tuple(users), ", ".join(filter(None, partial)), crowded)

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
        tasks: list[asyncio.Task[Any]] = [task for task in (self._lookup,) if task is not None]
        tasks += [self._next[1]] if self._next is not None else []
        conversations = (self._searching, self._entering, self._naming, self._foreseeing)
        await asyncio.gather(*(each.close() for each in conversations), *tasks, return_exceptions=True)

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

    users: list[tuple[tuple[str, ...], User]] = field(default_factory=list)
    executables: dict[int, str] = field(default_factory=dict)
    consequences: list[tuple[str, Consequence]] = field(default_factory=list)
    partial: str = _UNANSWERED
    crowded: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    size: int = 0
    ended: bool = False

    def take(self, data: bytes) -> None:
        """Read one answer as if a stranger had written it; ValueError, KeyError or TypeError for anything odd."""
        self.size += len(data) + _OVERHEAD
        if self.size > _BYTES_MAX:
            raise ValueError("too many answers")
        answer = json.loads(data)
        if not isinstance(answer, dict):
            raise TypeError("not an object")
        if "end" in answer:
            elsewhere = tuple(map(_text, _list(answer["elsewhere"], ELSEWHERE_MAX)))
            self.partial, self.crowded, self.elsewhere = _text(answer["partial"]), _texts(answer["crowded"]), elsewhere
            self.ended = True
        elif "consequence" in answer:
            row = read_consequence(answer["consequence"])
            self.consequences += [(module, row) for module in _texts(answer["modules"])]
        elif "user" in answer:
            self.users.append((_texts(answer["modules"]), read_user(answer["user"])))
        else:
            self.executables[_number(answer["pid"])] = _text(answer["executable"])


class _Conversation:
    """One process with orders one after the other; it is started for an order, and let go when it is idle."""

    def __init__(self, unit_socket: str, program: Sequence[str], timeout: float, unanswered: str = _UNANSWERED) -> None:
        """`unanswered` says what is missing where no answer comes."""
        self._unanswered = unanswered
        self._unit_socket = unit_socket
        self._program = program
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._process: WorkerProcess | None = None
        self._leaving: set[WorkerProcess] = set()
        self._replaced_at = 0.0
        self._reply = _Reply(partial=unanswered)
        self._done: asyncio.Future[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False

    async def ask(self, order: Mapping[str, Any]) -> _Reply:
        """All answers until the process exited, sent an invalid one or took too long; never raises."""
        if self._idle is not None:
            self._idle.cancel()
        reply = self._reply = _Reply(partial=self._unanswered)
        self._done = done = self._loop.create_future()
        try:
            if not self._closed and self._hand_over(json.dumps(order).encode()):
                async with asyncio.timeout(self._timeout):
                    await done
        except (OSError, TimeoutError):
            pass
        finally:
            self._done = None
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

    def _hand_over(self, order: bytes) -> bool:
        # One that was waiting may have ended meanwhile: then a new one gets the order.
        if self._process is not None and self._process.send(order):
            return True
        self._release_waiting()
        kind = _InspectorUnit if self._unit_socket else _InspectorProcess
        program = (self._unit_socket,) if self._unit_socket else self._program
        self._process = kind(program, answered=self._answered, ended=self._ended)
        self._replaced_at = self._loop.time() + AGE_MAX
        return self._process.send(order)

    def _answered(self, process: WorkerProcess, data: bytes) -> None:
        if process is not self._process:
            return
        try:
            self._reply.take(data)
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


class _InspectorUnit(WorkerUnit):
    answer_max = ANSWER_MAX


def _program(name: str) -> tuple[str, ...]:
    return sys.executable, "-I", "-S", str(Path(__file__).with_name(name))


def _ends_with_others(user: User) -> User:
    """An algorithm of the crypto API is used by something that was found after it: its use ends with that."""
    return replace(user, remedy=Remedy.NOT_NEEDED) if user.kind == "crypto" else user


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
        owner=_number(values["owner"]) if values["owner"] is not None else None,
        remedy=Remedy(values["remedy"]),
        target=_any_text(values["target"]),
        words=tuple(map(_any_text, _list(values["words"]))),
        pids=tuple(map(_number, _list(values["pids"]))),
        within=_any_text(values["within"]),
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


def _list(value: Any, most: int = _LIST_MAX) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
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
