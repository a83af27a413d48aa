# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads messages from the bus without paying for what strangers send.

On the system bus anybody may send a signal to anybody, of up to 32 MiB. The library (dbus-next 0.2.3) makes Python objects of
all of it before anyone can look at the sender, ten times its size and more, and keeps every signature it ever saw. So the
header is read first, and the rest of an unwanted message is passed over. Only the file of the transport uses this.
"""

from collections.abc import Callable
from typing import Any

from dbus_next import Message, MessageFlag, MessageType
from dbus_next._private.constants import BIG_ENDIAN, LITTLE_ENDIAN, PROTOCOL_VERSION, HeaderField
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.errors import InvalidMessageError
from dbus_next.signature import SignatureTree

CALL_MAX = 64 * 1024
"""Bytes of a call to us that are read. What is larger gets an empty body, which fits no member that wants arguments."""
SIGNATURES_MAX = 512
"""Signatures the library may remember."""

Believed = Callable[[str], bool]
"""Tells whether this unique name's signals are wanted."""


class CarefulUnmarshaller(Unmarshaller):
    """The library's, with a look at the header before the body."""

    believed: Believed

    def _unmarshall(self) -> None:
        # As in the library but for `_wanted`.
        library: Any = self  # it has no types
        library.offset = 0
        library.read(16, prefetch=True)
        library.endian = library.read_byte()
        if library.endian not in (LITTLE_ENDIAN, BIG_ENDIAN):
            raise InvalidMessageError("Expecting endianness as the first byte")
        kind, flags = MessageType(library.read_byte()), MessageFlag(library.read_byte())
        if library.read_byte() != PROTOCOL_VERSION:
            raise InvalidMessageError("got unknown protocol version")
        size, serial, header = library.read_uint32(), library.read_uint32(), library.read_uint32()
        library.read(header + library._padding(header, 8) + size, prefetch=True)
        library.offset -= 4  # the array's length is read again with the array
        fields = {}
        for number, value in library.read_argument(SignatureTree._get("a(yv)").types[0]):
            fields[HeaderField(number).name.lower()] = value.value
        library.align(8)
        fields.pop("unix_fds", None)
        wanted = bool(size) and self._wanted(kind, size, str(fields.get("sender", "")))
        if len(SignatureTree._cache) > SIGNATURES_MAX:
            SignatureTree._cache.clear()
        signature = SignatureTree._get(fields.pop("signature", "") if wanted else "")
        body: list[Any] = [library.read_argument(type_) for type_ in signature.types]
        self.message = Message(
            message_type=kind,
            flags=flags,
            unix_fds=library.unix_fds,
            signature=signature,
            body=body,
            serial=serial,
            **{name: value for name, value in fields.items() if name != "signature"},
        )

    def _wanted(self, kind: MessageType, size: int, sender: str) -> bool:
        if kind is MessageType.SIGNAL:
            return self.believed(sender)
        # The bus lets only those answer who were asked.
        return kind is not MessageType.METHOD_CALL or size <= CALL_MAX
