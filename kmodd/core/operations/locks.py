# SPDX-License-Identifier: LGPL-2.1-or-later
"""One lock per canonical module, held by a job. First come, first served; a stuck lock is not waited for."""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from kmodd.errors import KmoddError
from kmodd.names import ModuleName


@dataclass(slots=True)
class _Lock:
    owner: int
    stuck: bool = False
    waiters: "deque[_Waiter]" = field(default_factory=deque)


@dataclass(slots=True)
class _Waiter:
    owner: int
    turn: "asyncio.Future[bool]"
    """True: the lock is yours. False: it got stuck, go on without it."""


class ModuleLocks:
    """Locks of one event loop. Every caller takes its modules in sorted order, so no two wait for each other."""

    def __init__(self) -> None:
        self._locks: dict[ModuleName, _Lock] = {}
        self._given_up: dict[int, KmoddError] = {}

    def owner(self, name: ModuleName) -> int | None:
        """The job that holds it; None when it is free."""
        lock = self._locks.get(name)
        return lock.owner if lock is not None else None

    def is_stuck(self, name: ModuleName) -> bool:
        """Tell whether its job does not come back from the kernel."""
        lock = self._locks.get(name)
        return lock is not None and lock.stuck

    def take_now(self, names: Iterable[ModuleName], owner: int) -> tuple[ModuleName, ...] | None:
        """Take all that are not stuck, or nothing when one of them has to be waited for."""
        wanted = [name for name in sorted(names) if not self.is_stuck(name)]
        if any(name in self._locks for name in wanted):
            return None
        for name in wanted:
            self._locks[name] = _Lock(owner)
        return tuple(wanted)

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

    def release(self, names: Iterable[ModuleName], owner: int) -> None:
        """Hand the locks that this job holds to those who wait; others are left alone."""
        for name in names:
            lock = self._locks.get(name)
            if lock is None or lock.owner != owner:
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
            self._locks[name] = _Lock(owner)
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
