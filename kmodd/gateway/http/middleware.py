# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks before routing: Host, credentials, rate limit, type and size of the body; and headers, metrics and errors after it.

The outermost ASGI application. Except for the few public paths, routes see only requests from a known bearer for a known
host, with a body that arrived completely, in time and within its size.

journald drops everything of a service that writes more than 10,000 records in 30 seconds (journald.conf(5),
RateLimitBurst=), including the records of what tokens did. kmodd_gateway_refused_total counts what is left out here.
"""

import asyncio
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kmodd.errors import INTERNAL, Failed, InvalidArgs
from kmodd.gateway.http.authentication import Authentication, Principal, Refused
from kmodd.gateway.http.problem import HttpProblem, of_error, of_http
from kmodd.gateway.metrics import GatewayMetrics
from kmodd.gateway.settings import GatewaySettings
from kmodd.journal.writer import Logger

BUCKETS_MAX = 4096
"""Buckets remembered; the one unused for longest is forgotten, and is full when it comes back."""
PER_SOURCE = (0.5, 20)
"""Records per second of one token, address or fault, sustained and in a burst."""
ALTOGETHER = (5.0, 100)
"""The same of all of them."""


class RateLimiter:
    """Buckets by name."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        """No limit when `per_second` is 0. The clock counts seconds."""
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Take one; 0 when there was one, else the seconds until there is."""
        if not self._per_second:
            return 0.0
        now = self._clock()
        level, then = self._buckets.pop(name, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._per_second)
        short = 1.0 - level
        self._buckets[name] = (level if short > 0 else level - 1.0, now)
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return short / self._per_second if short > 0 else 0.0


PRINCIPAL = "kmodd.principal"
"""Where routes find the Principal in the scope."""
CONNECTION = "kmodd.connection"
"""Where they find the server's side of the connection."""
PUBLIC = frozenset({"/", "/health", "/docs", "/openapi.json"})
STATIC = "/static/"
UPLOAD = "/v1/store"
SECURITY_HEADERS = (
    # Inline styles and scripts included: a module's description that becomes markup by mistake still runs nothing.
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)

Headers = Sequence[tuple[bytes, bytes]]


class Middleware:
    """Lets requests through to the application, or answers them itself."""

    def __init__(
        self,
        app: ASGIApp,
        settings: GatewaySettings,
        authentication: Authentication,
        counts: GatewayMetrics,
        clock: Callable[[], float],
        report: Callable[[str, BaseException], None],
        refused: Callable[[str, str, str], None],
    ) -> None:
        """`report` writes a bug to the journal; `refused` writes who was not let in: whose share of
        the journal it is, the client's address and why.
        """
        self._app = app
        self._hosts = frozenset(settings.hosts)
        self._limits = settings.limits
        self._authentication = authentication
        self._rate = RateLimiter(settings.limits.rate, settings.limits.burst, clock)
        # Who knows no token is counted by address, and slower: there is nothing to be found by trying.
        self._strangers = RateLimiter(5.0, 20, clock)
        self._counts = counts
        self._clock = clock
        self._report = report
        self._refused = refused
        self._tls = bool(settings.certificate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return  # lifespan is switched off; websockets are refused by the server, which has no library for them
        if scope["method"] == "HEAD" and _is_public(scope["path"]):
            scope = {**scope, "method": "GET"}  # the server leaves the body out, whatever the application says
        answer = _Answer(send, scope[CONNECTION], tls=self._tls)
        started = self._clock()
        try:
            await self._serve(scope, receive, answer)
        except HttpProblem as problem:
            await of_http(problem)(scope, receive, answer)
        except InvalidArgs as error:
            await of_error(error)(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - an internal error ends one request, not the process; the client gets a 500
            self._report(f"{scope['method']} of {_route(scope)}", error)
            if not answer.status:
                await of_error(Failed(INTERNAL))(scope, receive, answer)
        finally:
            if answer.status == HTTPStatus.FORBIDDEN:
                self._forbidden(scope)
            self._counts.request(scope["method"], _route(scope), answer.status, self._clock() - started)

    def _forbidden(self, scope: Scope) -> None:
        # By the pattern of the path: the path itself is the client's own text.
        principal: Principal = scope[PRINCIPAL]
        self._counts.refused("forbidden")
        address = scope[CONNECTION].place.address
        self._refused(
            principal.name, address, f"{principal.label} lacks the scope for {scope['method']} {_route(scope)}"
        )

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        headers: Headers = scope["headers"]
        if not self._is_host_known(headers):
            raise HttpProblem(421, "this gateway does not serve that host; set 'hosts' in gateway.toml")
        path: str = scope["path"]
        if not _is_public(path):
            scope[PRINCIPAL] = await self._admit(scope)
        elif scope["method"] != "GET":
            raise HttpProblem(405, "only GET and HEAD are allowed", {"Allow": "GET, HEAD"})
        is_upload = path == UPLOAD and scope["method"] == "POST"
        length = self._check_body(headers, is_upload=is_upload)
        if is_upload:
            await self._app(scope, _Bounded(receive, self._limits.upload, self._limits.upload_timeout), answer)
        elif length == 0:
            await self._app(scope, receive, answer)
        else:
            body = await self._read(receive)
            # pydantic 1 would take a list of pairs for an object.
            if body.strip()[:1] not in {b"{", b"n"}:
                raise InvalidArgs("the body is a JSON object")
            await self._app(scope, _ReceivedBody(receive, body), answer)

    def _is_host_known(self, headers: Headers) -> bool:
        values = [value for name, value in headers if name == b"host"]
        if len(values) != 1:
            return False
        host = values[0].decode("latin-1").lower()
        name, _, port = host.rpartition(":")
        if name and port.isascii() and port.isdecimal() and (not name.startswith("[") or name.endswith("]")):
            host = name
        return host in self._hosts

    async def _admit(self, scope: Scope) -> Principal:
        try:
            principal = await self._authentication.principal(scope["headers"], scope[CONNECTION].place.uid)
        except Refused as refused:
            place = scope[CONNECTION].place
            self._counts.refused("credentials")
            place.owner = ""
            wait = self._strangers.take(place.peer)
            if wait:
                raise _too_many(wait, "without a valid token from this address") from None
            self._refused(place.peer, place.address, str(refused))
            raise HttpProblem(
                401,
                "a valid bearer token is required in the Authorization header; create one with kmodctl token create",
                {"WWW-Authenticate": 'Bearer realm="kmodd"'},
            ) from None
        if not scope[CONNECTION].recognise(principal.name):
            self._counts.refused("connections")
            raise HttpProblem(
                429, "too many requests in progress with this token", {"Retry-After": "2", "Connection": "close"}
            )
        if wait := self._rate.take(principal.name):
            self._counts.refused("rate")
            raise _too_many(wait, "with this token")
        return principal

    def _check_body(self, headers: Headers, *, is_upload: bool) -> int | None:
        """The length of the body, None when it is not known before."""
        length: int | None = 0
        if any(name == b"transfer-encoding" for name, _ in headers):
            length = None
        elif (content_length := _first(headers, b"content-length")) is not None:
            length = int(content_length)  # the server has checked that it is a number
        most = self._limits.upload if is_upload else self._limits.body
        if length is not None and length > most:
            raise HttpProblem(413, f"a body is at most {most} bytes here", {"Connection": "close"})
        if length != 0:
            wanted = OCTETS if is_upload else JSON
            kind, _, parameters = (_first(headers, b"content-type") or b"").partition(b";")
            charset = parameters.strip().lower().replace(b'"', b"")
            if kind.strip().lower() != wanted or charset not in {b"", b"charset=utf-8"}:
                name = wanted.decode()
                raise HttpProblem(415, f"the body must be {name}", {"Accept-Post": name})
        return length

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HttpProblem(400, BROKEN_OFF)
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limits.body:
                        raise HttpProblem(
                            413, f"a body is at most {self._limits.body} bytes here", {"Connection": "close"}
                        )
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise HttpProblem(
                408, f"the body did not arrive within {self._limits.body_timeout:g} seconds", {"Connection": "close"}
            ) from None


BROKEN_OFF = "the connection ended before the body did"
JSON = b"application/json"
OCTETS = b"application/octet-stream"


class _Answer:
    """`send`, with the headers every response has."""

    def __init__(self, send: Send, connection: Any, *, tls: bool) -> None:
        self._send = send
        self._connection = connection
        self._tls = tls
        self.status = 0
        """Of the response, 0 before it began."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *SECURITY_HEADERS]
            headers.append((b"date", formatdate(time.time(), usegmt=True).encode()))
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            # A stranger's connection is not worth keeping: what it gets without a token are files that a browser caches.
            if not self._connection.place.owner and not any(name == b"connection" for name, _ in headers):
                headers.append((b"connection", b"close"))
            if self._tls:
                headers.append((b"strict-transport-security", b"max-age=31536000"))
            message = {**message, "headers": headers}
        await self._send(message)


class _ReceivedBody:
    """`receive`, with a body that has arrived."""

    def __init__(self, receive: Receive, body: bytes) -> None:
        self._receive = receive
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        return await self._receive() if body is None else {"type": "http.request", "body": body, "more_body": False}


class _Bounded:
    """`receive`, with a body that is read as it arrives, up to a size and a time."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive = receive
        self._left = most
        self._most = most
        self._until = asyncio.get_running_loop().time() + seconds
        self._ended = False

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise HttpProblem(408, "the body took too long", {"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise HttpProblem(400, BROKEN_OFF)
        self._ended = not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HttpProblem(413, f"a file is at most {self._most} bytes here", {"Connection": "close"})
        return message


def _too_many(wait: float, whose: str) -> HttpProblem:
    return HttpProblem(429, f"too many requests {whose}", {"Retry-After": str(int(wait) + 1)})


def _first(headers: Headers, name: bytes) -> bytes | None:
    return next((value for header, value in headers if header == name), None)


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(STATIC)


def _route(scope: Scope) -> str:
    """The route's pattern: paths themselves would be labels without end, and could hold anything."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", "")) or "unknown"


class RefusalJournal:
    """Writes to the journal, within these rates."""

    def __init__(self, log: Logger, clock: Callable[[], float]) -> None:
        """The clock counts seconds."""
        self._log = log
        self._per_source = RateLimiter(*PER_SOURCE, clock)
        self._altogether = RateLimiter(*ALTOGETHER, clock)
        self._left_out = 0

    def refused(self, source: str, address: str, why: str) -> None:
        """A request was refused; no secret in it. `source` is the token, or the address of who has none."""
        if self._may_write(source):
            self._log.notice("gateway.refused", message=f"refused a request from {address}: {why}{self._others()}")

    def bug(self, what: str, error: BaseException) -> None:
        """Something failed that must not fail."""
        if self._may_write("bug"):
            trace = " | ".join(line.strip() for line in traceback.format_exception(error)[-6:])
            self._log.error(
                "gateway.trouble", message=f"{what} failed: internal error{self._others()}", exception=trace
            )

    def exhausted(self, error: OSError) -> None:
        """The system has no descriptor or memory for a connection."""
        if self._may_write("accept"):
            self._log.error("gateway.trouble", message=f"cannot accept a connection: {error.strerror}{self._others()}")

    def _may_write(self, source: str) -> bool:
        may = not self._per_source.take(source) and not self._altogether.take("")
        self._left_out += not may
        return may

    def _others(self) -> str:
        left_out, self._left_out = self._left_out, 0
        return f" ({left_out} more since the previous record)" if left_out else ""
