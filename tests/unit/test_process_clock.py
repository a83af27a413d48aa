# SPDX-License-Identifier: LGPL-2.1-or-later
"""The clock of the tests' time-outs: what a process waits for a processor does not count."""

import time
from pathlib import Path

import pytest

from tests.clock import ProcessClock

SECOND = 10**9


def threads(proc: Path, pid: int, *waited: int) -> None:
    """Write what each thread of a process has waited, in seconds."""
    for number, seconds in enumerate(waited):
        folder = proc / f"{pid}/task/{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"5000 {seconds * SECOND} 7\n")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The host's clock."""
    host = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: host[0])
    return host


def test_waiting_for_a_processor_does_not_count(tmp_path: Path, now: list[float]) -> None:
    threads(tmp_path, 7, 1, 3)
    clock = ProcessClock(tmp_path)
    clock.watch(7)
    before = clock()
    now[0] += 10
    threads(tmp_path, 7, 2, 9)
    assert clock() - before == pytest.approx(4)


def test_a_process_that_hangs_runs_into_its_timeout(tmp_path: Path, now: list[float]) -> None:
    threads(tmp_path, 7, 3)
    clock = ProcessClock(tmp_path)
    clock.watch(7)
    before = clock()
    now[0] += 10
    assert clock() - before == pytest.approx(10)


def test_of_two_processes_the_one_that_waits_more_counts(tmp_path: Path, now: list[float]) -> None:
    for pid in (7, 8):
        threads(tmp_path, pid, 0)
    clock = ProcessClock(tmp_path)
    for pid in (7, 8):
        clock.watch(pid)
    before = clock()
    now[0] += 10
    threads(tmp_path, 7, 2)
    threads(tmp_path, 8, 6)
    assert clock() - before == pytest.approx(4)


def test_a_process_that_ended_takes_no_time_back(tmp_path: Path, now: list[float]) -> None:
    threads(tmp_path, 7, 0)
    clock = ProcessClock(tmp_path)
    clock.watch(7)
    now[0] += 10
    threads(tmp_path, 7, 6)
    before = clock()
    clock.forget(7)
    assert clock() == before


def test_without_schedstat_all_time_counts(tmp_path: Path, now: list[float]) -> None:
    clock = ProcessClock(tmp_path)
    clock.watch(7)
    before = clock()
    now[0] += 10
    assert clock() - before == pytest.approx(10)
