# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records are told of a moment later, many at once, and reading them causes no more of them."""

from typing import TYPE_CHECKING

from kmodd.core.announced import SETTLE, AnnouncedAudit
from kmodd.core.api import HistoryChanged
from kmodd.model import Record
from tests.unit.fakes import Hub, Journal

if TYPE_CHECKING:
    from collections.abc import Callable


class Desk:
    """An audit, with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.hub = Hub()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.audit = AnnouncedAudit(self.journal, self.hub, lambda *timer: self.timers.append(timer))

    def writes(self, *events: str) -> None:
        for event in events:
            self.audit.record(Record(event, "message"))

    def later(self) -> None:
        timers, self.timers = self.timers, []
        for _, callback in timers:
            callback()


def test_a_burst_is_told_once_and_after_the_records() -> None:
    desk = Desk()
    desk.writes(*["authorization.denied"] * 50, "operation.failed")
    assert desk.journal.events == [*["authorization.denied"] * 50, "operation.failed"]
    assert [seconds for seconds, _ in desk.timers] == [SETTLE]
    assert desk.hub.published == []
    desk.later()
    assert desk.hub.published == [HistoryChanged()]
    desk.later()
    assert desk.hub.published == [HistoryChanged()], "an idle daemon says nothing"


def test_what_comes_after_it_was_told_is_told_again() -> None:
    desk = Desk()
    for _ in range(3):
        desk.writes("operation.failed")
        desk.later()
    assert desk.hub.published == [HistoryChanged()] * 3


def test_a_grant_is_written_and_not_told() -> None:
    """To read the history is granted, and whoever reads after each signal would cause the next."""
    desk = Desk()
    desk.writes("authorization.granted")
    assert desk.journal.events == ["authorization.granted"]
    assert desk.timers == []
