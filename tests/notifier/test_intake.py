# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every record is told once, whatever the clock and the daemon do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.log import Logger
from kmodd.notifier.intake import OVERLAP, Intake
from kmodd.notifier.notice import from_record
from kmodd.notifier.outbox import Outbox
from kmodd.notifier.rules import Rule

START = 1_700_000_000_000_000


class Bench:
    """A history, a clock, an intake."""

    def __init__(self, outbox: Outbox, logger: Logger) -> None:
        self.now = START
        self.outbox = outbox
        self.history: list[dict[str, Any]] = []
        self.woken: list[str] = []
        self.intake = Intake(outbox, logger, clock=lambda: self.now, queued=self.woken.extend)
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
        return [one.notice.message for one in self.outbox.begin("a", 1000)]


@pytest.fixture
def bench(tmp_path: Path, logger: Logger) -> Iterator[Bench]:
    outbox = Outbox(tmp_path / "q")
    yield Bench(outbox, logger)
    outbox.close()


def test_the_past_before_the_first_start_is_nobodys_news(bench: Bench) -> None:
    bench.happens()
    bench.now += OVERLAP * 2
    assert bench.look() == 0
    bench.now += 1
    bench.happens()
    assert bench.look() == 1
    assert bench.told() == ["m1"]


def test_nothing_is_told_twice_nor_lost_over_restarts(bench: Bench, logger: Logger) -> None:
    bench.look()
    for n in range(30):
        bench.now += n * 1000
        bench.happens(module="dummy")
        if n % 3 == 0:
            bench.look()
        if n % 7 == 0:  # a new process on the same file
            bench.intake = Intake(bench.outbox, logger, clock=lambda: bench.now, queued=bench.woken.extend)
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
    ("event", "message", "kind", "severity"),
    [
        ("module.loaded", "", "load", "info"),
        ("module.appeared", "", "load", "info"),
        ("module.disappeared", "", "unload", "info"),
        ("operation.failed", "", "failure", "warning"),
        ("operation.crashed", "", "crash", "error"),
        ("operation.stuck", "", "stuck", "error"),
        ("operation.released", "", "stuck", "notice"),
        ("health.changed", "health is ok", "health", "notice"),
        ("health.changed", "health is failing: it burns", "health", "error"),
        ("store.activated", "", "store", "notice"),
        ("authorization.denied", "", "denied", "warning"),
    ],
)
def test_what_a_record_is_worth(event: str, message: str, kind: str, severity: str) -> None:
    found = from_record({"event": event, "message": message, "time": 1}, "key")
    assert found is not None
    assert (found.kind, found.severity) == (kind, severity)


@pytest.mark.parametrize("event", ["authorization.granted", "daemon.started", "operation.unchanged", ""])
def test_the_daemons_own_affairs_are_not_told(event: str) -> None:
    assert from_record({"event": event}, "key") is None


def test_odd_rows_do_no_harm(bench: Bench) -> None:
    bench.look()
    assert (
        bench.intake.records([{"event": 5}, {"event": "module.loaded", "uid": "x", "kernel-log": 7, "time": START}])
        == 2
    )
    assert len(bench.told()) == 1


def test_conditions_are_told_when_they_come(bench: Bench) -> None:
    bench.intake.conditions("unsigned", {"old": ("old", "was there")})
    assert bench.told() == []
    bench.intake.conditions("unsigned", {"old": ("old", "x"), "new": ("new", "new came")})
    bench.intake.conditions("unsigned", {"old": ("old", "x"), "new": ("new", "new came")})
    assert bench.told() == ["new came"]
    bench.intake.conditions("unsigned", {})
    bench.now += 1
    bench.intake.conditions("unsigned", {"new": ("new", "new again")})
    assert bench.outbox.waiting("a")[0] == 2


def test_a_burst_stays_within_the_bounds(bench: Bench) -> None:
    bench.look()
    bench.intake.rows = 10
    for _ in range(25):
        bench.now += 1
        bench.happens()
    bench.look()
    assert bench.told() == [f"m{n}" for n in range(15, 25)]
    assert bench.outbox.state("a").dropped == 15
