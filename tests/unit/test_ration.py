# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nobody fills the journal with what he was refused, and nobody's refusals are forgotten."""

from collections.abc import Callable

import pytest

from kmodd.core.ration import PERIOD, RECORDS_MAX, USERS_MAX, RationedAudit
from kmodd.model import Record
from tests.unit.fakes import Journal

ALICE, BOB = 1000, 1001


class Desk:
    """An audit, with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.now = 1_700_000_000_000_000
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.audit = RationedAudit(self.journal, lambda: self.now, self._later)

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append((self.now + round(seconds * 1e6), callback))

    def refuses(self, uid: int | None, times: int = 1, *, event: str = "authorization.denied", job: str = "") -> None:
        for _ in range(times):
            self.audit.record(Record(event, "refused", uid=uid, job=job))

    def passes(self, microseconds: int) -> None:
        self.now += microseconds
        due = [callback for at, callback in self.timers if at <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for callback in due:
            callback()

    @property
    def collapsed(self) -> list[tuple[int | None, str]]:
        return [(one.uid, one.extra["UNWRITTEN"]) for one in self.journal.records if one.event == "refusals.collapsed"]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize("event", ["authorization.denied", "operation.failed"])
def test_a_flood_ends_in_one_record_that_counts_the_rest(desk: Desk, event: str) -> None:
    desk.refuses(ALICE, RECORDS_MAX + 50, event=event)
    assert desk.journal.events == [event] * RECORDS_MAX
    desk.passes(PERIOD)
    assert desk.journal.events[RECORDS_MAX:] == ["refusals.collapsed"]
    assert desk.collapsed == [(ALICE, "50")]
    assert desk.journal.records[-1].message.startswith("50 more requests")


def test_a_new_minute_is_a_new_ration(desk: Desk) -> None:
    for _ in range(3):
        desk.refuses(ALICE, RECORDS_MAX + 1)
        desk.passes(PERIOD)
    assert desk.journal.events.count("authorization.denied") == 3 * RECORDS_MAX
    assert desk.collapsed == [(ALICE, "1")] * 3


def test_within_the_ration_nothing_is_added_and_nothing_waits(desk: Desk) -> None:
    desk.refuses(ALICE, RECORDS_MAX)
    assert desk.timers == []
    desk.passes(10 * PERIOD)
    desk.refuses(ALICE)
    assert desk.journal.events == ["authorization.denied"] * (RECORDS_MAX + 1)


def test_one_users_flood_hides_nobody_elses_refusal(desk: Desk) -> None:
    desk.refuses(ALICE, 10 * RECORDS_MAX)
    desk.refuses(BOB, 3)
    desk.refuses(None, 2)
    assert [one.uid for one in desk.journal.records[RECORDS_MAX:]] == [BOB] * 3 + [None] * 2


def test_root_and_what_came_to_a_job_are_always_recorded(desk: Desk) -> None:
    desk.refuses(0, 2 * RECORDS_MAX)
    desk.refuses(ALICE, 2 * RECORDS_MAX, event="operation.failed", job="7")
    desk.refuses(ALICE, 2 * RECORDS_MAX, event="module.loaded")
    assert len(desk.journal.records) == 6 * RECORDS_MAX


def test_many_users_at_once_share_what_is_left(desk: Desk) -> None:
    for uid in range(1, USERS_MAX + 301):
        desk.refuses(uid)
    assert len(desk.journal.records) == USERS_MAX + RECORDS_MAX
    desk.passes(PERIOD)
    assert desk.collapsed == [(None, "200")]
    desk.refuses(5000)
    assert desk.journal.records[-1].uid == 5000


def test_a_clock_set_back_begins_a_new_minute(desk: Desk) -> None:
    desk.refuses(ALICE, RECORDS_MAX + 5)
    desk.now -= 10 * PERIOD
    desk.refuses(ALICE)
    assert desk.collapsed == [(ALICE, "5")]
    assert desk.journal.events[-1] == "authorization.denied"


def test_an_end_in_between_tells_what_was_left_out(desk: Desk) -> None:
    desk.refuses(ALICE, RECORDS_MAX + 5)
    desk.audit.flush()
    assert desk.collapsed == [(ALICE, "5")]
    desk.passes(PERIOD)
    assert desk.collapsed == [(ALICE, "5")]
