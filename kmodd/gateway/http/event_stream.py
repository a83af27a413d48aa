# SPDX-License-Identifier: LGPL-2.1-or-later
"""The response to `GET /v1/events`: Server-Sent Events until the client disconnects, is too slow, or loses its access.

An ASGI response with one task and no copy of any event: Starlette's StreamingResponse needs three tasks for each, most of
the cost of a thousand streams.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kmodd.gateway.broadcast import Broadcaster, Closed, TooSlowError

HEARTBEAT = 15.0
"""Seconds without an event after which a comment is sent: proxies and dead connections need it."""
ALLOWED = 1.0
"""Seconds for which a token that counted is believed to count while events go by."""
SEND_TIMEOUT = 10.0
"""Seconds a follower may take to make room."""


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
