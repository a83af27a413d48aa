# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose call is next: users take turns, and within a user its calls keep their order."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from kmodd.bus.callers import Client
from kmodd.bus.frame import Frame
from kmodd.bus.quota import Key, Quota
from kmodd.errors import LimitsExceeded

BUDGET = 0.004
"""Seconds of one turn of the event loop that calls may take before signals, timers and the socket get theirs."""


CONGESTED = 32 * 1024
"""Bytes waiting to be written from which on no further call is served.

When the bus is slower than we are, answers to a flood would pile up in front of everybody else's; held back, the calls wait
where users take turns.
"""


class Turns:
    """A queue for each user, served round robin.

    A user with as many calls running as allowed is passed over until one of them has ended, so a flood costs its own user
    time and nobody else. What is queued is marshalled still.
    """

    def __init__(self, quota: Quota, serve: Callable[[Frame, Client], None], backlog: Callable[[], int]) -> None:
        """`serve` handles one call; it must not raise. `backlog` answers how many bytes wait to be written."""
        self._quota = quota
        self._serve = serve
        self._backlog = backlog
        self._loop = asyncio.get_running_loop()
        self._queues: OrderedDict[Key, deque[tuple[Frame, Client]]] = OrderedDict()
        self._bytes: dict[Key, int] = {}
        self._running: dict[Key, int] = {}
        self._scheduled = False
        self._next_at_once = 0.0
        """Time of the loop from which a call may be served without being queued."""

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return sum(map(len, self._queues.values()))

    def add(self, frame: Frame, client: Client) -> None:
        """Serve a call where nobody waits, or queue it; LimitsExceeded when its connection or user has too many waiting."""
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
            raise LimitsExceeded("too many calls are waiting for an answer")
        if queue is None:
            queue = self._queues[client.uid] = deque()
        self._bytes[client.uid] = size
        client.waiting += 1
        queue.append((frame, client))
        self._schedule()

    def started(self, uid: Key) -> None:
        """A call of this user goes on in a task."""
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
