# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests that are known to fail: complete in their error, and recorded once."""

from dataclasses import dataclass

import pytest

from kmodd.core.planner import Planner
from kmodd.core.refusals import Refusals
from kmodd.errors import InUse, NoSuchModule
from kmodd.kernel.simulated import SimulatedKernel
from kmodd.kernel.simulated_modules import SimulatedModule
from kmodd.model import Caller, Operation, User
from tests.unit.fakes import Journal, load, machine, request, rule, unload

ROOT, ALICE = Caller(":1.7", 0, exe="/usr/bin/busctl"), Caller(":1.8", 1000)


@dataclass
class Bench:
    kernel: SimulatedKernel
    journal: Journal
    refusals: Refusals

    async def tell(self, caller: Caller, *asked: Operation, dry_run: bool = False) -> Exception:
        planner = Planner(self.kernel.index, self.kernel.loaded, self.kernel.facts)
        return await self.refusals.tell(planner.plan(request(*asked, dry_run=dry_run, reason="test")), caller)


@pytest.fixture
def bench() -> Bench:
    kernel = machine(
        SimulatedModule("loop"), SimulatedModule("kept"), rules=[rule("blacklist", "kept", line=4)], loaded=["loop"]
    )
    journal = Journal()
    return Bench(kernel, journal, Refusals(kernel, journal))


async def test_refusal_is_recorded_once_with_who_and_why(bench: Bench) -> None:
    error = await bench.tell(ROOT, load("kept"))
    (record,) = bench.journal.records
    assert (record.event, record.error, record.module, record.action) == (
        "operation.failed",
        "DisabledByPolicy",
        "kept",
        "load",
    )
    assert (record.uid, record.exe, record.reason, record.message) == (0, "/usr/bin/busctl", "test", str(error))
    assert record.extra["RULE"].endswith(":4: blacklist kept")


async def test_busy_module_is_refused_with_its_users(bench: Bench) -> None:
    bench.kernel.hold("loop", User("loop", "/dev/loop0", "/var/disk.img"))
    error = await bench.tell(ROOT, unload("loop"))
    assert isinstance(error, InUse)
    assert error.evidence.users == (("loop", "/dev/loop0", "/var/disk.img"),)
    assert str(error) == "loop is kept busy by 1 loop device"
    assert bench.journal.records[0].extra["USERS"] == "loop /dev/loop0 (/var/disk.img)"


async def test_dry_run_is_no_result(bench: Bench) -> None:
    assert isinstance(await bench.tell(ROOT, load("nowhere"), dry_run=True), NoSuchModule)
    assert bench.journal.records == []


async def test_batch_is_refused_by_its_first_failing_operation(bench: Bench) -> None:
    await bench.tell(ROOT, load("loop"), load("nowhere"), load("kept"))
    (record,) = bench.journal.records
    assert (record.module, record.action, record.error) == ("nowhere", "load", "NoSuchModule")


async def test_plan_without_a_fault_is_no_refusal(bench: Bench) -> None:
    with pytest.raises(ValueError, match="nothing is known"):
        await bench.tell(ROOT, load("loop"))
