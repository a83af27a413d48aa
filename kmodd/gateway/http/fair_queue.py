# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slots shared by tokens, with a limit for each; waiting requests are served token by token, not in order of arrival."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kmodd.errors import LimitsExceeded

WAIT_TIMEOUT = 10.0
"""Seconds a request waits for its turn."""


class FairQueue:
    """The slots of one kind of work."""

    def __init__(self, slots: int, each: int, what: str, wait_timeout: float = WAIT_TIMEOUT) -> None:
        """`slots` altogether, `each` for one token; `what` names the work in the refusal."""
        self._free = slots
        self._each = each
        self._what = what
        self._patience = wait_timeout
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """A slot of this token's, while the block lasts; LimitsExceeded when there is none in time."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._serve()
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except TimeoutError:
            self._withdraw(owner, turn)
            raise LimitsExceeded(f"too many {self._what} in progress in the gateway") from None
        except BaseException:
            self._withdraw(owner, turn)
            raise
        try:
            yield
        finally:
            self._release(owner)

    def _serve(self) -> None:
        while self._free:
            owner = next((name for name in self._waiting if self._running[name] < self._each), None)
            if owner is None:
                return
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind the others
            if turn.done():
                continue  # cancelled, and not run since
            self._free -= 1
            self._running[owner] += 1
            turn.set_result(None)

    def _release(self, owner: str) -> None:
        self._free += 1
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        self._serve()

    def _withdraw(self, owner: str, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self._release(owner)  # it got its turn in the same moment
        elif turn in (queue := self._waiting.get(owner, deque())):
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]
