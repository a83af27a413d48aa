# SPDX-License-Identifier: LGPL-2.1-or-later
"""No worker, no /proc/modules, no log: wherever in a batch the machine fails, it is left as it was, and it is written down."""

import errno
import os
from dataclasses import replace
from typing import Any

import pytest

from kmodd.errors import LimitsExceeded, NotPermitted
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, FaultKind, SimulatedModule
from kmodd.model import Operation, Result
from kmodd.names import ModuleName
from tests.unit.fakes import load, machine, reload, request, unload
from tests.unit.test_operations import CALLER, Bench, make_bench

MODULES = (
    SimulatedModule("a"),
    SimulatedModule("b", depends=("a",)),
    SimulatedModule("c", depends=("b",)),
    SimulatedModule("d"),
    SimulatedModule("e"),
)
BATCH = (load("c"), unload("d"), reload("e"))
STEPS = 6  # a, b, c in; d out; e out and in
ANSWERS = [
    (errno.EMFILE, LimitsExceeded),
    (errno.ENOMEM, LimitsExceeded),
    (errno.EACCES, NotPermitted),
    (errno.EIO, NotPermitted),
    (errno.ENOENT, NotPermitted),
]


class Failing:
    """A port of which one call, by its number from 0, fails; those of every other port are not counted."""

    def __init__(self, port: Any, names: tuple[str, ...], at: int, code: int) -> None:
        self._port = port
        self._names = names
        self._at = at
        self._code = code
        self.calls = 0

    def break_at(self, number: int) -> None:
        """Let that call fail, counted from now."""
        self._at, self.calls = number, 0

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            number, self.calls = self.calls, self.calls + 1
            if number == self._at:

                def fail(*_: object, **__: object) -> Any:
                    raise OSError(self._code, os.strerror(self._code))

                return fail
        return getattr(self._port, name)


def bench_with(port: str, names: tuple[str, ...], at: int, code: int) -> tuple[Bench, Failing]:
    kernel = machine(*MODULES, loaded=("d", "e"))
    failing = Failing(getattr(kernel, port), names, -1, code)
    setattr(kernel, port, failing)
    bench = make_bench(kernel)
    failing.break_at(at)
    return bench, failing


def live(kernel: SimulatedKernel) -> list[str]:
    return sorted(kernel.machine.snapshot())


@pytest.mark.parametrize(("code", "kind"), ANSWERS)
@pytest.mark.parametrize("step", range(STEPS))
async def test_an_atomic_batch_without_a_worker_at_one_step_changes_nothing(step: int, code: int, kind: type) -> None:
    bench, failing = bench_with("executor", ("insert", "remove"), step, code)
    results = await bench.do(*BATCH)
    assert failing.calls > step
    assert live(bench.kernel) == ["d", "e"]
    (failed,) = [result for result in results if result.result is Result.FAILED]
    assert failed.error is not None
    assert type(failed.error) is kind
    assert failed.error.evidence.errno == code
    assert not failed.touched
    assert all(result.result in (Result.FAILED, Result.ROLLED_BACK, Result.SKIPPED) for result in results)
    bench.check_quiet()
    assert [record.errno for record in bench.journal.records if record.result == "failed"] == [code]


@pytest.mark.parametrize("step", range(STEPS))
async def test_a_batch_that_is_not_atomic_loses_the_one_operation(step: int) -> None:
    bench, _ = bench_with("executor", ("insert", "remove"), step, errno.EMFILE)
    results = await bench.do(*BATCH, atomic=False)
    failed = 0 if step < 3 else step - 2 if step < 5 else 2
    assert [result.result is Result.FAILED for result in results] == [number == failed for number in range(3)]
    expected = {"d", "e"} | {"a", "b", "c"} - ({"a", "b", "c"} if failed == 0 else set())
    assert live(bench.kernel) == sorted(expected - ({"d"} if failed != 1 else set()))
    bench.check_quiet()
    written = [(record.module, record.result) for record in bench.journal.records]
    assert (str(BATCH[failed].module), "failed") in written
    assert len(written) >= len(BATCH)


@pytest.mark.parametrize("again", [True, False], ids=["planned again", "planned once"])
@pytest.mark.parametrize("operation", [load("c"), unload("d"), reload("e")], ids=lambda one: f"{one.verb}-{one.module}")
@pytest.mark.parametrize(
    ("port", "names"),
    [
        ("loaded", ("raw", "snapshot", "read", "is_builtin", "parameters", "attributes")),
        ("facts", ("read",)),
        ("log", ("mark",)),
    ],
)
async def test_whatever_cannot_be_read_on_the_way_leaves_the_machine_as_it_was_or_as_it_should_be(
    port: str, names: tuple[str, ...], operation: Operation, again: bool
) -> None:
    """At every call of the port: what was authorised is done, or nothing is, and a record says which."""
    number = failures = 0
    while True:
        bench, failing = bench_with(port, names, -1, errno.EMFILE)
        plan = bench.operations.plan(request(operation))
        if again:
            plan = replace(plan, version=-1)
        before = live(bench.kernel)
        failing.break_at(number)  # only once it is authorised
        try:
            (result,) = await bench.operations.execute(plan, CALLER)
            done = result.error is None
        except LimitsExceeded:
            done = False
        bench.check_quiet()
        after = live(bench.kernel)
        wanted = {"c": ["a", "b", "c", "d", "e"], "d": ["e"], "e": before}[operation.module]
        assert after == (wanted if done else before), f"call {number}"
        assert bench.journal.records, f"call {number}"
        if failing.calls <= number:
            break
        failures += not done
        number += 1
    # A plan that is carried out as it is reads no facts again.
    assert number or not again
    assert failures or not again


async def test_a_call_that_hangs_is_stuck_though_nothing_about_it_can_be_read() -> None:
    bench, failing = bench_with("facts", ("read",), -1, errno.EMFILE)
    bench.kernel.fail_next("d", Fault(FaultKind.HANG), removes=True)
    plan = bench.operations.plan(request(unload("d"), timeout=0.01))
    failing.break_at(2)
    (result,) = await bench.operations.execute(plan, CALLER)
    assert failing.calls == 3, "the plan is made again, again with what would go with it, and the evidence is gathered"
    assert isinstance(result.error, LimitsExceeded)
    assert bench.locks.is_stuck(ModuleName("d"))
