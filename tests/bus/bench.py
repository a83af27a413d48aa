# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service on a private bus, over a simulated kernel, with polkit to order."""

import asyncio
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmodd.api.service import Service
from kmodd.api.services import Services
from kmodd.core.audit.records import Refusals
from kmodd.core.diagnosis.explain import Explainer
from kmodd.core.fair_share import Slices
from kmodd.core.health.monitor import HealthMonitor
from kmodd.core.leases import Leases, LeaseTable
from kmodd.core.listing import Listing
from kmodd.core.operations.execution import Then
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import Jobs, ModuleLocks
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.operations.operations import Operations
from kmodd.core.operations.parameters import Parameters
from kmodd.core.planning.planner import Planner
from kmodd.core.planning.policy import Policy
from kmodd.core.registry import Registry
from kmodd.core.rules.configuration import Configuration
from kmodd.core.surface.cve_responses import Responses
from kmodd.core.surface.locking import KernelLock
from kmodd.core.surface.service import Surfaces
from kmodd.daemon.desired import DesiredParts, KeptTrialFile, desired_state, enforcement
from kmodd.daemon.responses import KeptResponses
from kmodd.daemon.store import CustomModules, StorePlace
from kmodd.dbus.admission import Quota
from kmodd.dbus.interface_xml import Contract
from kmodd.dbus.polkit import Polkit
from kmodd.dbus.transport import Transport
from kmodd.journal.reader import MemoryJournal
from kmodd.kernel.ports import Kernel
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.simulated.kernel import SimulatedKernel
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
)
from kmodd.model.rules import DesiredModule
from kmodd.model.settings import DaemonSettings
from kmodd.model.surface import Vulnerability
from kmodd.names import ModuleName
from tests.bus.buses import ROOT, Client, FakePolkit, PrivateBus
from tests.kernel.fakeroot import FakeRoot
from tests.unit.fakes import Broadcaster, Journal, Ticks


class Deeds(Operations):
    """Core's operations, and what they were asked for."""

    def __init__(self, planner: Planner, kernel: Kernel, *, locks: ModuleLocks, **parts: Any) -> None:
        super().__init__(planner, kernel, locks=locks, **parts)
        self._their_locks = locks
        self.done: list[tuple[Caller, Plan]] = []
        """Who asked for what, of everything that was let through."""

    async def execute(self, plan: Plan, caller: Caller, then: Then | None = None) -> tuple[OperationResult, ...]:
        """Note and delegate."""
        self.done.append((caller, plan))
        return await super().execute(plan, caller, then)

    def occupy(self, *modules: str) -> Callable[[], None]:
        """Have another operation under way on these modules, until the answer is called."""
        names = tuple(ModuleName(module) for module in modules)
        assert self._their_locks.take_now(names, 999_999) is not None
        return lambda: self._their_locks.release(names, 999_999)


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
    hub: Broadcaster
    quota: Quota
    counts: Counter[str]
    custom: CustomModules
    values: LiveValues
    jobs: Jobs
    kept_responses: KeptResponses
    """The file of responses."""
    bugs: list[str] = field(default_factory=list)
    users: dict[str, int | None] = field(default_factory=dict)
    """User ids by unique name; who is not in it is root."""
    wishes: dict[ModuleName, DesiredModule] = field(default_factory=dict)
    """The desired state that leases know of."""
    driverless: list[str] = field(default_factory=list)
    """Aliases of devices without a driver."""

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
            untold = self.service.dispatcher.pending or self.service._announcer.pending or self.transport.backlog()
            if not untold:
                return
        raise AssertionError("the service does not come to rest")


GATEWAY = 998
"""The gateway's user."""
RECORDS = {"CVE-2026-31431": Vulnerability("CVE-2026-31431", (ModuleName("overlay"),), fixed=((6, 1, 170),))}
"""What stands in responses.d."""
HEALTH = HealthCheck("signatures", HealthStatus.OK, "every module is signed")


@asynccontextmanager
async def bench(
    folder: Path,
    *,
    polkit_timeout: float = 0.3,
    extra: str = "",
    loaded: Iterable[str] | None = None,
    root: FakeRoot | None = None,
    surface_policy: str = "",
) -> AsyncIterator[Bench]:
    """Start everything, and end it with nothing left over and no bug reported.

    With a `root` its module tree and its /proc/modules are read, by the parts that read the real ones. `surface_policy` is the text
    of a file of surface.d.
    """
    bus = PrivateBus(folder, extra)
    try:
        kernel = SimulatedKernel(pace=0.0, loaded=loaded)
        if root is not None:
            kernel.index, kernel.loaded = root.index(), ProcModules(root.root)  # type: ignore[assignment]
        journal, hub = Journal(), Broadcaster()
        registry = Registry(kernel.loaded, kernel.facts, hub, journal, Ticks())
        stop = registry.start()
        values = LiveValues(kernel.loaded, kernel.executor)
        unfollow = values.follow(hub)
        jobs, locks, failures = Jobs(hub, Ticks()), ModuleLocks(), Failures()
        held = LeaseTable(lambda pid: ("holder", 1))
        planner = Planner(
            kernel.index, kernel.loaded, kernel.facts, values,
            failed=lambda name: failures.get(name) is not None, held=held.holders,
        )  # fmt: skip
        deeds = Deeds(
            planner, kernel,
            locks=locks, jobs=jobs, failures=failures, audit=journal, events=hub, clock=Ticks(), loader=registry.loader,
        )  # fmt: skip
        wishes: dict[ModuleName, DesiredModule] = {}
        leases = Leases(
            held, deeds, kernel.loaded, kernel.index, audit=journal, events=hub, clock=Ticks(),
            daemon_settings=lambda: DaemonSettings(lease_grace=0, leases_per_user=3), desired=wishes.get,
        )  # fmt: skip
        leases.start({})
        parameters = Parameters(planner.parameters, locks=locks, audit=journal, events=hub, clock=Ticks())
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

        async def history(query: HistoryQuery, _: Caller) -> list[HistoryEntry]:
            return [HistoryEntry(1, record) for record in journal.records][-query.limit :]

        def health() -> Health:
            return Health(HealthStatus.OK, (HEALTH,), kernel.facts.read(), ())

        place = folder / "machine"
        tree = place / "lib/modules" / kernel.facts.read().release
        (tree / "kernel").mkdir(parents=True, exist_ok=True)
        for name in ("modules.dep", "modules.order", "modules.builtin"):
            (tree / name).touch()
        custom = CustomModules(
            StorePlace(place, place / "store", kernel.facts.read().release), kernel,
            operations=deeds, events=hub, audit=journal, clock=Ticks(), daemon_settings=DaemonSettings,
        )  # fmt: skip
        custom.start()
        listing = Listing(kernel.loaded, kernel.index, policy, "")
        rules = Configuration(
            kernel.configuration, kernel.index, kernel.facts, policy, audit=journal, events=hub, clock=Ticks()
        )
        monitor = HealthMonitor(
            loaded=kernel.loaded, facts=kernel.facts, listing=listing, policy=policy, registry=registry, events=hub,
            audit=journal, clock=Ticks(), failures=failures.all, abandoned=lambda: 0, trouble=lambda: "",
            stuck_max=lambda: 4,
        )  # fmt: skip
        wanted = DesiredParts(
            None, kernel, desired_state(None, kernel, journal, lambda: None),
            operations=deeds, parameters=parameters, values=values, rules=rules, health=monitor, events=hub,
            audit=journal, runtime_directory="", given=GivenValues(),
            clock=Ticks(), kept_trial=KeptTrialFile(None),
        )  # fmt: skip
        explainer = Explainer(
            loaded=kernel.loaded,
            index=kernel.index,
            inspection=kernel.inspection,
            facts=kernel.facts,
            policy=policy,
            registry=registry,
            failure=failures.get,
            held=held.holders,
        )
        kept_responses = KeptResponses(None)
        if surface_policy:
            (place / "etc/kmodd/surface.d").mkdir(parents=True)
            (place / "etc/kmodd/surface.d/10.toml").write_text(surface_policy)
        policies = enforcement(
            place if surface_policy else None, kernel, desired_state(None, kernel, journal, lambda: None),
            history=MemoryJournal(Ticks()), audit=journal, clock=Ticks(), forgotten=lambda: None,
        )  # fmt: skip
        responses = Responses(
            installed=kernel.installed, facts=kernel.facts, rules=rules, operations=deeds, explainer=explainer,
            history=history, autoload=kernel.configuration.autoload, audit=journal, clock=Ticks(),
            records=lambda: RECORDS, read=kept_responses.read, write=kept_responses.write,
        )  # fmt: skip
        kernel_lock = KernelLock(
            executor=kernel.executor, facts=kernel.facts, loaded=kernel.loaded, installed=kernel.installed,
            driverless=lambda: made.driverless, enforcement=policies, responses=responses, desired=wanted.convergence,
            waiting=wanted.reconciler.pending, jobs=jobs, leases=held, audit=journal, clock=Ticks(),
            locked=registry.look,
        )  # fmt: skip
        parts = Services(
            operations=deeds,
            refusals=Refusals(kernel, journal, hub),
            parameters=parameters,
            leases=leases,
            values=values,
            explainer=explainer,
            listing=listing,
            registry=registry,
            jobs=jobs,
            loaded=kernel.loaded,
            index=kernel.index,
            configuration=rules,
            desired=wanted.convergence,
            store=custom.store,
            activation=custom.activation,
            surfaces=Surfaces(kernel.installed, kernel.loaded, kernel.facts),
            enforcement=policies,
            responses=responses,
            kernel_lock=kernel_lock,
            health=health,
            health_status=lambda: HealthStatus.OK,
            metrics=lambda: [Metric("kmodd_modules", "gauge", (("state", "live"),), float(len(registry)))],
            history=history,
            machine_id=lambda: "0123456789abcdef0123456789abcdef",
            boot_id="01234567-89ab-cdef-0123-456789abcdef",
            slices=Slices(kernel.index),
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
            executable=_executable,
            login_uid=lambda pid, uid: 5000 if pid and uid is not None else None,
            quota=quota,
            credentials=credentials,
        )
        await service.start()
        uevents = asyncio.create_task(registry.run(kernel.uevents))
        async with FakePolkit(bus.address) as polkit:
            made = Bench(
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
                values,
                jobs,
                kept_responses,
                bugs,
                users,
                wishes,
            )
            yield made
        await deeds.close()
        await leases.close()
        await wanted.close()
        await custom.close()
        unfollow()
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


async def _executable(pid: int) -> str:
    return f"/usr/bin/{pid}"
