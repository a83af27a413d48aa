# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages on their way to the bus. A full socket means "later"; to dbus-next's own writer it means "close" (issue 153)."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

OUTBOX_MAX = 64 << 20
"""Bytes waiting to be written; the bus reads as fast as it can, so more means that it has stopped."""
_AT_ONCE = 64
"""Messages of one system call."""


class NotReadError(Exception):
    """The other side does not read any more."""


class Outbox:
    """Writes to a socket that does not block. It stands where dbus-next has its message writer."""

    def __init__(
        self, channel: socket.socket, *, lost: Callable[[BaseException], None], drained: Callable[[], None]
    ) -> None:
        """`lost` is told what went wrong with the connection; `drained` is called when everything was written."""
        self._channel = channel
        self._lost = lost
        self._drained = drained
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[memoryview] = deque()
        self._scheduled = False
        self._waiting = False
        """The socket is full; the loop tells when it takes more."""
        self._closed = False
        self.size = 0

    def put(self, data: bytes) -> None:
        """Queue a message; everything queued in one turn of the loop is written together."""
        self._chunks.append(memoryview(data))
        self.size += len(data)
        if self.size > OUTBOX_MAX:
            self._lost(NotReadError("the bus does not read any more"))
        elif not self._scheduled and not self._waiting:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def flush(self) -> None:
        """Write what is queued now, as far as the socket takes it."""
        if self._chunks and not self._waiting:
            self._write()

    def close(self) -> None:
        """Write nothing more."""
        self._closed = True
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._channel.fileno())

    def schedule_write(self, msg: Any = None, future: "asyncio.Future[None] | None" = None) -> None:
        """What dbus-next calls to send a message of ours."""
        if msg is not None:
            self.put(bytes(msg._marshall()))
        if future is not None:
            future.set_result(None)

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()

    def _write(self) -> None:
        if self._closed:
            return
        try:
            while self._chunks:
                first = [self._chunks[index] for index in range(min(len(self._chunks), _AT_ONCE))]
                self._written(self._channel.sendmsg(first))
        except (BlockingIOError, InterruptedError):
            if not self._waiting:
                self._waiting = True
                self._loop.add_writer(self._channel.fileno(), self._write)
            return
        except OSError as error:
            self._lost(error)
            return
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._channel.fileno())
        self._drained()

    def _written(self, count: int) -> None:
        self.size -= count
        while count:
            first = self._chunks[0]
            if count < len(first):
                self._chunks[0] = first[count:]
                return
            count -= len(first)
            self._chunks.popleft()
