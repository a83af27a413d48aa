# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose call is served when."""

import asyncio
import time

import pytest

from kmodd.dbus.admission import CONGESTED, FairQueue, Limits, Quota
from kmodd.dbus.message import ReceivedMessage
from kmodd.dbus.peers import Peer
from kmodd.errors import LimitsExceeded


class Bench:
    """Turns, and what they served."""

    def __init__(self, user: Limits | None = None) -> None:
        self.served: list[int] = []
        self.backlog = 0
        self.turns = FairQueue(Quota(user or Limits()), self._serve, lambda: self.backlog)

    def _serve(self, frame: ReceivedMessage, client: Peer) -> None:
        # Longer than it takes to add the others.
        self.served.append(frame.serial)
        time.sleep(0.001)

    def add(self, serial: int, uid: int = 1000) -> None:
        self.turns.add(ReceivedMessage(1, 0, serial, little=True, body=b""), Peer(f":1.{uid}", uid))


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def until_served(bench: Bench, count: int) -> None:
    """Let the loop turn until so many were served."""
    for _ in range(1000):
        if len(bench.served) >= count:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"only {bench.served} were served")


async def test_call_in_an_empty_queue_is_served_at_once(bench: Bench) -> None:
    bench.add(1)
    assert bench.served == [1]


async def test_of_many_at_once_the_others_take_turns(bench: Bench) -> None:
    for serial in range(10):
        bench.add(serial)
    bench.add(100, uid=1001)
    at_once = list(bench.served)
    assert at_once[0] == 0
    assert 100 not in at_once
    await until_served(bench, 11)
    # Within a user its calls keep their order, and a flood does not keep another user's call to the end.
    assert [serial for serial in bench.served if serial < 100] == list(range(10))
    assert bench.served.index(100) < bench.served.index(9)


async def test_no_call_overtakes_one_that_waits(bench: Bench) -> None:
    bench.backlog = CONGESTED + 1
    bench.add(1)
    bench.backlog = 0
    bench.add(2)
    assert bench.served == []
    await until_served(bench, 2)
    assert bench.served == [1, 2]


async def test_user_with_as_many_running_as_allowed_waits() -> None:
    bench = Bench(Limits(running=1, waiting_per_connection=1))
    bench.turns.started(1000)
    bench.add(1)
    await asyncio.sleep(0.01)
    assert bench.served == []
    bench.turns.ended(1000)
    await until_served(bench, 1)
    assert bench.served == [1]


async def test_too_many_waiting_are_refused() -> None:
    bench = Bench(Limits(waiting=2))
    bench.turns.started(1000)
    bench.backlog = CONGESTED + 1
    bench.add(1)
    bench.add(2)
    with pytest.raises(LimitsExceeded):
        bench.add(3)
