# SPDX-License-Identifier: LGPL-2.1-or-later
"""Events for any number of followers: kept once, in a bounded ring; each follower is a place in it.

Ids are `RUN-NUMBER`. RUN is made anew with each start of the gateway, so that a follower who comes back after a restart
is told to look at everything again instead of missing something.
"""

import asyncio
import json
from collections import deque
from collections.abc import Mapping

KEPT = 2048
"""Events that can be caught up with."""
TAKEN = 256
"""Events that go to a follower at once: a thousand who catch up together must not each have a copy of everything."""


class TooSlowError(Exception):
    """A follower did not keep up."""


class Closed(Exception):
    """The gateway is going away."""


class Hub:
    """The ring."""

    def __init__(self, run: str) -> None:
        """`run` is a word of letters and digits that no other run of the gateway has."""
        self._run = run
        self._ring: deque[bytes] = deque(maxlen=KEPT)
        self._next = 1
        self._waiting: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def next(self) -> int:
        """The number of the event that comes next."""
        return self._next

    @property
    def _oldest(self) -> int:
        return self._next - len(self._ring)

    def publish(self, kind: str, data: Mapping[str, object]) -> None:
        """Append an event; `kind` is a word of ours."""
        text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
        self._ring.append(f"id: {self._run}-{self._next}\nevent: {kind}\ndata: {text}\n\n".encode())
        self._next += 1
        self._wake()

    def close(self) -> None:
        """End every follower."""
        self._closed = True
        self._wake()

    def resume(self, last: str) -> int | None:
        """Where to go on after the id a follower saw last; None when that cannot be done without a gap."""
        run, _, number = last.partition("-")
        if run != self._run or not number.isascii() or not number.isdecimal() or len(number) > 18:
            return None
        place = int(number) + 1
        return place if self._oldest <= place <= self._next else None

    def hello(self, *, complete: bool) -> bytes:
        """What a new follower hears first: from where it follows, and whether it missed something before."""
        text = json.dumps({"complete": complete})
        return f"retry: 2000\nid: {self._run}-{self._next - 1}\nevent: hello\ndata: {text}\n\n".encode()

    async def wait(self, place: int) -> None:
        """Return when there is an event at this place; `Closed` when there will be none."""
        while self._next <= place and not self._closed:
            if self._waiting is None:
                self._waiting = asyncio.get_running_loop().create_future()
            # One future for all: whoever is cancelled must not take it from the others.
            await asyncio.shield(self._waiting)
        if self._closed:
            raise Closed

    def take(self, place: int) -> tuple[bytes, int]:
        """What comes from this place on, and the place after it; TooSlowError when that is forgotten already."""
        if place < self._oldest:
            raise TooSlowError
        start = place - self._oldest
        end = min(start + TAKEN, len(self._ring))
        return b"".join(self._ring[index] for index in range(start, end)), place + end - start

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
