# SPDX-License-Identifier: LGPL-2.1-or-later
"""Order, back-off, and that one dead endpoint delays no other."""

import asyncio
import io
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from kmodd.journal.writer import Logger
from kmodd.notifier.delivery_worker import EXPIRY, SCHEDULE, DeliveryWorker, Outcome, delay
from kmodd.notifier.outbox import Delivery, Outbox
from tests.notifier.conftest import notice

START = 1_700_000_000_000_000
SECOND = 1_000_000


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


class Scripted:
    """A channel that answers by script, then yes."""

    most = 1

    def __init__(self, *outcomes: Outcome, hangs: bool = False) -> None:
        self.outcomes = list(outcomes)
        self.sent: list[str] = []
        self._hangs = hangs

    def wait(self, oldest: int, sent: Sequence[int], now: int) -> float:
        return 0.0

    async def send(self, deliveries: Sequence[Delivery]) -> Outcome:
        self.sent += [one.notice.message for one in deliveries]
        if self._hangs:
            await asyncio.sleep(3600)
        return self.outcomes.pop(0) if self.outcomes else Outcome("delivered")


class Bench:
    """A queue and couriers on it."""

    def __init__(self, folder: Path, logger: Logger) -> None:
        self.outbox = Outbox(folder / "q")
        self.clock = Clock()
        self._logger = logger

    def courier(self, name: str, channel: Scripted) -> DeliveryWorker:
        return DeliveryWorker(name, channel, self.outbox, self._logger, clock=self.clock, random=lambda: 0.5)

    def put(self, *numbers: int, to: tuple[str, ...] = ("a",)) -> None:
        self.outbox.take([], None, [(notice(n), to) for n in numbers], self.clock.now)

    @asynccontextmanager
    async def running(self, *couriers: DeliveryWorker) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(courier.run()) for courier in couriers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def bench(tmp_path: Path, logger: Logger) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, logger)
    yield made
    made.outbox.close()


async def until(condition: object, *, tries: int = 400) -> None:
    assert callable(condition)
    for _ in range(tries):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


async def test_in_order_and_each_once(bench: Bench) -> None:
    channel = Scripted()
    bench.put(1, 2)
    courier = bench.courier("a", channel)
    async with bench.running(courier):
        await until(lambda: len(channel.sent) == 2)
        bench.put(3)
        courier.wake()
        await until(lambda: len(channel.sent) == 3)
    assert channel.sent == ["failure 1", "failure 2", "failure 3"]
    assert bench.outbox.state("a").delivered == 3


async def test_a_hanging_endpoint_delays_no_other(bench: Bench) -> None:
    dead, well = Scripted(hangs=True), Scripted()
    bench.put(*range(50), to=("dead", "well"))
    async with bench.running(bench.courier("dead", dead), bench.courier("well", well)):
        await until(lambda: len(well.sent) == 50)
    assert dead.sent == ["failure 0"]
    assert bench.outbox.waiting("dead").count == 50


async def test_attempts_follow_the_schedule_over_days(bench: Bench, log: io.StringIO) -> None:
    channel = Scripted(*[Outcome("retry", "the receiver answered 500")] * 30)
    courier = bench.courier("a", channel)
    bench.put(1, 2)
    times = []
    while bench.outbox.waiting("a").count == 2:
        await courier.attempt()
        times.append((bench.clock.now - START) / SECOND)
        wait = bench.outbox.state("a").due - bench.clock.now
        if bench.outbox.waiting("a").count:
            assert courier.pause() == pytest.approx(min(wait / SECOND, 600), abs=1)
        bench.clock.now += wait
    gaps = [round(b - a) for a, b in pairwise(times)]
    assert gaps == [*SCHEDULE, SCHEDULE[-1]]
    assert EXPIRY < times[-1] < EXPIRY + 24 * 3600
    assert set(channel.sent) == {"failure 1"}, "the second waits for the first: order is kept"
    assert bench.outbox.state("a").dropped == 2
    assert log.getvalue().count("2 dropped after days") == 1
    assert log.getvalue().count("retrying") == 1, "one line for a row of failures"


async def test_a_message_that_is_refused_delays_no_other(bench: Bench, log: io.StringIO) -> None:
    """A receiver that is well and takes all but one, for days."""

    class Picky(Scripted):
        async def send(self, deliveries: Sequence[Delivery]) -> Outcome:
            await super().send(deliveries)
            return Outcome("refused", "400") if deliveries[0].notice.message == "failure 1" else Outcome("delivered")

    channel = Picky()
    courier = bench.courier("a", channel)
    bench.put(1, 2, 3)
    times, number = [], 3
    while bench.outbox.waiting("a").count:
        while courier.pause() == 0:
            before = len(channel.sent)
            await courier.attempt()
            if channel.sent[before:] == ["failure 1"]:
                times.append((bench.clock.now - START) // SECOND)
        number += 1
        if number < 30:
            bench.put(number)
            assert courier.pause() == 0, "the next is sent at once"
            await courier.attempt()
        bench.clock.now += max(0, bench.outbox.waiting("a").due - bench.clock.now)
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps == [*SCHEDULE, SCHEDULE[-1]][: len(gaps)]
    assert times[-1] > EXPIRY
    state = bench.outbox.state("a")
    assert (state.dropped, state.failures) == (1, 0)
    assert [one for one in channel.sent if one != "failure 1"][:4] == [f"failure {n}" for n in (2, 3, 4, 5)]
    assert log.getvalue().count("will be retried") == 1


async def test_a_machine_that_slept_for_days_gives_nothing_up_at_once(bench: Bench) -> None:
    channel = Scripted(*[Outcome("retry", "no network yet")] * 2)
    courier = bench.courier("a", channel)
    bench.put(1)
    bench.clock.now += 7 * 24 * 3600 * SECOND
    for _ in range(3):
        await courier.attempt()
        bench.clock.now += 600 * SECOND
    assert bench.outbox.state("a").dropped == 0
    assert bench.outbox.state("a").delivered == 1


async def test_all_that_is_too_old_is_given_up_together(bench: Bench) -> None:
    courier = bench.courier("a", Scripted(*[Outcome("retry", "no")] * 30))
    bench.put(*range(40))
    while not bench.outbox.state("a").dropped:
        await courier.attempt()
        bench.clock.now += max(0, bench.outbox.state("a").due - bench.clock.now)
    assert (bench.outbox.state("a").dropped, bench.outbox.waiting("a").count) == (40, 0)


async def test_the_waiting_survives_a_restart(bench: Bench) -> None:
    bench.put(1)
    await bench.courier("a", Scripted(Outcome("retry", "no"), Outcome("retry", "no"))).attempt()
    left = bench.courier("a", Scripted()).pause()
    assert left == pytest.approx(5, abs=1)
    bench.clock.now += 6 * SECOND
    assert bench.courier("a", Scripted()).pause() == 0


async def test_a_clock_set_back_makes_no_wait_longer(bench: Bench) -> None:
    bench.put(1)
    courier = bench.courier("a", Scripted(Outcome("retry", "no")))
    await courier.attempt()
    bench.clock.now -= 365 * 24 * 3600 * SECOND
    assert courier.pause() == pytest.approx(6, abs=1)


async def test_retry_after_is_obeyed_within_reason(bench: Bench) -> None:
    courier = bench.courier("a", Scripted(Outcome("retry", "429", 120.0), Outcome("retry", "429", 1e9)))
    bench.put(1)
    await courier.attempt()
    assert bench.outbox.state("a").due - START == 120 * SECOND
    await courier.attempt()
    assert bench.outbox.state("a").due - START == 24 * 3600 * SECOND


async def test_gone_disables_and_enabling_sends_at_once(bench: Bench, log: io.StringIO) -> None:
    channel = Scripted(Outcome("gone", "the receiver answered 410: it accepts no further messages"))
    courier = bench.courier("a", channel)
    bench.put(1)
    async with bench.running(courier):
        await until(lambda: not bench.outbox.state("a").enabled)
        assert courier.pause() is None
        assert "410" in bench.outbox.state("a").why
        bench.outbox.enable("a", enabled=True)
        courier.wake()
        await until(lambda: bench.outbox.waiting("a").count == 0)
    assert channel.sent == ["failure 1"] * 2
    assert "a is disabled" in log.getvalue()


async def test_a_bug_in_a_channel_is_a_failure_like_any_other(bench: Bench) -> None:
    class Broken(Scripted):
        async def send(self, deliveries: Sequence[Delivery]) -> Outcome:
            raise ZeroDivisionError("secret")

    bench.put(1)
    await bench.courier("a", Broken()).attempt()
    state = bench.outbox.state("a")
    assert (state.failures, state.last_error) == (1, "internal error: ZeroDivisionError")


def test_jitter_keeps_machines_apart() -> None:
    assert delay(1, lambda: 0.0) == pytest.approx(4.5)
    assert delay(1, lambda: 1.0) == pytest.approx(5.5)
    assert delay(99, lambda: 0.5) == SCHEDULE[-1]


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), ValueError("a bug")])
async def test_a_queue_that_cannot_be_used_is_tried_again(
    bench: Bench, error: Exception, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodd.notifier.delivery_worker.RETRY_DELAY", 0.01)
    channel = Scripted()
    begin = bench.outbox.begin

    def refuse(*_: object) -> list[Delivery]:
        monkeypatch.setattr(bench.outbox, "begin", begin)
        raise error

    monkeypatch.setattr(bench.outbox, "begin", refuse)
    bench.put(1)
    async with bench.running(bench.courier("a", channel)):
        await until(lambda: channel.sent)
    assert "notifier.trouble" in log.getvalue()
    assert len(channel.sent) == 1
