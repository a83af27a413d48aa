# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry tells what the kernel did, once each, whoever asked for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import pytest

from kmodd.core.events import (
    Event,
    EventHub,
    ManagerChanged,
    ModuleAdded,
    ModuleChanged,
    ModuleRemoved,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from kmodd.core.registry import SETTLE, Presence, Registry, origin
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import LoadedBy, LoadedModule, Origin, Record, State, StepAction
from kmodd.names import ModuleName

pytestmark = pytest.mark.usefixtures("virtual_time")

M = ModuleName
NOW = 1_700_000_000_000_000
BY = LoadedBy(1000, ":1.5", "testing", NOW - 5)


@dataclass
class Desk:
    """A registry that follows a simulated kernel, with all it tells."""

    kernel: SimulatedKernel
    hub: EventHub
    registry: Registry
    events: list[Event] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def record(self, record: Record) -> None:
        self.records.append(record)

    async def settle(self, times: float = 1.5) -> list[Event]:
        """What was told meanwhile, steps left out."""
        await asyncio.sleep(SETTLE * times)
        told: list[Event] = [
            event for event in self.events if not isinstance(event, StepStarted | StepSucceeded | StepFailed)
        ]
        self.events.clear()
        return told


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    kernel = SimulatedKernel(pace=0)
    complaints: list[object] = []
    hub = EventHub(lambda *complaint: complaints.append(complaint))
    records: list[Record] = []

    class Audit:
        def record(self, record: Record) -> None:
            records.append(record)

    registry = Registry(kernel.loaded, kernel.facts, hub, Audit(), lambda: NOW)
    desk = Desk(kernel, hub, registry, records=records)
    hub.subscribe(desk.events.append)
    stop = registry.start()
    reader = asyncio.ensure_future(registry.run(kernel.uevents))
    await asyncio.sleep(0)
    yield desk
    reader.cancel()
    stop()
    assert complaints == []


def counting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each reading of /proc/modules."""
    readings: list[None] = []
    snapshot = desk.kernel.loaded.snapshot

    def counted() -> object:
        readings.append(None)
        return snapshot()

    monkeypatch.setattr(desk.kernel.loaded, "snapshot", counted)
    return readings


class Unrecorded:
    """An audit that keeps nothing."""

    def record(self, record: Record) -> None:
        """Do nothing."""


async def test_who_loaded_what_is_known_after_a_restart_and_not_of_what_others_loaded(desk: Desk) -> None:
    kept: list[bytes] = []

    def started(last: bytes | None) -> Registry:
        made = Registry(
            desk.kernel.loaded, desk.kernel.facts, desk.hub, Unrecorded(), lambda: NOW + 9, last, kept.append
        )
        stops.append(made.start())
        return made

    stops: list[Callable[[], None]] = []
    first = started(None)
    for name in ("vfat", "loop"):
        desk.hub.publish(StepStarted(M(name), StepAction.INSERT, BY))
        desk.kernel.modprobe(name)
        assert first.loader(M(name)) is None, "it may be of others until the call is back"
        desk.hub.publish(StepSucceeded(M(name), StepAction.INSERT, BY, 70, changed=True))
        assert first.loader(M(name)) == BY, "also before its event"
        first.look()
        assert first.loader(M(name)) == BY
    first.name_client(BY.client, "/usr/bin/kmodctl")
    # While kmodd is away, others load one of them again.
    desk.kernel.rmmod("loop")
    desk.kernel.modprobe("loop")
    assert first.loader(M("loop")) is None, "no event has come yet"
    second = started(kept[-1])
    known = Presence(NOW + 9, 70, replace(BY, client="/usr/bin/kmodctl"))
    assert second.presence(M("vfat")) == known
    assert second.loader(M("vfat")) == known.by
    assert second.presence(M("loop")) == Presence()
    for damaged in (b"", b"[]", b"{", b'{"vfat": {}}', b'{"vfat": 1}', b'{"vfat": {"loaded_at": "x"}}'):
        assert started(damaged).presence(M("vfat")) == Presence()
    for stop in stops:
        stop()


async def test_a_load_by_others_right_after_ours_is_theirs(desk: Desk) -> None:
    """The events of both come in one look: what is loaded is not what the call loaded."""
    for step in (StepAction.INSERT, StepAction.REMOVE):
        desk.hub.publish(StepStarted(M("loop"), step, BY))
        (desk.kernel.modprobe if step is StepAction.INSERT else desk.kernel.rmmod)("loop")
        desk.hub.publish(StepSucceeded(M("loop"), step, BY, 70, changed=True))
    assert desk.registry.loader(M("loop")) is None
    desk.kernel.modprobe("loop")
    assert desk.registry.loader(M("loop")) is None
    await desk.settle()
    assert desk.registry.loader(M("loop")) is None
    assert desk.registry.presence(M("loop")).by is None
    assert [record.event for record in desk.records] == ["module.appeared"]


async def test_a_load_that_found_the_module_there_has_not_loaded_it(desk: Desk) -> None:
    desk.hub.publish(StepStarted(M("loop"), StepAction.INSERT, BY))
    desk.kernel.modprobe("loop")  # another program's
    await desk.settle()
    desk.hub.publish(StepSucceeded(M("loop"), StepAction.INSERT, BY, 70, changed=False))
    assert desk.registry.loader(M("loop")) is None
    assert desk.registry.presence(M("loop")).by is None


async def test_initial_modules_are_known_and_not_announced(desk: Desk) -> None:
    assert M("ext4") in desk.registry
    assert desk.registry.presence(M("ext4")) == Presence()
    assert await desk.settle() == []
    assert desk.records == []


async def test_foreign_loads_and_unloads_are_announced_and_recorded(desk: Desk) -> None:
    desk.kernel.modprobe("vfat")
    assert await desk.settle() == [ModuleAdded(M("fat")), ModuleAdded(M("vfat")), ManagerChanged(("LoadedCount",))]
    assert desk.registry.presence(M("vfat")) == Presence(loaded_at=NOW)
    desk.kernel.rmmod("vfat")
    assert await desk.settle() == [
        ModuleRemoved(M("vfat")),
        ModuleChanged(M("fat"), ("Holders",)),
        ManagerChanged(("LoadedCount",)),
    ]
    assert [(record.event, record.module, record.action, record.uid) for record in desk.records] == [
        ("module.appeared", "fat", "load", None),
        ("module.appeared", "vfat", "load", None),
        ("module.disappeared", "vfat", "unload", None),
    ]


async def test_a_module_without_a_valid_signature_has_a_record_of_its_own(desk: Desk) -> None:
    desk.kernel.modprobe("nvidia")
    await desk.settle()
    assert [(record.event, record.module, record.uid) for record in desk.records][-2:] == [
        ("module.appeared", "nvidia", None),
        ("module.unsigned", "nvidia", None),
    ]
    desk.kernel.rmmod("nvidia")
    await desk.settle()
    desk.records.clear()
    desk.hub.publish(StepStarted(M("nvidia"), StepAction.INSERT, BY))
    desk.kernel.modprobe("nvidia")
    desk.hub.publish(StepSucceeded(M("nvidia"), StepAction.INSERT, BY, 1))
    await desk.settle()
    (told,) = [record for record in desk.records if record.event == "module.unsigned"]
    assert (told.uid, told.reason, told.priority) == (1000, "testing", 4)


async def test_a_reply_is_never_held_up_by_the_event(desk: Desk) -> None:
    desk.kernel.modprobe("loop")
    await asyncio.sleep(0)
    assert desk.events == []
    assert await desk.settle() == [ModuleAdded(M("loop")), ManagerChanged(("LoadedCount",))]


async def test_a_pair_by_others_gives_both_signals(desk: Desk) -> None:
    desk.kernel.modprobe("loop")
    desk.kernel.rmmod("loop")
    assert await desk.settle() == [ModuleAdded(M("loop")), ModuleRemoved(M("loop"))]
    desk.kernel.rmmod("fuse")
    desk.kernel.modprobe("fuse")
    assert await desk.settle() == [ModuleRemoved(M("fuse")), ModuleAdded(M("fuse"))]
    assert desk.registry.presence(M("fuse")).loaded_at == NOW


@pytest.mark.parametrize(("action", "name"), [("add", "loop"), ("add", "ext4"), ("remove", "ext4"), ("change", "ext4")])
async def test_a_forged_event_is_ignored(desk: Desk, action: str, name: str) -> None:
    desk.kernel.forge(action, name)
    assert await desk.settle(4) == []
    assert desk.records == []
    assert (M(name) in desk.registry) == (name == "ext4")


async def test_an_event_that_is_late_is_waited_for(desk: Desk) -> None:
    desk.kernel.modprobe("loop")
    await asyncio.sleep(0)
    desk.kernel.rmmod("loop")
    late = desk.kernel.machine.uevents.pop()
    await asyncio.sleep(SETTLE * 1.2)
    desk.kernel.machine.announce(late.action, late.module)
    assert [type(event) for event in await desk.settle(2)] == [ModuleAdded, ModuleRemoved]


async def test_after_an_overflow_everything_is_compared(desk: Desk) -> None:
    desk.kernel.modprobe("vfat")
    desk.kernel.rmmod("fuse")
    desk.kernel.overflow()
    assert await desk.settle() == [
        ModuleRemoved(M("fuse")),
        ModuleAdded(M("fat")),
        ModuleAdded(M("vfat")),
        ManagerChanged(("LoadedCount",)),
    ]
    assert desk.registry.overflows == 1


async def test_a_burst_costs_one_reading(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = counting(desk, monkeypatch)
    for _ in range(150):
        desk.kernel.modprobe("loop")
        desk.kernel.rmmod("loop")
    told = await desk.settle(2)
    assert len(readings) == 1
    assert len([event for event in told if event == ModuleAdded(M("loop"))]) == 150


async def test_own_changes_carry_the_caller(desk: Desk) -> None:
    desk.hub.publish(StepStarted(M("loop"), StepAction.INSERT, BY))
    desk.kernel.modprobe("loop")
    desk.hub.publish(StepSucceeded(M("loop"), StepAction.INSERT, BY, 4000))
    assert await desk.settle() == [ModuleAdded(M("loop")), ManagerChanged(("LoadedCount",))]
    assert desk.registry.presence(M("loop")) == Presence(NOW, 4000, BY)
    assert desk.records == []
    desk.kernel.rmmod("loop")
    await desk.settle()
    assert [record.event for record in desk.records] == ["module.disappeared"], "the claim is used up"


async def test_a_module_seen_before_its_call_came_back_is_ours_all_the_same(desk: Desk) -> None:
    desk.hub.publish(StepStarted(M("loop"), StepAction.INSERT, BY))
    desk.kernel.modprobe("loop")
    assert ModuleAdded(M("loop")) in await desk.settle()
    desk.hub.publish(StepSucceeded(M("loop"), StepAction.INSERT, BY, 4000))
    assert await desk.settle() == [ModuleChanged(M("loop"), ("LoadDurationUSec",))]
    assert desk.registry.presence(M("loop")) == Presence(NOW, 4000, BY)
    assert desk.records == []


async def test_our_own_change_is_seen_without_any_event(desk: Desk) -> None:
    desk.hub.publish(StepStarted(M("loop"), StepAction.INSERT, BY))
    desk.kernel.modprobe("loop")
    desk.kernel.machine.uevents.clear()
    desk.hub.publish(StepSucceeded(M("loop"), StepAction.INSERT, BY, 4000))
    assert ModuleAdded(M("loop")) in await desk.settle()


async def test_a_failed_call_claims_nothing_and_a_stuck_one_still_does(desk: Desk) -> None:
    for name, stuck in (("loop", False), ("dummy", True)):
        desk.hub.publish(StepStarted(M(name), StepAction.INSERT, BY))
        desk.hub.publish(StepFailed(M(name), StepAction.INSERT, "Stuck" if stuck else "NoDevice", 1, stuck))
        desk.kernel.modprobe(name)
    await desk.settle()
    assert [record.module for record in desk.records] == ["loop"]
    assert desk.registry.presence(M("dummy")).by == BY


async def test_a_module_that_hangs_in_init_is_not_live_and_one_in_exit_is_going(desk: Desk) -> None:
    await desk.kernel.executor.insert(desk.kernel.index.path(M("kmodd_test_init_wait")), "", timeout=1)
    desk.registry.look()
    assert M("kmodd_test_init_wait") not in desk.registry
    desk.kernel.modprobe("kmodd_test_exit_wait")
    await desk.settle()
    await desk.kernel.executor.remove(M("kmodd_test_exit_wait"), timeout=1)
    desk.hub.publish(StepFailed(M("kmodd_test_exit_wait"), StepAction.REMOVE, "Stuck", 1, stuck=True))
    assert await desk.settle() == [ModuleChanged(M("kmodd_test_exit_wait"), ("State",))]
    module = desk.registry.get(M("kmodd_test_exit_wait"))
    assert module is not None
    assert module.state is State.GOING


async def test_a_module_whose_init_fails_was_never_there(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel waits for a grace period between a failed init() and the end, with the module in /proc/modules as going."""
    real = desk.kernel.loaded.snapshot
    failing = LoadedModule(M("broken"), 4096, 0, (), State.GOING, "OE")
    desk.hub.publish(StepStarted(M("broken"), StepAction.INSERT, BY))
    monkeypatch.setattr(desk.kernel.loaded, "snapshot", lambda: {**real(), M("broken"): failing})
    desk.registry.look()
    assert M("broken") not in desk.registry
    monkeypatch.undo()
    desk.hub.publish(StepFailed(M("broken"), StepAction.INSERT, "InitFailed", 1))
    assert await desk.settle() == []
    assert desk.records == []


async def test_kernel_facts_are_announced_when_they_change(desk: Desk) -> None:
    desk.kernel.modprobe("nvidia")
    desk.kernel.change_facts(modules_disabled=True, lockdown="integrity", signature_enforced=True)
    changed = next(event for event in await desk.settle() if isinstance(event, ManagerChanged))
    assert set(changed.properties) == {"Tainted", "ModulesDisabled", "Lockdown", "SignatureEnforced", "LoadedCount"}
    nvidia = desk.registry.get(M("nvidia"))
    ext4 = desk.registry.get(M("ext4"))
    assert nvidia is not None
    assert ext4 is not None
    assert (origin(nvidia), origin(ext4)) == (Origin.OUT_OF_TREE, Origin.IN_TREE)


async def test_a_reading_that_fails_is_repeated(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot: Callable[[], object] = desk.kernel.loaded.snapshot
    failures = [OSError(24, "Too many open files")]

    def failing() -> object:
        if failures:
            raise failures.pop()
        return snapshot()

    monkeypatch.setattr("kmodd.core.registry.RETRY", 0.001)
    monkeypatch.setattr(desk.kernel.loaded, "snapshot", failing)
    desk.kernel.modprobe("loop")
    desk.kernel.rmmod("loop")
    assert await desk.settle(3) == [ModuleAdded(M("loop")), ModuleRemoved(M("loop"))]
