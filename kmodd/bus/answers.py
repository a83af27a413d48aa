# SPDX-License-Identifier: LGPL-2.1-or-later
"""Marshalled answers, kept until what they were made of is different."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from kmodd.bus.call import Body
from kmodd.bus.encoder import encode


class Answers:
    """The last answers of one member, by what was asked."""

    def __init__(self, signature: str, size: int = 16, size_bytes: int = 8 << 20) -> None:
        """`signature` is the reply's; at most `size` answers of `size_bytes` together are kept, those last asked for."""
        self._signature = signature
        self._size = size
        self._size_bytes = size_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Any, Body]] = OrderedDict()

    def get(self, asked: Hashable, made_of: object, make: Callable[[], Any]) -> Body:
        """The answer kept for `asked` if it was made of an equal thing, otherwise a new one from `make`."""
        kept = self._kept.get(asked)
        if kept is not None and (kept[0] is made_of or kept[0] == made_of):
            self._kept.move_to_end(asked)
            return kept[1]
        body = Body(encode(self._signature, (make(),)))
        if kept is not None:
            self._bytes -= len(kept[1].data)
        self._bytes += len(body.data)
        self._kept[asked] = made_of, body
        self._kept.move_to_end(asked)
        while len(self._kept) > self._size or self._bytes > self._size_bytes:
            _, (_, old) = self._kept.popitem(last=False)
            self._bytes -= len(old.data)
        return body
