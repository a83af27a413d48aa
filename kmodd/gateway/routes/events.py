# SPDX-License-Identifier: LGPL-2.1-or-later
"""`GET /v1/events`: broadcasts events to any number of streams of Server-Sent Events, and limits the streams.

An ASGI response with one task and no copy of any event: Starlette's StreamingResponse needs three tasks for each, most of
the cost of a thousand streams.

Ids are `RUN-NUMBER`. RUN is generated at each start of the gateway, so that a client that reconnects after a restart
has to read everything again instead of missing events. When all streams are taken, the token with most of them loses one.
"""

import asyncio
import contextlib
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Header, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kmodd.fast_dataclass import dataclass
from kmodd.gateway.dependencies import documented, needs
from kmodd.gateway.http.authentication import Authentication, Principal, Refused
from kmodd.gateway.http.middleware import CONNECTION
from kmodd.gateway.http.problem import HttpProblem
from kmodd.gateway.metrics import GatewayMetrics
from kmodd.gateway.settings import Limits

KEPT = 2048
"""Events that can be caught up with."""
TAKEN = 256
"""Events sent to a stream together: a thousand streams that catch up must not each hold a copy of everything."""
HEARTBEAT = 15.0
"""Seconds without an event after which a comment is sent: proxies and dead connections need it."""
ALLOWED = 1.0
"""Seconds for which a token that counted is believed to count while events go by."""
SEND_TIMEOUT = 10.0
"""Seconds a follower may take to make room."""


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


class EventStream(Response):
    """Follows the hub."""

    media_type = "text/event-stream"

    def __init__(
        self,
        hub: Broadcaster,
        last: str,
        *,
        heartbeat: float,
        allowed: Callable[[], Awaitable[bool]],
        ended: Callable[[str], None],
        abort: Callable[[], None],
        wait_timeout: float = SEND_TIMEOUT,
    ) -> None:
        """`allowed` returns, with each heartbeat and before events, whether the token is still valid; `ended` gets the reason of the end.

        `abort` drops the connection with what is still in its buffers.
        """
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        place = hub.resume(last) if last else None
        # The hello carries the id of the newest event, so it only goes to who starts there.
        self._first = b": resumed\n\n" if place is not None else hub.hello(complete=not last)
        self._place = hub.next if place is None else place
        self._hub = hub
        self._heartbeat = heartbeat
        self._allowed = allowed
        self._ended = ended
        self._abort = abort
        self._patience = wait_timeout
        self._checked = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end."""
        me = asyncio.current_task()
        assert me is not None  # noqa: S101 - a server runs applications in tasks
        left = asyncio.ensure_future(_leaves(receive))
        left.add_done_callback(lambda _: me.cancel() if not left.cancelled() else None)
        reason = "left"
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(send, self._first)
            while True:
                await self._next(send)
        except (TooSlowError, TimeoutError):
            reason = "slow"
        except Closed:
            reason = "closed"
        except PermissionError:
            reason = "revoked"
        except asyncio.CancelledError:
            if not left.done():
                raise
            me.uncancel()
        finally:
            left.cancel()
            self._ended(reason)
        if reason == "slow":
            # What is in its buffers will never be read. The server learns of it in the next turn of the loop.
            self._abort()
            await asyncio.sleep(0.01)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self, send: Send) -> None:
        try:
            async with asyncio.timeout(self._heartbeat):
                await self._hub.wait(self._place)
        except TimeoutError:
            await self._check()
            await self._send(send, b": \n\n")
            return
        if asyncio.get_running_loop().time() - self._checked >= ALLOWED:
            await self._check()
        data, self._place = self._hub.take(self._place)
        await self._send(send, data)

    async def _check(self) -> None:
        if not await self._allowed():
            raise PermissionError
        self._checked = asyncio.get_running_loop().time()

    async def _send(self, send: Send, data: bytes) -> None:
        async with asyncio.timeout(self._patience):
            await send({"type": "http.response.body", "body": data, "more_body": True})


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def router(
    hub: Broadcaster,
    counts: GatewayMetrics,
    authentication: Authentication,
    limits: Limits,
    heartbeat: float = HEARTBEAT,
) -> APIRouter:
    """The route."""
    made = APIRouter(tags=["events"])
    followers = EventSubscriptions(limits.streams)

    @made.get("/v1/events", response_class=Response, operation_id="events", **documented("read"))
    async def events(
        request: Request,
        last_event_id: str = Header("", max_length=64, description="Continue after this event."),
        principal: Principal = needs("read"),
    ) -> Response:
        """Follow what happens, as Server-Sent Events.

        Kinds: `module-added`, `module-removed`, `module-changed`, `job-started`, `job-changed`, `job-finished`,
        `history-changed` (readable with the scope `read`), `health`, `manager-changed`, `configuration-changed`,
        `store-changed`, `daemon` (`running`, `gone`, `connected`, `disconnected`), `missed`. The first one is `hello`. When
        it says `"complete": false`, and after `missed` and after `daemon` with `connected`, things may have happened that
        were lost: read everything again. The newest 2,048 events can be caught up with by `Last-Event-ID`. A
        follower that does not keep up is dropped; it comes back with `Last-Event-ID`.
        """
        connection = request.scope[CONNECTION]
        follower = EventSubscription(principal.name, connection.abort)
        if not followers.enter(follower):
            counts.refused("streams")
            raise HttpProblem(503, f"there are already {limits.streams} event streams", {"Retry-After": "10"})

        async def allowed() -> bool:
            try:
                return (await authentication.principal(request.scope["headers"], connection.place.uid)).may("read")
            except Refused:
                return False

        def ended(reason: str) -> None:
            followers.leave(follower)
            counts.stream_ended(reason)

        connection.follow()
        counts.streams += 1
        return EventStream(
            hub,
            last_event_id,
            heartbeat=heartbeat,
            allowed=allowed,
            ended=ended,
            abort=connection.abort,
        )

    return made
