# SPDX-License-Identifier: LGPL-2.1-or-later
"""A plan is made again before it is carried out, unless it is root's and nothing can have happened since."""

import pytest

from kmodd.core.freshness import FRESH_USEC, FreshPlans
from kmodd.errors import Conflict
from kmodd.kernel.simulated_modules import SimulatedModule
from kmodd.model import Caller, Plan
from tests.unit.fakes import load, machine, request, unload
from tests.unit.test_operations import CALLER, Bench, make_bench

ROOT = Caller(":1.9", 0)


class Clock:
    """Stands still until it is set."""

    now = 5_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def bench() -> Bench:
    return make_bench(machine(SimulatedModule("fat"), SimulatedModule("vfat", depends=("fat",)), SimulatedModule("a")))


def plan() -> Plan:
    return Plan(request(load("a")), (), (), ())


def test_young_plan_is_good_once() -> None:
    fresh, made = FreshPlans(Clock()), plan()
    assert fresh.note(made) is made
    assert fresh.take(made)
    assert not fresh.take(made)


def test_equal_plan_is_not_the_same_plan() -> None:
    fresh = FreshPlans(Clock())
    fresh.note(plan())
    assert not fresh.take(plan())


@pytest.mark.parametrize(("age", "good"), [(0, True), (FRESH_USEC, True), (FRESH_USEC + 1, False), (-1, False)])
def test_old_plan_is_not_good(age: int, good: bool) -> None:
    clock = Clock()
    fresh, made = FreshPlans(clock), plan()
    fresh.note(made)
    clock.now += age
    assert fresh.take(made) is good


def test_no_plan_is_good_after_a_change() -> None:
    fresh, made = FreshPlans(Clock()), plan()
    fresh.note(made)
    fresh.changed()
    assert not fresh.take(made)


def test_plans_nobody_carries_out_are_not_kept_for_ever() -> None:
    fresh = FreshPlans(Clock())
    for _ in range(1000):
        fresh.note(plan())
    assert len(fresh._made) < 100


def count_plans(bench: Bench) -> list[int]:
    planner, counted = bench.operations._planner, [0]
    make = planner.plan

    def counting(*asked: object) -> Plan:
        counted[0] += 1
        return make(*asked)  # type: ignore[arg-type]

    planner.plan = counting  # type: ignore[method-assign, assignment]
    return counted


async def test_roots_plan_is_made_once(bench: Bench) -> None:
    counted = count_plans(bench)
    await bench.operations.execute(bench.operations.plan(request(load("vfat"))), ROOT)
    assert (counted, bench.live()) == ([1], ["fat", "vfat"])
    bench.check_quiet()


async def test_plan_of_anybody_else_is_made_again(bench: Bench) -> None:
    counted = count_plans(bench)
    await bench.operations.execute(bench.operations.plan(request(load("vfat"))), CALLER)
    assert counted == [2]


async def test_roots_plan_is_made_again_after_another_operation(bench: Bench) -> None:
    await bench.operations.execute(bench.operations.plan(request(load("fat"))), ROOT)
    waiting = bench.operations.plan(request(load("vfat")))
    await bench.operations.execute(bench.operations.plan(request(unload("fat"))), ROOT)
    with pytest.raises(Conflict, match="would now touch fat too; ask again"):
        await bench.operations.execute(waiting, ROOT)
    assert bench.live() == []
    bench.check_quiet()
