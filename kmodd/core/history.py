# SPDX-License-Identifier: LGPL-2.1-or-later
"""The answer to `GetHistory`: what was done, by whom, why and with which result."""

import asyncio
from collections.abc import Callable

from kmodd.core.api import HistoryReader
from kmodd.errors import Busy, InvalidArgs
from kmodd.model import HistoryEntry, HistoryQuery

LIMIT_MAX = 1000
READS = 4
"""Readings at once; each walks through journal files in a thread."""


class History:
    """Reads records back without holding up the daemon."""

    def __init__(self, reader: HistoryReader, *, limit_max: Callable[[], int] = lambda: LIMIT_MAX) -> None:
        """`limit_max` answers how many records one reading may ask for."""
        self._reader = reader
        self._limit_max = limit_max
        self._reading = 0

    async def read(self, query: HistoryQuery) -> list[HistoryEntry]:
        """Newest last; InvalidArgs for an impossible query, Busy when too many are under way."""
        if not 1 <= query.limit <= self._limit_max():
            raise InvalidArgs(f"limit is 1 to {self._limit_max()}", argument="limit")
        if query.since < 0:
            raise InvalidArgs("since is a time in microseconds since 1970", argument="since")
        if self._reading >= READS:
            raise Busy("Too many readings of the history are under way; ask again in a moment.")
        self._reading += 1
        reading = asyncio.ensure_future(asyncio.to_thread(self._reader.read, query))
        # Counted until the thread is done, not until its caller lost patience: a cancelled thread goes on reading.
        reading.add_done_callback(self._done)
        return await asyncio.shield(reading)

    def _done(self, reading: asyncio.Future[list[HistoryEntry]]) -> None:
        self._reading -= 1
        if not reading.cancelled():
            reading.exception()  # seen, also when the caller has left
