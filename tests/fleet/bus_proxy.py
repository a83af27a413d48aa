# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stands between a client and a message bus: a connection ends at a method call, before the bus gets it or with its reply."""

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FIXED = 16
"""Bytes of a message up to its header fields."""
_CALL, _REPLIES = 1, (2, 3)
_FDS = 16
_MEMBER, _REPLY_SERIAL = b"\x03\x01s\x00", b"\x05\x01u\x00"
"""Code and signature of header fields, as every library writes them."""


class BusProxy:
    """Each connection has a thread; descriptors are passed on."""

    def __init__(self, address: str, folder: Path) -> None:
        self._target = address.removeprefix("unix:path=")
        self._path = folder / "bus-proxy"
        self.address = f"unix:path={self._path}"
        self.cut_before: Callable[[str], bool] = lambda _: False
        """Called with the member of each method call: the connection ends, and the bus does not get it."""
        self.cut_after: Callable[[str], bool] = lambda _: False
        """The same: the connection ends when the reply is there, and the client does not get it."""
        self.on_cut: Callable[[], None] = lambda: None
        """Called right before a connection ends so."""

    @contextmanager
    def running(self) -> Iterator["BusProxy"]:
        """Serve."""
        threads: list[threading.Thread] = []
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self._path))
            server.listen()

            def accept() -> None:
                with suppress(OSError):  # closed
                    while True:
                        client, _ = server.accept()
                        threads.append(threading.Thread(target=self._serve, args=(client,)))
                        threads[-1].start()

            accepting = threading.Thread(target=accept)
            accepting.start()
            try:
                yield self
            finally:
                server.shutdown(socket.SHUT_RDWR)
                for thread in (accepting, *threads):
                    thread.join(10)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as bus, suppress(OSError):
            bus.connect(self._target)
            calls, replies = _Messages(begun=False), _Messages(begun=False)
            awaited = 0
            while True:
                for source in select.select([client, bus], [], [])[0]:
                    data, files, _, _ = socket.recv_fds(source, 65536, _FDS)
                    try:
                        if not data:
                            return
                        if source is client:
                            for kind, serial, member in calls.take(data):
                                if kind == _CALL and self.cut_before(member):
                                    self.on_cut()
                                    return
                                if kind == _CALL and self.cut_after(member):
                                    awaited = serial
                        elif any(kind in _REPLIES and serial == awaited for kind, serial, _ in replies.take(data)):
                            self.on_cut()
                            return
                        _send(bus if source is client else client, data, files)
                    finally:
                        for file in files:
                            os.close(file)


def _send(to: socket.socket, data: bytes, files: list[int]) -> None:
    sent = socket.send_fds(to, [data], files) if files else 0
    to.sendall(data[sent:])


class _Messages:
    """Finds the messages of one direction; what comes before the first is the authentication."""

    def __init__(self, *, begun: bool) -> None:
        self._begun = begun
        self._left = b""

    def take(self, data: bytes) -> list[tuple[int, int, str]]:
        """(type, serial, or of a reply that of its call, member) of each message that is whole now."""
        self._left += data
        if not self._begun:
            # The client's last line is BEGIN. The bus says no line after that, and a message begins with its byte order.
            while self._left and self._left[:1] != b"l":
                line, end, rest = self._left.partition(b"\r\n")
                if not end:
                    return []
                self._left = rest
                self._begun = line == b"BEGIN"
            if not self._left:
                return []
            self._begun = True
        found = []
        while len(self._left) >= _FIXED:
            kind = self._left[1]
            body, serial, fields = struct.unpack_from("<4xIII", self._left)
            whole = _FIXED + -(-fields // 8) * 8 + body
            if len(self._left) < whole:
                break
            header, self._left = self._left[: _FIXED + fields], self._left[whole:]
            if kind in _REPLIES and _REPLY_SERIAL in header:
                (serial,) = struct.unpack_from("<I", header, header.index(_REPLY_SERIAL) + 4)
            member = ""
            if _MEMBER in header:
                at = header.index(_MEMBER) + 4
                (size,) = struct.unpack_from("<I", header, at)
                member = header[at + 4 : at + 4 + size].decode()
            found.append((kind, serial, member))
        return found
