# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service on a private bus, over a simulated kernel, with polkit to order."""

import asyncio
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kmodd.bus.contract import Contract
from kmodd.bus.interfaces.parts import Parts
from kmodd.bus.polkit import Polkit
from kmodd.bus.quota import Quota
from kmodd.bus.service import Service
from kmodd.bus.transport import Transport
from kmodd.core.explain import Explainer
from kmodd.core.jobs import Jobs, JobState
from kmodd.core.listing import Listing
from kmodd.core.planner import Planner
from kmodd.core.policy import Policy
from kmodd.core.registry import Registry
from kmodd.errors import NotLoaded
from kmodd.kernel.simulated import SimulatedKernel
from kmodd.model import (
    Caller,
    Health,
    HealthCheck,
    HealthStatus,
    HistoryEntry,
    HistoryQuery,
    Metric,
    OperationResult,
    Plan,
    Record,
    Request,
    Result,
    StepAction,
)
from kmodd.names import ModuleName, kernel_arguments
from tests.bus.buses import ROOT, Client, FakePolkit, PrivateBus
from tests.unit.fakes import Hub, Journal, Ticks


class Deeds:
    """Operations as the interfaces see them: carries a plan out on the simulated kernel, when it is let."""

    def __init__(self, kernel: SimulatedKernel, registry: Registry, jobs: Jobs) -> None:
        self.kernel = kernel
        self.registry = registry
        self.jobs = jobs
        self.planner = Planner(kernel.index, kernel.loaded, kernel.facts)
        self.gate = asyncio.Event()
        self.gate.set()
        """Cleared, everything waits."""
        self.done: list[tuple[Caller, Plan]] = []
        self.reset: list[str] = []
        self.cancelled = 0

    def plan(self, request: Request) -> Plan:
        """Plan it."""
        return self.planner.plan(request)

    async def execute(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """Do every step."""
        verb = plan.request.operations[0].verb.value
        number = self.jobs.add(verb, " ".join(plan.modules), caller.sender, JobState.WAITING)
        waiting = asyncio.ensure_future(self.gate.wait())
        self.jobs.wait(number, waiting.cancel)
        try:
            await waiting
        except asyncio.CancelledError:
            self.cancelled += 1
            self.jobs.finish(number, "cancelled")
            return [OperationResult("", Result.FAILED, NotLoaded("cancelled"))]
        self.jobs.run(number)
        self.done.append((caller, plan))
        results = []
        for index, names in enumerate(plan.targets):
            steps = [step for step in plan.steps if step.operation == index]
            error = next((step.error for step in steps if step.error), None)
            if error is None and not plan.request.dry_run:
                for step in steps:
                    if step.action is StepAction.INSERT:
                        arguments = kernel_arguments(dict(step.parameters))
                        await self.kernel.executor.insert(step.path, arguments, timeout=5)
                    else:
                        await self.kernel.executor.remove(step.module, timeout=5)
            result = Result.FAILED if error else Result.CHANGED if steps else Result.UNCHANGED
            touched = () if error else tuple(step.module for step in steps)
            results.append(OperationResult(" ".join(names), result, error, touched))
        self.jobs.finish(number, "done")
        return results

    def reset_failed(self, module: ModuleName, caller: Caller) -> None:
        """Note it."""
        self.reset.append(module)


class Writes:
    """Parameters as the interfaces see them."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self.kernel = kernel
        self.written: list[tuple[str, str, str]] = []

    def prepare(self, module: ModuleName, parameter: str, value: str) -> tuple[ModuleName, str, str]:
        """Only what is loaded can be written."""
        if self.kernel.loaded.read(module) is None:
            raise NotLoaded(f"{module} is not loaded.", module=module)
        return module, parameter, value

    async def write(self, prepared: tuple[ModuleName, str, str], caller: Caller) -> str:
        """Note it."""
        self.written.append(prepared)
        return prepared[2]


@dataclass
class Bench:
    """Everything a test looks at."""

    bus: PrivateBus
    kernel: SimulatedKernel
    service: Service
    transport: Transport
    polkit: FakePolkit
    deeds: Deeds
    writes: Writes
    registry: Registry
    journal: Journal
    hub: Hub
    quota: Quota
    counts: Counter[str]
    bugs: list[str] = field(default_factory=list)
    users: dict[str, int | None] = field(default_factory=dict)
    """User ids by unique name; who is not in it is root."""

    @asynccontextmanager
    async def client(self, uid: int | None = 0) -> AsyncIterator[Client]:
        """A connection of this user."""
        async with Client(self.bus.address) as client:
            self.users[client.name] = uid
            yield client

    async def settled(self) -> None:
        """Wait until every call has been answered and every event told."""
        for _ in range(2000):
            await asyncio.sleep(0.002)
            if not self.service.dispatcher.pending and not self.transport.backlog:
                return
        raise AssertionError("the service does not come to rest")


HEALTH = HealthCheck("signatures", HealthStatus.OK, "every module is signed")


@asynccontextmanager
async def bench(
    folder: Path, *, polkit_timeout: float = 0.3, loaded: Iterable[str] | None = None
) -> AsyncIterator[Bench]:
    """Start everything, and end it with nothing left over and no bug reported."""
    bus = PrivateBus(folder)
    try:
        kernel = SimulatedKernel(pace=0.0, loaded=loaded)
        journal, hub = Journal(), Hub()
        registry = Registry(kernel.loaded, kernel.facts, hub, journal, Ticks())
        stop = registry.start()
        jobs = Jobs(hub, Ticks())
        deeds, writes = Deeds(kernel, registry, jobs), Writes(kernel)
        policy = Policy(kernel.index)
        transport = Transport(bus.address)
        await transport.connect()
        counts: Counter[str] = Counter()
        bugs: list[str] = []
        users: dict[str, int | None] = {}

        def report(what: str, error: BaseException) -> None:
            bugs.append(what + "\n" + "".join(traceback.format_exception(error)))

        async def credentials(sender: str) -> tuple[int | None, int]:
            await transport.call(
                "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
                "GetConnectionUnixUser", "s", (sender,),
            )  # fmt: skip
            return users.get(sender, 0), 4711

        async def history(query: HistoryQuery) -> list[HistoryEntry]:
            return [HistoryEntry(1, record) for record in journal.records][-query.limit :]

        def health() -> Health:
            return Health(HealthStatus.OK, (HEALTH,), kernel.facts.read(), ())

        parts = Parts(
            operations=deeds,
            parameters=writes,
            explainer=Explainer(
                loaded=kernel.loaded, index=kernel.index, usage=kernel.usage, facts=kernel.facts,
                policy=policy, registry=registry, failure=lambda _: None,
            ),
            listing=Listing(kernel.loaded, kernel.index, policy, ""),
            registry=registry,
            jobs=jobs,
            loaded=kernel.loaded,
            index=kernel.index,
            health=health,
            health_status=lambda: HealthStatus.OK,
            metrics=lambda: [Metric("kmodd_modules", "gauge", (("state", "live"),), float(len(registry)))],
            history=history,
            machine_id=lambda: "0123456789abcdef0123456789abcdef",
        )  # fmt: skip
        quota = Quota()
        service = Service(
            transport,
            Contract.parse((ROOT / "dbus/org.kmodd1.xml").read_text()),
            parts,
            authority=Polkit(transport, timeout=polkit_timeout, prompt_timeout=2 * polkit_timeout),
            audit=journal,
            events=hub,
            count=lambda what, _: counts.update((what,)),
            report=report,
            executable=lambda pid: f"/usr/bin/{pid}",
            quota=quota,
            credentials=credentials,
        )
        await service.start()
        uevents = asyncio.create_task(registry.run(kernel.uevents))
        async with FakePolkit(bus.address) as polkit:
            yield Bench(
                bus,
                kernel,
                service,
                transport,
                polkit,
                deeds,
                writes,
                registry,
                journal,
                hub,
                quota,
                counts,
                bugs,
                users,
            )
        jobs.flush()
        stop()
        uevents.cancel()
        await asyncio.gather(uevents, return_exceptions=True)
        await service.close()
        await transport.close()
        assert not bugs, "\n".join(bugs)
        assert quota.idle
    finally:
        bus.close()


def record_of(journal: Journal, event: str) -> Record:
    """The only record of this event."""
    (found,) = [record for record in journal.records if record.event == event]
    return found
