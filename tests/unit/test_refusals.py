# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests that are known to fail: complete in their error, and recorded once."""

from dataclasses import dataclass

import pytest

from kmodd.api import replies as rows
from kmodd.core.audit.records import Refusals
from kmodd.core.events import Event, EventHub, StepRefused
from kmodd.core.planning.planner import Planner
from kmodd.errors import InUse, NoSuchModule
from kmodd.journal.fields import from_fields, to_lines
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import SimulatedModule
from kmodd.model import Caller, Operation, StepAction, User
from tests.unit.fakes import FILE, Journal, SeenValues, load, machine, request, rule, unload

ROOT, ALICE, BOB = Caller(":1.7", 0, exe="/usr/bin/busctl"), Caller(":1.8", 1000), Caller(":1.9", 1001)


@dataclass
class Bench:
    kernel: SimulatedKernel
    journal: Journal
    refusals: Refusals
    events: list[Event]

    async def tell(self, caller: Caller, *asked: Operation, dry_run: bool = False) -> Exception:
        planner = Planner(self.kernel.index, self.kernel.loaded, self.kernel.facts, SeenValues(self.kernel))
        return await self.refusals.tell(planner.plan(request(*asked, dry_run=dry_run, reason="test")), caller)


@pytest.fixture
def bench() -> Bench:
    kernel = machine(
        SimulatedModule("loop"), SimulatedModule("kept"), rules=[rule("blacklist", "kept", line=4)], loaded=["loop"]
    )
    journal = Journal()
    events: list[Event] = []
    hub = EventHub(lambda subscriber, event, error: pytest.fail(str(error)))
    hub.subscribe(events.append)
    return Bench(kernel, journal, Refusals(kernel, journal, hub), events)


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
    assert (record.extra["FILE"], record.extra["LINE"]) == (FILE, "4")
    assert (record.extra["RULE"], record.extra["RULE_KIND"]) == (f"{FILE}:4: blacklist kept", "blacklist")


async def test_history_has_the_evidence_as_data(bench: Bench) -> None:
    await bench.tell(ROOT, load("kept"))
    await bench.tell(ROOT, load("net-pf-10 x"))
    written, alias = ([line.partition("=") for line in to_lines(record)] for record in bench.journal.records)
    row = rows.history(from_fields({name: value for name, _, value in written}, 7))
    assert (row["file"], row["line"], row["rule-kind"]) == (("s", FILE), ("u", 4), ("s", "blacklist"))
    assert row["policy"] == ("s", f"{FILE}:4: blacklist kept")
    assert (row["module"], row["modules"]) == (("s", "kept"), ("as", ("kept",)))
    row = rows.history(from_fields({name: value for name, _, value in alias}, 7))
    assert row["modules"] == ("as", ("net-pf-10 x",))


async def test_refusal_counts_under_the_name_of_its_error(bench: Bench) -> None:
    await bench.tell(ROOT, load("kept"))
    await bench.tell(ROOT, load("pci:v00008086d00001237sv*"))
    await bench.tell(ROOT, load("kept"), dry_run=True)
    refused = [event for event in bench.events if isinstance(event, StepRefused)]
    assert refused == [
        StepRefused("kept", StepAction.INSERT, "DisabledByPolicy"),
        StepRefused("", StepAction.INSERT, "NoSuchModule"),
    ]


async def test_alias_with_blanks_is_one_field_of_the_record(bench: Bench) -> None:
    alias = "usb:a loop b"
    await bench.tell(ROOT, load(alias))
    (record,) = bench.journal.records
    assert record.names == (alias,)
    assert [line for line in to_lines(record) if line.startswith("KMODD_MODULE=")] == [f"KMODD_MODULE={alias}"]


async def test_busy_module_is_refused_with_its_users(bench: Bench) -> None:
    bench.kernel.hold("loop", User("loop", "/dev/loop0", "/var/disk.img"))
    error = await bench.tell(ROOT, unload("loop"))
    assert isinstance(error, InUse)
    (user,) = error.evidence.users
    assert (user.kind, user.name, user.detail) == ("loop", "/dev/loop0", "/var/disk.img")
    assert str(error) == "loop is in use by 1 loop device"
    assert bench.journal.records[0].extra["USERS"] == "loop /dev/loop0 (/var/disk.img)"


async def test_dry_run_is_no_result(bench: Bench) -> None:
    assert isinstance(await bench.tell(ROOT, load("nowhere"), dry_run=True), NoSuchModule)
    assert bench.journal.records == []


async def test_batch_is_refused_by_its_first_failing_operation(bench: Bench) -> None:
    await bench.tell(ROOT, load("loop"), load("nowhere"), load("kept"))
    (record,) = bench.journal.records
    assert (record.module, record.action, record.error) == ("nowhere", "load", "NoSuchModule")


async def test_plan_without_a_fault_is_no_refusal(bench: Bench) -> None:
    with pytest.raises(ValueError, match="nothing in this plan"):
        await bench.tell(ROOT, load("loop"))
