# SPDX-License-Identifier: LGPL-2.1-or-later
"""The watchdog is fed only by a daemon that is fit."""

import asyncio
import resource
from pathlib import Path

import pytest

from kmodd.startup.sd_notify import SelfCheckFailed, Watchdog, check_descriptors


async def _answers() -> None:
    return None


def _watchdog(beats: list[str], ping: object = _answers, usec: int = 40_000) -> Watchdog:
    return Watchdog(
        usec,
        feed=lambda: beats.append("fed"),
        ping_bus=ping,  # type: ignore[arg-type]  # scripted below
        report=beats.append,
    )


async def test_beats_at_half_the_interval() -> None:
    beats: list[str] = []
    task = asyncio.create_task(_watchdog(beats).run())
    await asyncio.sleep(0.15)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert beats.count("fed") >= 4


async def test_no_interval_no_beats() -> None:
    beats: list[str] = []
    await _watchdog(beats, usec=0).run()
    assert beats == []


async def test_a_lost_bus_starves_it() -> None:
    async def gone() -> None:
        raise ConnectionResetError

    with pytest.raises(SelfCheckFailed, match="the connection to the bus was lost"):
        await _watchdog([], gone).check()


async def test_a_silent_bus_starves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent() -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("kmodd.startup.sd_notify.ROUND_TRIP_SECONDS", 0.05)
    with pytest.raises(SelfCheckFailed, match="does not answer"):
        await _watchdog([], silent).check()


async def test_a_blocked_loop_starves_it() -> None:
    with pytest.raises(SelfCheckFailed, match=r"blocked for 7\.0 s"):
        await _watchdog([]).check(lag=7.0)


async def test_reports_and_goes_on_after_a_failed_check() -> None:
    answers = iter([ConnectionResetError(), None, None])

    async def once_gone() -> None:
        answer = next(answers, None)
        if answer is not None:
            raise answer

    beats: list[str] = []
    task = asyncio.create_task(_watchdog(beats, once_gone).run())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert beats[0] == "the connection to the bus was lost"
    assert "fed" in beats[1:]


def test_used_up_descriptors_starve_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    four_left = [number for number in range(soft) if number not in used][4]
    resource.setrlimit(resource.RLIMIT_NOFILE, (four_left, hard))
    try:
        with pytest.raises(SelfCheckFailed, match="cannot open files"):
            check_descriptors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {int(entry.name) for entry in Path("/proc/self/fd").iterdir()} == used
    check_descriptors()
