# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service on a private bus, over a simulated kernel, with polkit to order."""

import asyncio
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kmodd.bus.contract import Contract
from kmodd.bus.interfaces.parts import Parts
from kmodd.bus.polkit import Polkit
from kmodd.bus.quota import Quota
from kmodd.bus.service import Service
from kmodd.bus.transport import Transport
from kmodd.core.configuration import Configuration
from kmodd.core.explain import Explainer
from kmodd.core.failures import Failures
from kmodd.core.jobs import Jobs
from kmodd.core.listing import Listing
from kmodd.core.locks import ModuleLocks
from kmodd.core.operations import Operations
from kmodd.core.parameters import Parameters
from kmodd.core.planner import Planner
from kmodd.core.policy import Policy
from kmodd.core.refusals import Refusals
from kmodd.core.registry import Registry
from kmodd.custom import CustomModules
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
)
from kmodd.model.tunables import Tunables
from kmodd.names import ModuleName
from tests.bus.buses import ROOT, Client, FakePolkit, PrivateBus
from tests.bus.nothing_desired import NothingDesired
from tests.unit.fakes import Hub, Journal, Ticks


class Deeds:
    """Core's own operations, and what they were asked for."""

    def __init__(self, operations: Operations, locks: ModuleLocks) -> None:
        self.operations = operations
        self._locks = locks
        self.done: list[tuple[Caller, Plan]] = []
        """Who asked for what, of everything that was let through."""

    def plan(self, request: Request) -> Plan:
        """Delegate."""
        return self.operations.plan(request)

    async def execute(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """Note and delegate."""
        self.done.append((caller, plan))
        return await self.operations.execute(plan, caller)

    def reset_failed(self, module: ModuleName, caller: Caller) -> None:
        """Delegate."""
        self.operations.reset_failed(module, caller)

    def occupy(self, *modules: str) -> Callable[[], None]:
        """Have another operation under way on these modules, until the answer is called."""
        names = tuple(ModuleName(module) for module in modules)
        assert self._locks.take_now(names, 999_999) is not None
        return lambda: self._locks.release(names, 999_999)


@dataclass
class Bench:
    """Everything a test looks at."""

    bus: PrivateBus
    kernel: SimulatedKernel
    service: Service
    transport: Transport
    polkit: FakePolkit
    deeds: Deeds
    registry: Registry
    journal: Journal
    hub: Hub
    quota: Quota
    counts: Counter[str]
    custom: CustomModules
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


GATEWAY = 998
"""The gateway's user."""
HEALTH = HealthCheck("signatures", HealthStatus.OK, "every module is signed")


@asynccontextmanager
async def bench(
    folder: Path, *, polkit_timeout: float = 0.3, extra: str = "", loaded: Iterable[str] | None = None
) -> AsyncIterator[Bench]:
    """Start everything, and end it with nothing left over and no bug reported."""
    bus = PrivateBus(folder, extra)
    try:
        kernel = SimulatedKernel(pace=0.0, loaded=loaded)
        journal, hub = Journal(), Hub()
        registry = Registry(kernel.loaded, kernel.facts, hub, journal, Ticks())
        stop = registry.start()
        jobs, locks, failures = Jobs(hub, Ticks()), ModuleLocks(), Failures()
        operations = Operations(
            Planner(kernel.index, kernel.loaded, kernel.facts), kernel,
            locks=locks, jobs=jobs, failures=failures, audit=journal, events=hub, clock=Ticks(),
        )  # fmt: skip
        parameters = Parameters(
            loaded=kernel.loaded, index=kernel.index, facts=kernel.facts, locks=locks, audit=journal, events=hub,
            clock=Ticks(),
        )  # fmt: skip
        deeds = Deeds(operations, locks)
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

        place = folder / "machine"
        tree = place / "lib/modules" / kernel.facts.read().release
        (tree / "kernel").mkdir(parents=True, exist_ok=True)
        for name in ("modules.dep", "modules.order", "modules.builtin"):
            (tree / name).touch()
        custom = CustomModules(
            place, place / "store", kernel,
            operations=operations, events=hub, audit=journal, clock=Ticks(), tunables=Tunables,
        )  # fmt: skip
        custom.start()
        parts = Parts(
            operations=deeds,
            refusals=Refusals(kernel, journal),
            parameters=parameters,
            explainer=Explainer(
                loaded=kernel.loaded, index=kernel.index, usage=kernel.usage, facts=kernel.facts,
                policy=policy, registry=registry, failure=failures.get,
            ),
            listing=Listing(kernel.loaded, kernel.index, policy, ""),
            registry=registry,
            jobs=jobs,
            loaded=kernel.loaded,
            index=kernel.index,
            configuration=Configuration(
                kernel.configuration, kernel.index, kernel.facts, policy, audit=journal, events=hub, clock=Ticks()
            ),
            desired=NothingDesired(kernel.index),
            store=custom.store,
            activation=custom.activation,
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
            authority=Polkit(
                transport, timeout=polkit_timeout, prompt_timeout=2 * polkit_timeout, speakers={0, GATEWAY}.__contains__
            ),
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
                registry,
                journal,
                hub,
                quota,
                counts,
                custom,
                bugs,
                users,
            )
        await operations.close()
        await custom.close()
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
