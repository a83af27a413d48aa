# SPDX-License-Identifier: LGPL-2.1-or-later
"""`options` lines in a plan: what the kernel would make of them is what the plan says."""

from contextlib import nullcontext

import pytest

from kmodd.api import replies as rows
from kmodd.core.planning.parameters import check_options, check_parameters, read_options, value_fault
from kmodd.core.planning.planner import Planner
from kmodd.errors import BadParameter, KmoddError
from kmodd.kernel.modprobe.modprobe_d import parse_rules
from kmodd.kernel.simulated.modules import SimulatedModule, parameter
from kmodd.model import ModuleInfo, Operation, ParameterInfo, Plan, Step
from kmodd.names import ModuleName
from tests.unit.fakes import FILE, SeenValues, load, machine, request

MODULES = (
    SimulatedModule(
        "m",
        parameters=(
            parameter("count", "int", "1"),
            parameter("flag", "bool", "N"),
            parameter("inverted", "invbool", "N"),
            parameter("mode", "charp", ""),
            parameter("own", "", "0"),
        ),
    ),
    SimulatedModule("uses_m", depends=("m",)),
    SimulatedModule("likes_m", softdep_pre=("m",)),
)


def plan(lines: str | bytes, operation: Operation) -> Plan:
    data = lines if isinstance(lines, bytes) else lines.encode()
    kernel = machine(*MODULES, rules=parse_rules(data, FILE))
    return Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel)).plan(request(operation))


def step(lines: str | bytes, **given: str) -> Step:
    made = plan(lines, load("m", **given))
    assert made.error is None
    return made.steps[0]


def error(lines: str | bytes, operation: Operation) -> KmoddError:
    found = plan(lines, operation).error
    assert found is not None
    return found


def test_a_flag_is_given_without_a_value() -> None:
    assert step("options m flag count=2").parameters == (("flag", None), ("count", "2"))
    assert rows.step(step("options m flag"))["parameters"] == ("s", "flag")


def test_a_parameter_of_an_unknown_type_is_left_to_the_kernel() -> None:
    assert step("options m own").parameters == (("own", None),)


@pytest.mark.parametrize("name", ["count", "mode", "inverted"])
def test_a_name_without_value_is_refused_where_the_kernel_refuses_it(name: str) -> None:
    found = error(f"# first\noptions m {name}", load("m"))
    assert isinstance(found, BadParameter)
    assert found.message == f"{FILE}, line 2: parameter {name} of m is given no value: it is not a flag"
    assert (found.evidence.file, found.evidence.line, found.evidence.parameter) == (FILE, 2, name)


def test_spaces_around_the_equals_sign_are_refused_with_the_line_to_write() -> None:
    found = error("options m count = 64 flag=1", load("m"))
    reason = "no spaces are allowed around =; write options m count=64 flag=1"
    assert found.message == f"{FILE}, line 1: parameter count of m is given no value: {reason}"
    assert found.evidence.hint == f"write in {FILE}, line 1: options m count=64 flag=1"


def test_a_dependencys_bad_line_fails_the_load_and_a_soft_dependencys_does_not() -> None:
    assert error("options m count", load("uses_m")).message.startswith(f"{FILE}, line 1: ")
    made = plan("options m count", load("likes_m"))
    assert (made.error, [step.module for step in made.steps]) == (None, ["likes_m"])


def test_a_value_of_the_wrong_type_is_refused_with_file_and_line() -> None:
    found = error("options m count=eight", load("m"))
    assert found.message.startswith(f"{FILE}, line 1: parameter count of m takes an integer")


def test_only_the_value_that_counts_is_looked_at() -> None:
    assert step("options m count=eight", count="8").parameters == (("count", "8"),)
    assert step("options m count=eight\noptions m count=9").parameters == (("count", "9"),)


def test_what_the_module_does_not_have_is_handed_on_as_modprobe_does() -> None:
    assert step("options m nosuch=1 count=2").parameters == (("nosuch", "1"), ("count", "2"))


def test_bytes_that_are_no_text_reach_the_kernel_as_they_are() -> None:
    made = step(b"options m mode=\xe4")
    assert [value.encode("utf-8", "surrogateescape") for _, value in made.parameters if value] == [b"\xe4"]
    assert rows.step(made)["parameters"] == ("s", 'mode="\\xe4"')


def test_nothing_behind_two_hyphens_is_read() -> None:
    assert step("options m count=1 --\noptions m count=3").parameters == (("count", "1"),)
    found = error("options m count=1 --", load("m", count="4"))
    assert found.message == f"{FILE}, line 1 has a --, and the kernel reads no parameter after it"
    assert found.evidence.hint == f"remove the -- in {FILE}, line 1"


def test_a_quote_left_open_takes_in_the_rest() -> None:
    assert step('options m mode="x\noptions m count=3').parameters == (("mode", "x count=3 "),)
    found = error('options m mode="x', load("m", count="4"))
    assert found.message == f"{FILE}, line 1 has an open quote, which includes every following parameter"


def test_a_quote_left_open_that_no_other_spelling_can_say_is_refused() -> None:
    assert isinstance(error('options m mode"', load("m")), BadParameter)


def test_values_of_a_file_that_not_everyone_may_read_are_in_no_sentence() -> None:
    kernel = machine(*MODULES, rules=parse_rules(b"options m count = hunter2", FILE, public=False))
    found = Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel)).plan(request(load("m"))).error
    assert found is not None
    assert "hunter2" not in f"{found.message} {found.evidence}"


def test_what_the_module_itself_judges_is_left_to_it() -> None:
    """nx_huge_pages of kvm is declared as a bool and takes `auto`."""
    info = ModuleInfo(
        ModuleName("kvm"),
        "kvm.ko",
        parameters=(ParameterInfo("nx_huge_pages", "bool", own=True), ParameterInfo("plain", "bool")),
    )
    check_parameters(info, (("nx_huge_pages", "auto"),))
    check_options(info, read_options(parse_rules(b"options kvm nx_huge_pages=auto nx-huge-pages", FILE)))
    for flag, refused in ((None, False), (True, False), (False, True)):
        loop = ModuleInfo(
            ModuleName("loop"), "loop.ko", parameters=(ParameterInfo("max_loop", "", own=True, flag=flag),)
        )
        options = read_options(parse_rules(b"options loop max_loop = 64", FILE))
        with pytest.raises(BadParameter, match="no spaces") if refused else nullcontext():
            check_options(loop, options)
    eight = read_options(parse_rules(b"options loop max_loop=eight", FILE)).assignments[0]
    assert value_fault("loop", eight, ParameterInfo("max_loop", "", own=True, shown_as="int")) == ""
    said = value_fault("loop", eight, ParameterInfo("max_loop", "", own=True, shown_as="int"), likely=True)
    assert said.startswith("parameter max_loop of loop takes an integer")
    assert value_fault("kvm", eight, ParameterInfo("max_loop", "bool", own=True), likely=True) == ""
    with pytest.raises(BadParameter):
        check_parameters(info, (("plain", "auto"),))
    with pytest.raises(BadParameter):
        check_options(info, read_options(parse_rules(b"options kvm plain=auto", FILE)))
