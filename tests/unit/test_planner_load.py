# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans of loads."""

from dataclasses import replace

import pytest

from kmodd.api import replies as rows
from kmodd.core.operations.live_values import GivenValues
from kmodd.core.planning.planned_state import InFlight
from kmodd.core.planning.planner import Planner
from kmodd.errors import (
    BadParameter,
    BadSignature,
    Builtin,
    Busy,
    Conflict,
    DisabledByPolicy,
    KmoddError,
    Lockdown,
    ModulesDisabled,
    ModuleTreeMissing,
    NoSuchModule,
    Stuck,
    UnknownParameter,
)
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, FaultKind, SimulatedModule, parameter
from kmodd.model import Operation, Plan, StepAction
from kmodd.model.rules import ManagedFile
from kmodd.names import ModuleName, parse_module_or_alias
from tests.unit.fakes import FILE, SeenValues, facts, load, machine, names, reload, request, rule, unload

FAT = (
    SimulatedModule("fat", "", "fs/fat"),
    SimulatedModule("vfat", "", "fs/fat", ("fat",), aliases=("fs-vfat",)),
    SimulatedModule("msdos", "", "fs/fat", ("fat",)),
)
DUMMY = SimulatedModule(
    "dummy",
    parameters=(
        parameter("numdummies", "int", "1"),
        parameter("flag", "bool", "N"),
        parameter("hidden", "int", "1", mode=0),
        parameter("secret", "int", "7", mode=0o600),
    ),
)


def plan(kernel: SimulatedKernel, *operations: Operation, override: bool = False) -> Plan:
    return Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel)).plan(
        request(*operations, override_policy=override)
    )


def brief(made: Plan) -> list[str]:
    return [f"{step.action} {step.module}: {step.because}" for step in made.steps]


def error(kernel: SimulatedKernel, *operations: Operation, override: bool = False) -> KmoddError:
    found = plan(kernel, *operations, override=override).error
    assert found is not None
    return found


def test_a_plan_tells_no_value_of_a_file_that_not_everyone_may_read() -> None:
    closed = replace(rule("options", "dummy", "numdummies=77 flag=Y hidden=88"), public=False)
    kernel = machine(DUMMY, rules=[closed, rule("options", "dummy", "flag=N")])
    (step,) = plan(kernel, load("dummy", hidden="5")).steps
    assert dict(step.parameters) == {"numdummies": "77", "flag": "N", "hidden": "5"}
    assert rows.step(step)["parameters"] == ("s", "numdummies=… flag=N hidden=5")


def test_dependencies_come_first() -> None:
    made = plan(machine(*FAT), load("vfat"))
    assert brief(made) == ["insert fat: dependency of vfat", "insert vfat: requested"]
    assert made.steps[1].path.endswith("/vfat.ko")
    assert made.modules == names("fat", "vfat")
    assert made.targets == (names("vfat"),)


def test_what_is_live_needs_no_step() -> None:
    assert plan(machine(*FAT, loaded=["fat", "vfat"]), load("vfat")).steps == ()
    assert brief(plan(machine(*FAT, loaded=["fat"]), load("vfat"))) == ["insert vfat: requested"]


def test_alias_is_resolved() -> None:
    assert plan(machine(*FAT), load("fs-vfat")).targets == (names("vfat"),)


def test_alias_of_several_modules_loads_all() -> None:
    kernel = machine(SimulatedModule("a", aliases=("pci:v1*",)), SimulatedModule("b", aliases=("pci:v1*",)))
    made = plan(kernel, load("pci:v1d2"))
    assert brief(made) == ["insert a: requested", "insert b: requested"]
    assert made.targets == (names("a", "b"),)


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("vfat.ko", "did you mean vfat?"),
        ("VFAT", "did you mean vfat?"),
        ("vfat msdos", "load several modules with: printf 'load %s\\n' vfat msdos | kmodctl batch -"),
    ],
)
def test_a_name_in_another_spelling_is_answered_with_what_it_means(written: str, hint: str) -> None:
    found = error(machine(*FAT), replace(load("vfat"), module=parse_module_or_alias(written)))
    assert isinstance(found, NoSuchModule)
    assert found.evidence.hint == hint


def test_unknown_name_is_answered_with_close_ones() -> None:
    found = error(machine(*FAT), load("vfta"))
    assert isinstance(found, NoSuchModule)
    assert found.module == "vfta"
    assert found.evidence.hint.startswith("did you mean vfat")


def test_unknown_alias() -> None:
    assert isinstance(error(machine(*FAT), load("pci:v9")), NoSuchModule)


def test_missing_module_tree_is_distinguished_from_a_missing_module() -> None:
    found = error(machine(facts=facts(tree_present=False)), load("vfat"))
    assert isinstance(found, ModuleTreeMissing)
    assert "reboot" in found.evidence.hint


def test_missing_dependency_file_is_named() -> None:
    class Gap(SimulatedKernel):
        pass

    kernel = Gap(FAT, pace=0)
    known = kernel.index.exists
    kernel.index.exists = lambda name: name != "fat" and known(name)  # type: ignore[method-assign]
    found = error(kernel, load("vfat"))
    assert isinstance(found, NoSuchModule)
    assert (found.module, str(found)) == ("fat", "vfat needs fat, which has no file in the module tree")


# --- soft dependencies -------------------------------------------------------------------------------------------------


def test_soft_dependencies_go_before_and_after() -> None:
    kernel = machine(
        SimulatedModule("base"),
        SimulatedModule("pre", depends=("base",)),
        SimulatedModule("post"),
        SimulatedModule("hard"),
        SimulatedModule("main", depends=("hard",), softdep_pre=("pre",), softdep_post=("post",)),
    )
    made = plan(kernel, load("main"))
    assert brief(made) == [
        "insert hard: dependency of main",
        "insert base: dependency of pre",
        "insert pre: soft dependency of main",
        "insert main: requested",
        "insert post: soft dependency of main",
    ]
    assert [step.optional for step in made.steps] == [False, True, True, False, True]


def test_soft_dependencies_of_dependencies_count() -> None:
    kernel = machine(
        SimulatedModule("x"), SimulatedModule("hard", softdep_pre=("x",)), SimulatedModule("main", depends=("hard",))
    )
    assert brief(plan(kernel, load("main"))) == [
        "insert x: soft dependency of hard",
        "insert hard: dependency of main",
        "insert main: requested",
    ]


def test_absent_and_refused_soft_dependencies_are_left_out_but_not_what_they_need() -> None:
    kernel = machine(
        SimulatedModule("evil"),
        SimulatedModule("under"),
        SimulatedModule("over", depends=("under", "evil")),
        SimulatedModule("main", softdep_pre=("nowhere", "evil", "over", "not a name")),
        rules=[rule("install", "evil", "/bin/false")],
    )
    assert brief(plan(kernel, load("main"))) == ["insert under: dependency of over", "insert main: requested"]


def test_blacklisted_soft_dependency_is_loaded_as_by_modprobe() -> None:
    kernel = machine(
        SimulatedModule("quiet"), SimulatedModule("main", softdep_pre=("quiet",)), rules=[rule("blacklist", "quiet")]
    )
    assert brief(plan(kernel, load("main"))) == ["insert quiet: soft dependency of main", "insert main: requested"]


def test_soft_dependency_with_a_command_is_refused_as_modprobe_would_run_it() -> None:
    kernel = machine(
        SimulatedModule("x"), SimulatedModule("main", softdep_pre=("x",)), rules=[rule("install", "x", "modprobe y")]
    )
    found = error(kernel, load("main"))
    assert isinstance(found, DisabledByPolicy)
    assert "it would load y" in found.message


def test_circle_of_soft_dependencies_ends() -> None:
    kernel = machine(
        SimulatedModule("a", softdep_pre=("b",)), SimulatedModule("b", softdep_pre=("a",), softdep_post=("b",))
    )
    assert brief(plan(kernel, load("a"))) == ["insert b: soft dependency of a", "insert a: requested"]


def test_soft_dependency_that_needs_what_wants_it_comes_after_it() -> None:
    kernel = machine(SimulatedModule("a", softdep_pre=("b",)), SimulatedModule("b", depends=("a",)))
    assert brief(plan(kernel, load("a"))) == ["insert a: dependency of b", "insert b: soft dependency of a"]


def test_soft_dependency_by_alias() -> None:
    kernel = machine(
        SimulatedModule("crc", aliases=("crypto-crc",)), SimulatedModule("main", softdep_pre=("crypto-crc",))
    )
    assert brief(plan(kernel, load("main"))) == ["insert crc: soft dependency of main", "insert main: requested"]


def test_of_several_modules_of_an_alias_the_blacklisted_ones_are_passed_over() -> None:
    kernel = machine(
        SimulatedModule("evil", aliases=("pci:v1",)),
        SimulatedModule("main", aliases=("pci:v1",)),
        rules=[rule("blacklist", "evil")],
    )
    assert brief(plan(kernel, load("pci:v1"))) == ["insert main: requested"]
    assert brief(plan(kernel, load("pci:v1"), override=True)) == ["insert evil: requested", "insert main: requested"]
    both = machine(SimulatedModule("evil", aliases=("pci:v1",)), rules=[rule("blacklist", "evil")])
    assert isinstance(error(both, load("pci:v1")), DisabledByPolicy)


# --- parameters --------------------------------------------------------------------------------------------------------


def test_configured_options_come_before_the_callers_and_the_last_counts() -> None:
    kernel = machine(DUMMY, rules=[rule("options", "dummy", "numdummies=0 flag=1"), rule("options", "dummy", "own=3")])
    made = plan(kernel, load("dummy", numdummies="4"))
    assert made.steps[0].parameters == (("flag", "1"), ("own", "3"), ("numdummies", "4"))


def test_dependencies_get_their_own_options() -> None:
    kernel = machine(*FAT, rules=[rule("options", "fat", "x=1")])
    assert [step.parameters for step in plan(kernel, load("vfat")).steps] == [(("x", "1"),), ()]


def test_unknown_parameter_is_refused_with_close_names() -> None:
    found = error(machine(DUMMY), load("dummy", numdumies="1"))
    assert isinstance(found, UnknownParameter)
    assert str(found) == "dummy has no parameter numdumies"
    assert found.evidence.hint == "did you mean numdummies?"


def test_wrong_type_is_refused_before_the_kernel_sees_it() -> None:
    found = error(machine(DUMMY), load("dummy", numdummies="abc"))
    assert isinstance(found, BadParameter)
    assert str(found) == "parameter numdummies of dummy takes an integer from -2147483648 to 2147483647"


@pytest.mark.parametrize("name", ["async_probe", "dyndbg"])
def test_parameters_every_module_accepts(name: str) -> None:
    assert plan(machine(DUMMY), load("dummy", **{name: "+p"})).error is None


def test_new_parameters_on_a_loaded_module_conflict() -> None:
    found = error(machine(DUMMY, loaded=["dummy"]), load("dummy", numdummies="2"))
    assert isinstance(found, Conflict)
    assert "Reload" in str(found)
    assert "SetParameter" in str(found)


def test_parameters_that_are_what_is_live_already_change_nothing() -> None:
    assert plan(machine(DUMMY, loaded=["dummy"]), load("dummy", numdummies="0x1", flag="off")).steps == ()


@pytest.mark.parametrize("name", ["hidden", "secret"])
def test_parameters_that_cannot_be_compared_conflict_even_when_they_are_equal(name: str) -> None:
    value = {"hidden": "1", "secret": "7"}[name]
    assert isinstance(error(machine(DUMMY, loaded=["dummy"]), load("dummy", **{name: value})), Conflict)


def planned_after(given: tuple[tuple[str, str], ...], **again: str) -> Plan:
    """A load of `dummy`, which was loaded with `given`, with parameters `again`."""
    values = GivenValues()
    values.inserted(ModuleName("dummy"), given)
    dummy = replace(DUMMY, parameters=(*DUMMY.parameters, parameter("key", "charp", "", mode=0)))
    kernel = machine(dummy, loaded=["dummy"])
    planner = Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel), given=values)
    return planner.plan(request(load("dummy", **again)))


def test_giving_again_what_cannot_be_read_changes_nothing() -> None:
    assert planned_after((("hidden", "5"),), hidden="0x5").steps == ()
    assert isinstance(planned_after((("hidden", "5"),), hidden="6").error, Conflict)


def test_giving_again_what_the_module_rounded_changes_nothing() -> None:
    assert planned_after((("numdummies", "8"),), numdummies="8").steps == ()
    assert isinstance(planned_after((("numdummies", "8"),), numdummies="9").error, Conflict)


@pytest.mark.parametrize(("name", "value"), [("secret", "9"), ("key", "hunter2")])
def test_a_right_guess_is_not_confirmed(name: str, value: str) -> None:
    assert isinstance(planned_after(((name, value),), **{name: value}).error, Conflict)


# --- what the kernel is made of ------------------------------------------------------------------------------------------


def test_built_in_needs_nothing() -> None:
    kernel = machine(SimulatedModule("unix", builtin=True), SimulatedModule("x", depends=("unix",)))
    assert plan(kernel, load("unix")).steps == ()
    assert brief(plan(kernel, load("x"))) == ["insert x: requested"]


def test_parameters_for_a_built_in_are_refused() -> None:
    assert isinstance(error(machine(SimulatedModule("unix", builtin=True)), load("unix", a="1")), Builtin)


def test_modules_disabled() -> None:
    kernel = machine(*FAT, loaded=["fat"])
    kernel.machine.facts = facts(modules_disabled=True)
    assert isinstance(error(kernel, load("vfat")), ModulesDisabled)
    assert plan(kernel, load("fat")).error is None


def test_unsigned_file_under_lockdown() -> None:
    kernel = machine(SimulatedModule("own", signed=False), SimulatedModule("ok"), facts=facts(lockdown="integrity"))
    assert isinstance(error(kernel, load("own")), Lockdown)
    assert plan(kernel, load("ok")).error is None


def test_unsigned_file_where_signatures_are_enforced() -> None:
    kernel = machine(SimulatedModule("own", signed=False), facts=facts(signature_enforced=True))
    assert isinstance(error(kernel, load("own")), BadSignature)


def test_unsigned_file_otherwise_loads() -> None:
    assert plan(machine(SimulatedModule("own", signed=False)), load("own")).error is None


# --- policy ------------------------------------------------------------------------------------------------------------


def test_blacklisted_module() -> None:
    found = error(machine(*FAT, rules=[rule("blacklist", "vfat", line=4)]), load("vfat"))
    assert isinstance(found, DisabledByPolicy)
    assert (found.evidence.file, found.evidence.line) == (FILE, 4)


def test_blacklisted_module_that_is_loaded_already_is_no_error() -> None:
    assert plan(machine(*FAT, rules=[rule("blacklist", "fat")], loaded=["fat"]), load("vfat")).error is None


@pytest.mark.parametrize(
    ("kind", "file", "hint"),
    [
        ("blacklist", FILE, f"change the rule in {FILE}, line 1, or try once with --override-policy"),
        ("install", FILE, f"change the rule in {FILE}, line 1: only a blacklist can be overridden"),
        (
            "blacklist",
            ManagedFile.BLACKLIST,
            "kmodctl config blacklist vfat --off, or try once with --override-policy",
        ),
        ("install", ManagedFile.BLACKLIST, "kmodctl config blacklist vfat --off"),
    ],
)
def test_error_says_how_its_rule_is_taken_away(kind: str, file: str, hint: str) -> None:
    line = rule(kind, "vfat", "/bin/false" if kind == "install" else "", file=file)
    found = error(machine(*FAT, rules=[line]), load("vfat"))
    assert isinstance(found, DisabledByPolicy)
    assert (found.evidence.file, found.evidence.line, found.evidence.rule_kind) == (file, 1, kind)
    assert found.evidence.hint == hint


def test_forbidden_dependency() -> None:
    found = error(machine(*FAT, rules=[rule("install", "fat", "/bin/false")]), load("vfat"))
    assert isinstance(found, DisabledByPolicy)
    assert str(found).startswith("vfat needs fat, but an install line disables it")


def test_override_sets_rules_aside_and_lists_them() -> None:
    kernel = machine(*FAT, rules=[rule("blacklist", "vfat", line=1), rule("blacklist", "fat", line=2)])
    made = plan(kernel, load("vfat"), override=True)
    assert made.error is None
    assert [(one.file, one.line, one.text) for one in made.overrides] == [
        (FILE, 1, "blacklist vfat"),
        (FILE, 2, "blacklist fat"),
    ]


def test_override_that_was_not_needed_lists_nothing() -> None:
    assert plan(machine(*FAT), load("vfat"), override=True).overrides == ()


def test_kernel_command_line_is_not_overridden() -> None:
    kernel = machine(*FAT, facts=facts(command_line="module_blacklist=fat"))
    assert isinstance(error(kernel, load("vfat"), override=True), DisabledByPolicy)


# --- what is under way -----------------------------------------------------------------------------------------------


def coming() -> SimulatedKernel:
    kernel = machine(SimulatedModule("slow", init=Fault(FaultKind.HANG)), SimulatedModule("needs", depends=("slow",)))
    kernel.machine.start_insert(kernel.index.path(ModuleName("slow")), "")
    return kernel


@pytest.mark.parametrize("asked", ["slow", "needs"])
def test_module_under_a_foreign_load_is_busy(asked: str) -> None:
    assert isinstance(error(coming(), load(asked)), Busy)


@pytest.mark.parametrize("asked", ["slow", "needs"])
def test_stuck_module(asked: str) -> None:
    kernel = coming()
    made = Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel)).plan(
        request(load(asked)), lambda _: InFlight.STUCK
    )
    assert isinstance(made.error, Stuck)


def test_module_that_an_operation_of_ours_is_loading_is_planned_for_when_it_fails() -> None:
    kernel = coming()
    made = Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel)).plan(
        request(load("needs"), load("slow")),
        lambda name: InFlight.RUNNING if name == "slow" else InFlight.NONE,
    )
    assert brief(made) == ["insert slow: dependency of needs", "insert needs: requested"]


# --- batches -----------------------------------------------------------------------------------------------------------


def test_error_of_one_operation_leaves_the_others_planned() -> None:
    made = plan(machine(*FAT), load("nowhere"), load("vfat"))
    assert [(step.operation, step.module, step.error is None) for step in made.steps] == [
        (0, "nowhere", False),
        (1, "fat", True),
        (1, "vfat", True),
    ]
    assert made.targets == ((), names("vfat"))


def test_operation_that_will_fail_takes_none_of_its_steps() -> None:
    kernel = machine(*FAT, rules=[rule("blacklist", "vfat")])
    assert [step.module for step in plan(kernel, load("vfat"), load("msdos")).steps] == ["vfat", "fat", "msdos"]


def test_second_operation_builds_on_the_first() -> None:
    assert brief(plan(machine(*FAT), load("vfat"), load("msdos"), load("vfat"))) == [
        "insert fat: dependency of vfat",
        "insert vfat: requested",
        "insert msdos: requested",
    ]


def test_plan_refreshes_the_index_once() -> None:
    kernel = machine(*FAT)
    calls: list[None] = []
    kernel.index.refresh = lambda: bool(calls.append(None))  # type: ignore[method-assign, func-returns-value]
    plan(kernel, load("vfat"), load("msdos"))
    assert len(calls) == 1


def test_bug_of_ours_is_not_taken_for_a_failing_operation() -> None:
    kernel = machine(*FAT)

    def broken(name: ModuleName) -> StepAction:
        raise ZeroDivisionError(name)

    kernel.index.dependencies = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        plan(kernel, load("vfat"))


def test_aliases_of_modprobe_d_go_before_names_but_not_for_what_names_the_module_itself() -> None:
    kernel = machine(*FAT, rules=[rule("alias", "vfat", "msdos")], loaded=["fat", "vfat", "msdos"])
    assert plan(kernel, load("vfat")).targets == (names("msdos"),)
    assert brief(plan(kernel, unload("vfat"))) == ["remove msdos: requested"]
    assert brief(plan(kernel, replace(unload("vfat"), itself=True))) == ["remove vfat: requested"]
    assert brief(plan(kernel, reload("vfat"))) == ["remove vfat: requested", "insert vfat: requested"]


def test_an_alias_that_leads_nowhere_is_refused_with_its_line() -> None:
    kernel = machine(*FAT, rules=[rule("alias", "vfat", "nosuch", line=4)])
    found = error(kernel, load("vfat"))
    assert isinstance(found, NoSuchModule)
    assert found.message.startswith(f"vfat is an alias of nosuch ({FILE}, line 4): no module nosuch")
    assert (found.evidence.file, found.evidence.line) == (FILE, 4)


def test_what_an_alias_says_is_quoted_where_it_could_be_read_as_more() -> None:
    found = error(machine(*FAT), load("x is loaded; run: reboot"))
    assert found.message.startswith("no module 'x is loaded; run: reboot' for kernel")
    made = plan(machine(*FAT), load("vfat nf_tables"), load("vfat"))
    assert made.modules == names("fat", "vfat")
