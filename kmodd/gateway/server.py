# SPDX-License-Identifier: LGPL-2.1-or-later
"""uvicorn, with the limits it does not have: connections, time for the headers, a loop that sleeps when nothing happens.

Only what both Debian 12's uvicorn 0.17 and the newest one have is used; each override says what it replaces.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from kmodd.gateway.guard import CONNECTION
from kmodd.gateway.settings import GatewaySettings, Limits

SHUTDOWN = 8.0
"""Seconds that requests under way may take when the gateway is told to stop."""
HANDSHAKE = 5.0
"""Seconds within which TLS has to be agreed on."""
FOLLOWER_BUFFER = 32 * 1024
"""Bytes the kernel keeps for a follower of events; it doubles what it is told."""
_BODY = b'{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"too many connections"}'
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 2\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class Connection(H11Protocol):
    """One connection."""

    limits: Limits

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self.following = False
        """It follows the events, and counts among those."""
        self._served: ASGIApp = self.app
        self.app = self._serve
        self._deadline: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CONNECTION] = self
        await self._served(scope, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take it, unless there are too many."""
        super().connection_made(transport)
        # So that it is known when something waits to be sent. Not 0: with TLS asyncio takes an empty buffer for a full one then.
        transport.set_write_buffer_limits(high=1)
        counted = sum(1 for one in self.connections if not getattr(one, "following", False))
        if counted > self.limits.connections:
            transport.write(REFUSAL)
            transport.close()
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._disarm()
        self._taken()
        super().connection_lost(exc)
        # The two hold each other; 1,000 followers that leave at once should not have to wait for the collector.
        self.app = self._served

    def data_received(self, data: bytes) -> None:
        """Read; a request's headers have to be whole before their deadline, however slowly they drip."""
        super().data_received(data)
        if self._is_serving():
            self._disarm()
        else:
            self._arm()

    def on_response_complete(self) -> None:
        """Go on; what came of the next request meanwhile has to become whole in time as well."""
        super().on_response_complete()
        if self.conn.trailing_data[0] and not self._is_serving():
            self._arm()

    def _is_serving(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def pause_writing(self) -> None:
        """The client does not take what is sent. It has a while: closing would wait for it as long as it likes."""
        super().pause_writing()
        if self._taking is None and not self.following:
            self._taking = self.loop.call_later(self.limits.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It took everything."""
        super().resume_writing()
        self._taken()

    def _taken(self) -> None:
        taking, self._taking = self._taking, None
        if taking is not None:
            taking.cancel()

    def follow(self) -> None:
        """It follows the events from now on. Its buffers are small: who does not read is found out soon."""
        self.following = True
        self._taken()  # those have a patience of their own
        one = self.transport.get_extra_info("socket")
        if one is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FOLLOWER_BUFFER)

    def abort(self) -> None:
        """Drop it with everything that is still in its buffers."""
        self.transport.abort()

    def _arm(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.limits.header_timeout, self._late)

    def _disarm(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def _late(self) -> None:
        self._deadline = None
        self.transport.abort()


class Server(uvicorn.Server):
    """One server for all sockets."""

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None], ready: Callable[[], None]) -> None:
        """`stopping` ends what would never end by itself; `ready` is called when connections are taken."""
        super().__init__(config)
        self._stopping = stopping
        self._ready = ready
        self._stop = asyncio.Event()

    @property
    def open_connections(self) -> int:
        """How many there are."""
        return len(self.server_state.connections)

    def install_signal_handlers(self) -> None:
        """Nothing: `capture_signals` does it (uvicorn before 0.29 calls only this one)."""
        self._install()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the server; unlike uvicorn's own, they do not also end the process by the signal."""
        self._install()
        yield

    def _install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """End it."""
        self.should_exit = True
        self._stop.set()

    async def main_loop(self) -> None:
        """Sleep until told to stop; uvicorn's own wakes up ten times a second."""
        self._ready()
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End followers at once and requests in time."""
        self._stopping()
        timer = asyncio.get_running_loop().call_later(SHUTDOWN, self._force)
        try:
            await super().shutdown(sockets=sockets)
        finally:
            timer.cancel()

    def _force(self) -> None:
        self.force_exit = True
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


class Loop(asyncio.SelectorEventLoop):
    """asyncio's, where a client that says nothing is not waited for a minute before TLS is agreed on.

    uvicorn has no setting for it, and counts a connection only afterwards.
    """

    async def create_server(self, *arguments: Any, **words: Any) -> asyncio.Server:
        """As asyncio's."""
        if words.get("ssl") is not None:
            words.setdefault("ssl_handshake_timeout", HANDSHAKE)
            words.setdefault("ssl_shutdown_timeout", HANDSHAKE)
        return await super().create_server(*arguments, **words)


def make(app: ASGIApp, settings: GatewaySettings, stopping: Callable[[], None], ready: Callable[[], None]) -> Server:
    """The server for this application."""

    class Limited(Connection):
        limits = settings.limits

    config = uvicorn.Config(
        app,
        http=Limited,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        # Without a level uvicorn takes itself to be traced, and spells every message for a log that nobody keeps. It warns of
        # each malformed request, which anybody could fill the journal with.
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        interface="asgi3",
        timeout_keep_alive=int(settings.limits.keep_alive),
        ssl_certfile=settings.certificate or None,
        ssl_keyfile=settings.key or None,
    )
    return Server(config, stopping, ready)
