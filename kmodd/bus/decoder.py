# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unmarshals what callers send, within limits.

A caller's body is read only after its signature was found equal to the method's, and every string, array and variant is
checked while it is read: what is too long or of a type no option has costs next to nothing, and no signature of a
caller's choosing is ever parsed.
"""

from struct import Struct, error
from typing import Any

from kmodd.bus.signature import ALIGNMENT, BASIC, split
from kmodd.errors import InvalidArgs
from kmodd.names import ARRAY_MAX, BATCH_MAX, STRING_MAX

_VARIANTS = BASIC | {"as", "a{ss}"}
_FIXED = {"n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
_LITTLE = {code: Struct("<" + letter) for code, letter in _FIXED.items()}
_BIG = {code: Struct(">" + letter) for code, letter in _FIXED.items()}


def decode(signature: str, body: bytes, *, little: bool = True) -> list[Any]:
    """Unmarshal a body of our own signature; InvalidArgs when it breaks a limit.

    Structs become tuples, dictionaries dicts, variants (signature, value), descriptors their number among the message's.
    """
    reader = _Reader(body, little)
    try:
        values = [reader.read(type_) for type_ in split(signature)]
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
        self.align(ALIGNMENT[code])
        layout = self.fixed[code]
        (value,) = layout.unpack_from(self.body, self.position)
        self.position += layout.size
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
            raise InvalidArgs("no option has a value of that type")
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
