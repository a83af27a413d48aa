# SPDX-License-Identifier: LGPL-2.1-or-later
"""Webhooks by Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), formats of chat services, and the HTTP POST.

The name is resolved once, forbidden addresses are left out, and the connection goes to what remains: no second answer of a
name server comes between looking and connecting. With TLS, name and certificate are checked as usual. http.client, in a
thread, follows no redirect and asks no proxy of the environment; of the answer only the status and one header are read.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, BinaryIO

from kmodd import VERSION
from kmodd.fast_dataclass import dataclass
from kmodd.notifier.configuration import Network, Url, Webhook, parse_address, permitted
from kmodd.notifier.delivery_worker import Outcome
from kmodd.notifier.notice import Notice, chat
from kmodd.notifier.outbox import Delivery

HEADERS_MAX = 16_384
"""Bytes of a response that are read; the rest is ignored."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
GONE = 410
REFUSED = frozenset({400, 406, 411, 413, 414, 415, 422, 431})
"""Answers that are about the message, not about the receiver (RFC 9110, RFC 6585): the next message may do better."""


class PostError(Exception):
    """There was no answer; the text says why, without the URL."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    retry_after: str = ""


async def resolve(host: str, port: int) -> Sequence[str]:
    """Addresses of a host as the system's resolver orders them."""
    loop = asyncio.get_running_loop()
    rows = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    # An IPv6 address with a scope keeps it, and is refused for it.
    return [str(row[4][0]) for row in rows]


class WebhookClient:
    """Posts to whom it may."""

    def __init__(self, allowed: Sequence[Network], tls: ssl.SSLContext, resolver: Resolve = resolve) -> None:
        self._allowed = allowed
        self._tls = tls
        self._resolve = resolver

    async def post(self, url: Url, headers: Mapping[str, str], body: bytes, timeout: float) -> Answer:
        """Post and answer; PostError when nothing came back within so many seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._post(url, headers, body, timeout)
        except TimeoutError:
            raise PostError(f"no response within {timeout:g} seconds") from None
        except ssl.SSLCertVerificationError as error:
            raise PostError(f"the certificate is not accepted: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise PostError(f"TLS failed: {error.reason or 'the connection was closed'}") from None
        except socket.gaierror as error:
            raise PostError(f"the host name cannot be resolved: {error.strerror}") from None
        except HTTPException:
            raise PostError("the response is not valid HTTP") from None
        except OSError as error:
            # The system's text alone: others may have the address in them.
            raise PostError(
                f"cannot connect: {os.strerror(error.errno) if error.errno else 'connection failed'}"
            ) from None

    async def _post(self, url: Url, headers: Mapping[str, str], body: bytes, timeout: float) -> Answer:
        if any("\r" in text or "\n" in text for header in headers.items() for text in header):
            raise PostError("a header has a line break")
        literal = parse_address(url.host)
        hosts = [url.host] if literal is not None else await self._resolve(url.host, url.port)
        addresses = [text for text in dict.fromkeys(hosts) if self._may_reach(text)]
        if not addresses:
            raise PostError("the host has no public address; see allow-networks")
        connection = _Connection(url, addresses, self._tls, time.monotonic() + timeout)
        try:
            return await asyncio.get_running_loop().run_in_executor(None, connection.post, url.target, headers, body)
        finally:
            connection.abort()

    def _may_reach(self, text: str) -> bool:
        address = parse_address(text)
        return address is not None and permitted(address, self._allowed)


class _Head:
    """The lines of an answer's head: each whole, and together no more than `HEADERS_MAX` bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = HEADERS_MAX
        self.close, self.flush = file.close, file.flush

    def readline(self, limit: int) -> bytes:
        line = self._file.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise PostError("the response headers are too long")
        if not line.endswith(b"\n"):
            raise PostError("the connection was closed before a response arrived")
        return line


class _Response(HTTPResponse):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.fp: Any = _Head(self.fp)


class _Connection(HTTPConnection):
    """A connection to the first of some addresses that answers, until a deadline."""

    response_class = _Response

    def __init__(self, url: Url, addresses: Sequence[str], tls: ssl.SSLContext, deadline: float) -> None:
        super().__init__(url.host, url.port)
        self.default_port = 443 if url.secure else 80  # which the header Host leaves out
        self._addresses = addresses
        self._tls = tls if url.secure else None
        self._deadline = deadline

    def post(self, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Post and answer; to be run in a thread."""
        try:
            self.request("POST", target, body, {**headers, "Connection": "close"})
            with self.getresponse() as response:
                while response.status < 200:  # 1xx answers may come before the real one; http.client knows 100 alone
                    response.headers = None  # type: ignore[assignment]  # by which begin() sees that there is more
                    response.begin()
                return Answer(response.status, (response.getheader("Retry-After") or "")[:64])
        finally:
            self.close()

    def connect(self) -> None:
        """Connect to the first address that answers; one that swallows everything leaves time for those after it."""
        for number, address in enumerate(self._addresses):
            self.sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            self.sock.settimeout(self._left() / (len(self._addresses) - number))
            try:
                self.sock.connect((address, self.port))
                break
            except OSError:
                self.sock.close()
                if number == len(self._addresses) - 1:
                    raise
        self.sock.settimeout(self._left())
        if self._tls is not None:
            name = self.host.rstrip(".")
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=name, do_handshake_on_connect=False)
            self.sock.do_handshake()

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.001)

    def abort(self) -> None:
        """End what the thread is waiting for."""
        sock = self.sock
        if sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the one of TLS would change what the thread reads from


def retry_after(text: str, now: float) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 for what is neither."""
    if text.isdecimal():
        return float(text[:9])
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    return 0.0


def sign(keys: Sequence[bytes], message: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each key, separated by spaces."""
    content = f"{message}.{timestamp}.".encode() + body
    return " ".join("v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode() for key in keys)


def payload(notice: Notice, host: str) -> dict[str, Any]:
    """The JSON document: `type`, `timestamp`, `data`."""
    data: dict[str, Any] = {"host": host, "kind": notice.kind, "severity": notice.severity, "message": notice.message}
    data |= {
        name: value
        for name, value in (
            ("modules", list(notice.modules)),
            ("action", notice.action),
            ("result", notice.result),
            ("error", notice.error),
            ("uid", notice.uid),
            ("on_behalf_of", notice.on_behalf_of),
            ("reason", notice.reason),
            ("errno", notice.errno),
            ("kernel_log", list(notice.kernel_log)),
            ("hint", notice.hint),
        )
        if value not in ("", None, [])
    }
    moment = datetime.fromtimestamp(notice.time / 1_000_000, UTC)
    return {"type": notice.event, "timestamp": moment.isoformat().replace("+00:00", "Z"), "data": data}


class WebhookChannel:
    """Sends one notice at a time to one URL."""

    most = 1

    def __init__(self, webhook: Webhook, poster: WebhookClient, host: str, clock: Callable[[], int]) -> None:
        self._webhook = webhook
        self._poster = poster
        self._host = host
        self._clock = clock

    def wait(self, oldest: int, sent: Sequence[int], now: int) -> float:
        """Immediately."""
        return 0.0

    async def send(self, deliveries: Sequence[Delivery]) -> Outcome:
        """Post it. Any response but 2xx is retried, except 410: the receiver accepts no further messages."""
        (delivery,) = deliveries
        notice = delivery.notice
        document = {"text": chat(notice, self._host)} if self._webhook.format == "chat" else payload(notice, self._host)
        body = json.dumps(document, separators=(",", ":")).encode()
        seconds = self._clock() // 1_000_000
        headers = {"Content-Type": "application/json", "User-Agent": f"kmodd-notifier/{VERSION}"}
        headers |= {"webhook-id": notice.id, "webhook-timestamp": str(seconds)}
        if self._webhook.keys:
            headers["webhook-signature"] = sign(self._webhook.keys, notice.id, seconds, body)
        try:
            answer = await self._poster.post(self._webhook.url, headers, body, self._webhook.timeout)
        except PostError as error:
            return Outcome("retry", str(error))
        if 200 <= answer.status < 300:
            return Outcome("delivered")
        if answer.status == GONE:
            return Outcome("gone", "the receiver answered 410: it accepts no further messages")
        if answer.status in REFUSED:
            return Outcome("refused", f"the receiver answered {answer.status}: it does not accept this message")
        what = ", and redirects are not followed" if 300 <= answer.status < 400 else ""
        return Outcome(
            "retry", f"the receiver answered {answer.status}{what}", retry_after(answer.retry_after, seconds)
        )
