# SPDX-License-Identifier: LGPL-2.1-or-later
"""Message headers: reads those of received messages without looking at their bodies, and writes those of sent ones."""

import os
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

HEADER_MAX = 16 * 1024
"""Bytes of header we read; the longest sensible one (a module's path, 255-byte names) is far below."""
BODY_MAX = 64 * 1024

NO_REPLY_EXPECTED = 0x1
ALLOW_INTERACTIVE_AUTHORIZATION = 0x4


class Kind(IntEnum):
    """Message types of the specification."""

    METHOD_CALL = 1
    METHOD_RETURN = 2
    ERROR = 3
    SIGNAL = 4


_PATH, _INTERFACE, _MEMBER, _ERROR, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE, _FDS = range(1, 10)
_TEXTS = {_PATH: "path", _INTERFACE: "interface", _MEMBER: "member", _ERROR: "error", _SENDER: "sender"}
_LITTLE = (Struct("<BBBBIII"), Struct("<I"))
_BIG = (Struct(">BBBBIII"), Struct(">I"))
_PADDING = tuple(bytes(n) for n in range(8))


class MessageError(Exception):
    """The peer does not speak the protocol; the connection cannot go on."""


@dataclass(slots=True)
class ReceivedMessage:
    """One incoming message, its body still marshalled."""

    kind: int
    flags: int
    serial: int
    little: bool
    body: bytes
    path: str = ""
    interface: str = ""
    member: str = ""
    error: str = ""
    reply_serial: int = 0
    sender: str = ""
    signature: str = ""
    descriptors: int = 0
    """How many file descriptors came with it."""
    oversized: bool = False
    """Its body was longer than BODY_MAX and was thrown away."""
    data: bytes = b""
    """The whole message, kept of replies and signals only."""
    files: tuple[int, ...] = ()
    """Descriptors that came with it, ours until `close`; only of a method call, and only when all of them arrived."""
    evidence: str = ""
    """The caller's option `evidence`: what an error reply carries as its second argument; empty for nothing."""

    def close(self) -> None:
        """Close the descriptors; again is nothing."""
        files, self.files = self.files, ()
        for descriptor in files:
            os.close(descriptor)

    @property
    def wants_reply(self) -> bool:
        """The sender waits for an answer."""
        return not self.flags & NO_REPLY_EXPECTED

    @property
    def interactive(self) -> bool:
        """The sender allows a password prompt."""
        return bool(self.flags & ALLOW_INTERACTIVE_AUTHORIZATION)


def lengths(start: bytes | bytearray | memoryview) -> tuple[int, int]:
    """(header with padding, body) in bytes, from a message's first sixteen."""
    if start[0] not in b"lB" or start[3] != 1:
        raise MessageError("not a D-Bus message")
    layout = _LITTLE if start[0] == 0x6C else _BIG
    _, _, _, _, body, _, fields = layout[0].unpack_from(start)
    return 16 + fields + (-fields & 7), body


def parse(header: bytes, body: bytes) -> ReceivedMessage:
    """Read a header; the body stays as it is. MessageError when it is malformed."""
    little = header[0] == 0x6C
    fixed, u32 = _LITTLE if little else _BIG
    _, kind, flags, _, _, serial, fields = fixed.unpack_from(header)
    frame = ReceivedMessage(kind, flags, serial, little, body)
    position, end = 16, 16 + fields
    try:
        while position < end:
            position += -position & 7
            code, type_ = header[position], header[position + 2]
            position += 4
            if type_ in b"so":
                (length,) = u32.unpack_from(header, position)
                text = header[position + 4 : position + 4 + length].decode()
                position += 5 + length
                if (name := _TEXTS.get(code)) is not None:
                    setattr(frame, name, text)
            elif type_ == 0x75:  # u
                (value,) = u32.unpack_from(header, position)
                position += 4
                if code == _REPLY_SERIAL:
                    frame.reply_serial = value
                elif code == _FDS:
                    frame.descriptors = value
            elif type_ == 0x67:  # g
                length = header[position]
                text = header[position + 1 : position + 1 + length].decode("ascii")
                position += 2 + length
                if code == _SIGNATURE:
                    frame.signature = text
            else:
                # A field the specification does not have; the bus removes them, so its type is unknown.
                raise MessageError("unknown header field")
    except (IndexError, UnicodeDecodeError) as error:
        raise MessageError("malformed header") from error
    return frame


def reply(serial: int, to: ReceivedMessage, signature: str, body: bytes, *, descriptors: int = 0) -> bytes:
    """A method return: its header with this body, which many replies can share, and the number of descriptors that go with it."""
    fields = _reply_to(to)
    if descriptors:
        fields.append(b"\x09\x01u\0" + descriptors.to_bytes(4, "little"))
    return _message(Kind.METHOD_RETURN, serial, body, fields, signature)


def failure(serial: int, to: ReceivedMessage, name: str, body: bytes, signature: str = "s") -> bytes:
    """An error reply; the first value of the body is its sentence."""
    return _message(Kind.ERROR, serial, body, [*_reply_to(to), _string(_ERROR, "s", name)], signature)


def signal(serial: int, path: str, interface: str, member: str, signature: str, body: bytes) -> bytes:
    """A broadcast signal."""
    fields = [_string(_PATH, "o", path), _string(_INTERFACE, "s", interface), _string(_MEMBER, "s", member)]
    return _message(Kind.SIGNAL, serial, body, fields, signature)


def _reply_to(to: ReceivedMessage) -> list[bytes]:
    return [b"\x05\x01u\0" + to.serial.to_bytes(4, "little"), _string(_DESTINATION, "s", to.sender)]


def _string(code: int, type_: str, text: str) -> bytes:
    data = text.encode()
    return bytes((code, 1, ord(type_), 0)) + len(data).to_bytes(4, "little") + data + b"\0"


def _message(kind: Kind, serial: int, body: bytes, fields: list[bytes], signature: str) -> bytes:
    if signature:
        data = signature.encode("ascii")
        fields = [*fields, b"\x08\x01g\0" + bytes((len(data),)) + data + b"\0"]
    block = bytearray()
    for field in fields:
        block += _PADDING[-len(block) & 7]
        block += field
    # Neither calls nor signals of ours start a service, and no reply to a reply exists: flag 1.
    fixed = _LITTLE[0].pack(0x6C, kind, NO_REPLY_EXPECTED, 1, len(body), serial, len(block))
    return b"".join((fixed, block, _PADDING[-len(block) & 7], body))
