# SPDX-License-Identifier: LGPL-2.1-or-later
"""Admission of calls: a fair queue in which users take turns and each user's calls keep their order, and quotas per user."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace

from kmodd.dbus.message import ReceivedMessage
from kmodd.dbus.peers import Peer
from kmodd.errors import LimitsExceeded
from kmodd.fast_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers for one user."""

    operations: int = 4
    """Concurrent calls that need authorization."""
    imports: int = 8
    """Concurrent calls that pass a file; they do not count as operations."""
    prompts: int = 2
    """Concurrent password prompts."""
    waiting: int = 8192
    """Calls that wait for their turn, over all of the user's connections.

    Enough for every connection and every reply the system bus lets one user wait for: a call that waits is answered late and
    keeps its caller from the next one, while a refusal only makes room for another call.
    """
    waiting_bytes: int = 8 << 20
    """Bytes of the bodies of these calls."""
    waiting_per_connection: int = 256
    running: int = 16
    """Calls being answered; further ones wait."""


USER = Limits()
ROOT = Limits(operations=64, imports=32, waiting_bytes=16 << 20, waiting_per_connection=2048, running=128)
"""Root's limits are higher, but finite: a loop gone wrong is a loop gone wrong."""

Key = int | None
"""A user id; everyone whose user is unknown shares None."""


class Slot:
    """Something counted, until it is released."""

    __slots__ = ("_counter", "_key")

    def __init__(self, counter: "Counter[Key]", key: Key) -> None:
        self._counter: Counter[Key] | None = counter
        self._key = key
        counter[key] += 1

    def release(self) -> None:
        """Give it back; again is nothing."""
        counter, self._counter = self._counter, None
        if counter is not None:
            counter[self._key] -= 1
            if not counter[self._key]:
                del counter[self._key]


class Quota:
    """Counts per user."""

    def __init__(self, user: Limits = USER, root: Limits = ROOT) -> None:
        self._user = user
        self._root = root
        self._operations: Counter[Key] = Counter()
        self._imports: Counter[Key] = Counter()
        self._prompts: Counter[Key] = Counter()

    def limits(self, uid: Key) -> Limits:
        """The user's limits."""
        return self._root if uid == 0 else self._user

    def operation(self, uid: Key) -> Slot:
        """One more operation of this user, or LimitsExceeded."""
        limit = self.limits(uid).operations
        if self._operations[uid] >= limit:
            raise LimitsExceeded(f"this user already has {limit} operations in progress")
        return Slot(self._operations, uid)

    def file(self, uid: Key) -> Slot:
        """One more call of this user that brings a file, or LimitsExceeded."""
        limit = self.limits(uid).imports
        if self._imports[uid] >= limit:
            raise LimitsExceeded(f"this user already has {limit} imports in progress")
        return Slot(self._imports, uid)

    def prompt(self, uid: Key) -> Slot:
        """One more password prompt for this user, or LimitsExceeded."""
        limit = self.limits(uid).prompts
        if self._prompts[uid] >= limit:
            raise LimitsExceeded(f"this user already has {limit} password prompts open")
        return Slot(self._prompts, uid)

    def change(self, *, operations: int, prompts: int) -> None:
        """Change the numbers for an ordinary user; root has sixteen times as many operations. Running operations continue."""
        self._user = replace(self._user, operations=operations, prompts=prompts)
        self._root = replace(self._root, operations=16 * operations, prompts=prompts)

    @property
    def idle(self) -> bool:
        """Nothing is counted."""
        return not self._operations and not self._imports and not self._prompts


BUDGET = 0.004
"""Seconds of one turn of the event loop that calls may take before signals, timers and the socket get theirs."""


CONGESTED = 32 * 1024
"""Bytes waiting to be written from which on no further call is served.

When the bus is slower than we are, answers to a flood would pile up in front of everybody else's; held back, the calls wait
where users take turns.
"""


class FairQueue:
    """A queue for each user, served round robin.

    A user with as many calls running as allowed is passed over until one of them has ended, so a flood costs its own user
    time, but no other user. What is queued is marshalled still.
    """

    def __init__(
        self, quota: Quota, serve: Callable[[ReceivedMessage, Peer], None], backlog: Callable[[], int]
    ) -> None:
        """`serve` handles one call; it must not raise. `backlog` answers how many bytes wait to be written."""
        self._quota = quota
        self._serve = serve
        self._backlog = backlog
        self._loop = asyncio.get_running_loop()
        self._queues: OrderedDict[Key, deque[tuple[ReceivedMessage, Peer]]] = OrderedDict()
        self._bytes: dict[Key, int] = {}
        self._running: dict[Key, int] = {}
        self._scheduled = False
        self._next_at_once = 0.0
        """Time of the loop from which a call may be served without being queued."""

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return sum(map(len, self._queues.values()))

    def add(self, frame: ReceivedMessage, client: Peer) -> None:
        """Serve a call immediately or queue it; LimitsExceeded if its connection or user has too many waiting."""
        limits = self._quota.limits(client.uid)
        if not self._queues and self._running.get(client.uid, 0) < limits.running and self._backlog() <= CONGESTED:
            begin = self._loop.time()
            if begin >= self._next_at_once:
                self._serve(frame, client)
                end = self._loop.time()
                # Of many that come in one read, the others take turns: what is served so is at most half of the time.
                self._next_at_once = end + (end - begin)
                return
        queue = self._queues.get(client.uid)
        size = self._bytes.get(client.uid, 0) + len(frame.body)
        if (
            client.waiting >= limits.waiting_per_connection
            or size > limits.waiting_bytes
            or (queue is not None and len(queue) >= limits.waiting)
        ):
            raise LimitsExceeded("too many calls are waiting for a reply")
        if queue is None:
            queue = self._queues[client.uid] = deque()
        self._bytes[client.uid] = size
        client.waiting += 1
        queue.append((frame, client))
        self._schedule()

    def started(self, uid: Key) -> None:
        """A call of this user continues in a task."""
        self._running[uid] = self._running.get(uid, 0) + 1

    def ended(self, uid: Key) -> None:
        """A task's call has been answered."""
        left = self._running[uid] - 1
        if left:
            self._running[uid] = left
        else:
            del self._running[uid]
        self.resume()

    def resume(self) -> None:
        """Go on: a call has ended, or everything was written."""
        if self._queues:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        end = self._loop.time() + BUDGET
        passed_over = 0
        while passed_over < len(self._queues):
            if self._backlog() > CONGESTED:
                return  # until `resume`
            uid, queue = next(iter(self._queues.items()))
            self._queues.move_to_end(uid)
            if self._running.get(uid, 0) >= self._quota.limits(uid).running:
                passed_over += 1
                continue
            passed_over = 0
            frame, client = queue.popleft()
            client.waiting -= 1
            self._bytes[uid] -= len(frame.body)
            if not queue:
                del self._queues[uid], self._bytes[uid]
            if client.gone:
                continue
            self._serve(frame, client)
            if self._loop.time() >= end:
                break
        else:
            return  # everyone left is passed over until `ended`
        if self._queues:
            self._schedule()
