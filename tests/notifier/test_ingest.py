# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every record is told once, whatever the clock and the daemon do."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.journal.writer import Logger
from kmodd.notifier.configuration import Rule
from kmodd.notifier.ingest import OVERLAP, OVERLAP_START, PERIOD, TOLD_MAX, Ingest
from kmodd.notifier.notice import from_record
from kmodd.notifier.outbox import Outbox

START = 1_700_000_000_000_000


class Bench:
    """A history, a clock, an intake."""

    def __init__(self, outbox: Outbox, logger: Logger) -> None:
        self.now = START
        self.outbox = outbox
        self.history: list[dict[str, Any]] = []
        self.woken: list[str] = []
        self.intake = Ingest(outbox, logger, clock=lambda: self.now, queued=self.woken.extend)
        self.intake.rules = (Rule(("a",)),)

    def happens(self, event: str = "module.loaded", **fields: object) -> None:
        self.history.append({"time": self.now, "event": event, "message": f"m{len(self.history)}", **fields})

    def look(self) -> int:
        since = self.intake.since()
        # As the daemon does: back from the newest until one is too old.
        found: list[dict[str, Any]] = []
        for row in reversed(self.history):
            if row["time"] < since:
                break
            found.insert(0, row)
        return self.intake.records(found) if found else 0

    def told(self) -> list[str]:
        return [one.notice.message for one in self.outbox.begin("a", 1000, self.now)]


@pytest.fixture
def bench(tmp_path: Path, logger: Logger) -> Iterator[Bench]:
    outbox = Outbox(tmp_path / "q")
    yield Bench(outbox, logger)
    outbox.close()


def test_records_before_the_first_start_are_not_notified(bench: Bench) -> None:
    bench.happens()
    bench.now += 1
    bench.look()
    bench.now += 1
    bench.happens()
    assert bench.look() == 1
    assert bench.told() == ["m1"]


def test_a_clock_set_back_while_it_was_stopped_hides_nothing(bench: Bench, logger: Logger) -> None:
    bench.look()
    bench.now += 60_000_000
    bench.happens()
    bench.look()
    bench.now -= 120_000_000
    bench.happens()
    bench.now += 300_000_000
    bench.intake = Ingest(bench.outbox, logger, clock=lambda: bench.now, queued=bench.woken.extend)
    bench.intake.rules = (Rule(("a",)),)
    # In the journal's order, the older time comes last.
    assert bench.look() == 1
    assert bench.told() == ["m0", "m1"]
    assert OVERLAP < 120_000_000 < OVERLAP_START


def test_no_notification_is_repeated_or_lost_over_restarts(bench: Bench, logger: Logger) -> None:
    bench.look()
    for n in range(30):
        bench.now += n * 1000
        bench.happens(module="dummy")
        if n % 3 == 0:
            bench.look()
        if n % 7 == 0:  # a new process on the same file
            bench.intake = Ingest(bench.outbox, logger, clock=lambda: bench.now, queued=bench.woken.extend)
            bench.intake.rules = (Rule(("a",)),)
    bench.look()
    assert bench.told() == [f"m{n}" for n in range(30)]


def test_equal_records_of_one_moment_are_two(bench: Bench) -> None:
    bench.look()
    bench.happens()
    bench.history.append(dict(bench.history[0]))
    assert bench.look() == 2
    assert bench.look() == 0
    assert len(bench.told()) == 2


def test_a_clock_set_back_hides_nothing(bench: Bench) -> None:
    bench.look()
    bench.now += 1_000_000
    bench.happens()
    assert bench.look() == 1
    bench.now -= 3_600_000_000
    bench.happens()
    assert bench.look() == 1
    bench.now += 1_000_000
    bench.happens()
    assert bench.look() == 1
    assert bench.told() == ["m0", "m1", "m2"]


def test_records_out_of_order_are_found(bench: Bench) -> None:
    bench.look()
    bench.now += 5_000_000
    bench.happens()
    bench.look()
    late = {"time": bench.now - 2_000_000, "event": "module.loaded", "message": "late"}
    bench.history.insert(0, late)
    assert bench.look() == 1
    assert bench.told() == ["m0", "late"]


@pytest.mark.parametrize(
    ("event", "result", "kind", "severity"),
    [
        ("module.loaded", "", "load", "info"),
        ("module.appeared", "", "load", "info"),
        ("module.disappeared", "", "unload", "info"),
        ("module.unsigned", "", "unsigned", "warning"),
        ("operation.failed", "", "failure", "warning"),
        ("operation.crashed", "", "crash", "error"),
        ("operation.stuck", "", "stuck", "error"),
        ("operation.released", "", "stuck", "notice"),
        ("health.changed", "ok", "health", "notice"),
        ("health.changed", "failing", "health", "error"),
        ("store.activated", "", "store", "notice"),
        ("authorization.denied", "", "denied", "warning"),
        ("module.refused", "refused", "refused", "notice"),
        ("refusals.collapsed", "", "denied", "warning"),
        ("response.begun", "changed", "response", "notice"),
        ("response.stopped", "unchanged", "response", "warning"),
    ],
)
def test_what_a_record_is_worth(event: str, result: str, kind: str, severity: str) -> None:
    found = from_record({"event": event, "result": result, "time": 1}, "key")
    assert found is not None
    assert (found.kind, found.severity) == (kind, severity)


@pytest.mark.parametrize("event", ["authorization.granted", "daemon.started", "operation.unchanged", ""])
def test_records_of_the_daemon_itself_are_not_notified(event: str) -> None:
    assert from_record({"event": event}, "key") is None


def test_odd_rows_do_no_harm(bench: Bench) -> None:
    bench.look()
    assert (
        bench.intake.records([{"event": 5}, {"event": "module.loaded", "uid": "x", "kernel-log": 7, "time": START}])
        == 2
    )
    assert len(bench.told()) == 1


def test_conditions_are_notified_when_they_come(bench: Bench) -> None:
    def there(**found: str) -> None:
        bench.intake.conditions("unsigned", "module.unsigned", {name: (name, text) for name, text in found.items()})

    there(old="was there")
    assert bench.told() == []
    there(old="x", new="new came")
    there(old="x", new="new came")
    assert bench.told() == ["new came"]
    there()
    bench.now += 1
    there(new="new again")
    assert bench.outbox.waiting("a").count == 2


def test_an_unsigned_module_is_not_notified_twice(bench: Bench) -> None:
    def there(*names: str) -> None:
        bench.intake.conditions("unsigned", "module.unsigned", {name: (name, f"list: {name}") for name in names})

    there()
    bench.look()
    bench.now += 1
    bench.happens("module.unsigned", module="nvidia", uid=1000)
    bench.look()
    there("nvidia")
    assert bench.told() == ["m0"]
    bench.happens("module.disappeared", module="nvidia")
    bench.look()
    bench.now += 1
    there("nvidia")  # it came back while kmodd was away
    assert bench.outbox.waiting("a").count == 3


def test_one_user_cannot_fill_the_queue_with_refusals(bench: Bench, log: io.StringIO) -> None:
    bench.look()
    bench.now += 1
    for n in range(TOLD_MAX * 4):
        bench.now += 1000
        bench.happens(("authorization.denied", "operation.failed", "module.refused")[n % 3], uid=1000)
        bench.happens("operation.failed", uid=0)
        bench.happens("operation.failed", uid=1000, job="5")
        bench.happens("authorization.denied", uid=1001 + n)
    bench.look()
    assert bench.outbox.waiting("a").count == TOLD_MAX * 13
    assert bench.intake.left_out == TOLD_MAX * 3
    assert log.getvalue().count("further notifications suppressed this minute") == 1
    bench.now += PERIOD
    bench.happens("authorization.denied", uid=1000)
    bench.look()
    assert bench.outbox.waiting("a").count == TOLD_MAX * 13 + 1
    assert f"{TOLD_MAX * 3} notifications suppressed" in log.getvalue()


def test_a_burst_stays_within_the_bounds(bench: Bench) -> None:
    bench.look()
    bench.intake.rows = 10
    for _ in range(25):
        bench.now += 1
        bench.happens()
    bench.look()
    assert bench.told() == [f"m{n}" for n in range(15, 25)]
    assert bench.outbox.state("a").dropped == 15
