# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can wait until the caller has the answer: journal records and signals."""

import asyncio
from collections import deque
from collections.abc import Callable

# Turns of the event loop: in the first the caller's task wakes up and hands its reply to the transport, in the second
# the transport finds its socket writable and sends it, in the third it is certainly gone.
TURNS = 3


class Afterwards:
    """Runs callbacks in order, a few turns of the event loop later; without a loop at once."""

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
            self._turn(loop, TURNS)

    def flush(self) -> None:
        """Run all that waits now."""
        while self._waiting:
            self._waiting.popleft()()

    def _turn(self, loop: asyncio.AbstractEventLoop, left: int) -> None:
        if left:
            loop.call_soon(self._turn, loop, left - 1)
        else:
            self.flush()
