# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metrics for Prometheus and a probe for the kubelet: GET /metrics and GET /healthz on plain HTTP, and nothing else.

What is shown are numbers and names of sets and nodes. The server answers one request on a connection, reads at most HEAD bytes of
it, and has bounds for time and connections: it may be reached from the cluster's network.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from kmodd.errors import InvalidArgs, Unavailable

HEAD = 8192
"""Bytes of a request."""
TIMEOUT = 5.0
"""Seconds for a request, and for its answer to be taken."""
CONNECTIONS = 16


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, IPv6 in brackets; `InvalidArgs`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise InvalidArgs(f"address {text!r} is not HOST:PORT", argument="metrics")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Exposition:
    """The server."""

    def __init__(self, registry: CollectorRegistry, healthy: Callable[[], bool] = lambda: True) -> None:
        """`healthy` says whether the process does its work; the kubelet restarts it otherwise."""
        self._registry = registry
        self._healthy = healthy
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, address: tuple[str, int]) -> int:
        """Listen; the port. `Unavailable` where that is not possible."""
        try:
            self._server = await asyncio.start_server(self._serve, *address, limit=HEAD)
        except OSError as error:
            raise Unavailable(f"the metrics cannot be served: {error.strerror or error}") from error
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                async with asyncio.timeout(TIMEOUT):
                    head = await reader.readuntil(b"\r\n\r\n")
                    status, kind, body = self._answer(head)
                    lines = (
                        f"HTTP/1.1 {status.value} {status.phrase}",
                        f"Content-Type: {kind}",
                        f"Content-Length: {len(body)}",
                        "Connection: close",
                    )
                    writer.write("\r\n".join((*lines, "", "")).encode() + body)
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client is gone, slow or no client of ours
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> tuple[HTTPStatus, str, bytes]:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        plain = "text/plain; charset=utf-8"
        if len(words) != 3 or words[0] != b"GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, plain, b""
        match words[1].partition(b"?")[0]:
            case b"/metrics":
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)
            case b"/healthz" if self._healthy():
                return HTTPStatus.OK, plain, b"ok\n"
            case b"/healthz":
                return HTTPStatus.SERVICE_UNAVAILABLE, plain, b"not healthy\n"
            case _:
                return HTTPStatus.NOT_FOUND, plain, b""
