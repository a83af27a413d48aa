# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations under way, as watchers see them."""

import asyncio

import pytest

from kmodd.core.events import JobAdded, JobChanged, JobFinished
from kmodd.core.operations.jobs import DELAY, Deferred, Jobs, JobState
from kmodd.errors import Busy, Stuck
from tests.unit.fakes import Broadcaster, Ticks

pytestmark = pytest.mark.usefixtures("virtual_time")


@pytest.fixture
def hub() -> Broadcaster:
    return Broadcaster()


@pytest.fixture
def jobs(hub: Broadcaster) -> Jobs:
    return Jobs(hub, Ticks())


def test_job_from_begin_to_end(jobs: Jobs, hub: Broadcaster) -> None:
    number = jobs.add("load", "vfat", ":1.2")
    (job,) = jobs.all()
    assert (job.id, job.action, job.module, job.sender, job.progress) == (number, "load", "vfat", ":1.2", 0.0)
    assert job.state is JobState.RUNNING
    assert job.started > 0
    jobs.progress(number, 0.5)
    jobs.progress(number, 0.5)
    found = jobs.get(number)
    assert found is not None
    assert found.progress == 0.5
    jobs.finish(number, "done")
    jobs.finish(number, "done")
    assert jobs.get(number) is None
    assert hub.published == [
        JobAdded(number),
        JobChanged(number, ("Progress",)),
        JobFinished(number, ":1.2", "load", "vfat", "done"),
    ]


def test_numbers_are_never_used_again(jobs: Jobs) -> None:
    first = jobs.add("load", "a", ":1.2")
    jobs.finish(first, "done")
    assert jobs.add("load", "a", ":1.2") == first + 1


def test_waiting_job_is_cancelled_by_its_own_means(jobs: Jobs, hub: Broadcaster) -> None:
    number = jobs.add("load", "a", ":1.2")
    cancelled: list[int] = []
    jobs.wait(number, lambda: cancelled.append(number))
    jobs.cancel(number)
    assert cancelled == [number]
    jobs.run(number)
    with pytest.raises(Busy):
        jobs.cancel(number)
    assert cancelled == [number]
    assert hub.published[1:] == [JobChanged(number, ("State",))] * 2


def test_stuck_job_cannot_be_cancelled(jobs: Jobs) -> None:
    number = jobs.add("load", "a", ":1.2")
    jobs.stick(number)
    with pytest.raises(Stuck):
        jobs.cancel(number)


def test_cancelling_what_is_over_succeeds(jobs: Jobs) -> None:
    jobs.cancel(99)
    jobs.progress(99, 1.0)
    jobs.stick(99)


async def test_watchers_are_called_after_the_caller_in_order(jobs: Jobs, hub: Broadcaster) -> None:
    number = jobs.add("load", "a", ":1.2")
    jobs.finish(number, "done")
    assert (hub.published, jobs.all()) == ([], ())
    await asyncio.sleep(2 * DELAY)
    assert [type(event) for event in hub.published] == [JobAdded, JobFinished]


async def test_afterwards_keeps_the_order_and_forgets_nothing() -> None:
    afterwards, done = Deferred(), list[int]()
    for i in range(3):
        afterwards.defer(lambda i=i: done.append(i))  # type: ignore[misc]
    assert done == []
    afterwards.flush()
    assert done == [0, 1, 2]
    await asyncio.sleep(2 * DELAY)
    for i in range(3, 6):
        afterwards.defer(lambda i=i: done.append(i))  # type: ignore[misc]
    await asyncio.sleep(2 * DELAY)
    assert done == [0, 1, 2, 3, 4, 5]


async def test_afterwards_leaves_room_between_one_and_the_next() -> None:
    afterwards, done = Deferred(), list[str]()
    loop = asyncio.get_running_loop()
    afterwards.defer(lambda: loop.call_soon(done.append, "somebody's call"))  # type: ignore[arg-type]
    afterwards.defer(lambda: done.append("first"))
    afterwards.defer(lambda: done.append("second"))
    await asyncio.sleep(2 * DELAY)
    assert done == ["first", "somebody's call", "second"]
