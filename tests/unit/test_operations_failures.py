# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which failures are remembered, and about which modules."""

import pytest

from kmodd.errors import InitFailed
from kmodd.kernel.simulated_modules import Fault
from kmodd.names import ModuleName
from tests.unit.fakes import load, machine, reload
from tests.unit.test_operations import MODULES, Bench, make_bench


@pytest.fixture
def bench() -> Bench:
    return make_bench(machine(*MODULES))


async def test_module_that_was_asked_for_has_the_failure_of_its_dependency(bench: Bench) -> None:
    with pytest.raises(InitFailed):
        await bench.run(load("needs_broken"))
    failures = {failure.module: failure for failure in bench.failures.all()}
    assert set(failures) == {"broken", "needs_broken"}
    assert failures[ModuleName("needs_broken")].evidence == failures[ModuleName("broken")].evidence
    bench.kernel.fail_next("broken", None)
    await bench.run(load("needs_broken"))
    assert bench.failures.all() == ()


async def test_reload_that_was_undone_is_remembered_as_failed(bench: Bench) -> None:
    await bench.run(load("dummy"))
    bench.kernel.fail_next("dummy", Fault(errno=5))
    with pytest.raises(InitFailed):
        await bench.run(reload("dummy", n="3"))
    assert bench.live() == ["dummy"]
    failure = bench.failures.get(ModuleName("dummy"))
    assert failure is not None
    assert (failure.error, failure.evidence.errno) == ("InitFailed", 5)
