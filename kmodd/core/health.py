# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the machine's modules and kmodd itself are: ok, degraded or failing, and why."""

import asyncio
from collections.abc import Callable, Iterable

from kmodd.core.api import (
    Audit,
    Clock,
    Event,
    Events,
    HealthChanged,
    ManagerChanged,
    ModuleAdded,
    ModuleRemoved,
    StepFailed,
    StepSucceeded,
)
from kmodd.core.health_checks import CHECKS, Vitals
from kmodd.core.listing import Listing
from kmodd.core.operations import STUCK_MAX
from kmodd.core.policy import Policy
from kmodd.core.registry import Registry
from kmodd.kernel.ports import Facts, LoadedModules
from kmodd.model import Failure, Health, HealthCheck, HealthStatus, LoadedModule, Record, Rule, State
from kmodd.names import ModuleName

SETTLE = 0.1
"""Seconds between an event that may change the status and looking: replies go first, and a burst costs one look."""

LEISURE = 1.0
"""Seconds after what went well. It changes the status rarely, and a look costs as much as a load."""

READING = 3.0
"""Seconds that an answer waits for files to be read. An initramfs may take longer, and is told of as it was then."""

PATIENCE_USEC = 30_000_000
"""A module that is coming or going for longer hangs; the slowest drivers take some seconds."""

_PRIORITIES = {HealthStatus.OK: 5, HealthStatus.DEGRADED: 4, HealthStatus.FAILING: 3}
_RANK = {status: rank for rank, status in enumerate((HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILING))}


class HealthMonitor:
    """Looks at everything when asked, and after events that may have changed the status; never on a timer of its own."""

    def __init__(
        self,
        *,
        loaded: LoadedModules,
        facts: Facts,
        listing: Listing,
        policy: Policy,
        registry: Registry,
        events: Events,
        audit: Audit,
        clock: Clock,
        failures: Callable[[], tuple[Failure, ...]],
        abandoned: Callable[[], int],
        trouble: Callable[[], str],
        stuck_max: Callable[[], int] = lambda: STUCK_MAX,
    ) -> None:
        """`trouble` is what the daemon's last check of itself found, empty when it was well."""
        self._loaded = loaded
        self._facts = facts
        self._listing = listing
        self._policy = policy
        self._registry = registry
        self._events = events
        self._audit = audit
        self._clock = clock
        self._failures = failures
        self._abandoned = abandoned
        self._trouble = trouble
        self._stuck_max = stuck_max
        self.further: tuple[Callable[[], Iterable[HealthCheck]], ...] = ()
        """What other parts look at; their findings come after those of `CHECKS`."""
        self.readings: tuple[Callable[[], asyncio.Task[None] | None], ...] = ()
        """What those parts read beside everything else at the moment: their findings are of before until it ends."""
        self._pending_since: dict[ModuleName, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._status = HealthStatus.OK

    @property
    def status(self) -> HealthStatus:
        """As last seen."""
        return self._status

    def start(self) -> Callable[[], None]:
        """Look once, and follow events; the answer stops following."""
        self.check()
        unsubscribe = self._events.subscribe(self._on_event)

        def stop() -> None:
            unsubscribe()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        return stop

    async def now(self) -> Health:
        """As `check`, for somebody who asks: where files have changed, what stands in them now counts."""
        health = self.check()
        reading = [task for look in self.readings if (task := look()) is not None]
        if not reading:
            return health
        await asyncio.wait(reading, timeout=READING)
        return self.check()

    def check(self) -> Health:
        """Look at everything now, about a millisecond; a changed status is published."""
        facts = self._facts.read()
        modules = self._loaded.snapshot()
        failures = self._failures()
        vitals = Vitals(
            facts=facts,
            taint_flags=self._facts.taint_flags(facts.taint),
            modules=modules,
            failures=failures,
            hung=self._hung(list(modules.values()), {failure.module for failure in failures if failure.stuck}),
            forbidden=self._forbidden(list(modules)),
            abandoned=self._abandoned(),
            overflows=self._registry.overflows,
            stuck_max=self._stuck_max(),
            trouble=self._trouble(),
        )
        checks = tuple(finding for check in CHECKS for finding in check(vitals))
        checks += tuple(finding for look in self.further for finding in look())
        status = max((finding.status for finding in checks), key=_RANK.__getitem__)
        if status is not self._status:
            self._status = status
            self._audit.record(_record(status, checks))
            self._events.publish(HealthChanged(status))
            self._events.publish(ManagerChanged(("Health",)))
        return Health(status, checks, facts, vitals.taint_flags)

    def look_soon(self) -> None:
        """Something may have changed: look when what is under way has been answered."""
        self._look_within(SETTLE)

    def _look_within(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + delay:
                return
            self._timer.cancel()
        self._timer = loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        self.check()

    def _on_event(self, event: Event) -> None:
        match event:
            case StepFailed():
                self.look_soon()
            case ModuleAdded() | ModuleRemoved() | StepSucceeded():
                self._look_within(LEISURE)
            case ManagerChanged(properties) if set(properties) - {"Health", "LoadedCount"}:
                self.look_soon()
            case _:
                pass

    def _hung(self, modules: list[LoadedModule], stuck: set[ModuleName]) -> frozenset[ModuleName]:
        now = self._clock()
        pending = {module.name for module in modules if module.state is not State.LIVE}
        # Somebody else's modprobe may hang too, and no event tells; so remember since when it has been like this.
        self._pending_since = {name: self._pending_since.get(name, now) for name in pending}
        return frozenset(
            name for name, since in self._pending_since.items() if name in stuck or now - since >= PATIENCE_USEC
        )

    def _forbidden(self, names: list[ModuleName]) -> dict[ModuleName, Rule]:
        found = {}
        self._listing.refresh()
        for name in self._listing.disabled().intersection(names):
            rules = self._policy.load_rules(name)
            if rules:
                found[name] = rules[0]
        return found


def _record(status: HealthStatus, checks: tuple[HealthCheck, ...]) -> Record:
    worst = [finding.message for finding in checks if finding.status is status and status is not HealthStatus.OK]
    return Record(
        "health.changed",
        f"health is {status}" + (f": {' '.join(worst[:3])}" if worst else ""),
        priority=_PRIORITIES[status],
        extra={"STATUS": status},
    )
