# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tokens share is shared: no token has all of it, and who waits is served token by token."""

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from kmodd.errors import LimitsExceeded
from kmodd.gateway.operations import FairQueue
from kmodd.gateway.routes.events import EventSubscription, EventSubscriptions
from tests.gateway.processes import Gateway

if TYPE_CHECKING:
    import socket


class Work:
    """Holds turns until it is let go; remembers the order in which they came."""

    def __init__(self, turns: FairQueue) -> None:
        self.turns = turns
        self.began: list[str] = []
        self.go = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def _run(self, owner: str) -> None:
        async with self.turns.turn(owner):
            self.began.append(owner)
            await self.go.wait()

    async def start(self, *owners: str) -> None:
        """Ask for a turn for each."""
        self.tasks += [asyncio.create_task(self._run(owner)) for owner in owners]
        await asyncio.sleep(0.01)


async def test_one_token_never_has_all_slots() -> None:
    work = Work(FairQueue(4, 2, "operations"))
    await work.start("a", "a", "a", "a", "a", "b")
    assert work.began == ["a", "a", "b"]
    work.go.set()
    await asyncio.gather(*work.tasks)
    assert sorted(work.began) == ["a"] * 5 + ["b"]


async def test_who_waits_is_served_token_by_token() -> None:
    work = Work(FairQueue(1, 1, "operations"))
    await work.start("x", "a", "a", "a", "b", "c")
    work.go.set()
    await asyncio.gather(*work.tasks)
    assert work.began == ["x", "a", "b", "c", "a", "a"]


async def test_who_gives_up_leaves_no_trace() -> None:
    turns = FairQueue(1, 1, "operations", 0.05)
    work = Work(turns)
    await work.start("a")
    with pytest.raises(LimitsExceeded, match="too many operations"):
        async with turns.turn("b"):
            pass
    await work.start("c", "d")
    work.tasks[1].cancel()
    # Cancelled in the moment in which it gets its turn.
    work.tasks[0].cancel()
    work.go.set()
    await asyncio.gather(*work.tasks, return_exceptions=True)
    async with asyncio.timeout(1):
        for owner in "abcd":
            async with turns.turn(owner):
                pass


def test_when_all_follow_the_token_that_has_most_makes_room() -> None:
    dropped: list[str] = []
    followers = EventSubscriptions(4)

    def follow(owner: str) -> bool:
        return followers.enter(EventSubscription(owner, lambda: dropped.append(owner)))

    assert [follow("a") for _ in range(5)] == [True, True, True, True, False]
    assert [follow("b") for _ in range(3)] == [True, True, False]
    assert follow("c")
    assert dropped[:2] == ["a", "a"]
    assert len(dropped) == 3


def test_a_slow_upload_blocks_no_other_file(served: Gateway) -> None:
    slow, other = (served.make_token(name, "import") for name in ("slow", "other"))
    head = "POST /v1/store HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000\r\n"
    kind = {"Content-Type": "application/octet-stream"}
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            sock: socket.socket = stack.enter_context(served.socket())
            sock.sendall(f"{head}Authorization: Bearer {slow}\r\n\r\nx".encode())
        started = time.monotonic()
        # A file that is none, and is looked at.
        assert served.ask("POST", "/v1/store", raw=b"x", headers=kind, token=other).status == 422
        assert time.monotonic() - started < 5
