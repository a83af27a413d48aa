# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work that a cancelled caller does not break off."""

import asyncio
import gc
from collections.abc import Awaitable

import pytest

from kmodd.core.operations.jobs import run_to_completion


class Work:
    """Waits for what it is given, one after the other."""

    def __init__(self) -> None:
        self.left = 0
        self.done: list[object] = []

    async def run(self, *waits: Awaitable[object]) -> str:
        for one in waits:
            try:
                self.done.append(await one)
            except OSError as error:
                self.done.append(error.errno)
        return "done"

    def leave(self) -> None:
        self.left += 1

    def start(self, *waits: Awaitable[object]) -> "tuple[asyncio.Task[str], asyncio.Task[str]]":
        """(the one that waits, the work)."""
        loop = asyncio.get_running_loop()
        work = loop.create_task(self.run(*waits))
        return loop.create_task(run_to_completion(work, self.leave)), work


def future() -> "asyncio.Future[object]":
    return asyncio.get_running_loop().create_future()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_goes_wrong_is_the_works_own_affair() -> None:
    work, waited = Work(), future()
    task, _ = work.start(waited, asyncio.sleep(0, 2))
    await turns()
    waited.set_exception(OSError(5, "bad"))
    assert await task == "done"
    assert work.done == [5, 2]


async def test_an_error_of_the_work_is_the_callers() -> None:
    work, waited = Work(), future()
    task, _ = work.start(waited)
    await turns()
    waited.set_exception(LookupError("gone"))
    with pytest.raises(LookupError, match="gone"):
        await task


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_caller_is_cancelled_after_the_end(times: int) -> None:
    work, first, second = Work(), future(), future()
    task, _ = work.start(first, second)
    await turns()
    for _ in range(times):
        task.cancel()
        await turns(2)
    assert work.left == times  # at once, not when the kernel comes back
    assert not task.done()
    first.set_result(1)
    await turns()
    second.set_result(2)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.done == [1, 2]


async def test_cancelled_while_it_waits_for_its_next_turn_only() -> None:
    work = Work()
    task, _ = work.start(asyncio.sleep(0, 1), asyncio.sleep(0, 2))
    await turns(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (work.done, work.left) == ([1, 2], 1)


async def test_cancelled_once_more_in_a_later_wait() -> None:
    work, first, second = Work(), future(), future()
    task, _ = work.start(first, second)
    await turns()
    task.cancel()
    first.set_result(1)
    await turns()
    task.cancel()
    second.set_result(2)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (work.done, work.left) == ([1, 2], 2)


async def test_abandoned_work_is_broken_off() -> None:
    work, first, second = Work(), future(), future()
    task, inner = work.start(first, second)
    await turns()
    inner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert first.cancelled()
    assert (work.done, work.left) == ([], 0)
    inner.cancel()  # again is nothing
    assert not second.cancelled()


async def test_it_waits_for_threads_and_tasks_as_well() -> None:
    work = Work()
    inner = asyncio.get_running_loop().create_task(asyncio.sleep(0.01, "slept"))
    task, _ = work.start(asyncio.to_thread(str, 1), inner, asyncio.wait_for(asyncio.sleep(0, "timed"), 5))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.done == ["1", "slept", "timed"]


def test_an_error_without_a_waiter_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> None:
        work, waited = Work(), future()
        task, _ = work.start(waited)
        await turns()
        task.cancel()
        await turns()
        waited.set_exception(LookupError("gone"))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    gc.collect()
    assert caplog.records == []


async def test_work_that_never_waits() -> None:
    work = Work()
    task, _ = work.start()
    assert await task == "done"
