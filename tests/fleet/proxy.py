# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stands between a client and an API server: cuts connections, holds them up, cuts a line in half, answers by itself.

TLS ends here, with the server's own certificate, for only then can a line be cut where it hurts.
"""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.fleet.cluster import Cluster


class Proxy:
    """A proxy on a port of loopback, in a thread of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.requests: list[str] = []
        """First lines of the requests."""
        self.answers: list[bytes] = []
        """Whole answers to be given to the next requests, in place of the server's."""
        self.half_line = b""
        """The connection ends in the middle of the first line of an answer that holds this, once."""
        self.refuse = False
        """New connections end at once."""
        self.silent = False
        """Nothing is passed on any more, and no connection ends."""
        self.tokens: list[str] = []
        """Authorization headers of the requests."""
        self.cut_before: Callable[[str], bool] = lambda _: False
        """Called with the first line of each request: the connection ends, and the server does not get it."""
        self.cut_after: Callable[[str], bool] = lambda _: False
        """The same: the connection ends when the server has answered it, and the client does not get the answer."""
        self.route: Callable[[str], int] = lambda _: cluster.port
        """Called with the first line of each request: the port of the server that answers it."""
        self.on_cut: Callable[[], None] = lambda: None
        """Called right before a connection ends so."""

    @contextmanager
    def running(self) -> Iterator["Proxy"]:
        """Serve."""
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            server = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
            yield self
            asyncio.run_coroutine_threadsafe(self._end(server), self._loop).result(10)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def cut(self) -> None:
        """End every connection at once."""

        def abort() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    async def _serve(self) -> asyncio.Server:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self._cluster.server_certificate)
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _end(self, server: asyncio.Server) -> None:
        server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        self._writers.add(writer)
        upstreams: dict[int, asyncio.StreamWriter] = {}
        answering: list[asyncio.Task[None]] = []
        last = asyncio.Event()
        """Set where the next answer is not passed on."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                self.requests.append(lines[0])
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
                }
                self.tokens.append(headers.get("authorization", ""))
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if self.cut_before(lines[0]):
                    self.on_cut()
                    break
                if self.answers:
                    writer.write(self.answers.pop(0))
                    await writer.drain()
                    continue
                port = self.route(lines[0])
                if port not in upstreams:
                    context = ssl.create_default_context(cafile=str(self._cluster.ca))
                    answers, upstreams[port] = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                    self._writers.add(upstreams[port])
                    answering.append(asyncio.ensure_future(self._answers(answers, writer, last)))
                if self.cut_after(lines[0]):
                    last.set()
                upstreams[port].write(head + body)
                await upstreams[port].drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            for task in answering:
                task.cancel()
            for one in (writer, *upstreams.values()):
                self._writers.discard(one)
                one.transport.abort()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, last: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if last.is_set():
                    self.on_cut()
                    break
                if self.silent:
                    continue
                if self.half_line and self.half_line in data:
                    at = data.index(self.half_line)
                    self.half_line = b""
                    writer.write(data[:at])
                    await writer.drain()
                    break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
