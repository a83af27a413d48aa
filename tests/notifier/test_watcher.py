# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the watcher makes of the daemon's answers, by a daemon that answers by script."""

import io
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.errors import AccessDenied, Failed, KmoddError
from kmodd.log import Logger
from kmodd.notifier.intake import Intake
from kmodd.notifier.outbox import Outbox
from kmodd.notifier.rules import Rule
from kmodd.notifier.watcher import LIMIT, Watcher

START = 1_700_000_000_000_000


class Daemon:
    """Stands for both the client and the connection."""

    connected = True

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.loaded: list[dict[str, Any]] = []
        self.drift: list[dict[str, Any]] | KmoddError = []
        self.error: KmoddError | None = None
        self.asked: list[str] = []

    async def data(self, member: str, *_: object, options: dict[str, Any]) -> Any:
        self.asked.append(member)
        if self.error is not None:
            raise self.error
        if member == "ListModules":
            return self.loaded
        return [row for row in self.history if row["time"] >= options["since"]][-options["limit"] :]

    async def call(self, *words: Any, **_: object) -> tuple[Any, ...]:
        self.asked.append(words[2])
        if isinstance(self.drift, KmoddError):
            raise self.drift
        return (self.drift,)


class Bench:
    """A watcher on a scripted daemon."""

    def __init__(self, outbox: Outbox, logger: Logger) -> None:
        self.daemon = Daemon()
        self.outbox = outbox
        self.now = START
        self.intake = Intake(outbox, logger, clock=lambda: self.now, queued=lambda _: None)
        self.intake.rules = (Rule(("a",)),)
        fake: Any = self.daemon
        self.watcher = Watcher(fake, fake, self.intake, logger)
        self.watcher._there = True

    def told(self) -> list[str]:
        return [one.notice.message for one in self.outbox.begin("a", 10_000)]


@pytest.fixture
def bench(tmp_path: Path, logger: Logger) -> Iterator[Bench]:
    outbox = Outbox(tmp_path / "q")
    yield Bench(outbox, logger)
    outbox.close()


def row(number: int, **fields: object) -> dict[str, Any]:
    return {"time": START + number, "event": "module.loaded", "message": f"m{number}", **fields}


async def test_drift_is_told_once_until_it_comes_again(bench: Bench) -> None:
    await bench.watcher.look()
    drifted = {"module": "loop", "kind": "state", "wanted": "present", "actual": "absent", "hint": ""}
    counts = []
    for found in ([drifted], [drifted], [], [drifted]):
        bench.now += 1
        bench.daemon.drift = found
        await bench.watcher.look()
        counts.append(bench.outbox.waiting("a")[0])
    assert counts == [1, 1, 1, 2]
    assert bench.told() == ["loop: state should be present, is absent"] * 2


async def test_a_daemon_without_desired_state_is_no_trouble(bench: Bench) -> None:
    bench.daemon.drift = Failed("no such interface")
    await bench.watcher.look()
    assert bench.watcher.trouble == ""


async def test_who_may_not_read_the_history_says_so_once(bench: Bench, log: io.StringIO) -> None:
    bench.daemon.error = AccessDenied("polkit does not allow this")
    await bench.watcher.look()
    await bench.watcher.look()
    assert "polkit" in bench.watcher.trouble
    assert log.getvalue().count("nothing is heard of kmodd") == 1
    bench.daemon.error = None
    bench.daemon.history = [row(1)]
    assert await bench.watcher.look() == 1
    assert bench.watcher.trouble == ""


async def test_a_daemon_that_was_stopped_is_not_started(bench: Bench) -> None:
    bench.watcher._there = False
    assert await bench.watcher.look() == 0
    assert bench.daemon.asked == []


async def test_a_disk_that_refuses_costs_no_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.watcher.look()
    bench.daemon.history = [row(1)]
    take: Callable[..., int] = bench.outbox.take

    def full(*_: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(bench.outbox, "take", full)
    await bench.watcher.look()
    assert "disk is full" in bench.watcher.trouble
    monkeypatch.setattr(bench.outbox, "take", take)
    await bench.watcher.look()
    assert bench.told() == ["m1"]


async def test_what_is_too_much_for_one_answer_is_said(bench: Bench, log: io.StringIO) -> None:
    await bench.watcher.look()
    bench.daemon.history = [row(n) for n in range(LIMIT + 50)]
    assert await bench.watcher.look() == LIMIT
    assert "only the newest 1000" in log.getvalue()
