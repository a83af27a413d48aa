# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans of unloads and reloads."""

import pytest

from kmodd.core.planning.planned_state import InFlight
from kmodd.core.planning.planner import Planner
from kmodd.errors import (
    BadParameter,
    Builtin,
    Busy,
    DisabledByPolicy,
    InUse,
    KmoddError,
    ModulesDisabled,
    NoSuchModule,
    NotRemovable,
    Stuck,
)
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, FaultKind, SimulatedModule, parameter
from kmodd.model import Operation, Plan, User
from kmodd.names import ModuleName
from tests.unit.fakes import SeenValues, facts, load, machine, names, reload, request, rule, unload

CHAIN = (
    SimulatedModule("a"),
    SimulatedModule("b", depends=("a",)),
    SimulatedModule("c", depends=("b",)),
    SimulatedModule("d", depends=("b", "a")),
)
ALL = ("a", "b", "c", "d")
MOUNT = User("mount", "/mnt", "/dev/vdb")


def plan(kernel: SimulatedKernel, *operations: Operation) -> Plan:
    return Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel)).plan(request(*operations))


def brief(made: Plan) -> list[str]:
    return [f"{step.action} {step.module}: {step.because}" for step in made.steps]


def error(kernel: SimulatedKernel, *operations: Operation) -> KmoddError:
    found = plan(kernel, *operations).error
    assert found is not None
    return found


def test_unused_module_is_removed() -> None:
    assert brief(plan(machine(*CHAIN, loaded=ALL), unload("c"))) == ["remove c: requested"]


def test_module_that_is_not_loaded_needs_no_step() -> None:
    made = plan(machine(*CHAIN), unload("c"))
    assert (made.steps, made.targets) == ((), (names("c"),))


def test_module_that_exists_nowhere() -> None:
    assert isinstance(error(machine(*CHAIN), unload("nowhere")), NoSuchModule)


def test_built_in() -> None:
    assert isinstance(error(machine(SimulatedModule("unix", builtin=True)), unload("unix")), Builtin)


def test_module_without_exit() -> None:
    kernel = machine(SimulatedModule("stay", permanent=True), loaded=["stay"])
    assert isinstance(error(kernel, unload("stay")), NotRemovable)


def test_holders_are_named() -> None:
    found = error(machine(*CHAIN, loaded=ALL), unload("b"))
    assert isinstance(found, InUse)
    assert found.evidence.holders == ("c", "d")
    assert str(found) == "b is used by c, d"
    assert found.evidence.hint == "kmodctl unload b --dependents"


def test_dependents_go_first() -> None:
    made = plan(machine(*CHAIN, loaded=ALL), unload("a", dependents=True))
    assert [step.module for step in made.steps][-2:] == ["b", "a"]
    assert {step.module for step in made.steps[:2]} == {"c", "d"}
    assert made.steps[-1].because == "requested"
    assert all(step.because.startswith("uses ") for step in made.steps[:3])
    assert made.modules == names(*ALL)


def test_busy_dependent_stops_it() -> None:
    kernel = machine(*CHAIN, loaded=ALL)
    kernel.hold("c", MOUNT)
    found = error(kernel, unload("a", dependents=True))
    assert isinstance(found, InUse)
    assert found.module == "c"
    assert str(found) == "c is held by 1 reference"


def test_references_beside_holders_are_counted() -> None:
    kernel = machine(*CHAIN, loaded=ALL)
    kernel.hold("b", MOUNT, MOUNT)
    assert str(error(kernel, unload("b"))) == "b is used by c, d and held by 2 references beside its holders"
    assert str(error(kernel, unload("b", dependents=True))) == "b is held by 2 references"


def test_users_are_found_where_the_planner_may_look() -> None:
    kernel = machine(*CHAIN, loaded=ALL)
    kernel.hold("c", MOUNT)
    made = Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel), users=lambda _: (MOUNT,)).plan(
        request(unload("c"))
    )
    assert made.error is not None
    (user,) = made.error.evidence.users
    assert (user.kind, user.name, user.detail) == ("mount", "/mnt", "/dev/vdb")
    assert str(made.error) == "c is in use by 1 mount"


def test_unused_dependencies_go_too() -> None:
    kernel = machine(*CHAIN, loaded=("a", "b", "c"))
    made = plan(kernel, unload("c", unused=True))
    assert brief(made) == ["remove c: requested", "remove b: no longer needed", "remove a: no longer needed"]
    assert [step.optional for step in made.steps] == [False, True, True]


def test_used_dependencies_stay() -> None:
    assert brief(plan(machine(*CHAIN, loaded=ALL), unload("c", unused=True))) == ["remove c: requested"]


def test_unused_dependencies_that_cannot_go_stay_without_error() -> None:
    kernel = machine(*CHAIN, loaded=("a", "b", "c"))
    kernel.hold("b", MOUNT)
    assert brief(plan(kernel, unload("c", unused=True))) == ["remove c: requested"]


def test_remove_line_of_a_dependency_counts_for_nothing_as_for_modprobe() -> None:
    kernel = machine(*CHAIN, loaded=("a", "b"), rules=[rule("remove", "a", "/sbin/x")])
    assert brief(plan(kernel, unload("b", unused=True))) == ["remove b: requested", "remove a: no longer needed"]


def test_remove_line_counts_for_what_is_not_loaded_too_as_for_modprobe() -> None:
    kernel = machine(*CHAIN, rules=[rule("remove", "a", "/sbin/x")])
    assert isinstance(error(kernel, unload("a")), DisabledByPolicy)


def test_soft_dependencies_go_before_and_after_when_unused_ones_shall() -> None:
    kernel = machine(
        SimulatedModule("early"),
        SimulatedModule("late"),
        SimulatedModule("main", softdep_pre=("early",), softdep_post=("late", "main")),
        loaded=("early", "main", "late"),
    )
    assert brief(plan(kernel, unload("main"))) == ["remove main: requested"]
    assert brief(plan(kernel, unload("main", unused=True))) == [
        "remove late: soft dependency of main",
        "remove main: requested",
        "remove early: soft dependency of main",
    ]


def test_modules_that_were_no_dependency_stay() -> None:
    kernel = machine(*CHAIN, SimulatedModule("other"), loaded=(*ALL, "other"))
    assert "other" not in [step.module for step in plan(kernel, unload("a", dependents=True, unused=True)).steps]


def test_modules_disabled() -> None:
    kernel = machine(*CHAIN, loaded=ALL)
    kernel.machine.facts = facts(modules_disabled=True)
    assert isinstance(error(kernel, unload("c")), ModulesDisabled)


def test_remove_line() -> None:
    kernel = machine(*CHAIN, loaded=ALL, rules=[rule("remove", "c", "/sbin/modprobe -r -i c")])
    assert isinstance(error(kernel, unload("c")), DisabledByPolicy)


def test_kernel_without_unloading() -> None:
    kernel = machine(SimulatedModule("x"), loaded=["x"])
    kernel.loaded.find = _without_unloading(kernel)  # type: ignore[method-assign, assignment]
    assert isinstance(error(kernel, unload("x")), NotRemovable)


def _without_unloading(kernel: SimulatedKernel) -> object:
    from dataclasses import replace

    return lambda _, name: replace(kernel.machine.snapshot()[name], references=-1)


@pytest.mark.parametrize(("flight", "wanted"), [(InFlight.NONE, Busy), (InFlight.STUCK, Stuck)])
def test_module_that_is_coming(flight: InFlight, wanted: type[KmoddError]) -> None:
    kernel = machine(SimulatedModule("slow", init=Fault(FaultKind.HANG)))
    kernel.machine.start_insert(kernel.index.path(ModuleName("slow")), "")
    made = Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel)).plan(
        request(unload("slow")), lambda _: flight
    )
    assert isinstance(made.error, wanted)


def test_module_that_an_operation_of_ours_is_loading_will_be_removed_after() -> None:
    kernel = machine(SimulatedModule("slow", init=Fault(FaultKind.HANG)))
    kernel.machine.start_insert(kernel.index.path(ModuleName("slow")), "")
    made = Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel)).plan(
        request(unload("slow")), lambda _: InFlight.RUNNING
    )
    assert brief(made) == ["remove slow: requested"]


def test_loaded_module_without_a_file_can_be_removed() -> None:
    kernel = machine(SimulatedModule("x"), loaded=["x"])
    kernel.index.exists = lambda name: False  # type: ignore[method-assign]
    kernel.index.lookup = lambda name: ()  # type: ignore[method-assign]
    assert brief(plan(kernel, unload("x"))) == ["remove x: requested"]


# --- batches -----------------------------------------------------------------------------------------------------------


def test_load_then_unload_of_one_module() -> None:
    assert brief(plan(machine(*CHAIN), load("b"), unload("b", unused=True))) == [
        "insert a: dependency of b",
        "insert b: requested",
        "remove b: requested",
        "remove a: no longer needed",
    ]


def test_unload_of_a_holder_frees_what_it_held() -> None:
    assert brief(plan(machine(*CHAIN, loaded=("a", "b")), unload("b"), unload("a"))) == [
        "remove b: requested",
        "remove a: requested",
    ]


def test_wrong_order_is_in_use() -> None:
    made = plan(machine(*CHAIN, loaded=("a", "b")), unload("a"), unload("b"))
    assert isinstance(made.steps[0].error, InUse)
    assert made.steps[1].error is None


def test_unload_then_load_again_takes_hold_again() -> None:
    made = plan(machine(*CHAIN, loaded=("a", "b")), unload("b"), load("b"), unload("a"))
    assert isinstance(made.error, InUse)
    assert made.error.evidence.holders == ("b",)


# --- reload ------------------------------------------------------------------------------------------------------------

WITH = SimulatedModule("dummy", parameters=(parameter("n", "int", "1"),))


def test_reload_removes_and_inserts_with_the_new_parameters_only() -> None:
    kernel = machine(WITH, loaded=["dummy"], rules=[rule("options", "dummy", "x=9")])
    made = plan(kernel, reload("dummy", n="5"))
    assert brief(made) == ["remove dummy: requested", "insert dummy: requested"]
    assert made.steps[1].parameters == (("x", "9"), ("n", "5"))


def test_reload_of_what_is_not_loaded_loads() -> None:
    assert brief(plan(machine(WITH), reload("dummy"))) == ["insert dummy: requested"]


def test_reload_of_a_built_in() -> None:
    assert isinstance(error(machine(SimulatedModule("unix", builtin=True)), reload("unix")), Builtin)


def test_reload_of_a_busy_module() -> None:
    assert isinstance(error(machine(*CHAIN, loaded=ALL), reload("b")), InUse)


def test_reload_with_a_bad_parameter_removes_nothing() -> None:
    made = plan(machine(WITH, loaded=["dummy"]), reload("dummy", n="x"))
    assert [step.error is None for step in made.steps] == [False]
    assert isinstance(made.error, BadParameter)


def test_reload_of_a_module_that_may_not_come_back_removes_nothing() -> None:
    made = plan(machine(WITH, loaded=["dummy"], rules=[rule("blacklist", "dummy")]), reload("dummy"))
    assert [step.error is None for step in made.steps] == [False]
    assert isinstance(made.error, DisabledByPolicy)


def test_reload_brings_dependents_back() -> None:
    made = plan(machine(*CHAIN, loaded=("a", "b", "c")), reload("a", dependents=True))
    assert brief(made) == [
        "remove c: uses b",
        "remove b: uses a",
        "remove a: requested",
        "insert a: requested",
        "insert b: was loaded before",
        "insert c: was loaded before",
    ]
