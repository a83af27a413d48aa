# SPDX-License-Identifier: LGPL-2.1-or-later
"""Broadcasts events to any number of streams from one bounded ring, in which each stream is a position; limits streams.

Ids are `RUN-NUMBER`. RUN is generated at each start of the gateway, so that a client that reconnects after a restart
has to read everything again instead of missing events. When all streams are taken, the token with most of them loses one.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

KEPT = 2048
"""Events that can be caught up with."""
TAKEN = 256
"""Events sent to a stream together: a thousand streams that catch up must not each hold a copy of everything."""


class TooSlowError(Exception):
    """A follower did not keep up."""


class Closed(Exception):
    """The gateway is going away."""


class Broadcaster:
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
            # One future for all: a cancelled waiter must not cancel it for the others.
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


@dataclass(frozen=True, slots=True, eq=False)
class EventSubscription:
    """One stream."""

    owner: str
    """Its token."""
    drop: Callable[[], None]
    """Ends its connection."""


class EventSubscriptions:
    """The streams, the oldest first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._streams: dict[EventSubscription, None] = {}

    def enter(self, follower: EventSubscription) -> bool:
        """Let it follow. When all places are taken, the oldest stream of the token that has most goes for it, if that token has
        more by two at least; a follower comes back where it stopped, with `Last-Event-ID`.
        """
        counts = Counter(stream.owner for stream in self._streams)
        if len(self._streams) >= self._limit:
            (owner, most), *_ = counts.most_common(1)
            if most <= counts[follower.owner] + 1:
                return False
            oldest = next(stream for stream in self._streams if stream.owner == owner)
            self.leave(oldest)
            oldest.drop()
        self._streams[follower] = None
        return True

    def leave(self, follower: EventSubscription) -> None:
        """It follows no longer."""
        self._streams.pop(follower, None)
