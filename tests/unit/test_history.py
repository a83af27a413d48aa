# SPDX-License-Identifier: LGPL-2.1-or-later
"""History is checked at the door, read in a thread, and bounded."""

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from kmodd.core.audit.limit import SETTLE, NotifyingAudit
from kmodd.core.audit.records import READS, History
from kmodd.core.events import HistoryChanged
from kmodd.errors import InvalidArgs, LimitsExceeded, NotPermitted
from kmodd.model import Caller, HistoryEntry, HistoryQuery, Record
from tests.unit.fakes import Broadcaster, Journal

if TYPE_CHECKING:
    from collections.abc import Callable

ALICE, BOB = Caller(":1.8", 1000), Caller(":1.9", 1001)


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
        await History(SlowReader()).read(query, ALICE)


async def test_a_user_that_floods_waits_for_itself_and_never_on_the_loop() -> None:
    reader = SlowReader()
    history = History(reader)
    waiting = [asyncio.ensure_future(history.read(HistoryQuery(), ALICE)) for _ in range(10 * READS)]
    await asyncio.sleep(0.05)
    assert len(reader.threads) == 1
    refused = [each for each in waiting if each.done()]
    assert refused
    assert all(isinstance(each.exception(), LimitsExceeded) for each in refused)
    served = asyncio.ensure_future(history.read(HistoryQuery(), BOB))
    await asyncio.sleep(0.05)
    assert len(reader.threads) == 2
    reader.gate.set()
    assert await served == []
    await asyncio.gather(*waiting, return_exceptions=True)
    assert threading.get_ident() not in reader.threads


async def test_a_reading_counts_until_its_thread_ends() -> None:
    reader = SlowReader()
    history = History(reader)
    left = asyncio.ensure_future(history.read(HistoryQuery(), ALICE))
    await asyncio.sleep(0.05)
    left.cancel()
    second = asyncio.ensure_future(history.read(HistoryQuery(), ALICE))
    await asyncio.sleep(0.05)
    assert len(reader.threads) == 1
    reader.gate.set()
    assert await second == []
    assert len(reader.threads) == 2


async def test_a_journal_that_cannot_be_read_is_the_callers_to_hear() -> None:
    reader = SlowReader()
    reader.gate.set()
    with pytest.raises(NotPermitted, match="the journal cannot be read"):
        await History(reader).read(HistoryQuery(since=13), ALICE)


# --- the signal HistoryChanged -----------------------------------------------------------------------------------------


class Desk:
    """An audit, with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.hub = Broadcaster()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.audit = NotifyingAudit(self.journal, self.hub, lambda *timer: self.timers.append(timer))

    def writes(self, *events: str) -> None:
        for event in events:
            self.audit.record(Record(event, "message"))

    def later(self) -> None:
        timers, self.timers = self.timers, []
        for _, callback in timers:
            callback()


def test_a_burst_is_announced_once_and_after_the_records() -> None:
    desk = Desk()
    desk.writes(*["authorization.denied"] * 50, "operation.failed")
    assert desk.journal.events == [*["authorization.denied"] * 50, "operation.failed"]
    assert [seconds for seconds, _ in desk.timers] == [SETTLE]
    assert desk.hub.published == []
    desk.later()
    assert desk.hub.published == [HistoryChanged()]
    desk.later()
    assert desk.hub.published == [HistoryChanged()], "an idle daemon says nothing"


def test_records_after_an_announcement_are_announced_again() -> None:
    desk = Desk()
    for _ in range(3):
        desk.writes("operation.failed")
        desk.later()
    assert desk.hub.published == [HistoryChanged()] * 3


def test_a_grant_is_recorded_and_not_announced() -> None:
    """To read the history is granted, and whoever reads after each signal would cause the next."""
    desk = Desk()
    desk.writes("authorization.granted")
    assert desk.journal.events == ["authorization.granted"]
    assert desk.timers == []
