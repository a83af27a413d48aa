# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls that do not come back, crash, or were found half done."""

import asyncio
from pathlib import Path

import pytest

from kmodd.core.events import JobFinished, ModuleAdded, ModuleRemoved, StepFailed, StepSucceeded
from kmodd.core.operations.jobs import JobState
from kmodd.core.registry import Registry
from kmodd.errors import Crashed, LimitsExceeded, Stuck, TimedOut
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, FaultKind, SimulatedModule
from kmodd.model import Result, State, StepAction
from kmodd.names import ModuleName
from tests.unit.fakes import Ticks, kept_failures, load, machine, request, unload
from tests.unit.test_operations import CALLER, Bench, make_bench, settle

pytestmark = pytest.mark.usefixtures("virtual_time")

HANG = Fault(FaultKind.HANG)
OOPS = Fault(FaultKind.OOPS, log=("BUG: kernel NULL pointer dereference",))
MODULES = (
    SimulatedModule("fat"),
    SimulatedModule("other"),
    SimulatedModule("hang", init=HANG),
    SimulatedModule("needs_hang", depends=("hang",)),
    SimulatedModule("hang_needs", depends=("fat",), init=HANG),
    SimulatedModule("exit_hang", exit=HANG),
    SimulatedModule("oops", init=OOPS),
    SimulatedModule("exit_oops", exit=OOPS),
    *(SimulatedModule(f"hang{i}", init=HANG) for i in range(5)),
)
HANGING, OOPSING = ModuleName("hang"), ModuleName("oops")


@pytest.fixture
def bench() -> Bench:
    """No time passes: what hangs is given up at once."""
    return make_bench(machine(*MODULES))


async def give_up(bench: Bench, name: str = "hang") -> TimedOut:
    with pytest.raises(TimedOut) as caught:
        await bench.run(load(name))
    return caught.value


async def test_caller_whose_call_hangs_gets_an_answer_in_time(bench: Bench) -> None:
    error = await give_up(bench)
    assert error.message.startswith("the init of hang has not returned after 5 s")
    failure = bench.failures.get(HANGING)
    assert failure is not None
    assert (failure.stuck, failure.action, failure.error) == (True, "load", "TimedOut")
    (job,) = bench.jobs.all()
    assert (job.state, job.module) == (JobState.STUCK, "hang")
    bench.operations.flush()
    assert bench.journal.events == ["operation.stuck"]


async def test_later_callers_are_refused_at_once(bench: Bench) -> None:
    await give_up(bench)
    calls = len(bench.kernel.executor.calls)
    for asked in (load("hang"), unload("hang"), load("needs_hang")):
        assert isinstance(bench.operations.plan(request(asked)).error, Stuck)
        with pytest.raises(Stuck):
            await bench.run(asked)
    assert len(bench.kernel.executor.calls) == calls


async def test_others_keep_working(bench: Bench) -> None:
    await give_up(bench)
    await bench.run(load("other"))
    await bench.run(unload("other"))


async def test_waiting_callers_are_refused_when_it_gets_stuck() -> None:
    bench = make_bench(machine(*MODULES, pace=0.01))
    plan = bench.operations.plan(request(load("hang"), timeout=5.0))
    tasks = [asyncio.create_task(bench.operations.run(plan, CALLER)) for _ in range(5)]
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, TimedOut)
    assert [type(other) for other in others] == [Stuck] * 4


async def test_batch_goes_on_without_the_stuck_module(bench: Bench) -> None:
    await give_up(bench)
    results = await bench.do(load("hang"), load("other"), atomic=False)
    assert [result.result for result in results] == [Result.FAILED, Result.CHANGED]


async def test_dependency_of_a_stuck_module_stays_and_is_said(bench: Bench) -> None:
    with pytest.raises(TimedOut, match="fat stays loaded") as caught:
        await bench.run(load("hang_needs"))
    assert caught.value.touched == ("fat",)


async def test_kernel_that_lets_go_frees_the_module(bench: Bench) -> None:
    await give_up(bench)
    bench.kernel.release("hang")
    await settle()
    bench.check_quiet()
    failure = bench.failures.get(HANGING)
    assert failure is not None
    assert not failure.stuck
    bench.operations.flush()
    assert bench.journal.events == ["operation.stuck", "operation.released"]
    assert bench.journal.records[-1].result == "ended"
    (finished,) = [event for event in bench.hub.published if isinstance(event, JobFinished)]
    assert finished.result == "TimedOut"
    assert await bench.run(load("hang")) == ()
    assert await bench.run(unload("hang")) == (HANGING,)
    assert bench.failures.all() == ()


async def test_exit_that_hangs(bench: Bench) -> None:
    await bench.run(load("exit_hang"))
    with pytest.raises(TimedOut, match="the exit of exit_hang"):
        await bench.run(unload("exit_hang"))
    with pytest.raises(Stuck):
        await bench.run(load("exit_hang"))
    bench.kernel.release("exit_hang")
    await settle()
    assert await bench.run(load("exit_hang")) == ("exit_hang",)


async def test_stuck_job_cannot_be_cancelled(bench: Bench) -> None:
    await give_up(bench)
    (job,) = bench.jobs.all()
    with pytest.raises(Stuck):
        bench.jobs.cancel(job.id)


async def test_reset_is_refused_until_the_kernel_lets_go(bench: Bench) -> None:
    await give_up(bench)
    with pytest.raises(Stuck):
        bench.operations.reset_failed(HANGING)
    bench.kernel.release("hang")
    await settle()
    bench.operations.reset_failed(HANGING, CALLER)
    assert bench.failures.all() == ()
    bench.operations.flush()
    assert bench.journal.events[-1] == "failure.reset"
    assert bench.journal.records[-1].uid == 1000


async def test_reset_of_nothing_succeeds(bench: Bench) -> None:
    bench.operations.reset_failed(ModuleName("other"))
    assert bench.journal.records == []


async def test_at_most_four_are_stuck_at_once(bench: Bench) -> None:
    for i in range(4):
        await give_up(bench, f"hang{i}")
    with pytest.raises(LimitsExceeded):
        await bench.run(load("other"))
    await bench.run(unload("other"))
    bench.kernel.release("hang0")
    await settle()
    await bench.run(load("other"))


# --- crashes -------------------------------------------------------------------------------------------------------------


async def test_init_that_crashes_stays_stuck_but_ends_its_job(bench: Bench) -> None:
    with pytest.raises(Crashed, match="oops stays partially loaded until reboot") as caught:
        await bench.run(load("oops"))
    assert "BUG: kernel NULL pointer dereference" in caught.value.evidence.kernel_log
    bench.check_quiet()
    assert bench.journal.events == ["operation.crashed"]
    with pytest.raises(Stuck):
        await bench.run(load("oops"))
    with pytest.raises(Stuck):
        bench.operations.reset_failed(OOPSING)
    await bench.run(load("other"))


async def test_exit_that_crashes(bench: Bench) -> None:
    await bench.run(load("exit_oops"))
    with pytest.raises(Crashed, match="the exit of exit_oops"):
        await bench.run(unload("exit_oops"))
    with pytest.raises(Stuck):
        await bench.run(load("exit_oops"))


# --- a restart -------------------------------------------------------------------------------------------------------------


def half_loaded(*names: str) -> SimulatedKernel:
    kernel = machine(*MODULES)
    for name in names or (HANGING,):
        kernel.machine.start_insert(kernel.index.path(ModuleName(name)), "")
    return kernel


async def test_restart_knows_again_what_is_stuck(tmp_path: Path) -> None:
    path = tmp_path / "failures.json"
    first = make_bench(machine(*MODULES), kept_failures(path))
    error = await give_up(first)
    second = make_bench(first.kernel, kept_failures(path))
    second.operations.recover()
    failure = second.failures.get(HANGING)
    assert failure is not None
    assert (failure.stuck, failure.error, failure.message) == (True, "TimedOut", error.message)
    with pytest.raises(Stuck):
        await second.run(load("hang"))
    second.kernel.release("hang")
    second.hub.publish(ModuleAdded(HANGING))
    second.operations.flush()
    assert second.journal.events[-1] == "operation.released"
    assert second.failures.stuck == ()
    await second.run(unload("hang"))


async def test_what_was_given_up_before_a_restart_is_its_callers_doing(tmp_path: Path) -> None:
    path = tmp_path / "failures.json"
    first = make_bench(machine(*MODULES), kept_failures(path))
    await first.run(load("exit_hang"))
    with pytest.raises(TimedOut):
        await first.run(load("hang"))
    with pytest.raises(TimedOut):
        await first.run(unload("exit_hang"))
    second = make_bench(first.kernel, kept_failures(path))
    registry = Registry(second.kernel.loaded, second.kernel.facts, second.hub, second.journal, Ticks())
    stop = registry.start()
    second.operations.recover()
    for name in ("hang", "exit_hang"):
        second.kernel.release(name)
    await settle()
    registry.look()
    by = registry.presence(HANGING).by
    assert by is not None
    assert (by.uid, by.reason) == (CALLER.uid, "test")
    assert "exit_hang" not in registry
    second.operations.flush()
    assert second.journal.events == ["operation.released"] * 2
    assert second.failures.stuck == ()
    assert sum(isinstance(event, StepSucceeded) for event in second.hub.published) == 2
    stop()


async def test_restart_does_not_raise_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "failures.json"
    first = make_bench(machine(*MODULES), kept_failures(path))
    for i in range(4):
        await give_up(first, f"hang{i}")
    # The kernel's hung calls are nobody's any more: another daemon has no worker of them.
    second = make_bench(half_loaded(*(f"hang{i}" for i in range(4))), kept_failures(path))
    second.operations.recover()
    with pytest.raises(LimitsExceeded):
        await second.run(load("other"))
    assert not second.kernel.executor.abandoned


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmodd.core.operations.calls.STUCK_AFTER", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_restart_finds_what_was_not_remembered() -> None:
    bench = make_bench(half_loaded())
    bench.operations.recover()
    assert not bench.failures.stuck  # it may be loading well
    await asyncio.sleep(0.06)
    (failure,) = bench.failures.stuck
    assert (failure.module, failure.action, failure.error) == ("hang", "load", "Stuck")
    (told,) = bench.hub.published
    assert told == StepFailed(HANGING, StepAction.INSERT, "Stuck", 0, stuck=True)


@pytest.mark.usefixtures("impatient")
async def test_what_others_load_while_kmodd_starts_is_not_stuck() -> None:
    bench = make_bench(half_loaded())
    bench.operations.recover()
    bench.kernel.release("hang")
    bench.hub.publish(ModuleAdded(HANGING))
    bench.kernel.rmmod("hang")
    bench.kernel.machine.start_insert(bench.kernel.index.path(HANGING), "")  # another one, that began just now
    await asyncio.sleep(0.06)
    assert bench.failures.all() == ()


@pytest.mark.usefixtures("impatient")
async def test_what_was_only_seen_half_way_is_forgotten_when_it_is_through() -> None:
    bench = make_bench(half_loaded())
    bench.operations.recover()
    await asyncio.sleep(0.06)
    bench.hub.publish(ModuleAdded(HANGING))
    assert bench.failures.stuck != ()
    bench.kernel.release("hang")
    bench.hub.publish(ModuleAdded(HANGING))
    assert bench.failures.all() == ()


async def test_restart_after_the_kernel_let_go(tmp_path: Path) -> None:
    path = tmp_path / "failures.json"
    first = make_bench(machine(*MODULES), kept_failures(path))
    await give_up(first)
    kernel = machine(*MODULES)
    second = make_bench(kernel, kept_failures(path))
    second.operations.recover()
    (failure,) = second.failures.all()
    assert not failure.stuck
    await second.run(load("other"))


def test_events_about_others_change_nothing() -> None:
    bench = make_bench(machine(*MODULES, loaded=["other"]))
    bench.hub.publish(ModuleAdded(ModuleName("other")))
    bench.hub.publish(ModuleRemoved(ModuleName("other")))
    assert bench.journal.records == []
    assert bench.kernel.loaded.snapshot()[ModuleName("other")].state is State.LIVE
