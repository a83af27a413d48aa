# SPDX-License-Identifier: LGPL-2.1-or-later
"""Marshals values into message bodies, by functions compiled once per signature.

dbus-next verifies and writes every value through its signature tree, which takes ten milliseconds for two hundred module
rows; this takes less than one. Python values: tuples or lists for structs and arrays, mappings for dictionaries, and
(signature, value) for variants. Little endian always.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from struct import Struct
from typing import Any

from kmodd.bus.signature import ALIGNMENT, split

Writer = Callable[[bytearray, Any], None]

_PADDING = tuple(bytes(n) for n in range(8))
_U32 = Struct("<I")
_FIXED = {"n": "<h", "q": "<H", "i": "<i", "u": "<I", "x": "<q", "t": "<Q", "d": "<d"}


def encode(signature: str, values: tuple[Any, ...]) -> bytes:
    """Marshal a body; the values are one for each complete type of the signature."""
    types = split(signature)
    if len(types) != len(values):
        raise ValueError(f"signature {signature} wants {len(types)} values, got {len(values)}")
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
    # Text from module files and from the kernel need not be UTF-8, and the bus disconnects whoever sends what is not.
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
