# SPDX-License-Identifier: LGPL-2.1-or-later
"""One lock per module."""

import asyncio

import pytest

from kmodd.core.operations.jobs import ModuleLocks
from kmodd.errors import Conflict
from kmodd.names import ModuleName
from tests.unit.fakes import names, owner

A, B, C = names("a", "b", "c")


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_free_locks_are_taken_at_once() -> None:
    locks = ModuleLocks()
    assert locks.take_now((B, A), 1) == (A, B)
    assert (owner(locks, A), owner(locks, C)) == (1, None)


def test_nothing_is_taken_when_one_is_held() -> None:
    locks = ModuleLocks()
    locks.take_now((B,), 1)
    assert locks.take_now((A, B), 2) is None
    assert owner(locks, A) is None


def test_stuck_locks_are_left_out() -> None:
    locks = ModuleLocks()
    locks.take_now((B,), 1)
    locks.mark_stuck(B, 1)
    assert locks.take_now((A, B), 2) == (A,)
    assert locks.is_stuck(B)
    assert not locks.is_stuck(A)


def test_only_the_owner_releases_and_gets_stuck() -> None:
    locks = ModuleLocks()
    locks.take_now((A,), 1)
    locks.release((A, B), 2)
    locks.mark_stuck(A, 2)
    assert owner(locks, A) == 1
    assert not locks.is_stuck(A)


async def test_first_come_first_served() -> None:
    locks = ModuleLocks()
    locks.take_now((A,), 1)
    order: list[int] = []

    async def wait(owner: int) -> None:
        await locks.take((A,), owner)
        order.append(owner)
        locks.release((A,), owner)

    tasks = [asyncio.create_task(wait(owner)) for owner in (2, 3, 4)]
    await turns()
    assert locks.take_now((A,), 9) is None
    locks.release((A,), 1)
    await asyncio.gather(*tasks)
    assert order == [2, 3, 4]
    assert owner(locks, A) is None


async def test_those_who_wait_go_on_without_a_lock_that_gets_stuck() -> None:
    locks = ModuleLocks()
    locks.take_now((B,), 1)
    task = asyncio.create_task(locks.take((A, B, C), 2))
    await turns()
    locks.mark_stuck(B, 1)
    assert await task == (A, C)
    assert await locks.take((B,), 3) == ()


async def test_stuck_lock_is_whole_again_after_release() -> None:
    locks = ModuleLocks()
    locks.take_now((A,), 1)
    locks.mark_stuck(A, 1)
    locks.release((A,), 1)
    assert locks.take_now((A,), 2) == (A,)
    assert not locks.is_stuck(A)


async def test_cancelled_wait_holds_nothing() -> None:
    locks = ModuleLocks()
    locks.take_now((B,), 1)
    task = asyncio.create_task(locks.take((A, B), 2))
    await turns()
    assert owner(locks, A) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert owner(locks, A) is None
    locks.release((B,), 1)
    assert owner(locks, B) is None


async def test_cancellation_in_the_turn_of_the_handover_passes_the_lock_on() -> None:
    locks = ModuleLocks()
    locks.take_now((A,), 1)
    first, second = asyncio.create_task(locks.take((A,), 2)), asyncio.create_task(locks.take((A,), 3))
    await turns()
    locks.release((A,), 1)
    assert owner(locks, A) == 2
    first.cancel()
    assert await second == (A,)
    assert first.cancelled()
    assert owner(locks, A) == 3


async def test_given_up_wait_raises_and_holds_nothing() -> None:
    locks = ModuleLocks()
    locks.take_now((B,), 1)
    task = asyncio.create_task(locks.take((A, B), 2))
    await turns()
    locks.cancel_wait(2, Conflict("no more"))
    with pytest.raises(Conflict, match="no more"):
        await task
    assert owner(locks, A) is None


async def test_wait_given_up_in_the_turn_of_the_handover_raises_too() -> None:
    locks = ModuleLocks()
    locks.take_now((A,), 1)
    task = asyncio.create_task(locks.take((A,), 2))
    await turns()
    locks.release((A,), 1)
    locks.cancel_wait(2, Conflict("no more"))
    with pytest.raises(Conflict):
        await task
    assert owner(locks, A) is None


async def test_two_that_want_the_same_do_not_wait_for_each_other() -> None:
    locks = ModuleLocks()

    async def work(owner: int, wanted: tuple[ModuleName, ...]) -> None:
        for _ in range(20):
            taken = await locks.take(wanted, owner)
            await asyncio.sleep(0)
            locks.release(taken, owner)

    await asyncio.wait_for(asyncio.gather(work(1, (A, B, C)), work(2, (C, B, A)), work(3, (B,))), 5)
    assert [owner(locks, name) for name in (A, B, C)] == [None] * 3
