# SPDX-License-Identifier: LGPL-2.1-or-later
"""History is checked at the door, read in a thread, and bounded."""

import asyncio
import threading

import pytest

from kmodd.core.history import READS, History
from kmodd.errors import Busy, InvalidArgs
from kmodd.model import HistoryEntry, HistoryQuery


class SlowReader:
    """Waits for its gate and says in which threads it was."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: list[int] = []

    def read(self, query: HistoryQuery) -> list[HistoryEntry]:
        self.threads.append(threading.get_ident())
        self.gate.wait(5)
        if query.since == 13:
            raise OSError(5, "the journal is damaged")
        return []


@pytest.mark.parametrize("query", [HistoryQuery(limit=0), HistoryQuery(limit=1001), HistoryQuery(since=-1)])
async def test_an_impossible_query_is_refused(query: HistoryQuery) -> None:
    with pytest.raises(InvalidArgs):
        await History(SlowReader()).read(query)


async def test_readings_are_bounded_until_their_threads_end_and_never_on_the_loop() -> None:
    reader = SlowReader()
    history = History(reader)
    waiting = [asyncio.ensure_future(history.read(HistoryQuery())) for _ in range(READS)]
    await asyncio.sleep(0.01)
    for each in waiting:
        each.cancel()
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await history.read(HistoryQuery())
    reader.gate.set()
    await asyncio.sleep(0.05)
    assert await history.read(HistoryQuery()) == []
    assert threading.get_ident() not in reader.threads


async def test_a_journal_that_cannot_be_read_is_the_callers_to_hear() -> None:
    reader = SlowReader()
    reader.gate.set()
    with pytest.raises(OSError, match="damaged"):
        await History(reader).read(HistoryQuery(since=13))
