# SPDX-License-Identifier: LGPL-2.1-or-later
"""A plan is carried out as it was authorized; it is made again only where something may have happened since."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kmodd.core.events import JobAdded, ModuleAdded, ModuleChanged
from kmodd.core.operations.operations import FRESH_USEC
from kmodd.errors import Conflict
from kmodd.kernel.simulated.modules import SimulatedModule
from kmodd.model import Caller, Plan
from kmodd.names import ModuleName
from tests.unit.fakes import load, machine, request, rule, unload
from tests.unit.test_operations import CALLER, Bench, make_bench

ROOT = Caller(":1.9", 0)
USER = replace(CALLER, uid=1000, interactive=False)


@pytest.fixture
def bench() -> Bench:
    return make_bench(machine(SimulatedModule("fat"), SimulatedModule("vfat", depends=("fat",)), SimulatedModule("a")))


def count_plans(bench: Bench) -> list[int]:
    planner, counted = bench.operations._planner, [0]
    make = planner.work

    def counting(*asked: Any, **known: Any) -> Any:
        counted[0] += 1
        return make(*asked, **known)

    planner.work = counting  # type: ignore[method-assign]
    return counted


@pytest.mark.parametrize("caller", [ROOT, USER], ids=["root", "user"])
async def test_a_plan_is_made_once(bench: Bench, caller: Caller) -> None:
    counted = count_plans(bench)
    await bench.operations.execute(bench.operations.plan(request(load("vfat"))), caller)
    assert (counted, bench.live()) == ([1], ["fat", "vfat"])
    bench.check_quiet()


async def test_a_plan_that_may_have_had_a_prompt_is_made_again(bench: Bench) -> None:
    counted = count_plans(bench)
    plan = bench.operations.plan(request(load("vfat")))
    await bench.operations.execute(plan, replace(USER, interactive=True))
    assert counted == [2]


@pytest.mark.parametrize(("age", "plans"), [(0, 1), (FRESH_USEC - 10_000, 1), (FRESH_USEC + 1, 2), (-20_000, 2)])
async def test_an_old_plan_is_made_again(bench: Bench, age: int, plans: int) -> None:
    counted = count_plans(bench)
    plan = bench.operations.plan(request(load("vfat")))
    await bench.operations.execute(replace(plan, made=plan.made - age), USER)
    assert counted == [plans]


async def test_a_plan_that_operations_did_not_make_is_made_again(bench: Bench) -> None:
    plan = bench.operations.plan(request(load("vfat")))
    counted = count_plans(bench)
    await bench.operations.execute(Plan(plan.request, plan.targets, plan.steps), ROOT)
    assert counted == [1]


@pytest.mark.parametrize(
    ("event", "plans"),
    [(ModuleAdded(ModuleName("a")), 2), (ModuleChanged(ModuleName("a"), ("Parameters",)), 2), (JobAdded(1), 1)],
    ids=str,
)
async def test_a_plan_is_made_again_after_a_change(bench: Bench, event: Any, plans: int) -> None:
    counted = count_plans(bench)
    plan = bench.operations.plan(request(load("vfat")))
    bench.hub.publish(event)
    await bench.operations.execute(plan, USER)
    assert counted == [plans]


async def test_a_change_while_a_plan_is_made_in_pieces_counts(bench: Bench) -> None:
    counted = count_plans(bench)
    work = bench.operations.work(request(load("a"), load("vfat")))
    next(work)
    bench.hub.publish(ModuleAdded(ModuleName("fat")))
    with pytest.raises(StopIteration) as done:
        next(work)
    await bench.operations.execute(done.value.value, ROOT)
    assert counted == [2]


async def test_a_plan_is_carried_out_once(bench: Bench) -> None:
    counted = count_plans(bench)
    plan = bench.operations.plan(request(load("vfat")))
    for _ in range(2):
        await bench.operations.execute(plan, ROOT)
    assert counted == [2]


@pytest.mark.parametrize("caller", [ROOT, USER], ids=["root", "user"])
async def test_a_plan_is_made_again_after_another_operation(bench: Bench, caller: Caller) -> None:
    await bench.operations.execute(bench.operations.plan(request(load("fat"))), ROOT)
    waiting = bench.operations.plan(request(load("vfat")))
    await bench.operations.execute(bench.operations.plan(request(unload("fat"))), ROOT)
    with pytest.raises(Conflict, match="now includes fat; try again"):
        await bench.operations.execute(waiting, caller)
    assert bench.live() == []
    bench.check_quiet()


@pytest.mark.parametrize(
    "change",
    [
        lambda bench: bench.kernel.modprobe("a"),
        lambda bench: bench.kernel.index.change_rules([rule("options", "vfat", "debug=1")]),
    ],
    ids=["/proc/modules", "modprobe.d"],
)
async def test_a_users_plan_is_made_again_after_a_change_without_an_event(
    bench: Bench, change: Callable[[Bench], None]
) -> None:
    counted = count_plans(bench)
    plan = bench.operations.plan(request(load("vfat")))
    change(bench)
    await bench.operations.execute(plan, USER)
    assert counted == [2]
