# SPDX-License-Identifier: LGPL-2.1-or-later
"""A module file that was renamed: the kernel goes by the name in the file."""

import pytest

from kmodd.errors import BadParameter, DisabledByPolicy, NoSuchModule
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, SimulatedModule, parameter
from kmodd.model import Operation, Result, State
from kmodd.names import ModuleName
from tests.unit.fakes import facts, load, machine, reload, request, rule, unload
from tests.unit.test_explain import Bench
from tests.unit.test_operations import make_bench

NUMBER = parameter("numifbs", "int", "2")
IFB = SimulatedModule("ifb", "", "drivers/net", parameters=(NUMBER,))
MII = SimulatedModule("mii", "", "drivers/net")
ACME = SimulatedModule("acme_nic", "", "updates", ("mii",), parameters=(NUMBER,), holds="ifb")
WITH_BOTH = (IFB, MII, ACME)
RENAMED = (MII, ACME)
FILE = ACME.path


async def results(kernel: SimulatedKernel, *operations: Operation) -> list[tuple[str, ...]]:
    return [result.touched for result in await make_bench(kernel).do(*operations)]


async def test_the_file_is_inserted_as_the_module_in_it() -> None:
    kernel = machine(*WITH_BOTH)
    bench = make_bench(kernel)

    plan = bench.operations.plan(request(load("acme_nic")))
    (result,) = await bench.do(load("acme_nic"))

    assert result.touched == ("mii", "ifb")
    assert [(step.module, step.path) for step in plan.steps] == [("mii", MII.path), ("ifb", FILE)]
    assert plan.steps[-1].because == "requested; in the file acme_nic.ko"
    assert plan.modules == ("ifb", "mii")


async def test_a_second_load_changes_nothing() -> None:
    kernel = machine(*WITH_BOTH)
    assert await results(kernel, load("acme_nic")) == [("mii", "ifb")]
    assert await results(kernel, load("acme_nic")) == [()]
    assert await results(kernel, load("ifb")) == [()]


async def test_it_is_loaded_already_by_its_own_file() -> None:
    assert await results(machine(*WITH_BOTH, loaded=["ifb"]), load("acme_nic"), load("acme_nic")) == [(), ()]


async def test_unload_takes_out_the_module_in_the_file() -> None:
    kernel = machine(*RENAMED)
    await results(kernel, load("acme_nic"))
    assert await results(kernel, unload("acme_nic", unused=True)) == [("ifb", "mii")]


@pytest.mark.parametrize("name", ["acme_nic", "ifb"])
async def test_reload_takes_the_same_file(name: str) -> None:
    kernel = machine(*RENAMED)
    await results(kernel, load("acme_nic"))
    kernel.executor.calls.clear()

    assert await results(kernel, reload(name, numifbs="3")) == [("ifb",)]

    assert list(kernel.executor.calls) == [("remove", "ifb", ""), ("insert", FILE, "numifbs=3")]


async def test_roll_back_of_a_load_removes_the_module() -> None:
    kernel = machine(*RENAMED, SimulatedModule("bad", init=Fault(errno=5)))
    assert (await results(kernel, load("acme_nic"), load("bad")))[0] == ()
    assert kernel.loaded.read(ModuleName("ifb")) is None


async def test_roll_back_of_an_unload_inserts_the_file_it_came_from() -> None:
    kernel = machine(*WITH_BOTH, SimulatedModule("bad", init=Fault(errno=5)))
    bench = make_bench(kernel)
    await bench.do(load("acme_nic", numifbs="4"))

    done = await bench.do(unload("acme_nic"), load("bad"))

    assert [result.result for result in done] == [Result.ROLLED_BACK, Result.FAILED]
    assert kernel.executor.calls[-1] == ("insert", FILE, "numifbs=4")


async def test_options_are_those_of_the_files_name_as_for_modprobe() -> None:
    options = (rule("options", "acme_nic", "numifbs=5"), rule("options", "ifb", "numifbs=6"))
    kernel = machine(*WITH_BOTH, rules=options)
    await results(kernel, load("acme_nic"))
    assert kernel.executor.calls[-1] == ("insert", FILE, "numifbs=5")


@pytest.mark.parametrize("name", ["acme_nic", "ifb"])
def test_a_rule_about_either_name_forbids_it(name: str) -> None:
    bench = make_bench(machine(*RENAMED, rules=[rule("install", name, "/bin/false")]))
    assert isinstance(bench.operations.plan(request(load("acme_nic"))).error, DisabledByPolicy)


def test_the_kernel_goes_by_the_module_s_name() -> None:
    bench = make_bench(machine(*RENAMED, facts=facts(command_line="module_blacklist=ifb")))
    assert isinstance(bench.operations.plan(request(load("acme_nic"))).error, DisabledByPolicy)


def test_parameters_are_those_of_the_file() -> None:
    bench = make_bench(machine(*RENAMED))
    assert isinstance(bench.operations.plan(request(load("acme_nic", numifbs="x"))).error, BadParameter)


def test_without_the_file_there_is_no_such_module() -> None:
    assert isinstance(make_bench(machine(MII)).operations.plan(request(load("acme_nic"))).error, NoSuchModule)


async def test_why_explains_the_module_in_the_file() -> None:
    kernel = machine(*RENAMED)
    before = await Bench(kernel=kernel).explain("acme_nic")
    await results(kernel, load("acme_nic"))
    after = await Bench(kernel=kernel).explain("acme_nic")

    assert (before.name, before.file, before.state) == ("ifb", "acme_nic.ko", State.AVAILABLE)
    assert (after.name, after.file, after.state) == ("ifb", "acme_nic.ko", State.LIVE)
    assert after.removable


async def test_why_says_which_rule_keeps_out_the_module_in_the_file() -> None:
    kernel = machine(*RENAMED, rules=[rule("blacklist", "ifb")])
    answer = await Bench(kernel=kernel).explain("acme_nic")
    assert answer.state is State.DISABLED
    assert "acme_nic.ko holds the module ifb" in answer.blockers[0]
