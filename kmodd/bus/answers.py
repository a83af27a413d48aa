# SPDX-License-Identifier: LGPL-2.1-or-later
"""Marshalled answers, kept until what they were made of is different."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from kmodd.bus.call import Body
from kmodd.bus.encoder import encode


class Answers:
    """The last answers of one member, by what was asked."""

    def __init__(self, signature: str, size: int = 16) -> None:
        """`signature` is the reply's; at most `size` answers are kept."""
        self._signature = signature
        self._size = size
        self._kept: OrderedDict[Hashable, tuple[Any, Body]] = OrderedDict()

    def get(self, asked: Hashable, made_of: object, make: Callable[[], Any]) -> Body:
        """The answer kept for `asked` if it was made of an equal thing, otherwise a new one from `make`."""
        kept = self._kept.get(asked)
        if kept is not None and (kept[0] is made_of or kept[0] == made_of):
            self._kept.move_to_end(asked)
            return kept[1]
        body = Body(encode(self._signature, (make(),)))
        self._kept[asked] = made_of, body
        self._kept.move_to_end(asked)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return body
