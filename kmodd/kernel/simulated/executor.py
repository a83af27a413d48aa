# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes calls of the simulated kernel take time, hang, be abandoned, and return late."""

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf, isinf

from kmodd.kernel.simulated.machine import Call, SimulatedMachine
from kmodd.kernel.simulated.reads import SimulatedLoadedModules
from kmodd.model import Outcome
from kmodd.names import ModuleName

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
