# SPDX-License-Identifier: LGPL-2.1-or-later
"""Marshalled replies, kept until their sources change or they have not been requested for a while."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from kmodd.dbus.call import Body
from kmodd.dbus.marshal import encode

KEEP = 10.0
"""Seconds after the last question in which what was big for a while becomes small again."""


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

    def kept(self, asked: Hashable, made_of: object) -> Body | None:
        """The answer kept for `asked` if it was made of an equal thing."""
        self._asked = True
        kept = self._kept.get(asked)
        if kept is None or not (kept[0] is made_of or kept[0] == made_of):
            return None
        self._kept.move_to_end(asked)
        return kept[1]

    def get(self, asked: Hashable, made_of: object, make: Callable[[], Any]) -> Body:
        """The answer kept for `asked` if it was made of an equal thing, otherwise a new one from `make`.

        `make` answers the value, or a `Body` that it marshalled itself.
        """
        known = self.kept(asked, made_of)
        if known is not None:
            return known
        kept = self._kept.get(asked)
        made = make()
        body = made if isinstance(made, Body) else Body(encode(self._signature, (made,)))
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
