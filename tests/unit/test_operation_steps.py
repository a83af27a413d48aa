# SPDX-License-Identifier: LGPL-2.1-or-later
"""What core tells of its own calls: whose doing a module is, how long it took, what went wrong."""

from typing import Any

from kmodd.core.events import EventHub, StepFailed, StepStarted, StepSucceeded
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import Jobs, ModuleLocks
from kmodd.core.operations.live_values import LiveValues
from kmodd.core.operations.operations import Operations
from kmodd.core.planning.planner import Planner
from kmodd.core.registry import Registry
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, SimulatedModule
from kmodd.model import Caller, Operation, Outcome, StepAction
from kmodd.names import ModuleName
from tests.unit.fakes import Journal, Ticks, load, request, unload

CALLER = Caller(":1.7", 1000, exe="/usr/bin/busctl")


class Told:
    """Operations and registry on one hub, as in the daemon."""

    def __init__(self, *modules: SimulatedModule) -> None:
        self.kernel = kernel = SimulatedKernel(modules, pace=0.0)
        self.journal = Journal()
        self.hub = hub = EventHub(lambda *_: None)
        self.events: list[object] = []
        hub.subscribe(self.events.append)
        self.registry = Registry(kernel.loaded, kernel.facts, hub, self.journal, Ticks())
        self.stop = self.registry.start()
        self.operations = Operations(
            Planner(kernel.index, kernel.loaded, kernel.facts, LiveValues(kernel.loaded, kernel.executor)), kernel,
            locks=ModuleLocks(), jobs=Jobs(hub, Ticks()), failures=Failures(), audit=self.journal, events=hub, clock=Ticks(),
        )  # fmt: skip

    async def do(self, *asked: Operation) -> None:
        plan = self.operations.plan(request(*asked, reason="test"))
        await self.operations.execute(plan, CALLER)

    def look(self) -> None:
        for uevent in self.kernel.queued:
            self.registry.take(uevent)
        self.kernel.machine.uevents.clear()
        self.registry.look()


async def test_a_module_of_ours_is_ours() -> None:
    told = Told(SimulatedModule("fat"))
    await told.do(load("fat"))
    told.look()
    presence = told.registry.presence(ModuleName("fat"))
    assert presence.by is not None
    assert (presence.by.uid, presence.by.client, presence.by.reason) == (1000, "/usr/bin/busctl", "test")
    told.operations.flush()
    assert "module.appeared" not in [record.event for record in told.journal.records]
    told.stop()


async def test_a_later_foreign_load_has_no_origin() -> None:
    told = Told(SimulatedModule("fat"))
    await told.do(load("fat"))
    told.look()
    await told.do(unload("fat"))
    told.look()
    told.kernel.modprobe("fat")
    told.look()
    assert told.registry.presence(ModuleName("fat")).by is None
    assert [record.event for record in told.journal.records].count("module.appeared") == 1
    told.stop()


async def test_a_concurrent_foreign_load_has_no_origin() -> None:
    told = Told(SimulatedModule("fat"))
    plan = told.operations.plan(request(load("fat")))
    insert = told.kernel.executor.insert

    async def lose_the_race(*arguments: Any, **options: Any) -> Outcome:
        told.kernel.modprobe("fat")
        return await insert(*arguments, **options)

    told.kernel.executor.insert = lose_the_race  # type: ignore[method-assign]  # scripted
    await told.operations.execute(plan, CALLER)
    told.look()
    assert told.kernel.holds("fat")
    assert told.registry.presence(ModuleName("fat")).by is None
    told.stop()


async def test_steps_are_reported_in_order() -> None:
    told = Told(SimulatedModule("fat"), SimulatedModule("vfat", depends=("fat",)))
    await told.do(load("vfat"))
    steps = [event for event in told.events if isinstance(event, StepStarted | StepSucceeded)]
    assert [(type(step).__name__, step.module, step.action) for step in steps] == [
        ("StepStarted", "fat", StepAction.INSERT),
        ("StepSucceeded", "fat", StepAction.INSERT),
        ("StepStarted", "vfat", StepAction.INSERT),
        ("StepSucceeded", "vfat", StepAction.INSERT),
    ]
    told.stop()


async def test_a_refusal_is_reported_by_name() -> None:
    told = Told(SimulatedModule("broken", init=Fault(errno=5)))
    await told.do(load("broken"))
    (failed,) = [event for event in told.events if isinstance(event, StepFailed)]
    assert (failed.error, failed.stuck) == ("InitFailed", False)
    told.stop()
