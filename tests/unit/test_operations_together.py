# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations beside each other: locks, waiting, cancelling, callers that leave."""

import asyncio

import pytest

from kmodd.core.events import JobFinished
from kmodd.core.operations.jobs import JobState
from kmodd.errors import Busy, Conflict, KmoddError, TimedOut
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, FaultKind, SimulatedModule
from kmodd.model import OperationResult, Result
from kmodd.names import ModuleName
from tests.unit.fakes import load, machine, names, request, unload
from tests.unit.test_operations import CALLER, Bench, make_bench, settle

HANG = Fault(FaultKind.HANG)
MODULES = (
    SimulatedModule("fat"),
    SimulatedModule("vfat", depends=("fat",)),
    SimulatedModule("a"),
    SimulatedModule("b"),
    SimulatedModule("wait", init=HANG),
    SimulatedModule("wait_exit", exit=HANG),
)


@pytest.fixture
def bench() -> Bench:
    """Time passes here: a hang is released by the test, long before it would be given up."""
    return make_bench(machine(*MODULES, pace=1.0))


def begin(bench: Bench, *asked: object, atomic: bool = True) -> "asyncio.Task[tuple[OperationResult, ...]]":
    plan = bench.operations.plan(request(*asked, atomic=atomic, timeout=30.0))  # type: ignore[arg-type]
    return asyncio.create_task(bench.operations.execute(plan, CALLER))


async def until_in_kernel(kernel: SimulatedKernel, name: str) -> None:
    for _ in range(200):
        resident = kernel.machine.resident.get(ModuleName(name))
        if resident is not None and resident.call is not None:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{name} was not called")


async def test_fifty_loads_of_one_module_insert_it_once(bench: Bench) -> None:
    results = await asyncio.gather(*(begin(bench, load("vfat")) for _ in range(50)))
    found = [result.result for (result,) in results]
    assert sorted(found) == [Result.CHANGED] + [Result.UNCHANGED] * 49
    assert sum(call[0] == "insert" for call in bench.kernel.executor.calls) == 2
    bench.check_quiet()


async def test_loads_against_unloads_end_quietly(bench: Bench) -> None:
    tasks = [begin(bench, load("vfat") if i % 2 else unload("vfat", unused=True)) for i in range(60)]
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, tuple | KmoddError)
    bench.check_quiet()


async def test_module_in_the_kernel_is_waited_for_and_others_are_not(bench: Bench) -> None:
    first = begin(bench, load("wait"))
    await until_in_kernel(bench.kernel, "wait")
    assert bench.operations.plan(request(unload("wait"))).error is None
    second = begin(bench, unload("wait"))
    (other,) = await asyncio.wait_for(begin(bench, load("a")), 1)
    assert other.result is Result.CHANGED
    assert [job.state for job in bench.jobs.all()] == [JobState.RUNNING, JobState.WAITING]
    bench.kernel.release("wait")
    (one,), (two,) = await first, await second
    assert (one.result, two.result) == (Result.CHANGED, Result.CHANGED)
    assert bench.live() == ["a"]
    bench.check_quiet()


async def test_waiting_operation_can_be_cancelled(bench: Bench) -> None:
    first = begin(bench, load("wait"))
    await until_in_kernel(bench.kernel, "wait")
    second = begin(bench, load("wait"))
    await settle()
    running, waiting = bench.jobs.all()
    with pytest.raises(Busy, match="has started"):
        bench.jobs.cancel(running.id)
    bench.jobs.cancel(waiting.id)
    with pytest.raises(Conflict, match="cancelled while waiting"):
        await second
    bench.jobs.cancel(waiting.id)
    bench.kernel.release("wait")
    await first
    bench.check_quiet()
    results = {event.id: event.result for event in bench.hub.published if isinstance(event, JobFinished)}
    assert results == {running.id: "done", waiting.id: "cancelled"}


async def test_caller_that_leaves_while_waiting_is_forgotten(bench: Bench) -> None:
    first = begin(bench, load("wait"))
    await until_in_kernel(bench.kernel, "wait")
    leaving = [begin(bench, load("wait")) for _ in range(20)]
    staying = begin(bench, load("wait"))
    await settle()
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    assert all(task.cancelled() for task in leaving)
    bench.kernel.release("wait")
    await first
    (result,) = await staying
    assert result.result is Result.UNCHANGED
    bench.check_quiet()


async def test_caller_that_leaves_in_the_handover_leaks_no_lock(bench: Bench) -> None:
    first = begin(bench, load("wait"))
    await until_in_kernel(bench.kernel, "wait")
    leaving, staying = begin(bench, load("wait")), begin(bench, load("wait"))
    await settle()
    bench.kernel.release("wait")
    while not first.done():
        await asyncio.sleep(0)
        leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert (await asyncio.wait_for(staying, 1))[0].result is Result.UNCHANGED
    bench.check_quiet()


async def test_caller_that_leaves_in_the_last_call_keeps_the_result(bench: Bench) -> None:
    task = begin(bench, load("wait"))
    await until_in_kernel(bench.kernel, "wait")
    task.cancel()
    await settle()
    assert not task.done()
    bench.kernel.release("wait")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.live() == ["wait"]
    bench.check_quiet()
    assert bench.journal.events == ["module.loaded"]


async def test_caller_that_leaves_in_the_middle_of_an_atomic_batch_undoes_it(bench: Bench) -> None:
    task = begin(bench, load("vfat"), load("wait"), load("b"))
    await until_in_kernel(bench.kernel, "wait")
    task.cancel()
    await settle()
    bench.kernel.release("wait")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.live() == []
    bench.check_quiet()
    assert bench.journal.events == ["operation.failed", "batch.rolled-back"]
    assert "disconnected" in bench.journal.records[0].message


async def test_caller_that_leaves_in_the_middle_of_another_batch_keeps_what_is_done(bench: Bench) -> None:
    task = begin(bench, load("a"), load("wait"), load("b"), atomic=False)
    await until_in_kernel(bench.kernel, "wait")
    task.cancel()
    await settle()
    bench.kernel.release("wait")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.live() == ["a", "wait"]
    bench.check_quiet()


async def test_end_of_the_daemon_undoes_what_is_half_done(bench: Bench) -> None:
    task = begin(bench, load("a"), load("wait"), load("b"))
    await until_in_kernel(bench.kernel, "wait")
    closing = asyncio.create_task(bench.operations.close())
    await settle()
    bench.kernel.release("wait")
    await closing
    assert [result.result for result in await task] == [Result.ROLLED_BACK, Result.ROLLED_BACK, Result.FAILED]
    assert bench.live() == []
    bench.check_quiet()


async def test_end_of_the_daemon_does_not_wait_for_a_hang(bench: Bench) -> None:
    task = begin(bench, load("a"), load("wait"))
    await until_in_kernel(bench.kernel, "wait")
    # Undoing the first step has as long as the call had: a busy machine may need more than a few milliseconds for it.
    await bench.operations.close(grace_period=0.5)
    undone, failed = await task
    assert (undone.result, failed.result) == (Result.ROLLED_BACK, Result.FAILED)
    assert isinstance(failed.error, TimedOut)
    # The next daemon knows whose it is, and who asked what became of it.
    (failure,) = bench.failures.stuck
    assert failure.by is not None
    assert (failure.module, failure.by.uid) == ("wait", CALLER.uid)
    assert bench.journal.events == ["operation.stuck", "batch.rolled-back"]


async def test_end_of_the_daemon_breaks_off_what_does_not_end_when_it_is_given_up(bench: Bench) -> None:
    task = begin(bench, load("wait"))
    await until_in_kernel(bench.kernel, "wait")
    bench.kernel.executor.abandon_all = lambda: None  # type: ignore[method-assign]
    await bench.operations.close(grace_period=0.01)
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.check_quiet()


async def test_thousand_callers_that_leave_at_once_leave_nothing_behind(bench: Bench) -> None:
    tasks = []
    for i in range(1000):
        task = begin(bench, load("vfat") if i % 2 else unload("vfat", unused=True))
        if i % 3:
            await asyncio.sleep(0)
        task.cancel()
        tasks.append(task)
    await asyncio.gather(*tasks, return_exceptions=True)
    await bench.operations.close()
    bench.check_quiet()
    assert set(bench.live()) <= {"fat", "vfat"}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_plan_made_while_our_own_load_is_under_way_is_not_busy(bench: Bench) -> None:
    first = begin(bench, load("wait"))
    await until_in_kernel(bench.kernel, "wait")
    plan = bench.operations.plan(request(load("wait")))
    assert plan.error is None
    assert plan.modules == names("wait")
    bench.kernel.release("wait")
    await first
    assert await bench.operations.run(plan, CALLER) == ()
