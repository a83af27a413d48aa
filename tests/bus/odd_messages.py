# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages that nobody in his right mind sends, each different, made and sent as fast as a bus takes them."""

import os
import socket
import struct
from collections.abc import Iterator

from kmodd.dbus import message as frames

_SIZES = {
    "y": (1, 1),
    "n": (2, 2),
    "q": (2, 2),
    "i": (4, 4),
    "u": (4, 4),
    "b": (4, 4),
    "x": (8, 8),
    "t": (8, 8),
    "d": (8, 8),
}
# What is empty: a string, a signature, arrays (the elements of a dictionary are aligned to eight, even where there are none).
_EMPTY = {"s": (4, 5), "g": (1, 2), "as": (4, 4), "ay": (4, 4), "a{sv}": (4, 4)}
_TYPES = (*_SIZES, *_EMPTY)
_PATH, _INTERFACE, _MEMBER, _DESTINATION = 1, 2, 3, 6
_INTERFACES = ("org.kmodd1.Manager", "org.kmodd1.Store", "org.freedesktop.DBus.Properties", "")
_MEMBERS = ("Load", "Describe", "Get", "NoSuch")
NO_REPLY = frames.NO_REPLY_EXPECTED


def odd_call(number: int) -> bytes:
    """A valid message that no member takes; no two of the first hundred thousand have the same signature."""
    types: list[str] = []
    rest = number
    while len(types) < 5 or rest:
        rest, digit = divmod(rest, len(_TYPES))
        types.append(_TYPES[digit])
    body = bytearray()
    for type_ in types:
        alignment, size = _SIZES.get(type_) or _EMPTY[type_]
        body += bytes(-len(body) % alignment + size)
        if type_ == "a{sv}":
            body += bytes(-len(body) % 8)
    interface, member = _INTERFACES[number % 4], _MEMBERS[number // 4 % 4]
    fields = [
        frames._string(_PATH, "o", "/org/kmodd1" if number % 3 else f"/org/kmodd1/module/m{number}"),
        frames._string(_MEMBER, "s", member if number % 2 else f"M{number}"),
        frames._string(_DESTINATION, "s", "org.kmodd1"),
    ]
    if interface:
        fields.append(frames._string(_INTERFACE, "s", interface))
    return frames._message(frames.Kind.METHOD_CALL, number % 0xFFFFFFF0 + 1, bytes(body), fields, "".join(types))


class RawClient:
    """A connection to a bus that only writes and counts."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        uid = str(os.getuid()).encode().hex()
        self._socket.sendall(b"\0AUTH EXTERNAL " + uid.encode() + b"\r\nBEGIN\r\n")
        self._buffer = b""
        while b"\r\n" not in self._buffer:
            self._buffer += self._socket.recv(4096)
        self._buffer = self._buffer.partition(b"\r\n")[2]
        hello = _call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        self.name = self.request(hello)[1].rpartition(b":")[2].rstrip(b"\0").decode().join((":", ""))
        """The unique name."""

    def timeout(self, seconds: float) -> None:
        """Wait for an answer no longer than this: TimeoutError."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Leave the bus."""
        self._socket.close()

    def call(self, destination: str, path: str, interface: str, member: str) -> int:
        """Call a member without arguments and wait for its answer: the kind of the reply, 2 or 3."""
        self._socket.sendall(_call(destination, path, interface, member))
        return next(kind for kind, _ in self._messages() if kind in {2, 3})

    def request(self, message: bytes) -> tuple[int, bytes]:
        """Send a call and wait for its answer: the kind of the reply, 2 or 3, and all of it, however long."""
        self._socket.sendall(message)
        return next((kind, data) for kind, data in self._messages() if kind in {2, 3})

    def send(self, messages: bytes) -> None:
        """Write, however long the bus takes."""
        self._socket.sendall(messages)

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        while True:
            while len(self._buffer) >= 16:
                _, kind, _, _, body, _, fields = struct.unpack_from("<BBBBIII", self._buffer)
                whole = 16 + fields + (-fields & 7) + body
                if len(self._buffer) < whole:
                    break
                message, self._buffer = self._buffer[:whole], self._buffer[whole:]
                yield kind, message
            data = self._socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the bus closed the connection")
            self._buffer += data


def _call(destination: str, path: str, interface: str, member: str) -> bytes:
    fields = [
        frames._string(_PATH, "o", path),
        frames._string(_MEMBER, "s", member),
        frames._string(_DESTINATION, "s", destination),
        frames._string(_INTERFACE, "s", interface),
    ]
    data = bytearray(frames._message(frames.Kind.METHOD_CALL, 0x7FFFFFFF, b"", fields, ""))
    data[2] = 0  # an answer is wanted
    return bytes(data)
