# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slots for expensive work, shared between users, and long work in short slices.

A user holds at most `each` slots; further requests wait in that user's queue, and queues are served round robin, so that
one user cannot occupy the pool. Module files are read in threads and big plans are made piece by piece, so that no
unprivileged request blocks the event loop for longer than one piece.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from contextlib import asynccontextmanager
from time import thread_time
from typing import TypeVar

from kmodd.errors import LimitsExceeded
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import FactsPending
from kmodd.names import ModuleName

ROOT = 0

Answer = TypeVar("Answer")
User = int | None
"""A user id; callers whose user is unknown share None."""


class FairSlot:
    """One slot in use, until it is released."""

    __slots__ = ("_slots", "_uid")

    def __init__(self, slots: "FairSlots", uid: User) -> None:
        self._slots: FairSlots | None = slots
        self._uid = uid

    def release(self) -> None:
        """Give the slot to the next user; calling it again does nothing."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots._end(self._uid)


class FairSlots:
    """Bounds how much of one kind of work runs concurrently."""

    def __init__(self, slots: int, *, each: int = 1, root: int = 2, waiting: int = 16) -> None:
        """At most `slots` are in use, `each` of them by one user. A user may have `waiting` further requests in the queue.

        Root has `root` separate slots: an administrator is served however busy the other slots are.
        """
        self._slots = slots
        self._each = each
        self._root = root
        self._waiting_max = waiting
        self._running: Counter[User] = Counter()
        self._queues: OrderedDict[User, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def running(self) -> int:
        """Slots in use, root's included."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """Requests in the queues."""
        return sum(map(len, self._queues.values()))

    async def take(self, uid: User) -> FairSlot:
        """Wait for this user's turn; LimitsExceeded when too many of its requests wait already."""
        if not self._free(uid):
            await self._wait(uid)
        else:
            self._running[uid] += 1
        return FairSlot(self, uid)

    @asynccontextmanager
    async def slot(self, uid: User) -> AsyncIterator[None]:
        """Wait for this user's turn as `take` does, and hold the slot in the block."""
        slot = await self.take(uid)
        try:
            yield
        finally:
            slot.release()

    async def in_thread(self, uid: User, work: Callable[..., Answer], *arguments: object) -> Answer:
        """Wait for this user's turn, and call `work` in a thread.

        The slot is held until the thread has ended, also when its caller leaves: a thread cannot be cancelled.
        """
        slot = await self.take(uid)
        thread = asyncio.ensure_future(asyncio.to_thread(work, *arguments))

        def ended(thread: "asyncio.Future[Answer]") -> None:
            slot.release()
            if not thread.cancelled():
                thread.exception()  # retrieved, also when the caller has left

        thread.add_done_callback(ended)
        return await asyncio.shield(thread)

    async def _wait(self, uid: User) -> None:
        if len(self._queues.get(uid, ())) >= self._waiting_max:
            raise LimitsExceeded(f"this user already has {self._waiting_max} waiting requests of this kind")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(uid, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end(uid)  # the turn came in the moment of the cancellation: the next user has it
            else:
                self._leave(uid, turn)
            raise

    def _leave(self, uid: User, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(uid)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._queues[uid]

    def _free(self, uid: User) -> bool:
        if uid == ROOT:
            return self._running[ROOT] < self._root
        others = self._running.total() - self._running[ROOT]
        return others < self._slots and self._running[uid] < self._each

    def _end(self, uid: User) -> None:
        self._running[uid] -= 1
        if not self._running[uid]:
            del self._running[uid]
        for next_uid in list(self._queues):
            while self._free(next_uid) and (queue := self._queues.get(next_uid)):
                turn = queue.popleft()
                if queue:
                    self._queues.move_to_end(next_uid)
                else:
                    del self._queues[next_uid]
                if not turn.done():
                    self._running[next_uid] += 1
                    turn.set_result(None)


BUDGET = 0.004
"""Seconds of the processor that one slice may begin further pieces in."""
THREADS = 1
"""Module files read concurrently, not counting root's."""
_WAITING = 256
"""More than the concurrent calls of one user (see `kmodd.dbus.admission`): each of them has a place."""
_ATTEMPTS = 16

POOL = 32
"""Threads of the loop's pool. asyncio takes five where there is one processor: fewer than the slots there are for blocking
reads, so a few slow ones would hold up everybody's."""

Work = Generator[tuple[ModuleName, ...], None, Answer]
"""Yields between its pieces the modules whose files it needs before it can go on, most often none."""


class Slices:
    """Whose slice is next, and which module file is read next."""

    def __init__(self, index: ModuleIndex) -> None:
        self._index = index
        self._turns = FairSlots(1, root=1, waiting=_WAITING)
        self._files = FairSlots(THREADS, root=THREADS, waiting=_WAITING)
        self.deferred = index.deferred
        """In its block what needs a module file that was not read raises FactsPending."""

    async def read(self, names: Iterable[ModuleName], uid: User) -> None:
        """Read the files of these modules, as far as that has not been done yet."""
        for name in names:
            if self._index.unread((name,)):
                facts = await self._files.in_thread(uid, self._index.read_facts, name)
                self._index.keep_facts(name, facts)

    async def run(self, work: Work[Answer], uid: User) -> Answer:
        """Do all of the work, a slice at a time."""
        while True:
            missing: tuple[ModuleName, ...] = ()
            async with self._turns.slot(uid):
                end = thread_time() + BUDGET
                with self._index.deferred():
                    while not missing and thread_time() < end:
                        try:
                            missing = next(work)
                        except StopIteration as done:
                            answer: Answer = done.value
                            return answer
                await asyncio.sleep(0)  # signals, timers, the socket, and short calls
            await self.read(missing, uid)


async def read_files(index: ModuleIndex, names: Iterable[ModuleName]) -> None:
    """Read the files of modules that root's own files name, for work without a user."""
    for name in index.unread(dict.fromkeys(names)):
        index.keep_facts(name, await asyncio.to_thread(index.read_facts, name))


async def with_files(index: ModuleIndex, work: Callable[[], Answer]) -> Answer:
    """Do short work on the loop; the files that it turns out to need are read in threads, and it begins again."""
    for _ in range(_ATTEMPTS):
        try:
            with index.deferred():
                return work()
        except FactsPending as pending:
            await read_files(index, pending.names)
    return work()  # the files change faster than they are read


def give_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop's pool start up to POOL threads, each when it is needed."""
    from concurrent.futures import ThreadPoolExecutor  # what the loop itself would bring in with the first thread

    loop.set_default_executor(ThreadPoolExecutor(POOL, "kmodd"))


def straight(work: Work[Answer]) -> Answer:
    """Do all of the work without yielding. It reads the module files it needs, or raises FactsPending if that is deferred."""
    while True:
        try:
            missing = next(work)
        except StopIteration as done:
            answer: Answer = done.value
            return answer
        if missing:
            work.close()
            raise FactsPending(missing)
