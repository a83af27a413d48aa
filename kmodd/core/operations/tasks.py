# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work deferred until the caller has its reply, and work that is completed even if the waiting task is cancelled."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

DELAY = 0.02
"""Seconds. Counting turns of the loop does not do: when the answer is written depends on how many tasks it goes through,
and a load that follows immediately must not wait for the records of the one before."""


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


Answer = TypeVar("Answer")


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
