# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can wait until the caller has the answer: journal records and signals."""

import asyncio
from collections import deque
from collections.abc import Callable

DELAY = 0.02
"""Seconds. Counting turns of the loop does not do: when the answer is written depends on how many tasks it goes through,
and a load that follows at once is not to pay for the records of the one before."""


class Afterwards:
    """Runs callbacks in order, a little later and one in each turn of the event loop; without a loop at once."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def soon(self, callback: Callable[[], None]) -> None:
        """Run it after those that wait already."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Starting or stopping: nobody waits for an answer.
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
