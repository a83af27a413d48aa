# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations in progress, as the bus exports them, the locks on modules that they hold, and work deferred until after the reply.

Some work is deferred until the caller has its reply, and some is completed even if the waiting task is cancelled.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import field, replace
from enum import StrEnum
from functools import partial
from typing import TypeVar

from kmodd.core.events import Clock, Events, JobAdded, JobChanged, JobFinished
from kmodd.errors import Busy, KmoddError, Stuck
from kmodd.fast_dataclass import dataclass
from kmodd.names import ModuleName

DELAY = 0.02
"""Seconds. Counting turns of the loop does not do: when the answer is written depends on how many tasks it goes through,
and a load that follows immediately must not wait for the records of the one before."""
Answer = TypeVar("Answer")


class Deferred:
    """Runs callbacks in order, slightly later and one per turn of the event loop; without a loop immediately."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def defer(self, callback: Callable[[], None]) -> None:
        """Run it after those that wait already."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Starting or stopping: no caller waits for a reply.
            self.flush()
            callback()
            return
        self._waiting.append(callback)
        if len(self._waiting) == 1:
            loop.call_later(DELAY, self._next, loop)

    def flush(self) -> None:
        """Run all that waits now."""
        while self._waiting:
            self._waiting.popleft()()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting:
            callback = self._waiting.popleft()
            if self._waiting:
                loop.call_soon(self._next, loop)
            callback()


async def run_to_completion(work: asyncio.Task[Answer], left: Callable[[], None] = lambda: None) -> Answer:
    """Wait for a task, and answer or raise what it does.

    A cancellation of the waiting task is passed to `left` each time, and raised when the work has ended. Only
    cancelling `work` itself breaks it off.
    """
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
            left()
    if not cancelled:
        return work.result()
    if not work.cancelled():
        work.exception()  # no task waits for it; asyncio warns about exceptions that are never retrieved
    raise asyncio.CancelledError


class JobState(StrEnum):
    """As in the property `State` of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class Job:
    """One operation under way."""

    id: int
    action: str
    """`load`, `unload`, `reload` or `batch`."""
    module: str
    """Canonical names, separated by spaces."""
    state: JobState
    started: int
    """Microseconds since the epoch."""
    sender: str
    """Unique bus name of the caller."""
    progress: float = 0.0
    """0 to 1, of its steps."""


class Jobs:
    """Keeps them and tells what becomes of them, after the caller has the answer."""

    def __init__(self, events: Events, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self._afterwards = Deferred()
        self._jobs: dict[int, Job] = {}
        self._cancels: dict[int, Callable[[], None]] = {}
        self._last = 0
        self.closed = ""
        """Why none may begin."""

    def add(self, action: str, module: str, sender: str, state: JobState = JobState.RUNNING) -> int:
        """Begin one; answers its number, which is never used again. Busy while none may begin."""
        if self.closed:
            raise Busy(self.closed)
        self._last += 1
        self._jobs[self._last] = Job(self._last, action, module, state, self._clock(), sender)
        self._afterwards.defer(partial(self._events.publish, JobAdded(self._last)))
        return self._last

    def all(self) -> tuple[Job, ...]:
        """Every job under way, oldest first."""
        return tuple(self._jobs.values())

    def get(self, number: int) -> Job | None:
        """One job; None when it is over."""
        return self._jobs.get(number)

    def cancel(self, number: int) -> None:
        """End the wait of a job that has not called into the kernel; one that is over already is no error.

        Raises Busy when it runs and Stuck when it is stuck: a call into the kernel cannot be taken back.
        """
        job = self._jobs.get(number)
        if job is None:
            return
        cancel = self._cancels.get(number)
        if cancel is not None:
            cancel()
            return
        if job.state is JobState.STUCK:
            raise Stuck(
                f"the operation on {job.module} is stuck in the kernel and cannot be cancelled", module=job.module
            )
        raise Busy(f"the operation on {job.module} has started and can no longer be cancelled", module=job.module)

    def wait(self, number: int, cancel: Callable[[], None]) -> None:
        """Say that it waits, and how to end that."""
        self._cancels[number] = cancel
        self._change(number, JobState.WAITING)

    def run(self, number: int) -> None:
        """Say that it has its locks."""
        self._cancels.pop(number, None)
        self._change(number, JobState.RUNNING)

    def stick(self, number: int) -> None:
        """Say that the kernel does not come back to it."""
        self._change(number, JobState.STUCK)

    def progress(self, number: int, done: float) -> None:
        """Say how much of it is done, 0 to 1."""
        job = self._jobs.get(number)
        if job is not None and job.progress != done:
            self._jobs[number] = replace(job, progress=done)
            self._afterwards.defer(partial(self._events.publish, JobChanged(number, ("Progress",))))

    def finish(self, number: int, result: str) -> None:
        """End it; `result` is `done`, `cancelled` or the short name of its error."""
        self._cancels.pop(number, None)
        job = self._jobs.pop(number, None)
        if job is not None:
            finished = JobFinished(number, job.sender, job.action, job.module, result)
            self._afterwards.defer(partial(self._events.publish, finished))

    def flush(self) -> None:
        """Publish what has not been published yet."""
        self._afterwards.flush()

    def _change(self, number: int, state: JobState) -> None:
        job = self._jobs.get(number)
        if job is not None and job.state is not state:
            self._jobs[number] = replace(job, state=state)
            self._afterwards.defer(partial(self._events.publish, JobChanged(number, ("State",))))


@dataclass(slots=True)
class ModuleLock:
    """One lock that is held."""

    owner: int
    """Number of the job."""
    stuck: bool = False
    """The job does not come back from the kernel."""
    waiters: "deque[_Waiter]" = field(default_factory=deque)


@dataclass(slots=True)
class _Waiter:
    owner: int
    turn: "asyncio.Future[bool]"
    """True: the lock is yours. False: it got stuck, go on without it."""


class ModuleLocks:
    """Locks of one event loop. Every caller takes its modules in sorted order, so no two wait for each other."""

    def __init__(self) -> None:
        self._locks: dict[ModuleName, ModuleLock] = {}
        self._given_up: dict[int, KmoddError] = {}

    def find(self, name: ModuleName) -> "ModuleLock | None":
        """The lock of a module, with the job that holds it; None when it is free."""
        return self._locks.get(name)

    def is_stuck(self, name: ModuleName) -> bool:
        """Tell whether its job does not come back from the kernel."""
        lock = self._locks.get(name)
        return lock is not None and lock.stuck

    def take_now(self, names: Iterable[ModuleName], owner: int) -> tuple[ModuleName, ...] | None:
        """Take all that are not stuck, or nothing when one of them has to be waited for."""
        free: list[ModuleName] = []
        for name in sorted(names):
            lock = self._locks.get(name)
            if lock is None:
                free.append(name)
            elif not lock.stuck:
                return None
        for name in free:
            self._locks[name] = ModuleLock(owner)
        return tuple(free)

    async def take(self, names: Iterable[ModuleName], owner: int) -> tuple[ModuleName, ...]:
        """Take all that are not stuck, waiting for those that are held; answers what was taken.

        On cancellation, or when `cancel_wait` ends the wait, nothing stays taken.
        """
        taken: list[ModuleName] = []
        try:
            for name in sorted(names):
                if await self._take_one(name, owner):
                    taken.append(name)
                self._check_given_up(owner)
        except BaseException:
            # Cancellation included: a lock without an owner would be held forever.
            self.release(taken, owner)
            raise
        finally:
            self._given_up.pop(owner, None)
        return tuple(taken)

    def cancel_wait(self, owner: int, error: KmoddError) -> None:
        """End the wait of a job: its `take` raises this error, even when it was just handed its lock."""
        self._given_up[owner] = error
        for lock in self._locks.values():
            for waiter in lock.waiters:
                if waiter.owner == owner and not waiter.turn.done():
                    waiter.turn.set_exception(error)

    def release(self, names: Iterable[ModuleName], owner: int, *, keep_stuck: bool = False) -> None:
        """Hand the locks that this job holds to those who wait; others are left alone, and those that are stuck if they are kept."""
        for name in names:
            lock = self._locks.get(name)
            if lock is None or lock.owner != owner or (keep_stuck and lock.stuck):
                continue
            lock.stuck = False
            while lock.waiters:
                waiter = lock.waiters.popleft()
                if not waiter.turn.done():
                    lock.owner = waiter.owner
                    waiter.turn.set_result(True)
                    break
            else:
                del self._locks[name]

    def mark_stuck(self, name: ModuleName, owner: int) -> None:
        """Mark the job holding it as stuck; waiting requests proceed without the lock."""
        lock = self._locks.get(name)
        if lock is None or lock.owner != owner:
            return
        lock.stuck = True
        while lock.waiters:
            waiter = lock.waiters.popleft()
            if not waiter.turn.done():
                waiter.turn.set_result(False)

    def _check_given_up(self, owner: int) -> None:
        if owner in self._given_up:
            raise self._given_up[owner]

    async def _take_one(self, name: ModuleName, owner: int) -> bool:
        lock = self._locks.get(name)
        if lock is None:
            self._locks[name] = ModuleLock(owner)
            return True
        if lock.stuck:
            return False
        waiter = _Waiter(owner, asyncio.get_running_loop().create_future())
        lock.waiters.append(waiter)
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            # The lock may have been handed over in the same turn of the loop.
            turn = waiter.turn
            if turn.done() and not turn.cancelled() and turn.exception() is None and turn.result():
                self.release((name,), owner)
            raise
