# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel in memory that implements `kmodd.kernel.ports`, for tests and for developers of clients; its calls can hang.

It returns the error codes, log lines, states, reference counts and uevents of Debian's 6.1. It is deterministic, starts no
thread and accesses nothing of the system it runs on.
"""

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf, isinf

from kmodd.kernel.simulated.catalogue import INITIALLY_LOADED, catalogue, rules
from kmodd.kernel.simulated.index import SimulatedConfiguration, SimulatedIndex
from kmodd.kernel.simulated.machine import Call, SimulatedMachine
from kmodd.kernel.simulated.modules import Fault, SimulatedModule
from kmodd.kernel.simulated.reads import (
    SimulatedFacts,
    SimulatedInspection,
    SimulatedInstalled,
    SimulatedKernelLog,
    SimulatedLoadedModules,
    SimulatedNeeds,
    SimulatedRequests,
    SimulatedUevents,
)
from kmodd.model import Consequence, KernelFacts, Outcome, Rule, State, Uevent, User
from kmodd.names import ModuleName, canonical

_DEPENDENCY_WAIT = 30.0
"""Seconds a load waits for a dependency that is coming (resolve_symbol_wait in kernel/module/main.c)."""
_FOR_EVER = 3600.0
"""Seconds that a hang lasted, as reported when it is released."""


class SimulatedExecutor:
    """See Executor. Time is counted in the kernel's own seconds; `pace` says how many of ours one of them takes."""

    def __init__(self, machine: SimulatedMachine, loaded: SimulatedLoadedModules, pace: float) -> None:
        self._machine = machine
        self._loaded = loaded
        self._pace = pace
        self._worker = 1000
        self._abandoned: dict[int, Call] = {}
        self._listeners: dict[int, list[Callable[[Outcome], None]]] = {}
        self._late: dict[int, Outcome] = {}
        """What became of calls that were given up and ended after all."""
        self._timers: set[asyncio.TimerHandle] = set()
        self._waits: set[Callable[[bool], None]] = set()
        """Callers that wait for a call."""
        self.calls: deque[tuple[str, str, str]] = deque(maxlen=10_000)
        """The latest calls, as (`insert`, path, arguments) or (`remove`, name, ``), oldest first."""

    def start(self) -> None:
        """A call costs no process here: always ready."""

    async def insert(self, path: str, arguments: str, *, sha256: str = "", timeout: float) -> Outcome:
        """See Executor."""
        del sha256  # There is no file.
        self.calls.append(("insert", path, arguments))
        return await self._run(lambda: self._machine.start_insert(path, arguments), timeout)

    async def remove(self, name: ModuleName, *, timeout: float) -> Outcome:
        """See Executor."""
        self.calls.append(("remove", name, ""))
        return await self._run(lambda: self._machine.start_remove(name), timeout)

    async def read_parameters(
        self, name: ModuleName, parameters: Sequence[str], *, timeout: float
    ) -> tuple[Outcome, Mapping[str, str]]:
        """See Executor."""
        del timeout
        await asyncio.sleep(0)
        values = {each.name: each.value for each in self._loaded.parameters(name, private=True)}
        read = {each: value for each in parameters if (value := values.get(each)) is not None}
        return Outcome("done", 0, 0, self._worker), read

    async def write_parameter(self, name: ModuleName, parameter: str, value: str, *, timeout: float) -> Outcome:
        """See Executor."""
        del timeout
        await asyncio.sleep(0)
        try:
            self._loaded.write_parameter(name, parameter, value)
        except OSError as error:
            return Outcome("done", error.errno or errno.EIO, 0, self._worker)
        return Outcome("done", 0, 0, self._worker)

    async def lock(self, *, timeout: float) -> Outcome:
        """See Executor."""
        del timeout
        await asyncio.sleep(0)
        self._machine.facts = replace(self._machine.facts, modules_disabled=True)
        return Outcome("done", 0, 0, self._worker)

    def on_return(self, worker: int, callback: Callable[[Outcome], None]) -> None:
        """See Executor."""
        if worker in self._abandoned:
            self._listeners.setdefault(worker, []).append(callback)
        elif worker in self._late:
            asyncio.get_running_loop().call_soon(callback, self._late[worker])

    def abandon_all(self) -> None:
        """See Executor."""
        for tell in tuple(self._waits):
            tell(False)

    def identify(self, worker: int) -> str:
        """See Executor."""
        return str(worker)

    def watch_abandoned(self, identity: str, ended: Callable[[], None]) -> bool:
        """See Executor; a kernel in memory outlives a daemon in tests alone."""
        if not identity.isdecimal() or int(identity) not in self._abandoned:
            return False
        self.on_return(int(identity), lambda _: ended())
        return True

    def is_capable(self, worker: int) -> bool:
        """Always: nothing here asks for a capability."""
        del worker
        return True

    @property
    def abandoned(self) -> int:
        """See Executor."""
        return len(self._abandoned)

    async def close(self) -> None:
        """See Executor; calls that only need time are not finished any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    async def _run(self, start: Callable[[], Call], timeout: float) -> Outcome:
        # A worker's answer never comes in the same turn of the event loop.
        await asyncio.sleep(0)
        left = timeout
        call = start()
        while (first := call.behind) is not None:
            same = first.module == call.module
            patience = left if same else min(left, _DEPENDENCY_WAIT)
            if not await self._ends_within(first, patience):
                if patience < left:
                    self._machine.say(f"{call.module}: gave up waiting for init of module {first.module}.")
                    return Outcome("done", errno.EBUSY, _usec(timeout - left + patience), self._worker)
                return self._abandon(first, timeout)
            left -= first.seconds
            if same and not first.crashed:
                # finit_module of a file that is being loaded waits and gets the first one's result.
                return self._done(first, timeout - left)
            call = start()
        if call.ended:
            return self._done(call, timeout - left)
        if call.seconds <= left and self._pace == 0:
            self._machine.end(call)
            return self._done(call, timeout - left + call.seconds)
        try:
            # A separate timer: the kernel finishes a call even if it was abandoned.
            if call.seconds <= left:
                self._end_after(call, call.seconds)
                ended = await self._ends_within(call, inf)
            else:
                ended = await self._ends_within(call, left)
        finally:
            if left < call.seconds < inf and not call.ended:
                self._end_after(call, call.seconds - left)
        return self._done(call, timeout - left + min(call.seconds, left)) if ended else self._abandon(call, timeout)

    async def _ends_within(self, call: Call, seconds: float) -> bool:
        if call.ended:
            return True
        if call.seconds <= seconds:
            seconds = inf  # it has its own timer, which must not race with this one
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()

        def tell(ended: bool) -> None:
            if not answer.done():
                answer.set_result(ended)

        call.on_end.append(lambda _: tell(True))
        timer = None if isinf(seconds) else loop.call_later(seconds * self._pace, tell, False)
        self._waits.add(tell)
        try:
            return await answer
        finally:
            self._waits.discard(tell)
            if timer is not None:
                timer.cancel()

    def _abandon(self, call: Call, timeout: float) -> Outcome:
        worker = self._worker
        self._worker += 1  # the next call is made by another
        self._abandoned[worker] = call
        call.on_end.append(lambda ended: self._returned(worker, ended))
        return Outcome("timed-out", duration_usec=_usec(timeout), worker=worker)

    def _returned(self, worker: int, call: Call) -> None:
        del self._abandoned[worker]
        outcome = self._late[worker] = replace(self._done(call, min(call.seconds, _FOR_EVER)), worker=worker)
        for tell in self._listeners.pop(worker, ()):
            tell(outcome)

    def _done(self, call: Call, seconds: float) -> Outcome:
        if call.crashed:
            self._worker += 1  # the one that made the call is dead
            return Outcome("crashed", duration_usec=_usec(seconds), worker=self._worker - 1)
        return Outcome("done", call.errno, _usec(seconds), self._worker)

    def _end_after(self, call: Call, seconds: float) -> None:
        def fire() -> None:
            self._timers.discard(timer)
            self._machine.end(call)

        timer = asyncio.get_running_loop().call_later(seconds * self._pace, fire)
        self._timers.add(timer)


def _usec(seconds: float) -> int:
    return round(seconds * 1_000_000)


class SimulatedKernel:
    """Everything together; implements `kmodd.kernel.ports.Kernel`.

    The methods below are what a machine does behind kmodd's back. A call that would fail on a real machine raises
    OSError with the same errno.
    """

    simulated = True
    boot_id = ""
    """It never booted; tests give it one."""

    def __init__(
        self,
        modules: Iterable[SimulatedModule] | None = None,
        *,
        rules_in_force: Iterable[Rule] | None = None,
        loaded: Iterable[str] | None = None,
        facts: KernelFacts | None = None,
        pace: float = 1.0,
    ) -> None:
        """`modules`, `rules_in_force` and `loaded` (in order of insertion) replace those of the catalogue.

        `pace` is how many seconds a simulated second takes: with 0 no call takes time, an operation costs some
        microseconds, and a call that would hang is abandoned immediately.
        """
        if modules is None:
            modules = catalogue()
            rules_in_force = rules() if rules_in_force is None else rules_in_force
            loaded = INITIALLY_LOADED if loaded is None else loaded
        self.machine = SimulatedMachine(modules, facts)
        others = tuple(rules_in_force or ())
        self.index = SimulatedIndex(self.machine.modules, others)
        self.configuration = SimulatedConfiguration(others, self.index.change_rules)
        self.loaded = SimulatedLoadedModules(self.machine)
        self.requests = SimulatedRequests()
        self.executor = SimulatedExecutor(self.machine, self.loaded, pace)
        self.log = SimulatedKernelLog(self.machine)
        self.inspection = SimulatedInspection(self.machine)
        self.facts = SimulatedFacts(self.machine)
        self.installed = SimulatedInstalled(self.machine, self.index)
        self.needs = SimulatedNeeds()
        self.uevents = SimulatedUevents(self.machine)
        for name in loaded or ():
            self.modprobe(name)
        self.machine.uevents.clear()

    # --- behind kmodd's back ------------------------------------------------------------------------------------------

    def modprobe(self, name: str, arguments: str = "") -> None:
        """Load with dependencies immediately, whatever time init() would take; no soft dependencies, no policy."""
        target = canonical(name)
        for needed in (*self.index.dependencies(target), target):
            resident = self.machine.resident.get(needed)
            if resident is None or resident.state is not State.LIVE:
                self.insmod(needed, arguments if needed == target else "")

    def insmod(self, name: str, arguments: str = "") -> None:
        """Load one module immediately."""
        call = self.machine.start_insert(self.index.path(canonical(name)), arguments)
        if not call.ended and call.behind is None:
            self.machine.end(call)
        if call.errno:
            raise OSError(call.errno, os.strerror(call.errno))

    def rmmod(self, name: str) -> None:
        """Remove one module immediately."""
        call = self.machine.start_remove(canonical(name))
        self.machine.end(call)
        if call.errno:
            raise OSError(call.errno, os.strerror(call.errno))

    def hold(self, name: str, *users: User) -> None:
        """Let something in user space take hold of a live module, one reference each."""
        self.machine.resident[canonical(name)].users.extend(users)
        self.machine.changed()

    def attach(self, name: str, *consequences: Consequence) -> None:
        """Let interfaces and devices come into being that go with a live module; they hold no reference."""
        self.machine.resident[canonical(name)].consequences.extend(consequences)

    def detach(self, name: str) -> None:
        """Let them go again."""
        self.machine.resident[canonical(name)].consequences.clear()

    def end_hang(self, name: str) -> None:
        """Let everything in user space let go of a module."""
        self.machine.resident[canonical(name)].users.clear()
        self.machine.changed()

    def release(self, name: str) -> None:
        """Let the hung call of a module end; ValueError for a permanent hang, LookupError if none hangs."""
        call = self.machine.resident[canonical(name)].call
        if call is None:
            raise LookupError(f"{name} does not hang")
        if call.fault is not None and call.fault.for_ever:
            raise ValueError(f"{name} hangs forever")
        self.machine.end(call)

    def fail_next(self, name: str, fault: Fault | None, *, removes: bool = False, times: int = 1) -> None:
        """Script how the next calls for a module end; None makes a module with a fault succeed."""
        self.machine.script(canonical(name), fault, removes=removes, times=times)

    def overflow(self) -> None:
        """Lose the events that were not read yet, as a socket that overflows does."""
        self.machine.uevents.clear()
        self.machine.announce("overflow", None)

    def forge(self, action: str, name: str) -> None:
        """Send an event about something that did not happen, as root can by writing to a uevent file."""
        self.machine.announce(action, canonical(name))

    def change_facts(self, **facts: object) -> None:
        """Change what is known of the kernel: `modules_disabled=True`, `lockdown="integrity"` …"""
        self.machine.facts = replace(self.machine.facts, **facts)  # type: ignore[arg-type] # names as in KernelFacts

    def change_rules(self, *lines: Rule) -> None:
        """Replace modprobe.d."""
        self.index.change_rules(lines)

    @property
    def queued(self) -> tuple[Uevent, ...]:
        """Unread events."""
        return tuple(self.machine.uevents)

    def holds(self, name: str) -> bool:
        """Tell whether a module is resident in any state."""
        return ModuleName(canonical(name)) in self.machine.resident
