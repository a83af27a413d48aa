# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nobody fills the journal, and nobody can have a record of others or the first one of his own left out."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.core.audit.limit import (
    DEEDS_MAX,
    FIRSTS_MAX,
    PERIOD,
    RECORDS_MAX,
    SPOKEN_FOR_MAX,
    USERS_MAX,
    AuditWatch,
    RateLimitedAudit,
)
from kmodd.model import HealthStatus, Record
from tests.unit.fakes import Journal

ALICE, BOB = 1000, 1001


class Desk:
    """An audit, with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.now = 1_700_000_000_000_000
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.audit = RateLimitedAudit(self.journal, lambda: self.now, self._later)

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


def test_one_users_flood_hides_no_refusal_of_another(desk: Desk) -> None:
    desk.refuses(ALICE, 10 * RECORDS_MAX)
    desk.refuses(BOB, 3)
    desk.refuses(None, 2)
    assert [one.uid for one in desk.journal.records[RECORDS_MAX:]] == [BOB] * 3 + [None] * 2


def test_root_the_daemon_itself_and_an_ordinary_number_of_jobs_are_always_recorded(desk: Desk) -> None:
    desk.refuses(0, 2 * RECORDS_MAX)
    desk.refuses(ALICE, 2 * RECORDS_MAX, event="operation.failed", job="7")
    desk.refuses(ALICE, 2 * RECORDS_MAX, event="module.loaded")
    desk.refuses(None, 20 * RECORDS_MAX, event="module.appeared")
    assert len(desk.journal.records) == 26 * RECORDS_MAX


def test_many_users_at_once_share_what_is_left(desk: Desk) -> None:
    for uid in range(1, 3 * USERS_MAX + 301):
        desk.refuses(uid)
    assert len(desk.journal.records) == 3 * USERS_MAX + RECORDS_MAX
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


def test_junk_does_not_hide_what_is_tried_after_it(desk: Desk) -> None:
    """Someone who prepares uses up the hundred first; what comes then is written all the same."""
    desk.refuses(ALICE, 10 * RECORDS_MAX)
    for module in ("vfat", "nvidia", "vfat"):
        desk.audit.record(Record("authorization.denied", "refused", uid=ALICE, action="load", module=module))
    assert [one.module for one in desk.journal.records[RECORDS_MAX:]] == ["vfat", "nvidia"]


def test_names_that_are_made_up_hide_no_denial(desk: Desk) -> None:
    """Any number of names fails before polkit is asked; what polkit denied is a decision, and is written."""
    for number in range(RECORDS_MAX + FIRSTS_MAX + 50):
        desk.audit.record(Record("operation.failed", "refused", uid=ALICE, action="load", module=f"junk{number}"))
    desk.audit.record(Record("authorization.denied", "refused", uid=ALICE, action="load", module="vfat"))
    assert desk.journal.events[-1] == "authorization.denied"


def test_refusals_use_up_nothing_of_the_room_for_deeds(desk: Desk) -> None:
    for number in range(RECORDS_MAX + FIRSTS_MAX + 50):
        desk.audit.record(Record("operation.failed", "refused", uid=ALICE, action="load", module=f"junk{number}"))
    desk.audit.record(Record("module.loaded", "loaded", uid=ALICE, action="load", module="dummy"))
    assert desk.journal.events[-1] == "module.loaded"


def test_a_flood_of_deeds_ends_in_one_record_that_counts_the_rest(desk: Desk) -> None:
    for _ in range(DEEDS_MAX + 500):
        desk.audit.record(Record("authorization.granted", "authorized", uid=ALICE, action="load", module="dummy"))
    assert len(desk.journal.records) == DEEDS_MAX
    assert desk.audit.left_out == 500
    desk.passes(PERIOD)
    assert (desk.journal.records[-1].event, desk.journal.records[-1].extra["UNWRITTEN"]) == ("records.collapsed", "500")


def test_a_gateways_users_have_rations_of_their_own(desk: Desk) -> None:
    for _ in range(10 * RECORDS_MAX):
        desk.audit.record(Record("authorization.denied", "refused", uid=ALICE, on_behalf_of="token a"))
    desk.audit.record(Record("authorization.denied", "refused", uid=ALICE, on_behalf_of="token b"))
    assert desk.journal.records[-1].on_behalf_of == "token b"
    for number in range(2 * USERS_MAX):
        desk.audit.record(Record("authorization.denied", "refused", uid=ALICE, on_behalf_of=f"token {number}"))
    assert len(desk.audit._counts) <= SPOKEN_FOR_MAX + 1
    desk.refuses(BOB)
    assert desk.journal.records[-1].uid == BOB


EVENTS = ["authorization.denied", "operation.failed", "authorization.granted", "module.loaded", "store.imported"]
attacks = st.lists(
    st.tuples(
        st.sampled_from(EVENTS),
        st.sampled_from(["load", "unload", "import"]),
        st.one_of(st.sampled_from(["dummy", "vfat"]), st.integers(0, 60).map("m{}".format)),
        st.sampled_from(["", "7"]),
        st.integers(1, 400),
        st.sampled_from([0, 0, 0, 1_000_000, PERIOD]),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(attack=attacks, others=st.lists(st.integers(0, 24), max_size=20))
def test_no_flood_hides_anything_that_matters(
    attack: list[tuple[str, str, str, str, int, int]], others: list[int]
) -> None:
    """Whatever one user causes: the records of others are all written, the first of each of its own kinds is, and all is bounded."""
    desk = Desk()
    sent: set[tuple[str, str, str]] = set()
    start = desk.now
    for number, (event, action, module, job, times, pause) in enumerate(attack):
        for _ in range(times):
            desk.audit.record(Record(event, "x", module=module, action=action, uid=ALICE, job=job))
        sent.add((event, action, module))
        for _ in range(others.count(number)):
            desk.audit.record(Record("authorization.denied", "x", module="loop", action="load", uid=BOB))
        desk.passes(pause)
    written = desk.journal.records
    assert sum(one.uid == BOB for one in written) == sum(number < len(attack) for number in others)
    kinds = {(one.event, one.action, one.module) for one in written if one.uid == ALICE}
    assert sent <= kinds, "fewer kinds than FIRSTS_MAX were sent"
    whole = 1 + (desk.now - start) // PERIOD
    most = (2 * RECORDS_MAX + DEEDS_MAX + 3 * FIRSTS_MAX + 3) * (whole + 1)
    assert sum(one.uid == ALICE for one in written) <= most


# --- records that were lost --------------------------------------------------------------------------------------------


def test_lost_records_are_in_the_metrics_and_make_the_health_degraded() -> None:
    lost = 0
    watch = AuditWatch(lost=lambda: lost, collapsed=lambda: 7)
    assert not list(watch.health())
    lost = 2
    (finding,) = watch.health()
    assert (finding.name, finding.status) == ("audit", HealthStatus.DEGRADED)
    assert finding.message == "2 audit records were lost: the journal did not accept them."
    assert {one.name: one.value for one in watch.metrics()} == {
        "kmodd_audit_records_lost_total": 2.0,
        "kmodd_audit_records_collapsed_total": 7.0,
    }
