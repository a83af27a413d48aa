# SPDX-License-Identifier: LGPL-2.1-or-later
"""uvicorn with the limits it lacks: connections, time for the headers, strict HTTP/1.1, and a loop that sleeps when idle.

Only what both Debian 12's uvicorn 0.17 and the newest one have is used; each override says what it replaces.

Requests that parsers divide differently are refused. A proxy in front of the gateway, h11 0.14 (Debian 12) and newer
parsers read bare line feeds, folded headers, two lengths or a chunk's end differently; what one takes for a body, another
takes for a request (RFC 9112, section 11.2). Chunk extensions and trailers, which RFC 9112 lets a recipient ignore and
which kmodd's clients do not send, are refused as well.
"""

import asyncio
import contextlib
import inspect
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from kmodd.gateway.http.listener import Admission, ConnectionSlot, Listener
from kmodd.gateway.http.middleware import CONNECTION
from kmodd.gateway.settings import GatewaySettings, Limits

HEAD_MAX = 16 * 1024
"""Bytes of a request line and its headers."""
HEADERS_MAX = 64
_LENGTH_DIGITS = 15
"""Digits of a Content-Length; int() refuses 4,301, and no body here has 16."""

_END = b"\r\n\r\n"
_BARE = re.compile(rb"(?<!\r)\n")
_REQUEST = re.compile(rb"(?!CONNECT )([A-Z]{1,20}) /[!-~]* HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,%d}" % _LENGTH_DIGITS)
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LINE_MAX = 8 + 2
"""Bytes of a chunk's first line."""
_ONCE = (b"host", b"content-length", b"transfer-encoding")
"""Headers that say where a request goes or ends; two of a kind are a contradiction, even if they agree."""


class MalformedError(Exception):
    """These bytes have no reading, or more than one."""


class Framing:
    """Follows the requests of one connection."""

    def __init__(self) -> None:
        self.broken = False
        """Something came that is refused; nothing is passed on any more."""
        self._pending = bytearray()
        self._scanned = 0
        self._body_left = 0
        self._next: Callable[[], bytes] = self._head

    @property
    def is_waiting(self) -> bool:
        """A request has begun and its headers are not whole."""
        return bool(self._pending) and self._next == self._head

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; return what the server may read. Whole heads, and as much of bodies as there is."""
        if self.broken:
            return b""
        self._pending += data
        passed: list[bytes] = []
        try:
            while self._pending and (part := self._next()):
                passed.append(part)
        except MalformedError:
            self.broken = True
            self._pending.clear()
        return b"".join(passed)

    def _take(self, size: int) -> bytes:
        part = bytes(self._pending[:size])
        del self._pending[:size]
        return part

    def _head(self) -> bytes:
        end = self._pending.find(_END, max(0, self._scanned - len(_END)), HEAD_MAX)
        if end < 0:
            # A request that cannot be valid is refused immediately, not when its time is over.
            if (
                len(self._pending) >= HEAD_MAX
                or not self._pending[:1].isalpha()
                or _BARE.search(self._pending, self._scanned)
            ):
                raise MalformedError
            self._scanned = len(self._pending)
            return b""
        self._scanned = 0
        head = self._take(end + len(_END))
        self._next = self._after(head[:end].split(b"\r\n"))
        return head

    def _after(self, lines: list[bytes]) -> Callable[[], bytes]:
        """What follows this head."""
        request = _REQUEST.fullmatch(lines[0])
        if request is None or len(lines) > HEADERS_MAX + 1:
            raise MalformedError
        single: dict[bytes, bytes] = {}
        for line in lines[1:]:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise MalformedError
            name = field[1].lower()
            if name in single:
                raise MalformedError
            if name in _ONCE:
                single[name] = field[2]
        length, coding = single.get(b"content-length"), single.get(b"transfer-encoding")
        if coding is not None:
            # HTTP/1.0 has no chunks (RFC 9112, section 6.1).
            if length is not None or coding.lower() != b"chunked" or request[2] == b"0":
                raise MalformedError
            return self._chunk
        if length is None:
            return self._head
        if _LENGTH.fullmatch(length) is None:
            raise MalformedError
        self._body_left = int(length)
        return self._body if self._body_left else self._head

    def _body(self) -> bytes:
        part = self._take(self._body_left)
        self._body_left -= len(part)
        if not self._body_left:
            self._next = self._head
        return part

    def _chunk(self) -> bytes:
        end = self._pending.find(b"\r\n", 0, _LINE_MAX)
        if end < 0:
            if len(self._pending) >= _LINE_MAX or _CHUNK.fullmatch(self._pending.removesuffix(b"\r")) is None:
                raise MalformedError
            return b""
        if _CHUNK.fullmatch(self._pending, 0, end) is None:
            raise MalformedError
        line = self._take(end + 2)
        self._body_left = int(line, 16)
        self._next = self._data if self._body_left else self._last
        return line

    def _data(self) -> bytes:
        part = self._take(self._body_left)
        self._body_left -= len(part)
        if not self._body_left:
            self._next = self._data_end
        return part

    def _data_end(self) -> bytes:
        return self._line_end(self._chunk)

    def _last(self) -> bytes:
        return self._line_end(self._head)

    def _line_end(self, following: Callable[[], bytes]) -> bytes:
        if not b"\r\n".startswith(self._pending[:2]):
            raise MalformedError
        if len(self._pending) < len(b"\r\n"):
            return b""
        self._next = following
        return self._take(2)


SHUTDOWN = 8.0
"""Seconds that requests under way may take when the gateway stops."""
RESERVE = 20
"""Places that strangers, or requests of one token, never take; a fifth where there are fewer than a hundred."""
FOLLOWER_BUFFER = 32 * 1024
"""Bytes the kernel keeps for a follower of events; it doubles the value."""


def _refusal(status: HTTPStatus, detail: str, headers: bytes = b"") -> bytes:
    body = b'{"type":"about:blank","title":"%s","status":%d,"detail":"%s"}' % (
        status.phrase.encode(),
        status,
        detail.encode(),
    )
    return (
        b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n%s"
        b"connection: close\r\ncontent-length: %d\r\n\r\n%s"
    ) % (status, status.phrase.encode(), headers, len(body), body)


TOO_MANY = _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", b"retry-after: 2\r\n")
MALFORMED = _refusal(HTTPStatus.BAD_REQUEST, "the request is not well-formed HTTP/1.1")


class Connection(H11Protocol):
    """One connection."""

    def __init__(self, place: ConnectionSlot, admission: Admission, limits: Limits, **words: Any) -> None:
        super().__init__(**words)
        self.place = place
        self._admission = admission
        self._limits = limits
        self._is_following = False
        self._framing = Framing()
        self._served: ASGIApp = self.app
        self.app = self._serve
        self._deadline: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CONNECTION] = self
        try:
            await self._served(scope, receive, send)
        finally:
            self.place.is_busy = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """It begins; with TLS, that is agreed on."""
        super().connection_made(transport)
        # So that it is known when something waits to be sent. Not 0: with TLS asyncio takes an empty buffer for a full one then.
        transport.set_write_buffer_limits(high=1)
        self.place.end = self.abort
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._admission.leave(self.place)
        self._disarm()
        self._taken()
        super().connection_lost(exc)
        # The two hold each other; 1,000 streams that end together should not wait for the garbage collector.
        self.app = self._served

    def data_received(self, data: bytes) -> None:
        """Read; a request's headers have to be whole before their deadline, however slowly they drip."""
        self._admission.progress(self.place)
        if complete := self._framing.feed(data):
            super().data_received(complete)
        if self._framing.broken:
            self.send_400_response("")
        elif self._is_serving():
            self._disarm()
        else:
            self._arm()

    def on_response_complete(self) -> None:
        """Go on; what came of the next request meanwhile has to become whole in time as well."""
        super().on_response_complete()
        self._admission.progress(self.place)
        if self._framing.broken:
            self.send_400_response("")
        elif (self._framing.is_waiting or self.conn.trailing_data[0]) and not self._is_serving():
            self._arm()

    def send_400_response(self, msg: str) -> None:
        """End a connection whose next bytes are no request; uvicorn's own raises when an answer is under way."""
        del msg
        if self.transport.is_closing():
            return
        if self._is_serving():
            if not self.cycle.more_body:
                return  # the request under way is whole: it is answered, and then this is called again
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        self.transport.write(MALFORMED)
        self.transport.close()

    def _is_serving(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def pause_writing(self) -> None:
        """The client does not take what is sent. It has a while: closing would wait for it as long as it likes."""
        super().pause_writing()
        if self._taking is None and not self._is_following:
            self._taking = self.loop.call_later(self._limits.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It took everything."""
        super().resume_writing()
        self._taken()

    def _taken(self) -> None:
        taking, self._taking = self._taking, None
        if taking is not None:
            taking.cancel()

    def recognise(self, owner: str) -> bool:
        """A request with a valid token is served on it; False when that token has its share of connections already."""
        return self._admission.recognise(self.place, owner)

    def follow(self) -> None:
        """It follows the events from now on, and counts among those. Small buffers: who does not read is found out soon."""
        self._is_following = True
        self._admission.leave(self.place)
        self._taken()  # these have their own timeout
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FOLLOWER_BUFFER)

    def abort(self) -> None:
        """Drop it with everything that is still in its buffers."""
        self.transport.abort()

    def _arm(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self._limits.header_timeout, self._late)

    def _disarm(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def _late(self) -> None:
        self._deadline = None
        self.transport.abort()


class Server(uvicorn.Server):
    """One server for all sockets."""

    def __init__(
        self,
        config: uvicorn.Config,
        limits: Limits,
        stopping: Callable[[], None],
        ready: Callable[[], None],
        exhausted: Callable[[OSError], None],
    ) -> None:
        """`stopping` ends what would never end by itself; `ready` is called when connections are taken; `exhausted` when the
        system has no descriptor or memory for one.
        """
        super().__init__(config)
        self._limits = limits
        self._admission = Admission(limits.connections, min(RESERVE, limits.connections // 5), time.monotonic)
        self._stopping = stopping
        self._ready = ready
        self._exhausted = exhausted
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. uvicorn's own takes any number of connections, and knows of them after TLS."""
        words: dict[str, Any] = {"config": self.config, "server_state": self.server_state}
        if "app_state" in inspect.signature(H11Protocol).parameters:  # uvicorn 0.17 has none
            words["app_state"] = {}

        def connection(place: ConnectionSlot) -> asyncio.Protocol:
            return Connection(place, self._admission, self._limits, **words)

        self.servers: list[Any] = [
            Listener(
                listening, self._admission, connection, self.config.ssl, refusal=TOO_MANY, exhausted=self._exhausted
            )
            for listening in sockets or ()
        ]
        self.started = True

    async def main_loop(self) -> None:
        """Sleep until stopped; uvicorn's own wakes up ten times a second."""
        self._ready()
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End event streams immediately and requests within their time."""
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


def make(
    app: ASGIApp,
    settings: GatewaySettings,
    *,
    stopping: Callable[[], None],
    ready: Callable[[], None],
    exhausted: Callable[[OSError], None],
) -> Server:
    """The server for this application."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        # Without a level uvicorn takes itself to be traced, and formats every message for an unused log. It warns of
        # each malformed request, with which any client could fill the journal.
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
    return Server(config, settings.limits, stopping, ready, exhausted)
