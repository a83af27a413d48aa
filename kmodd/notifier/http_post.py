# SPDX-License-Identifier: LGPL-2.1-or-later
"""One HTTP POST to an address that was looked at first.

The name is resolved once, forbidden addresses are thrown out, and the connection goes to what is left: no second answer
of a name server comes between looking and connecting. With TLS, name and certificate are checked as usual. Redirects are
not followed, proxies of the environment are not asked, and of the answer only the status and two headers are read.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from kmodd.notifier.addresses import Network, parse_address, permitted
from kmodd.notifier.configuration import Url

HEADERS_MAX = 16_384
"""Bytes of an answer that are read; the rest is not wanted."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


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


class Poster:
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
            raise PostError(f"no answer within {timeout:g} seconds") from None
        except ssl.SSLCertVerificationError as error:
            raise PostError(f"the certificate is not accepted: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise PostError(f"TLS failed: {error.reason or 'the connection was closed'}") from None
        except socket.gaierror as error:
            raise PostError(f"the host's name was not resolved: {error.strerror}") from None
        except asyncio.IncompleteReadError:
            raise PostError("the connection was closed before an answer came") from None
        except asyncio.LimitOverrunError:
            raise PostError("the answer's headers are too long") from None
        except OSError as error:
            # asyncio's own text has the address in it, which is nobody's business.
            raise PostError(f"no connection: {os.strerror(error.errno) if error.errno else 'it failed'}") from None

    async def _post(self, url: Url, headers: Mapping[str, str], body: bytes, timeout: float) -> Answer:
        reader, writer = await self._connect(url, timeout)
        try:
            lines = [
                f"POST {url.target} HTTP/1.1",
                f"Host: {_authority(url)}",
                "Connection: close",
                f"Content-Length: {len(body)}",
                *(f"{name}: {value}" for name, value in headers.items()),
            ]
            if any("\r" in line or "\n" in line for line in lines):
                raise PostError("a header has a line break")
            writer.write("\r\n".join([*lines, "", ""]).encode("ascii") + body)
            await writer.drain()
            return await _answer(reader)
        finally:
            # Nothing more is wanted of the other side, its farewell included.
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async def _connect(self, url: Url, timeout: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        literal = parse_address(url.host)
        found = [url.host] if literal is not None else await self._resolve(url.host, url.port)
        addresses = [text for text in dict.fromkeys(found) if self._may_reach(text)]
        if not addresses:
            raise PostError("the host has only addresses that are not reachable from everywhere; see allow-networks")
        for number, address in enumerate(addresses):
            is_last = number == len(addresses) - 1
            try:
                # One that swallows everything, as IPv6 does on many a machine, leaves time for those after it.
                async with asyncio.timeout(None if is_last else timeout / len(addresses)):
                    return await asyncio.open_connection(
                        address,
                        url.port,
                        limit=HEADERS_MAX,
                        ssl=self._tls if url.secure else None,
                        server_hostname=url.host.rstrip(".") if url.secure else None,
                    )
            except ssl.SSLError:
                raise
            except OSError:
                if is_last:
                    raise
        raise AssertionError("the last address answers or raises")

    def _may_reach(self, text: str) -> bool:
        address = parse_address(text)
        return address is not None and permitted(address, self._allowed)


async def _answer(reader: asyncio.StreamReader) -> Answer:
    for _ in range(4):  # 1xx answers may come before the real one
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, _, rest = head[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise PostError("the answer is no HTTP")
        status = int(rest[:3])
        if status >= 200:
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
            }
            return Answer(status, headers.get("retry-after", "")[:64])
    raise PostError("the answer is no HTTP")


def retry_after(text: str, now: float) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 for what is neither."""
    if text.isdecimal():
        return float(text[:9])
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    return 0.0


def _authority(url: Url) -> str:
    host = f"[{url.host}]" if ":" in url.host else url.host
    return host if url.port == (443 if url.secure else 80) else f"{host}:{url.port}"
