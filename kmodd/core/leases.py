# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases: modules that stay loaded while a descriptor is open, as with the inhibitors of systemd-logind.

A lease is a pipe. The holder has its reading end, kmodd the writing end, into which nothing is ever written. When the last copy of
the reading end is closed, in whatever process, the kernel reports an error on the writing end (pipe(7), poll(2)) and the lease is
over. When the module goes all the same (rmmod), kmodd closes its end, and the holder reads the end of the file.

systemd keeps a copy of the writing end over a restart of the daemon (sd_pid_notify_with_fds(3)); what a lease is about is in a file
of the runtime directory.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kmodd.core.events import Audit, Clock, Event, Events, ModuleRemoved
from kmodd.core.operations.operations import Operations
from kmodd.core.planning.planned_state import chain
from kmodd.errors import Conflict, Evidence, KmoddError, LimitsExceeded
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import (
    KMODD,
    Caller,
    Metric,
    Operation,
    OperationResult,
    Plan,
    Record,
    Remedy,
    Request,
    Result,
    Target,
    User,
    Verb,
)
from kmodd.model.rules import DesiredModule, Presence
from kmodd.model.settings import LEASES_LIMIT, DaemonSettings
from kmodd.names import ModuleName

ROOT_TIMES = 8
"""Root may have so many times the leases of another user."""
SETTLE = 0.1
"""Seconds between an event that may have freed a module and the next attempt to unload it."""
_NAME = "lease-"
"""What the descriptors are called in systemd's store, followed by the lease's number."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One holder's request that modules stay."""

    number: int
    modules: tuple[ModuleName, ...]
    """The modules of the request: what the name stood for."""
    needs: tuple[ModuleName, ...]
    """These, and everything that was loaded or there for them, soft dependencies included."""
    uid: int | None
    pid: int
    """Number of the requesting process, 0 when unknown; another one may have the descriptor by now."""
    begun: int
    """When that process began, in clock ticks since boot; 0 when unknown."""
    exe: str
    time: int
    """Microseconds since the epoch."""
    reason: str = ""
    on_behalf_of: str = ""


class LeaseTable:
    """Who holds which module: what the planner and `Explain` ask."""

    def __init__(self, identity: Callable[[int], tuple[str, int] | None] = lambda pid: None) -> None:
        """`identity` answers what a process calls itself and when it began; None when it has ended."""
        self.identity = identity
        self.leases: dict[int, Lease] = {}

    def holders(self, name: ModuleName) -> tuple[User, ...]:
        """The leases of a module, as Explain and InUse name them."""
        return tuple(self._user(lease) for lease in self.leases.values() if name in lease.modules)

    def _user(self, lease: Lease) -> User:
        process = self.identity(lease.pid)
        there = process is not None and process[1] == lease.begun
        return User(
            "lease",
            process[0] if process is not None and there else lease.exe.rpartition("/")[2] or "unknown",
            f"pid {lease.pid}, uid {lease.uid}"
            if there
            else f"uid {lease.uid}, another process than the one that requested it",
            pid=lease.pid if there else None,
            exe=lease.exe,
            owner=lease.uid,
            # A number that may be another process's by now is not for a command.
            remedy=Remedy.KILL if there else Remedy.NONE,
        )


class Leases:
    """Grants and ends leases, and unloads what was loaded for them alone."""

    def __init__(
        self,
        table: LeaseTable,
        operations: Operations,
        loaded: LoadedModules,
        index: ModuleIndex,
        *,
        audit: Audit,
        events: Events,
        clock: Clock,
        daemon_settings: Callable[[], DaemonSettings],
        desired: Callable[[ModuleName], DesiredModule | None],
        read: Callable[[], Mapping[str, Any]] = dict,
        write: Callable[[Mapping[str, Any]], None] = lambda state: None,
        keep: Callable[[str, int], None] = lambda name, file: None,
        drop: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`desired` answers what the desired state says of a module.

        `read` and `write` keep the state over a restart, `keep` and `drop` the descriptors, by name.
        """
        self._operations = operations
        self._loaded = loaded
        self._index = index
        self._audit = audit
        self._events = events
        self._clock = clock
        self._daemon_settings = daemon_settings
        self._desired = desired
        self._read = read
        self._write = write
        self._keep = keep
        self._drop = drop
        self.table = table
        self._leases = table.leases
        self._files: dict[int, int] = {}
        """Writing ends, by the lease's number."""
        self._owned: dict[ModuleName, float | None] = {}
        """Modules that were loaded for leases alone, in the order of insertion, with the time of the loop at which they may go."""
        self._blocked: set[ModuleName] = set()
        """Of those whose time is over, the ones that could not be unloaded: tried again when something happened."""
        self._again: float | None = None
        """When these are tried again, as something happened."""
        self._told: set[ModuleName] = set()
        """Of these, the ones whose failure is in the journal: it is not written again at each attempt."""
        self._last = 0
        self._timer: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._closed = False

    # --- questions ----------------------------------------------------------------------------------------------------

    def metrics(self) -> Iterable[Metric]:
        """How many leases there are."""
        yield Metric("kmodd_leases", "gauge", (), float(len(self._leases)))

    def check(self, plan: Plan) -> None:
        """Raise Conflict where the desired state wants a module of the plan to be absent."""
        for name in plan.names(0):
            entry = self._desired(ModuleName(name))
            if entry is not None and entry.state is Presence.ABSENT:
                raise Conflict(
                    f"{name} is to be absent by {entry.file}, line {entry.line}",
                    module=name,
                    evidence=Evidence(
                        file=entry.file, line=entry.line, hint=f"change the rule in {entry.file}, line {entry.line}"
                    ),
                )

    # --- holding ------------------------------------------------------------------------------------------------------

    async def hold(self, plan: Plan, caller: Caller) -> int:
        """Carry out a plan that loads a module, and answer the descriptor that is to be held, which is the caller's to close.

        Raises the errors of the load, and LimitsExceeded.
        """
        self._check_limits(caller)
        granted: list[int] = []

        async def grant(results: Sequence[OperationResult]) -> bool:
            # Under the locks of the load: nothing can unload it in between.
            self._check_limits(caller)
            granted.append(self._grant(plan, caller, [name for result in results for name in result.touched]))
            return True

        try:
            (result,) = await self._operations.execute(plan, caller, grant)
            if result.error is not None:
                raise result.error
            return granted.pop()
        finally:
            # Not handed over: the caller left, or the load was undone. This is the only reading end, so the lease ends by itself.
            for file in granted:
                os.close(file)

    def claim(self, plan: Plan, results: Sequence[OperationResult]) -> None:
        """Note that modules were requested without a lease: these stay when the last lease ends."""
        if plan.request.dry_run or not self._owned:
            return
        for number, operation in enumerate(plan.request.operations):
            if operation.verb in (Verb.LOAD, Verb.RELOAD) and results[number].result in (
                Result.CHANGED,
                Result.UNCHANGED,
            ):
                for name in self._needs(plan.targets[number]):
                    self._disown(name)
        self._save()

    def _check_limits(self, caller: Caller) -> None:
        limit = self._daemon_settings().leases_per_user * (ROOT_TIMES if caller.uid == 0 else 1)
        own = sum(lease.uid == caller.uid for lease in self._leases.values())
        if own >= limit:
            raise LimitsExceeded(
                f"user {caller.uid} holds {own} leases, and {limit} is the limit",
                evidence=Evidence(hint="leases-per-user in kmodd.toml"),
            )
        if len(self._leases) >= LEASES_LIMIT:
            raise LimitsExceeded(f"there are {LEASES_LIMIT} leases, more are not granted")

    def _grant(self, plan: Plan, caller: Caller, inserted: Sequence[ModuleName]) -> int:
        """Make the pipe and the lease; answers the reading end. OSError where there are no descriptors left."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(reading, True)
        self._last += 1
        process = self.table.identity(caller.pid)
        lease = Lease(
            self._last,
            plan.targets[0],
            self._needs(plan.targets[0]),
            caller.uid,
            caller.pid,
            process[1] if process is not None else 0,
            caller.exe,
            self._clock(),
            plan.request.reason,
            plan.request.on_behalf_of,
        )
        self._owned |= dict.fromkeys(inserted)
        self._follow(lease, writing)
        self._keep(f"{_NAME}{lease.number}", writing)
        self._save()
        self._record("lease.granted", f"{_label(lease)} is held", lease)
        return reading

    def _needs(self, modules: Iterable[ModuleName]) -> tuple[ModuleName, ...]:
        links = [link for name in modules for link in chain(self._index, Target(self._index.file_for(name)), "")]
        there = self._loaded.snapshot()
        files = [link.target.name for link in links if self._index.exists(link.target.name)]
        return tuple(dict.fromkeys((*modules, *(name if name in there else self._index.holds(name) for name in files))))

    def _follow(self, lease: Lease, writing: int) -> None:
        self._leases[lease.number], self._files[lease.number] = lease, writing
        for name in lease.needs:
            if name in self._owned:
                self._owned[name] = None
                self._blocked.discard(name)
        # Nothing is read from a writing end: the loop calls when the kernel reports that the other one is closed.
        asyncio.get_running_loop().add_reader(writing, self._end, lease.number, "released")

    def _end(self, number: int, why: str) -> None:
        lease = self._leases.pop(number)
        self._close(number)
        self._drop(f"{_NAME}{number}")
        self._record("lease.ended", f"{_label(lease)} is not held any more: {why}", lease)
        self._release()
        self._save()

    def _close(self, number: int) -> None:
        file = self._files.pop(number)
        asyncio.get_running_loop().remove_reader(file)
        os.close(file)

    # --- letting go ---------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        """Give every owned module that no lease needs its time to go."""
        now = asyncio.get_running_loop().time()
        held = {name for lease in self._leases.values() for name in lease.needs}
        for name, due in self._owned.items():
            if name not in held and due is None:
                self._owned[name] = now + self._daemon_settings().lease_grace
        self._schedule()

    def _schedule(self) -> None:
        times = [due for name, due in self._owned.items() if due is not None and name not in self._blocked]
        if self._again is not None:
            times.append(self._again)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if times and self._work is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(min(times), loop.time()), self._begin)

    def _begin(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if self._again is not None and self._again <= loop.time():
            self._again = None
            self._blocked.clear()
        self._work = loop.create_task(self._unload())
        self._work.add_done_callback(self._unloaded)

    def _unloaded(self, _: "asyncio.Task[None]") -> None:
        self._work = None
        self._save()
        self._schedule()

    async def _unload(self) -> None:
        """Unload what is due, the last inserted first. What is in use is tried again when something happened."""
        for name in list(reversed(self._owned)):
            if not self._is_due(name):
                continue
            try:
                await self._unload_one(name)
            except (KmoddError, OSError):
                # The journal has it, once. A lease may have come meanwhile; then it is not due any more.
                if self._is_due(name):
                    self._blocked.add(name)
                    self._told.add(name)

    def _is_due(self, name: ModuleName) -> bool:
        due = self._owned.get(name)
        return due is not None and due <= asyncio.get_running_loop().time() and name not in self._blocked

    async def _unload_one(self, name: ModuleName) -> None:
        module, entry = self._loaded.read(name), self._desired(name)
        if module is None or (entry is not None and entry.state is Presence.LOADED):
            self._disown(name)
            return
        if module.holders:
            self._blocked.add(name)
            return
        request = Request((Operation(Verb.UNLOAD, name, itself=True),), reason="not held any more")
        plan = self._operations.plan(request)
        if name in self._told:
            # Carrying it out looks as well, and has the journal say what is in the way.
            if plan.error is None and plan.unseen:
                plan = self._operations.plan(request, await self._operations.look(plan))
            if plan.error is not None:
                raise plan.error
        await self._operations.run(plan, KMODD)
        self._disown(name)

    def _disown(self, name: ModuleName) -> None:
        self._owned.pop(name, None)
        self._blocked.discard(name)
        self._told.discard(name)

    def something_happened(self, *_: str) -> None:
        """Try again what could not be unloaded: a module went, or a device came or went."""
        if (self._blocked or self._work is not None) and self._again is None:
            self._again = asyncio.get_running_loop().time() + SETTLE
            self._schedule()

    def _on_event(self, event: Event) -> None:
        if not isinstance(event, ModuleRemoved) or self._loaded.read(event.name) is not None:
            return
        for lease in [lease for lease in self._leases.values() if event.name in lease.modules]:
            self._end(lease.number, f"{event.name} was unloaded by something other than kmodd")
        self._disown(event.name)
        self.something_happened()

    # --- beginning and end --------------------------------------------------------------------------------------------

    def start(self, files: Mapping[str, int]) -> None:
        """Take over the leases of the daemon before this one, of those that are still held; `files` are the descriptors by name."""
        state = self._read()
        kept = [lease for entry in _list(state, "leases") if (lease := _lease(entry)) is not None]
        self._owned = dict.fromkeys(ModuleName(name) for name in _list(state, "owned") if isinstance(name, str))
        left = {name: file for name, file in files.items() if name.startswith(_NAME)}
        for lease in kept:
            self._last = max(self._last, lease.number)
            file = left.pop(f"{_NAME}{lease.number}", None)
            if file is None:
                self._record(
                    "lease.ended", f"{_label(lease)} is not held any more: released while kmodd was away", lease
                )
            elif not all(self._index.is_builtin(name) or self._loaded.read(name) for name in lease.modules):
                self._drop(f"{_NAME}{lease.number}")
                os.close(file)
                self._record("lease.ended", f"{_label(lease)} was unloaded while kmodd was away", lease)
            else:
                self._follow(lease, file)
        for name, file in left.items():
            # What it was for is not known: its holder reads the end of the file.
            self._drop(name)
            os.close(file)
        self._unsubscribe = self._events.subscribe(self._on_event, ModuleRemoved)
        self._release()
        self._save()

    async def close(self) -> None:
        """End; the leases go on where systemd keeps them."""
        self._closed = True
        self._unsubscribe()
        if self._timer is not None:
            self._timer.cancel()
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        for number in list(self._files):
            self._close(number)

    def _save(self) -> None:
        self._write({"leases": [asdict(lease) for lease in self._leases.values()], "owned": list(self._owned)})

    def _record(self, event: str, message: str, lease: Lease) -> None:
        self._audit.record(
            Record(
                event,
                message,
                action="hold",
                result=Result.CHANGED,
                uid=lease.uid,
                exe=lease.exe,
                reason=lease.reason,
                on_behalf_of=lease.on_behalf_of,
            ).about(lease.modules)
        )


def _label(lease: Lease) -> str:
    return " ".join(lease.modules)


def _list(state: Mapping[str, Any], key: str) -> list[Any]:
    value = state.get(key)
    return value if isinstance(value, list) else []


def _lease(entry: object) -> Lease | None:
    """A lease as `asdict` spelled it; None for what is none."""
    if not isinstance(entry, Mapping):
        return None
    try:
        names = {key: tuple(ModuleName(str(name)) for name in entry[key]) for key in ("modules", "needs")}
        return Lease(**{**entry, **names, "number": int(entry["number"])})
    except (TypeError, ValueError, KeyError):
        return None
