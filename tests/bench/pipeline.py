# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client that costs next to nothing: calls marshalled beforehand, so many of them in flight, replies only counted.

dbus-next's own client takes longer to take an answer apart than kmodd to give it; what is measured with it is mostly
itself. This one does what a client in C would: write, read, look at headers.
"""

import os
import socket
import struct
from collections.abc import Sequence

from dbus_next import Message

SYSTEM_BUS = "/run/dbus/system_bus_socket"
_RETURN, _ERROR = 2, 3
_HEADER = struct.Struct("<BBBBIII")


class Pipeline:
    """One connection to the system bus."""

    def __init__(self, path: str = SYSTEM_BUS) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        uid = str(os.getuid()).encode().hex()
        self._socket.sendall(b"\0AUTH EXTERNAL " + uid.encode() + b"\r\nBEGIN\r\n")
        self._buffer = bytearray()
        while b"\r\n" not in self._buffer:
            self._buffer += self._socket.recv(4096)
        del self._buffer[: self._buffer.index(b"\r\n") + 2]
        self._serial = 0
        hello = Message("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        self.run([self.marshalled(hello)], 1)

    def marshalled(self, message: Message) -> bytes:
        """The bytes of a call, with a serial of this connection."""
        self._serial += 1
        message.serial = self._serial
        return bytes(message._marshall())

    def run(self, calls: Sequence[bytes], in_flight: int) -> int:
        """Make every call, at most `in_flight` unanswered at once; answers how many bytes came back."""
        sent = answered = size = 0
        while answered < len(calls):
            if sent < len(calls) and sent - answered < in_flight:
                upto = min(len(calls), answered + in_flight)
                self._socket.sendall(b"".join(calls[sent:upto]))
                sent = upto
            data = self._socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the bus closed the connection")
            size += len(data)
            self._buffer += data
            answered += self._replies()
        return size

    def close(self) -> None:
        """Leave the bus."""
        self._socket.close()

    def _replies(self) -> int:
        """Take whole messages off the buffer; how many of them were answers."""
        found = position = 0
        while len(self._buffer) - position >= 16:
            _, kind, _, _, body, _, fields = _HEADER.unpack_from(self._buffer, position)
            whole = 16 + fields + (-fields & 7) + body
            if len(self._buffer) - position < whole:
                break
            if kind == _ERROR:
                raise RuntimeError(bytes(self._buffer[position : position + whole]).decode("utf-8", "replace"))
            found += kind == _RETURN
            position += whole
        del self._buffer[:position]
        return found
