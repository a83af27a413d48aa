# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is loaded against the file on the disk."""

from dataclasses import replace

import pytest

from kmodd.core.health.checks import MODULES_MAX, FilesHealth
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import SimulatedModule
from kmodd.model import HealthStatus, ModuleInfo
from kmodd.model.modules import difference
from kmodd.names import ModuleName
from tests.unit.fakes import machine
from tests.unit.test_explain import Bench

A = ModuleName("a")


def rebuild(kernel: SimulatedKernel, name: str = "a") -> None:
    """Another version lies on the disk from now on."""
    kernel.machine.modules[ModuleName(name)] = replace(kernel.machine.modules[ModuleName(name)], version="2")


@pytest.mark.parametrize(
    ("live", "file", "told"),
    [
        ({"srcversion": "X", "version": "1"}, ("X", "1"), ""),
        ({}, ("", ""), ""),
        ({"srcversion": "X"}, ("Y", ""), "srcversion X is loaded, srcversion Y is on the disk"),
        ({"srcversion": "X"}, ("", ""), "srcversion X is loaded, srcversion none is on the disk"),
        ({}, ("Y", ""), "srcversion none is loaded, srcversion Y is on the disk"),
        ({"version": "1"}, ("", "2"), "version 1 is loaded, version 2 is on the disk"),
    ],
)
def test_a_missing_fact_is_a_difference_too(live: dict[str, str], file: tuple[str, str], told: str) -> None:
    assert difference(live, ModuleInfo(A, "/a.ko", srcversion=file[0], version=file[1])) == told


async def test_health_names_what_was_rebuilt() -> None:
    kernel, news = machine(SimulatedModule("a", version="1"), SimulatedModule("b"), loaded=["a", "b"]), list[int]()
    health = FilesHealth(kernel.loaded, kernel.index, lambda: news.append(1))
    await (health.reading() or pytest.fail("nothing is read"))
    assert [check.status for check in health.checks()] == [HealthStatus.OK]
    assert health.reading() is None, "nothing changed"

    rebuild(kernel)
    await (health.reading() or pytest.fail("nothing is read"))

    (check,) = health.checks()
    assert (check.status, check.module, check.hint) == (HealthStatus.DEGRADED, "a", "kmodctl reload a")
    assert "version 1 is loaded, version 2 is on the disk" in check.message
    assert news == [1]

    kernel.rmmod("a")
    assert [check.status for check in health.checks()] == [HealthStatus.OK]


async def test_of_many_only_some_are_named() -> None:
    names = [f"m{number}" for number in range(MODULES_MAX + 3)]
    kernel = machine(*(SimulatedModule(name, version="1") for name in names), loaded=names)
    for name in names:
        rebuild(kernel, name)
    health = FilesHealth(kernel.loaded, kernel.index, lambda: None)
    await (health.reading() or pytest.fail("nothing is read"))
    checks = list(health.checks())
    assert len(checks) == MODULES_MAX + 1
    assert checks[-1].message == "And 3 more modules differ from their files on disk."


async def test_why_says_that_a_reload_brings_another_one() -> None:
    kernel = machine(SimulatedModule("a", version="1"), loaded=["a"])
    assert (await Bench(kernel=kernel).explain("a")).differs == ""
    rebuild(kernel)
    assert (await Bench(kernel=kernel).explain("a")).differs == "version 1 is loaded, version 2 is on the disk"
