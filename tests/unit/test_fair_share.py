# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slots are shared fairly between users."""

import asyncio

import pytest

from kmodd.core.fair_share import FairSlots
from kmodd.errors import LimitsExceeded


class Work:
    """Requests that hold their slot until `end` is set."""

    def __init__(self, slots: int = 4, **limits: int) -> None:
        self.slots = FairSlots(slots, **limits)
        self.running: list[int | None] = []
        self.refused: list[int | None] = []
        self.end = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def _one(self, uid: int | None) -> None:
        try:
            async with self.slots.slot(uid):
                self.running.append(uid)
                try:
                    await self.end.wait()
                finally:
                    self.running.remove(uid)
        except LimitsExceeded:
            self.refused.append(uid)

    async def start(self, *uids: int | None) -> None:
        self.tasks += [asyncio.create_task(self._one(uid)) for uid in uids]
        await settle()

    async def finish(self) -> None:
        self.end.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert (self.running, self.slots.running, self.slots.waiting) == ([], 0, 0)
        assert not self.slots._queues
        assert not self.slots._running


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_flood_waits_for_itself_alone() -> None:
    work = Work()
    await work.start(*[1000] * 8)
    assert work.running == [1000]
    await work.start(1001, 0, None)
    assert work.running == [1000, 1001, 0, None]
    await work.finish()


async def test_many_users_leave_root_its_slots() -> None:
    work = Work(4, root=2)
    await work.start(*range(1000, 1020))
    assert len(work.running) == 4
    await work.start(0, 0, 0)
    assert work.running.count(0) == 2
    await work.finish()


async def test_a_free_slot_goes_to_the_next_user_and_not_to_the_next_request() -> None:
    work = Work(1)
    served: list[int] = []
    first = await work.slots.take(1000)

    async def request(uid: int) -> None:
        async with work.slots.slot(uid):
            served.append(uid)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(request(uid)) for uid in (1000, 1000, 1000, 1001, 1002, 1001)]
    await settle()
    first.release()
    await asyncio.gather(*tasks)
    assert served == [1000, 1001, 1002, 1000, 1001, 1000]
    await work.finish()


async def test_the_queue_of_a_user_is_bounded_and_the_users_own() -> None:
    work = Work(2, waiting=3)
    await work.start(*[1000] * 10)
    assert len(work.refused) == 6
    await work.start(1001)
    assert work.running == [1000, 1001]
    await work.finish()


async def test_without_a_queue_what_finds_no_slot_is_refused() -> None:
    work = Work(2, waiting=0)
    held = await work.slots.take(1000)
    with pytest.raises(LimitsExceeded):
        await work.slots.take(1000)
    held.release()
    (await work.slots.take(1000)).release()
    await work.finish()


async def test_a_slot_is_given_back_once() -> None:
    work = Work(2)
    first, second = await work.slots.take(1000), await work.slots.take(1001)
    first.release()
    first.release()
    assert work.slots.running == 1
    second.release()
    await work.finish()


async def test_a_caller_that_leaves_blocks_no_other() -> None:
    """While it runs, while it waits behind a request of its own, and while it waits for a slot."""
    work = Work(4)
    await work.start(1000, 1000, *range(1001, 1006))
    assert work.running == [1000, 1001, 1002, 1003]
    running, behind_its_own, waiting = work.tasks[0], work.tasks[1], work.tasks[5]
    for task in (behind_its_own, waiting, running):
        task.cancel()
    await work.start(1000)
    assert work.running == [1001, 1002, 1003, 1005]
    work.tasks[2].cancel()
    await settle()
    assert work.running[-1] == 1000
    await work.finish()


async def test_a_turn_that_comes_in_the_moment_of_leaving_goes_on_to_the_next() -> None:
    work = Work(1)
    held = await work.slots.take(1000)
    leaving = asyncio.create_task(work.slots.take(1001))
    await settle()
    await work.start(1002)
    held.release()  # 1001 has the turn now, and does not know it yet
    leaving.cancel()
    await settle()
    assert leaving.cancelled()
    assert work.running == [1002]
    await work.finish()
