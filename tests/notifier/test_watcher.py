# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the watcher makes of the daemon's answers, by a daemon that answers by script."""

import asyncio
import io
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.errors import AccessDenied, Failed, InvalidArgs, KmoddError
from kmodd.journal.writer import Logger
from kmodd.notifier.configuration import Rule
from kmodd.notifier.ingest import LIMIT, SETTLE, TOLD_MAX, Ingest, Watcher
from kmodd.notifier.outbox import Outbox

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
        self.limit_max = 1000

    async def data(self, member: str, *_: object, options: dict[str, Any]) -> Any:
        self.asked.append(member)
        if self.error is not None:
            raise self.error
        if member == "ListModules":
            return self.loaded
        if options["limit"] > self.limit_max:
            raise InvalidArgs(f"limit must be 1 to {self.limit_max}")
        found = [row for row in self.history if row["time"] >= options["since"]]
        return found[: options["limit"]] if options["oldest"] else found[-options["limit"] :]

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
        self.intake = Ingest(outbox, logger, clock=lambda: self.now, queued=lambda _: None)
        self.intake.rules = (Rule(("a",)),)
        fake: Any = self.daemon
        self.watcher = Watcher(fake, fake, self.intake, logger)
        self.watcher._there = True

    def told(self) -> list[str]:
        return [one.notice.message for one in self.outbox.begin("a", 10_000, self.now)]


@pytest.fixture
def bench(tmp_path: Path, logger: Logger) -> Iterator[Bench]:
    outbox = Outbox(tmp_path / "q")
    yield Bench(outbox, logger)
    outbox.close()


def row(number: int, **fields: object) -> dict[str, Any]:
    return {"time": START + number, "event": "module.loaded", "message": f"m{number}", **fields}


async def test_drift_is_reported_once_until_it_comes_again(bench: Bench) -> None:
    await bench.watcher.look()
    drifted = {"module": "loop", "kind": "state", "wanted": "present", "actual": "absent", "hint": ""}
    counts = []
    for found in ([drifted], [drifted], [], [drifted]):
        bench.now += 1
        bench.daemon.drift = found
        await bench.watcher.look()
        counts.append(bench.outbox.waiting("a").count)
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
    assert log.getvalue().count("lost contact with kmodd") == 1
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


async def test_a_disk_that_refuses_for_long_leaves_no_refusal_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.watcher.look()
    bench.daemon.history = [row(n, event="authorization.denied", uid=1000) for n in range(1, TOLD_MAX + 1)]
    take: Callable[..., int] = bench.outbox.take

    def full(*_: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(bench.outbox, "take", full)
    for _ in range(5):
        await bench.watcher.look()
    monkeypatch.setattr(bench.outbox, "take", take)
    await bench.watcher.look()
    assert len(bench.told()) == TOLD_MAX
    assert bench.intake.left_out == 0


@pytest.mark.parametrize("limit_max", [1000, 100, 7])
async def test_what_is_too_much_for_one_answer_is_read_in_parts(bench: Bench, limit_max: int) -> None:
    await bench.watcher.look()
    bench.daemon.limit_max = limit_max
    # Three of each moment: an answer may end between them.
    bench.daemon.history = [row(n // 3, message=f"m{n}") for n in range(LIMIT * 3 + 50)]
    assert await bench.watcher.look() == LIMIT * 3 + 50
    assert bench.told() == [f"m{n}" for n in range(LIMIT * 3 + 50)]
    assert await bench.watcher.look() == 0


async def test_who_is_refused_does_not_cause_the_next_refusal(bench: Bench) -> None:
    """A refusal is a record, and records are signalled: the signal must not make it ask again at once."""
    bench.daemon.error = AccessDenied("polkit does not allow this")
    watching = asyncio.create_task(bench.watcher._watch())
    for _ in range(20):
        bench.watcher._wake.set()
        await asyncio.sleep(0.05)
    asked = len(bench.daemon.asked)
    bench.daemon.error = None
    bench.watcher._returned.set()
    bench.watcher._wake.set()
    await asyncio.sleep(SETTLE + 0.3)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert asked == 1
    assert len(bench.daemon.asked) > 1
    assert bench.watcher.trouble == ""


async def test_modules_are_listed_when_kmodd_comes_and_not_for_each_event(bench: Bench) -> None:
    bench.daemon.loaded = [{"name": "old", "taint": "OE"}]
    for _ in range(3):
        await bench.watcher.look()
    assert bench.daemon.asked.count("ListModules") == 1
    assert bench.told() == []
    bench.daemon.loaded.append({"name": "nvidia", "taint": "POE"})
    bench.watcher._compare = True
    await bench.watcher.look()
    assert bench.told() == ["Module nvidia was loaded without a valid signature."]
