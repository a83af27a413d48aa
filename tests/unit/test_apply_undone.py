# SPDX-License-Identifier: LGPL-2.1-or-later
"""`Apply` is all or nothing: what fails, bursts or is broken off undoes what was done before it."""

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import replace

import pytest

from kmodd.core.events import StepStarted
from kmodd.core.operations.parameters import ParameterWrite
from kmodd.core.store.activation import Switch
from kmodd.errors import BadParameter, Busy, Conflict, KmoddError, LimitsExceeded, NoSuchModule
from kmodd.model import Caller, Plan, Request, Result
from kmodd.model.rules import RuleChange
from kmodd.names import ModuleName
from tests.unit.desired_bench import CALLER, Bench, Make, benches, wanted

pytestmark = pytest.mark.usefixtures("virtual_time")

bench = pytest.fixture(benches)

VERSIONS = '[module.a]\nversion = "2"\n[module.b]\nversion = "2"\n[module.c]\nversion = "2"\n'
EVERYTHING = (
    wanted("vfat")
    + wanted("tuned", "parameters = { level = 2 }", "autoload = true")
    + '[module.a]\nversion = "2"\n[module.b]\nstate = "absent"\n[module.c]\nblacklist = "soft"\n'
)
"""A load with its dependency, an unload, a parameter, a version, two of our files."""


async def everything(bench: Make) -> Bench:
    b = bench(EVERYTHING, "tuned", "b")
    b.settings.text = "[desired-state]\nreconcile = false\n"
    b.versions.active = {ModuleName("a"): "1"}
    await b.boot()
    return b


def level(b: Bench) -> str | None:
    return next(p.value for p in b.kernel.loaded.parameters(ModuleName("tuned")) if p.name == "level")


async def test_a_disk_that_fills_up_in_between_undoes_everything(bench: Make) -> None:
    b = await everything(bench)
    b.rules.full = LimitsExceeded("no space left on the disk")
    plan = await b.plan(dry_run=False, reason="test")
    results = await b.convergence.apply(plan, CALLER)
    await b.settle()
    assert [(one.module, one.result) for one in results] == [
        ("a", Result.ROLLED_BACK),
        ("tuned", Result.ROLLED_BACK),
        ("vfat", Result.ROLLED_BACK),
        ("b", Result.ROLLED_BACK),
        ("tuned", Result.FAILED),
        ("c", Result.FAILED),
    ]
    assert (b.live(), level(b), b.rules.written) == ({"tuned", "b"}, "1", [])
    assert b.versions.done == [("a", "2"), ("a", "1")]
    assert set(b.reconciler.failures) == {"tuned", "c"}
    (told,) = [record for record in b.journal.records if record.event == "batch.rolled-back"]
    assert told.message.startswith("a step after the batch failed, changes to vfat, b were rolled back; b was loaded")
    (applied,) = [record for record in b.journal.records if record.event == "desired.applied"]
    assert (applied.result, applied.message.partition(":")[2]) == (
        Result.FAILED,
        " c tuned failed, earlier changes were rolled back",
    )
    b.rules.full = None
    assert set((await b.apply()).values()) == {Result.CHANGED}
    assert (b.live(), level(b), len(b.rules.written)) == ({"tuned", "fat", "vfat"}, "2", 2)
    assert b.reconciler.failures == {}


async def test_a_dry_run_tells_everything_and_does_nothing(bench: Make) -> None:
    b = await everything(bench)
    assert await b.apply(dry_run=True) == dict.fromkeys(("a", "tuned", "vfat", "b", "c"), Result.CHANGED)
    b.rules.refuse = Conflict("edited")
    b.files.text = EVERYTHING + wanted("nosuch")
    done = await b.apply(dry_run=True)
    assert done == {
        "a": Result.CHANGED,
        "tuned": Result.FAILED,
        "vfat": Result.CHANGED,
        "b": Result.CHANGED,
        "nosuch": Result.FAILED,
        "c": Result.FAILED,
    }
    assert (b.live(), level(b), b.rules.written, b.versions.done) == ({"tuned", "b"}, "1", [], [])
    assert "desired.applied" not in b.journal.events


async def test_a_value_that_cannot_be_is_known_before_anything_is_done(bench: Make) -> None:
    b = await everything(bench)
    b.files.text = EVERYTHING.replace("level = 2", 'level = "high"')
    done = await b.apply()
    assert done.pop("tuned") is Result.SKIPPED  # its file; the parameter is
    assert isinstance(b.reconciler.failures[ModuleName("tuned")], BadParameter)
    assert set(done.values()) == {Result.SKIPPED}
    assert b.versions.done == []


async def test_what_cannot_be_undone_does_not_keep_the_rest(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = await everything(bench)
    real = b.parameters.write

    async def write(one: ParameterWrite, caller: Caller) -> str:
        if one.value == "1":
            raise BadParameter("no way back", module="tuned")
        return await real(one, caller)

    monkeypatch.setattr(b.parameters, "write", write)
    b.rules.full = LimitsExceeded("full")
    plan = await b.plan(dry_run=False, reason="test")
    results = {(one.module, one.result) for one in await b.convergence.apply(plan, CALLER)}
    await b.settle()
    assert ("tuned", Result.CHANGED) in results
    assert level(b) == "2"
    assert b.versions.done == [("a", "2"), ("a", "1")]


async def test_what_was_undone_does_not_come_by_itself(bench: Make) -> None:
    b = bench(wanted("a", 'blacklist = "soft"'))
    await b.boot()
    await b.rmmod("a")
    b.rules.full = LimitsExceeded("full")
    assert await b.apply() == {"a": Result.FAILED}
    assert b.live() == set()
    b.rules.full = None
    await b.apply()
    assert b.live() == {"a"}


async def test_a_batch_that_fails_gives_parameters_back(bench: Make) -> None:
    b = await everything(bench)
    b.files.text = EVERYTHING + wanted("broken")
    done = await b.apply()
    assert done == {
        "a": Result.ROLLED_BACK,
        "tuned": Result.SKIPPED,
        "vfat": Result.ROLLED_BACK,
        "b": Result.ROLLED_BACK,
        "broken": Result.FAILED,
        "c": Result.SKIPPED,
    }
    assert (b.live(), level(b), b.rules.written) == ({"tuned", "b"}, "1", [])


async def test_a_parameter_that_the_kernel_refuses_undoes_what_was_before(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await everything(bench)

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(b.kernel.loaded, "write_parameter", refuse)
    assert (await b.apply())["vfat"] is Result.SKIPPED
    assert b.versions.done == [("a", "2"), ("a", "1")]
    assert (b.live(), b.rules.written) == ({"tuned", "b"}, [])
    assert isinstance(b.reconciler.failures[ModuleName("tuned")], BadParameter)


async def test_a_batch_that_may_not_begin_undoes_what_was_before(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = await everything(bench)

    async def refuse(*_: object) -> None:
        raise LimitsExceeded("4 operations are stuck in the kernel")

    monkeypatch.setattr(b.operations, "execute", refuse)
    with pytest.raises(LimitsExceeded):
        await b.apply()
    assert (level(b), b.versions.done, b.rules.written) == ("1", [("a", "2"), ("a", "1")], [])


async def test_what_fails_for_no_reason_of_its_own_undoes_everything(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await everything(bench)
    write = b.rules.write_all

    async def burst(changes: Sequence[RuleChange], caller: Caller) -> dict[int, KmoddError]:
        if not changes[0].dry_run:
            raise RuntimeError("a bug")
        return await write(changes, caller)

    monkeypatch.setattr(b.rules, "write_all", burst)
    with pytest.raises(RuntimeError):
        await b.apply()
    await b.settle()
    assert (b.live(), level(b), b.versions.active) == ({"tuned", "b"}, "1", {ModuleName("a"): "1"})
    monkeypatch.undo()
    assert set((await b.apply()).values()) == {Result.CHANGED}


async def test_a_switch_that_the_daemons_end_breaks_off_takes_back_those_before(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(VERSIONS)
    await b.boot()
    activate = b.versions.activate

    async def broken_off(switch: Switch, caller: Caller, *, dry_run: bool) -> tuple[ModuleName, ...]:
        if switch.name == "b":
            raise asyncio.CancelledError
        return await activate(switch, caller, dry_run=dry_run)

    monkeypatch.setattr(b.versions, "activate", broken_off)
    with pytest.raises(asyncio.CancelledError):
        await b.apply()
    assert b.versions.done == [("a", "2"), ("a", "")]


async def test_changes_that_cannot_be_undone_are_reported(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = await everything(bench)
    b.files.text = EVERYTHING + wanted("broken")

    async def nothing(_: object) -> None:
        return None

    monkeypatch.setattr(b.parameters, "opposite", nothing)
    assert (await b.apply())["vfat"] is Result.ROLLED_BACK
    assert level(b) == "2"
    (applied,) = [record for record in b.journal.records if record.event == "desired.applied"]
    assert applied.message.endswith("broken failed, earlier changes were rolled back; tuned stays changed")
    assert applied.priority == 4


async def test_a_batch_that_cannot_succeed_switches_nothing(bench: Make) -> None:
    b = await everything(bench)
    b.files.text = EVERYTHING + wanted("nowhere")
    assert await b.apply() == {
        "a": Result.SKIPPED,
        "tuned": Result.SKIPPED,
        "vfat": Result.SKIPPED,
        "b": Result.SKIPPED,
        "nowhere": Result.FAILED,
        "c": Result.SKIPPED,
    }
    assert b.versions.done == []
    assert (b.live(), level(b), b.rules.written) == ({"tuned", "b"}, "1", [])
    assert set(b.reconciler.failures) == {"nowhere"}


async def test_obstacles_of_a_batch_are_reported_without_trying_it(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench('[module.c]\nversion = "2"\n' + wanted("a"))
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    plan = b.operations.plan
    events: list[object] = []
    b.hub.subscribe(events.append)

    def doomed(request: Request) -> Plan:
        # What is in the way may be gone the next moment: still nothing is loaded only to be unloaded again.
        found = plan(request)
        return replace(found, steps=tuple(replace(step, error=Busy("no", module="a")) for step in found.steps))

    applied = await b.plan(dry_run=False, reason="test")
    monkeypatch.setattr(b.operations, "plan", doomed)
    results = await b.convergence.apply(applied, CALLER)
    await b.settle()
    assert [(result.module, result.result) for result in results] == [("c", Result.SKIPPED), ("a", Result.FAILED)]
    assert not [event for event in events if isinstance(event, StepStarted)]
    assert b.journal.events == ["operation.failed", "desired.applied"]


async def test_a_module_that_only_the_store_has_is_loaded_with_what_it_needs(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first version brings the module into the index, with a dependency and parameters nobody knew of."""
    b = bench(wanted("tuned", 'version = "1"', "options = { level = 2 }", "autoload = true"))
    b.settings.text = "[desired-state]\nreconcile = false\n"
    index = b.kernel.machine.modules
    module = index.pop(ModuleName("tuned"))
    await b.boot()
    refuse = b.rules.refuse = NoSuchModule("there is no module tuned")

    async def switch(name: ModuleName, version: str, caller: Caller) -> None:
        b.versions.active[name] = version
        b.rules.refuse = None if version else refuse
        index[name] = replace(module, depends=("fat",))

    monkeypatch.setattr(b.versions, "restore", switch)
    assert {row.hint for row in await b.convergence.drift()} == {"kmodctl config apply"}
    assert await b.apply(dry_run=True) == {"tuned": Result.CHANGED}
    # The plan does not know what the version brings: nobody but root, who is asked for nothing, gets it along.
    with pytest.raises(Conflict, match="now includes fat"):
        await b.convergence.apply(b.convergence.plan(dry_run=False, reason=""), replace(CALLER, uid=1000))
    assert b.live() == set()
    b.versions.brings[ModuleName("tuned")] = ("fat",)
    plan = b.convergence.plan(dry_run=False, reason="")
    assert plan.modules == ("fat", "tuned")
    assert plan.sha256 == ("1",)
    assert {one.result for one in await b.convergence.apply(plan, replace(CALLER, uid=1000))} == {Result.CHANGED}
    assert b.live() == {"fat", "tuned"}
    assert len(b.rules.written) == 2


async def test_what_was_begun_is_finished_when_the_caller_leaves(bench: Make) -> None:
    b = await everything(bench)
    plan = await b.plan(dry_run=False, reason="")
    task = asyncio.create_task(b.convergence.apply(plan, CALLER))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await b.settle()
    assert (b.live(), level(b), len(b.rules.written)) == ({"tuned", "fat", "vfat"}, "2", 2)
