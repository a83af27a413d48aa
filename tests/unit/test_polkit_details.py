# SPDX-License-Identifier: LGPL-2.1-or-later
"""What polkit's rules are told about a request: nothing of it can pass for something else."""

from dataclasses import replace

import pytest

from kmodd.api.polkit_details import actions, details
from kmodd.core.planning.planner import Planner
from kmodd.errors import BadModule
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import SimulatedModule, parameter
from kmodd.model import Operation, Plan
from kmodd.names import ModuleName
from tests.unit.fakes import SeenValues, load, reload, request, unload

MODULES = (
    SimulatedModule("fat"),
    SimulatedModule("vfat", depends=("fat",)),
    SimulatedModule(
        "dummy", aliases=("pci:x=1",), parameters=(parameter("a", "charp", ""), parameter("b", "int", "0"))
    ),
)


def planned(*operations: Operation, override: bool = False, loaded: tuple[str, ...] = ()) -> Plan:
    kernel = SimulatedKernel(MODULES, loaded=loaded)
    return Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel)).plan(
        request(*operations, override_policy=override)
    )


def test_dependencies_are_details_too() -> None:
    told = details(planned(load("vfat")), "load")
    assert (told["module"], told["modules"], told["action"]) == ("vfat", "fat vfat", "load")


def test_a_value_cannot_pass_for_another_parameter() -> None:
    smuggled = details(planned(load("dummy", a="1 b=2")), "load")["parameters"]
    honest = details(planned(load("dummy", a="1", b="2")), "load")["parameters"]
    assert honest == "a=1 b=2"
    assert smuggled == 'a="1 b=2"'


def test_a_batch_says_whose_parameters_they_are() -> None:
    told = details(planned(load("dummy", b="2"), load("fat")), "batch")
    assert told["parameters"] == "dummy.b=2"
    assert "module" not in told


def test_parameters_in_a_batch_are_those_of_the_modules_that_an_alias_stands_for() -> None:
    told = details(planned(load("pci:x=1", b="2"), load("fat")), "batch")
    assert told["parameters"] == "dummy.b=2"


def test_who_loaded_what_would_be_removed_is_a_detail() -> None:
    fat, vfat = ModuleName("fat"), ModuleName("vfat")
    plan = planned(unload("vfat"), loaded=("fat", "vfat"))
    assert "loaded-by" not in details(plan, "unload")
    for loaders, shown in (
        (((vfat, 60964),), "60964"),
        (((fat, 0), (vfat, 60964)), "0 60964"),
        (((fat, 60964), (vfat, 60964)), "60964"),
        (((fat, None), (vfat, 60964)), "60964 unknown"),
    ):
        assert details(replace(plan, loaders=loaders), "unload")["loaded-by"] == shown
    again = replace(plan, loaders=((vfat, 0),), own=(vfat,))
    assert details(again, "batch", 1000)["loaded-by"] == "0 1000"
    assert details(replace(again, loaders=()), "batch", None)["loaded-by"] == "unknown", (
        "a user that is not known is none"
    )


@pytest.mark.parametrize("name", ["a b", "a\xa0b", "a\u2003b", "a\nb", ""])
def test_a_name_that_looks_like_two_is_refused(name: str) -> None:
    plan = planned(load("fat"))
    twisted = replace(plan, steps=(*plan.steps, replace(plan.steps[0], module=ModuleName(name))))
    with pytest.raises(BadModule):
        details(twisted, "load")


def test_every_verb_and_every_step_needs_its_action() -> None:
    assert actions(planned(load("fat"))) == ("org.kmodd1.load",)
    assert actions(planned(unload("fat"), loaded=("fat",))) == ("org.kmodd1.unload",)
    assert set(actions(planned(reload("fat"), loaded=("fat",)))) == {"org.kmodd1.load", "org.kmodd1.unload"}
    assert "org.kmodd1.override-policy" in actions(planned(load("fat"), override=True))
