# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which failures are remembered, and about which modules."""

import errno

import pytest

from kmodd.errors import InitFailed
from kmodd.kernel.simulated.modules import Fault
from kmodd.model import Outcome
from kmodd.names import ModuleName
from tests.unit.fakes import load, machine, reload
from tests.unit.test_operations import MODULES, Bench, make_bench


@pytest.fixture
def bench() -> Bench:
    return make_bench(machine(*MODULES))


async def test_requested_module_has_the_failure_of_its_dependency(bench: Bench) -> None:
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


def _answering(bench: Bench, *numbers: int) -> list[int]:
    """Let the kernel answer these to the next insertions, before it does what it would do."""
    calls, real, left = [], bench.kernel.executor.insert, list(numbers)

    async def insert(path: str, arguments: str, *, sha256: str = "", timeout: float) -> Outcome:
        calls.append(len(left))
        return Outcome("done", left.pop(0)) if left else await real(path, arguments, timeout=timeout)

    bench.kernel.executor.insert = insert  # type: ignore[method-assign]
    return calls


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EBUSY])
async def test_load_that_races_a_foreign_one_is_repeated(bench: Bench, number: int) -> None:
    calls = _answering(bench, number, number)
    assert await bench.run(load("plain")) == ("plain",)
    assert len(calls) == 3
    assert bench.failures.all() == ()


async def test_init_that_answers_so_of_its_own_is_not_called_for_ever(bench: Bench) -> None:
    calls = _answering(bench, *[errno.EEXIST] * 9)
    with pytest.raises(InitFailed, match="EEXIST"):
        await bench.run(load("plain"))
    assert len(calls) == 3
