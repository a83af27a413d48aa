# SPDX-License-Identifier: LGPL-2.1-or-later
"""Marshals replies by functions compiled once per signature, keeps marshalled ones, and unmarshals arguments within limits.

dbus-next verifies and writes every value through its signature tree, which takes ten milliseconds for two hundred module
rows; this takes less than one. Python values: tuples or lists for structs and arrays, mappings for dictionaries, and
(signature, value) for variants. Little endian always.

A body is read only if its signature equals the method's, and every string, array and variant is checked while it is read:
a value that is too long or of an unknown type costs next to nothing, and no signature chosen by a caller is parsed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from struct import Struct, error
from typing import Any

from kmodd.dbus.call import Body
from kmodd.dbus.interface_xml import ALIGNMENT, BASIC, split
from kmodd.errors import InvalidArgs
from kmodd.names import ARRAY_MAX, BATCH_MAX, STRING_MAX

Writer = Callable[[bytearray, Any], None]

_PADDING = tuple(bytes(n) for n in range(8))
_U32 = Struct("<I")
_FIXED = {"n": "<h", "q": "<H", "i": "<i", "u": "<I", "x": "<q", "t": "<Q", "d": "<d", "h": "<I"}
KEEP = 10.0
"""Seconds after the last question in which what was big for a while becomes small again."""


def encode(signature: str, values: tuple[Any, ...]) -> bytes:
    """Marshal a body; the values are one for each complete type of the signature."""
    types = split(signature)
    if len(types) != len(values):
        raise ValueError(f"signature {signature} takes {len(types)} values, got {len(values)}")
    out = bytearray()
    for type_, value in zip(types, values, strict=True):
        writer(type_)(out, value)
    return bytes(out)


@lru_cache(maxsize=256)
def writer(type_: str) -> Writer:
    """The function that appends a value of one complete type to a buffer whose start is aligned to 8."""
    code = type_[0]
    if code in "so":
        return _write_string
    if code in _FIXED:
        return _fixed(Struct(_FIXED[code]), ALIGNMENT[code])
    if code == "y":
        return bytearray.append
    if code == "b":
        return _write_boolean
    if code == "g":
        return _write_signature
    if code == "v":
        return _write_variant
    if code == "a":
        return _dictionary(type_[2:-1]) if type_[1] == "{" else _array(type_[1:])
    if code == "(":
        return _struct(type_[1:-1])
    raise ValueError(f"type {type_} cannot be sent")


def _write_string(out: bytearray, value: str) -> None:
    # Text from module files and from the kernel need not be UTF-8, and the bus disconnects the sender of invalid text.
    data = value.encode("utf-8", "replace")
    if b"\0" in data:
        data = data.replace(b"\0", b"?")
    out += _PADDING[-len(out) & 3]
    out += _U32.pack(len(data))
    out += data
    out.append(0)


def _write_boolean(out: bytearray, value: bool) -> None:
    out += _PADDING[-len(out) & 3]
    out += b"\1\0\0\0" if value else b"\0\0\0\0"


def _write_signature(out: bytearray, value: str) -> None:
    data = value.encode("ascii")
    out.append(len(data))
    out += data
    out.append(0)


def _write_variant(out: bytearray, value: tuple[str, Any]) -> None:
    type_, content = value
    _write_signature(out, type_)
    writer(type_)(out, content)


def _fixed(layout: Struct, alignment: int) -> Writer:
    mask, pack = alignment - 1, layout.pack

    def write(out: bytearray, value: Any) -> None:
        out += _PADDING[-len(out) & mask]
        out += pack(value)

    return write


def _array(element: str) -> Writer:
    mask, write_element = ALIGNMENT[element[0]] - 1, writer(element)

    def write(out: bytearray, value: Any) -> None:
        out += _PADDING[-len(out) & 3]
        place = len(out)
        out += b"\0\0\0\0"
        out += _PADDING[-len(out) & mask]
        start = len(out)
        for item in value:
            write_element(out, item)
        _U32.pack_into(out, place, len(out) - start)

    return write


def _dictionary(pair: str) -> Writer:
    if pair == "sv":
        return _write_options
    key, value_type = split(pair)
    write_key, write_value = writer(key), writer(value_type)

    def write(out: bytearray, value: Mapping[Any, Any]) -> None:
        out += _PADDING[-len(out) & 3]
        place = len(out)
        out += b"\0\0\0\0"
        out += _PADDING[-len(out) & 7]
        start = len(out)
        for name, content in value.items():
            out += _PADDING[-len(out) & 7]
            write_key(out, name)
            write_value(out, content)
        _U32.pack_into(out, place, len(out) - start)

    return write


def _write_options(out: bytearray, value: Mapping[str, tuple[str, Any]]) -> None:
    """An `a{sv}`, which nearly every answer is made of."""
    out += _PADDING[-len(out) & 3]
    place = len(out)
    out += b"\0\0\0\0"
    out += _PADDING[-len(out) & 7]
    start = len(out)
    for name, (type_, content) in value.items():
        out += _PADDING[-len(out) & 7]
        out += _key_and_type(name, type_)
        writer(type_)(out, content)
    _U32.pack_into(out, place, len(out) - start)


@lru_cache(maxsize=512)
def _key_and_type(name: str, type_: str) -> bytes:
    """The beginning of an entry of an `a{sv}`, at a place aligned to 8. There are as many as the API has names."""
    out = bytearray()
    _write_string(out, name)
    _write_signature(out, type_)
    return bytes(out)


def _struct(content: str) -> Writer:
    writers = tuple(writer(type_) for type_ in split(content))

    def write(out: bytearray, value: Any) -> None:
        out += _PADDING[-len(out) & 7]
        for write_field, field in zip(writers, value, strict=True):
            write_field(out, field)

    return write


_VARIANTS = BASIC | {"as", "a{ss}"}
_FIXED_LETTERS = {"n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
_LITTLE = {code: Struct("<" + letter) for code, letter in _FIXED_LETTERS.items()}
_BIG = {code: Struct(">" + letter) for code, letter in _FIXED_LETTERS.items()}


def decode(signature: str, body: bytes, *, little: bool = True) -> list[Any]:
    """Unmarshal a body of our own signature; InvalidArgs when it breaks a limit.

    Structs become tuples, dictionaries dicts, variants (signature, value), descriptors their number among the message's.
    """
    reader = _Reader(body, little)
    try:
        values = list(map(reader.read, split(signature)))
    except (IndexError, error, UnicodeDecodeError) as cause:
        # The bus checks messages before it passes them on; a peer-to-peer address would not.
        raise InvalidArgs("the message is malformed") from cause
    if reader.position != len(body):
        raise InvalidArgs("the message is longer than its arguments")
    return values


class _Reader:
    __slots__ = ("body", "fixed", "position")

    def __init__(self, body: bytes, little: bool) -> None:
        self.body = body
        self.fixed = _LITTLE if little else _BIG
        self.position = 0

    def read(self, type_: str) -> Any:
        code = type_[0]
        if code in "so":
            return self.string()
        if code == "a":
            return self.dictionary(type_[2:-1]) if type_[1] == "{" else self.array(type_[1:])
        if code == "(":
            self.align(8)
            return tuple([self.read(child) for child in split(type_[1:-1])])
        if code == "v":
            return self.variant()
        if code == "b":
            return bool(self.number("u"))
        if code == "y":
            self.position += 1
            return self.body[self.position - 1]
        if code == "g":
            return self.signature()
        return self.number(code)

    def align(self, alignment: int) -> None:
        self.position += -self.position & (alignment - 1)

    def number(self, code: str) -> Any:
        layout = self.fixed[code]
        place = self.position + (-self.position & (ALIGNMENT[code] - 1))
        (value,) = layout.unpack_from(self.body, place)
        self.position = place + layout.size
        return value

    def string(self) -> str:
        length = self.number("u")
        if length > STRING_MAX:
            raise InvalidArgs(f"a string is at most {STRING_MAX} bytes")
        start, end = self.position, self.position + length
        if end >= len(self.body):
            raise IndexError
        self.position = end + 1
        return self.body[start:end].decode()

    def signature(self) -> str:
        length = self.body[self.position]
        start = self.position + 1
        self.position = start + length + 1
        return self.body[start : start + length].decode("ascii")

    def variant(self) -> tuple[str, Any]:
        type_ = self.signature()
        if type_ not in _VARIANTS:
            raise InvalidArgs("unsupported type of an option")
        return type_, self.read(type_)

    def _extent(self, alignment: int) -> int:
        length = self.number("u")
        self.align(alignment)
        end: int = self.position + length
        if end > len(self.body):
            raise IndexError
        return end

    def array(self, element: str) -> list[Any]:
        end = self._extent(ALIGNMENT[element[0]])
        limit = BATCH_MAX if element[0] == "(" else ARRAY_MAX
        values: list[Any] = []
        while self.position < end:
            if len(values) == limit:
                raise InvalidArgs(f"at most {limit} elements")
            values.append(self.read(element))
        return values

    def dictionary(self, pair: str) -> dict[Any, Any]:
        key_type, value_type = split(pair)
        end = self._extent(8)
        values: dict[Any, Any] = {}
        while self.position < end:
            if len(values) == ARRAY_MAX:
                raise InvalidArgs(f"at most {ARRAY_MAX} elements")
            self.align(8)
            key = self.read(key_type)
            # The specification leaves duplicates to the reader; taking the last one would authorise the unseen.
            if key in values:
                raise InvalidArgs("a name is given twice")
            values[key] = self.read(value_type)
        return values


def parse_options(options: Mapping[str, tuple[str, Any]], allowed: Mapping[str, str]) -> dict[str, Any]:
    """The values of an `a{sv}` by name; InvalidArgs names the options there are, or the type one has."""
    values: dict[str, Any] = {}
    for name, (type_, value) in options.items():
        wanted = allowed.get(name)
        if wanted is None:
            expected = f"expected: {', '.join(allowed)}" if allowed else "there are none"
            raise InvalidArgs(f"unknown option; {expected}", argument="options")
        if type_ != wanted:
            raise InvalidArgs(f"the option {name} must have type '{wanted}'", argument="options")
        values[name] = value
    return values


class ReplyCache:
    """The recent replies of one member, by its arguments."""

    def __init__(
        self,
        signature: str,
        size: int = 16,
        size_bytes: int = 8 << 20,
        *,
        keep: float = KEEP,
        forgotten: Callable[[], None] = lambda: None,
    ) -> None:
        """`signature` is the reply's; at most `size` answers of `size_bytes` together are kept, the most recently requested ones.

        All of them are forgotten, and `forgotten` is called, after `keep` seconds without a request.
        """
        self._keep = keep
        self._forgotten = forgotten
        self._timer: asyncio.TimerHandle | None = None
        self._asked = False
        """A request arrived since the timer was set."""
        self._signature = signature
        self._size = size
        self._size_bytes = size_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Any, Body]] = OrderedDict()

    def kept(self, request: Hashable, made_of: object) -> Body | None:
        """The answer kept for `request` if it was made of an equal thing."""
        self._asked = True
        kept = self._kept.get(request)
        if kept is None or not (kept[0] is made_of or kept[0] == made_of):
            return None
        self._kept.move_to_end(request)
        return kept[1]

    def get(self, request: Hashable, made_of: object, make: Callable[[], Any]) -> Body:
        """The answer kept for `request` if it was made of an equal thing, otherwise a new one from `make`.

        `make` answers the value, or a `Body` that it marshalled itself.
        """
        reply = self.kept(request, made_of)
        if reply is not None:
            return reply
        kept = self._kept.get(request)
        made = make()
        body = made if isinstance(made, Body) else Body(encode(self._signature, (made,)))
        if kept is not None:
            self._bytes -= len(kept[1].data)
        self._bytes += len(body.data)
        self._kept[request] = made_of, body
        self._kept.move_to_end(request)
        while len(self._kept) > self._size or self._bytes > self._size_bytes:
            _, (_, old) = self._kept.popitem(last=False)
            self._bytes -= len(old.data)
        if self._timer is None:
            self._wait(asyncio.get_running_loop())
        return body

    def close(self) -> None:
        """Forget everything, and wait for nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._kept.clear()
        self._bytes = 0

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asked = False
        self._timer = loop.call_later(self._keep, self._forget, loop)

    def _forget(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._asked:
            self._wait(loop)
            return
        self.close()
        self._forgotten()
