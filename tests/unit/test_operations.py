# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations on the simulated kernel: what the kernel, the caller, the journal and the jobs see."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from kmodd.core.events import JobAdded, JobChanged, JobFinished, StepFailed, StepRefused
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import DELAY, Jobs, ModuleLocks
from kmodd.core.operations.live_values import LiveValues
from kmodd.core.operations.operations import Operations
from kmodd.core.planning.planner import Planner
from kmodd.errors import (
    BadParameter,
    Builtin,
    Conflict,
    InitFailed,
    InUse,
    KmoddError,
    NoDevice,
    NoSuchModule,
    NotLoaded,
    ReadOnlyParameter,
    UnknownParameter,
)
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, SimulatedModule, SimulatedParameter, parameter
from kmodd.model import Caller, LoadedBy, Operation, OperationResult, Outcome, Result, User
from kmodd.names import ModuleName
from tests.unit.fakes import (
    Broadcaster,
    Journal,
    Ticks,
    load,
    machine,
    names,
    owner,
    reload,
    request,
    reset_failed,
    rule,
    set_parameter,
    unload,
)

pytestmark = pytest.mark.usefixtures("virtual_time")

CALLER = Caller(":1.7", 1000, exe="/usr/bin/busctl")
MODULES = (
    SimulatedModule("fat"),
    SimulatedModule("vfat", depends=("fat",), aliases=("fs-vfat",)),
    SimulatedModule("dummy", parameters=(parameter("n", "int", "1"), parameter("hidden", "int", "0", mode=0))),
    SimulatedModule("plain"),
    SimulatedModule(
        "tuned",
        parameters=(
            SimulatedParameter("level", "int", "", "4", 0o644, limit=(0, 9)),
            SimulatedParameter("key", "int", "", "7", 0o600),
            SimulatedParameter("blind", "int", "", "0", 0o200),
        ),
    ),
    SimulatedModule("broken", init=Fault(errno=5, log=("broken: the flux capacitor is not charged",))),
    SimulatedModule("needs_broken", depends=("fat", "broken")),
    SimulatedModule("nodev", init=Fault(errno=19)),
    SimulatedModule("soft", softdep_pre=("broken",), softdep_post=("plain",)),
    SimulatedModule("unix", builtin=True),
)


@dataclass
class Bench:
    kernel: SimulatedKernel
    operations: Operations
    jobs: Jobs
    locks: ModuleLocks
    failures: Failures
    journal: Journal
    hub: Broadcaster

    async def do(self, *asked: Operation, atomic: bool = True, timeout: float = 5.0) -> tuple[OperationResult, ...]:
        plan = self.operations.plan(request(*asked, atomic=atomic, timeout=timeout, reason="test"))
        return await self.operations.execute(plan, CALLER)

    async def run(self, asked: Operation) -> tuple[ModuleName, ...]:
        return await self.operations.run(self.operations.plan(request(asked, reason="test")), CALLER)

    def level(self) -> str | None:
        return self.kernel.loaded.parameters(ModuleName("tuned"))[0].value

    def live(self) -> list[str]:
        return sorted(self.kernel.loaded.snapshot())

    def check_quiet(self) -> None:
        """Nothing is left behind: no job, no lock."""
        self.operations.flush()
        assert self.jobs.all() == ()
        assert not [name for name in self.kernel.machine.modules if owner(self.locks, name) is not None]


def make_bench(
    kernel: SimulatedKernel,
    failures: Failures | None = None,
    loader: Callable[[ModuleName], LoadedBy | None] = lambda name: None,
) -> Bench:
    hub, journal, clock = Broadcaster(), Journal(), Ticks()
    locks, jobs = ModuleLocks(), Jobs(hub, clock)
    failures = failures if failures is not None else Failures()
    planner = Planner(
        kernel.index,
        kernel.loaded,
        kernel.facts,
        LiveValues(kernel.loaded, kernel.executor),
        failed=lambda name: failures.get(name) is not None,
    )
    operations = Operations(
        planner,
        kernel,
        locks=locks,
        jobs=jobs,
        failures=failures,
        audit=journal,
        events=hub,
        clock=clock,
        loader=loader,
    )
    return Bench(kernel, operations, jobs, locks, failures, journal, hub)


@pytest.fixture
def bench() -> Bench:
    return make_bench(machine(*MODULES))


async def settle() -> None:
    await asyncio.sleep(2 * DELAY)


# --- what one operation does ---------------------------------------------------------------------------------------------


async def test_load_answers_what_was_inserted_in_order(bench: Bench) -> None:
    assert await bench.run(load("vfat")) == names("fat", "vfat")
    assert bench.live() == ["fat", "vfat"]
    bench.check_quiet()


async def test_load_of_what_is_live_touches_nothing(bench: Bench) -> None:
    await bench.run(load("vfat"))
    calls = len(bench.kernel.executor.calls)
    (result,) = await bench.do(load("vfat"))
    assert (result.result, result.touched) == (Result.UNCHANGED, ())
    assert len(bench.kernel.executor.calls) == calls


async def test_unload_answers_what_was_removed_in_order(bench: Bench) -> None:
    await bench.run(load("vfat"))
    assert await bench.run(unload("vfat", unused=True)) == names("vfat", "fat")
    assert bench.live() == []


async def test_a_module_that_another_user_loaded_since_authorization_is_a_conflict() -> None:
    by = {ModuleName("vfat"): LoadedBy(60964, ":1.5", "", 1)}
    bench = make_bench(machine(*MODULES), loader=by.get)
    await bench.run(load("vfat"))
    plan = bench.operations.plan(request(unload("vfat", unused=True)))
    assert plan.loaders == (("fat", None), ("vfat", 60964))
    for other in (LoadedBy(0, ":1.6", "", 2), LoadedBy(None, ":1.7", "", 2)):
        by[ModuleName("vfat")] = other
        with pytest.raises(Conflict, match="vfat was loaded by another user since authorization"):
            await bench.operations.run(plan, CALLER)
    by[ModuleName("vfat")] = LoadedBy(60964, ":1.9", "again", 3)
    assert await bench.operations.run(plan, CALLER) == names("vfat", "fat")


async def test_a_module_whose_loader_no_rule_saw_is_not_removed_unless_it_is_the_users_own() -> None:
    by: dict[ModuleName, LoadedBy] = {}
    bench = make_bench(machine(*MODULES), loader=by.get)
    plan = bench.operations.plan(request(unload("vfat")))
    assert plan.loaders == (), "it is not loaded"
    await bench.run(load("vfat"))
    with pytest.raises(Conflict, match="vfat was loaded by another user since authorization"):
        await bench.operations.run(plan, CALLER)
    by[ModuleName("vfat")] = LoadedBy(CALLER.uid, ":1.5", "", 1)
    assert await bench.operations.run(plan, CALLER) == names("vfat")


async def test_what_a_batch_loads_and_unloads_is_its_callers_own() -> None:
    by: dict[ModuleName, LoadedBy] = {}
    bench = make_bench(machine(*MODULES), loader=by.get)
    plan = bench.operations.plan(request(load("vfat"), unload("vfat")))
    assert plan.loaders_for(1000) == ((ModuleName("vfat"), 1000),)
    assert [result.result for result in await bench.operations.execute(plan, CALLER)] == [Result.CHANGED] * 2
    assert bench.live() == ["fat"]
    await bench.run(load("vfat"))
    by[ModuleName("vfat")] = LoadedBy(0, ":1.5", "", 1)
    both = bench.operations.plan(request(unload("vfat"), load("vfat"), unload("vfat")))
    assert both.loaders_for(1000) == ((ModuleName("vfat"), 0), (ModuleName("vfat"), 1000))
    with pytest.raises(Conflict, match="vfat was loaded by another user since authorization"):
        await bench.operations.execute(plan, CALLER)
    assert [result.result for result in await bench.operations.execute(both, CALLER)] == [Result.CHANGED] * 3


async def test_a_batch_does_not_unload_what_another_program_loaded_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the call into the kernel."""
    insert = bench.kernel.executor.insert

    async def late(path: str, *arguments: Any, **more: Any) -> Outcome:
        if "dummy" in path:
            bench.kernel.modprobe("dummy")
        return await insert(path, *arguments, **more)

    monkeypatch.setattr(bench.kernel.executor, "insert", late)
    results = await bench.do(load("plain"), load("dummy"), unload("dummy"))
    assert [result.result for result in results] == [Result.ROLLED_BACK, Result.UNCHANGED, Result.FAILED]
    assert str(results[-1].error) == "dummy was loaded by another program meanwhile"
    assert bench.live() == ["dummy"]


async def test_unload_of_what_is_not_loaded_touches_nothing(bench: Bench) -> None:
    assert await bench.run(unload("vfat")) == ()


async def test_parameters_reach_the_kernel_spelled_right(bench: Bench) -> None:
    await bench.run(load("dummy", n="4"))
    assert bench.kernel.executor.calls[-1][2] == "n=4"
    assert bench.kernel.loaded.parameters(ModuleName("dummy"))[0].value == "4"


async def test_reload_applies_new_parameters(bench: Bench) -> None:
    await bench.run(load("dummy", n="4"))
    assert await bench.run(reload("dummy", n="5")) == names("dummy")
    assert bench.kernel.loaded.parameters(ModuleName("dummy"))[0].value == "5"


async def test_soft_dependency_that_fails_is_no_error(bench: Bench) -> None:
    assert await bench.run(load("soft")) == names("soft", "plain")
    assert bench.failures.all() == ()
    bench.operations.flush()
    assert bench.journal.events == ["module.loaded"]


async def test_dry_run_tells_and_does_nothing(bench: Bench) -> None:
    plan = bench.operations.plan(request(load("vfat"), load("nowhere"), load("unix"), dry_run=True, atomic=False))
    results = await bench.operations.execute(plan, CALLER)
    assert [result.result for result in results] == [Result.CHANGED, Result.FAILED, Result.UNCHANGED]
    assert results[0].touched == names("fat", "vfat")
    assert isinstance(results[1].error, NoSuchModule)
    await settle()
    assert (bench.live(), bench.hub.published, bench.journal.records) == ([], [], [])


# --- failures ------------------------------------------------------------------------------------------------------------


async def test_failure_is_diagnosed_recorded_and_remembered(bench: Bench) -> None:
    with pytest.raises(InitFailed) as caught:
        await bench.run(load("broken"))
    assert caught.value.evidence.kernel_log == ("broken: the flux capacitor is not charged",)
    bench.operations.flush()
    (record,) = bench.journal.records
    assert (record.event, record.error, record.errno, record.module) == ("operation.failed", "InitFailed", 5, "broken")
    assert record.kernel_log == ("broken: the flux capacitor is not charged",)
    assert (record.uid, record.sender, record.reason) == (1000, ":1.7", "test")
    failure = bench.failures.get(ModuleName("broken"))
    assert failure is not None
    assert (failure.error, failure.stuck) == ("InitFailed", False)
    bench.check_quiet()


async def test_success_forgets_the_failure(bench: Bench) -> None:
    with pytest.raises(InitFailed):
        await bench.run(load("broken"))
    bench.kernel.fail_next("broken", None)
    await bench.run(load("broken"))
    assert bench.failures.all() == ()


async def test_dependencies_of_a_failed_load_are_removed_again(bench: Bench) -> None:
    with pytest.raises(InitFailed) as caught:
        await bench.run(load("needs_broken"))
    assert bench.live() == []
    assert caught.value.touched == ()
    assert caught.value.module == "broken"


async def test_dependencies_that_were_there_before_stay(bench: Bench) -> None:
    bench.kernel.modprobe("fat")
    with pytest.raises(InitFailed):
        await bench.run(load("needs_broken"))
    assert bench.live() == ["fat"]


async def test_what_cannot_be_undone_is_said(bench: Bench) -> None:
    bench.kernel.fail_next("fat", Fault(errno=11), removes=True)
    with pytest.raises(InitFailed, match="fat stays loaded") as caught:
        await bench.run(load("needs_broken"))
    assert caught.value.touched == ("fat",)
    assert bench.live() == ["fat"]


async def test_reload_that_fails_brings_the_old_one_back(bench: Bench) -> None:
    bench.kernel.modprobe("dummy", "n=7")
    bench.kernel.fail_next("dummy", Fault(errno=5))
    with pytest.raises(
        InitFailed, match="dummy was loaded again with its old parameters, but hidden could not be read"
    ):
        await bench.run(reload("dummy", n="8"))
    assert bench.live() == ["dummy"]
    assert bench.kernel.loaded.parameters(ModuleName("dummy"))[0].value == "7"


async def test_parameters_given_before_are_known_even_when_they_cannot_be_read(bench: Bench) -> None:
    await bench.run(load("dummy", n="7", hidden="3"))
    bench.kernel.fail_next("dummy", Fault(errno=5))
    with pytest.raises(InitFailed, match=r"old parameters$"):
        await bench.run(reload("dummy"))
    assert bench.kernel.executor.calls[-1][2] == "hidden=3 n=7"


async def test_reload_that_cannot_be_restored_says_so(bench: Bench) -> None:
    bench.kernel.modprobe("dummy")
    bench.kernel.fail_next("dummy", Fault(errno=19), times=2)
    with pytest.raises(NoDevice, match="dummy stays unloaded") as caught:
        await bench.run(reload("dummy"))
    assert caught.value.touched == ("dummy",)


async def test_busy_module_is_answered_with_its_users(bench: Bench) -> None:
    bench.kernel.modprobe("plain")
    bench.kernel.hold("plain", User("mount", "/mnt", "/dev/sdb"))
    with pytest.raises(InUse, match="plain is in use by 1 mount") as caught:
        await bench.run(unload("plain"))
    (user,) = caught.value.evidence.users
    assert (user.kind, user.name, user.detail) == ("mount", "/mnt", "/dev/sdb")


async def test_value_that_only_the_kernel_can_judge(bench: Bench) -> None:
    kernel = machine(*MODULES, rules=[rule("options", "dummy", "n=many", 9)])
    with pytest.raises(BadParameter) as caught:
        await make_bench(kernel).run(load("dummy"))
    assert (caught.value.evidence.parameter, caught.value.evidence.line) == ("n", 9)


async def test_module_that_appears_at_the_last_moment_is_success(bench: Bench) -> None:
    plan = bench.operations.plan(request(load("plain")))
    _racing(bench, lambda: bench.kernel.insmod("plain"))
    assert await bench.operations.run(plan, CALLER) == ()


async def test_module_that_appears_without_its_parameters_is_a_conflict(bench: Bench) -> None:
    plan = bench.operations.plan(request(load("dummy", n="2")))
    _racing(bench, lambda: bench.kernel.insmod("dummy"))
    with pytest.raises(Conflict, match="dummy was loaded concurrently"):
        await bench.operations.run(plan, CALLER)


async def test_module_that_goes_at_the_last_moment_is_success(bench: Bench) -> None:
    bench.kernel.modprobe("plain")
    plan = bench.operations.plan(request(unload("plain")))
    _racing(bench, lambda: bench.kernel.rmmod("plain"))
    assert await bench.operations.run(plan, CALLER) == ()


def _racing(bench: Bench, interfere: object) -> None:
    """Let something happen between the last look and the call into the kernel."""
    mark = bench.kernel.log.mark

    def racing() -> object:
        bench.kernel.log.mark = mark  # type: ignore[method-assign]
        assert callable(interfere)
        interfere()
        return mark()

    bench.kernel.log.mark = racing  # type: ignore[method-assign, assignment]


async def test_machine_that_changed_since_authorisation(bench: Bench) -> None:
    bench.kernel.modprobe("fat")
    plan = bench.operations.plan(request(load("vfat")))
    bench.kernel.rmmod("fat")
    with pytest.raises(Conflict, match="now includes fat; try again"):
        await bench.operations.execute(plan, CALLER)
    assert bench.live() == []
    bench.check_quiet()
    assert bench.journal.events == ["operation.failed"]


async def test_rule_made_since_authorisation_is_honoured(bench: Bench) -> None:
    plan = bench.operations.plan(request(load("plain"), override_policy=True))
    bench.kernel.index.change_rules([rule("blacklist", "plain")])
    with pytest.raises(Conflict):
        await bench.operations.execute(plan, CALLER)
    assert bench.live() == []


async def test_bug_of_ours_leaves_no_lock_and_no_job(bench: Bench) -> None:
    async def broken(path: str, arguments: str, *, sha256: str = "", timeout: float) -> Outcome:
        raise ZeroDivisionError(path, arguments, timeout)

    bench.kernel.executor.insert = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await bench.run(load("plain"))
    bench.check_quiet()


# --- batches -------------------------------------------------------------------------------------------------------------


async def test_atomic_batch_undoes_itself_in_reverse(bench: Bench) -> None:
    bench.kernel.modprobe("dummy", "n=7")
    results = await bench.do(load("vfat"), unload("dummy"), load("unix"), load("broken"), load("plain"))
    assert [result.result for result in results] == [
        Result.ROLLED_BACK,
        Result.ROLLED_BACK,
        Result.UNCHANGED,
        Result.FAILED,
        Result.SKIPPED,
    ]
    assert bench.live() == ["dummy"]
    assert bench.kernel.loaded.parameters(ModuleName("dummy"))[0].value == "7"
    assert [call[0] for call in bench.kernel.executor.calls][-3:] == ["insert", "remove", "remove"]
    bench.operations.flush()
    assert bench.journal.events == ["operation.unchanged", "operation.failed", "batch.rolled-back"]
    bench.check_quiet()


async def test_atomic_batch_that_is_known_to_fail_is_not_begun(bench: Bench) -> None:
    results = await bench.do(load("vfat"), load("nowhere"))
    assert [result.result for result in results] == [Result.SKIPPED, Result.FAILED]
    assert not bench.kernel.executor.calls


async def test_batch_that_is_not_atomic_goes_on(bench: Bench) -> None:
    results = await bench.do(load("nowhere"), load("broken"), load("vfat"), atomic=False)
    assert [result.result for result in results] == [Result.FAILED, Result.FAILED, Result.CHANGED]
    assert bench.live() == ["fat", "vfat"]
    bench.operations.flush()
    told = [event for event in bench.hub.published if isinstance(event, StepRefused | StepFailed)]
    assert [type(event) for event in told] == [StepFailed, StepRefused], "each failure counts once"
    assert (told[1].module, told[1].error) == ("", "NoSuchModule")


async def test_what_a_batch_cannot_undo_is_said_on_the_error_that_ended_it(bench: Bench) -> None:
    bench.kernel.fail_next("plain", Fault(errno=11), removes=True)
    results = await bench.do(load("plain"), load("broken"))
    assert [result.result for result in results] == [Result.CHANGED, Result.FAILED]
    assert results[0].touched == names("plain")
    assert results[1].error is not None
    assert results[1].error.touched == ("plain",)
    assert results[1].error.message.endswith("plain stays loaded")


async def test_batch_sets_a_parameter_of_what_it_loads(bench: Bench) -> None:
    first, second = await bench.do(load("tuned"), set_parameter("tuned", level="6", key="9"))
    assert [first.result, second.result] == [Result.CHANGED, Result.CHANGED]
    assert bench.level() == "6"
    bench.check_quiet()
    record = bench.journal.records[-1]
    assert (record.event, record.action, record.message) == (
        "parameter.set",
        "set-parameter",
        "parameters level, key of tuned were set",
    )
    assert record.extra["PARAMETER"] == "level key"
    assert record.extra["PARAMETERS"] == "level=6 key=…"


async def test_batch_gives_parameters_their_old_values_back(bench: Bench) -> None:
    await bench.do(load("tuned"))
    one, other, failed = await bench.do(
        set_parameter("tuned", level="6"), set_parameter("tuned", level="7"), load("broken")
    )
    assert [one.result, other.result, failed.result] == [Result.ROLLED_BACK, Result.ROLLED_BACK, Result.FAILED]
    assert bench.level() == "4"
    assert failed.error is not None
    assert failed.error.aftermath == ()


async def test_setting_the_value_that_is_there_changes_nothing(bench: Bench) -> None:
    await bench.do(load("tuned"))
    (result,) = await bench.do(set_parameter("tuned", level="4"))
    assert (result.result, result.touched) == (Result.UNCHANGED, ())


async def test_of_several_parameters_none_stays_set_where_one_is_refused(bench: Bench) -> None:
    await bench.do(load("tuned"))
    (result,) = await bench.do(set_parameter("tuned", key="9", level="99"))
    assert isinstance(result.error, BadParameter)
    assert [p.value for p in bench.kernel.loaded.parameters(ModuleName("tuned"), private=True)][:2] == ["4", "7"]


async def test_a_parameter_whose_old_value_cannot_be_read_keeps_the_new_one_and_that_is_said(bench: Bench) -> None:
    await bench.do(load("tuned"))
    one, failed = await bench.do(set_parameter("tuned", blind="1"), load("broken"))
    assert (one.result, one.touched) == (Result.CHANGED, names("tuned"))
    assert failed.error is not None
    assert failed.error.aftermath == (("tuned", "parameter blind of tuned keeps its new value"),)


@pytest.mark.parametrize(
    ("before", "asked", "error"),
    [
        ((), ("tuned", "level"), NotLoaded),
        ((load("tuned"), unload("tuned")), ("tuned", "level"), NotLoaded),
        ((), ("nowhere", "level"), NoSuchModule),
        ((), ("unix", "level"), Builtin),
        ((load("tuned"),), ("tuned", "nosuch"), UnknownParameter),
        ((load("dummy"),), ("dummy", "n"), ReadOnlyParameter),
    ],
)
async def test_a_parameter_that_cannot_be_set_fails_the_batch(
    bench: Bench, before: tuple[Operation, ...], asked: tuple[str, str], error: type[KmoddError]
) -> None:
    module, name = asked
    results = await bench.do(*before, set_parameter(module, **{name: "1"}))
    assert type(results[-1].error) is error
    assert bench.live() == []
    bench.check_quiet()


async def test_batch_resets_a_failure_and_remembers_it_again_when_undone(bench: Bench) -> None:
    await bench.do(load("broken"))
    assert bench.failures.get(ModuleName("broken")) is not None
    reset, failed = await bench.do(reset_failed("broken"), load("nodev"))
    assert [reset.result, failed.result] == [Result.ROLLED_BACK, Result.FAILED]
    assert bench.failures.get(ModuleName("broken")) is not None
    (reset,) = await bench.do(reset_failed("broken"))
    assert (reset.result, bench.failures.get(ModuleName("broken"))) == (Result.CHANGED, None)
    bench.check_quiet()
    assert bench.journal.records[-1].event == "failure.reset"
    assert bench.operations.plan(request(reset_failed("broken"))).steps == ()


async def test_batch_of_the_same_module(bench: Bench) -> None:
    results = await bench.do(load("vfat"), unload("vfat", unused=True), load("vfat"))
    assert [result.result for result in results] == [Result.CHANGED] * 3
    assert bench.live() == ["fat", "vfat"]


# --- the journal and the jobs --------------------------------------------------------------------------------------------


async def test_one_record_for_one_result(bench: Bench) -> None:
    await bench.run(load("vfat"))
    await bench.run(load("vfat"))
    await bench.run(reload("vfat"))
    await bench.run(unload("vfat"))
    bench.operations.flush()
    assert bench.journal.events == ["module.loaded", "operation.unchanged", "module.reloaded", "module.unloaded"]
    first = bench.journal.records[0]
    assert first.message == "vfat was loaded, and with it fat"
    assert first.extra["TOUCHED"] == "fat vfat"
    assert first.duration_usec is not None
    assert (first.module, first.action, first.result) == ("vfat", "load", "changed")


async def test_parameters_are_recorded_and_those_only_root_may_read_withheld() -> None:
    module = SimulatedModule("m", parameters=(parameter("n", "int"), parameter("key", "charp", mode=0o600)))
    bench = make_bench(machine(module))
    await bench.run(load("m", n="2", key="hush"))
    bench.operations.flush()
    assert bench.journal.records[0].extra["PARAMETERS"] == "n=2 key=…"


async def test_record_of_a_success_waits_until_the_caller_has_the_answer(bench: Bench) -> None:
    await bench.run(load("plain"))
    assert bench.journal.records == []
    await settle()
    assert bench.journal.events == ["module.loaded"]


async def test_job_is_announced_and_finished_with_its_result(bench: Bench) -> None:
    await bench.run(load("plain"))
    with pytest.raises(InitFailed):
        await bench.run(load("broken"))
    await bench.do(load("vfat"), load("dummy"))
    bench.operations.flush()
    finished = [event for event in bench.hub.published if isinstance(event, JobFinished)]
    assert [(job.action, job.module, job.result) for job in finished] == [
        ("load", "plain", "done"),
        ("load", "broken", "InitFailed"),
        ("batch", "vfat dummy", "done"),
    ]
    assert sum(isinstance(event, JobAdded) for event in bench.hub.published) == 3
    assert any(isinstance(event, JobChanged) and event.properties == ("Progress",) for event in bench.hub.published)


async def test_errors_of_the_whole_request_are_of_the_table(bench: Bench) -> None:
    plan = bench.operations.plan(request(load("nowhere")))
    with pytest.raises(KmoddError):
        await bench.operations.run(plan, CALLER)
