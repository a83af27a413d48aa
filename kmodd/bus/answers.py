# SPDX-License-Identifier: LGPL-2.1-or-later
"""Marshalled answers, kept until what they were made of is different, or nobody has asked for a while."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from kmodd.bus.call import Body
from kmodd.bus.encoder import encode

KEEP = 10.0
"""Seconds after the last question in which what was big for a while becomes small again."""


class Answers:
    """The last answers of one member, by what was asked."""

    def __init__(
        self,
        signature: str,
        size: int = 16,
        size_bytes: int = 8 << 20,
        *,
        keep: float = KEEP,
        forgotten: Callable[[], None] = lambda: None,
    ) -> None:
        """`signature` is the reply's; at most `size` answers of `size_bytes` together are kept, those last asked for.

        All of them are forgotten, and `forgotten` is called, when nobody has asked for `keep` seconds.
        """
        self._keep = keep
        self._forgotten = forgotten
        self._timer: asyncio.TimerHandle | None = None
        self._asked = False
        """Somebody has, since the timer was set."""
        self._signature = signature
        self._size = size
        self._size_bytes = size_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Any, Body]] = OrderedDict()

    def get(self, asked: Hashable, made_of: object, make: Callable[[], Any]) -> Body:
        """The answer kept for `asked` if it was made of an equal thing, otherwise a new one from `make`."""
        self._asked = True
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
