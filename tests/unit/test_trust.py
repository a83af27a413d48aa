# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans for loaded modules whose live parameters nobody has read: nothing is decided by what is not known."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from kmodd.core.planning.planner import PlanReadings
from kmodd.errors import Busy, Conflict, UnknownParameter
from kmodd.kernel.simulated.modules import SimulatedModule, parameter
from kmodd.model import Outcome
from kmodd.names import ModuleName
from tests.unit.fakes import load, machine, request
from tests.unit.test_operations import CALLER, Bench, make_bench

DUMMY = SimulatedModule("dummy", parameters=(parameter("n", "int", "1"), parameter("secret", "int", "7", mode=0o600)))
DUMMY_NAME = ModuleName("dummy")


@pytest.fixture
def bench() -> Bench:
    return make_bench(machine(DUMMY, loaded=["dummy"]))


@pytest.mark.parametrize("value", ["1", "2"])
async def test_plan_without_the_values_says_so_and_tells_nothing_of_them(bench: Bench, value: str) -> None:
    plan = bench.operations.plan(request(load("dummy", n=value)))
    assert (plan.unread, plan.error) == ((DUMMY_NAME,), None)


async def test_parameters_that_do_not_exist_need_no_reading(bench: Bench) -> None:
    plan = bench.operations.plan(request(load("dummy", x="1")))
    assert plan.unread == ()
    assert isinstance(plan.error, UnknownParameter)


async def test_plan_after_the_look_is_of_what_the_kernel_holds(bench: Bench) -> None:
    asked = request(load("dummy", n="1"), load("dummy", n="2"), load("dummy", secret="7"), atomic=False)
    look = await bench.operations.look(bench.operations.plan(asked))
    plan = bench.operations._planner.plan(asked, look=look)
    assert plan.unread == ()
    assert [(step.operation, type(step.error)) for step in plan.steps] == [(1, Conflict), (2, Conflict)]


async def test_plan_on_trust_is_made_again_before_it_is_carried_out(bench: Bench) -> None:
    plan = bench.operations.plan(request(load("dummy", n="2"), atomic=False))
    assert plan.unread == (DUMMY_NAME,)
    (result,) = await bench.operations.execute(plan, CALLER)
    assert isinstance(result.error, Conflict)


async def test_getter_that_hangs_lets_nothing_pass_for_done(bench: Bench) -> None:
    async def hang(*_: object, **__: object) -> tuple[Outcome, Mapping[str, str]]:
        return Outcome("timed-out", worker=7), {}

    bench.kernel.executor.read_parameters = hang  # type: ignore[method-assign]
    (result,) = await bench.do(load("dummy", n="1"), atomic=False)
    assert isinstance(result.error, Conflict)


async def test_values_that_could_not_be_read_in_time_let_nothing_pass_for_done(bench: Bench) -> None:
    """As behind another module whose getter hangs."""
    asked = request(load("dummy", n="1"))
    await asyncio.sleep(0.01)
    plan = bench.operations._planner.plan(asked, look=PlanReadings(asyncio.get_running_loop().time()))
    assert isinstance(plan.error, Busy)
    assert plan.unread == ()


async def test_what_was_read_is_not_read_again_for_root(bench: Bench) -> None:
    reads: list[str] = []
    read = bench.kernel.executor.read_parameters

    async def count(
        name: ModuleName, parameters: Sequence[str], *, timeout: float
    ) -> tuple[Outcome, Mapping[str, str]]:
        reads.append(name)
        return await read(name, parameters, timeout=timeout)

    bench.kernel.executor.read_parameters = count  # type: ignore[method-assign]
    for _ in range(3):
        (result,) = await bench.do(load("dummy", n="1"), atomic=False)
        assert result.error is None
    assert reads == ["dummy"]
