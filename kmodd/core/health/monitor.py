# SPDX-License-Identifier: LGPL-2.1-or-later
"""The health status, ok, degraded or failing, and its checks."""

import asyncio
from collections.abc import Callable, Iterable

from kmodd.core.events import (
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
from kmodd.core.health.checks import CHECKS, HealthInputs
from kmodd.core.listing import Listing
from kmodd.core.operations.operations import STUCK_MAX
from kmodd.core.planning.policy import Policy
from kmodd.core.registry import Registry
from kmodd.kernel.ports import Facts, LoadedModules
from kmodd.model import Failure, Health, HealthCheck, HealthStatus, LoadedModule, Record, Rule, State
from kmodd.names import ModuleName

RETRY = 1.0
"""Seconds until the machine is looked at again that could not be read."""
SETTLE = 0.1
"""Seconds between an event that may change the status and looking: replies go first, and a burst costs one look."""

HEALTH_DELAY = 1.0
"""Seconds after what went well. It changes the status rarely, and a look costs as much as a load."""

READING = 3.0
"""Seconds that a reply waits for files to be read. An initramfs may take longer; its previous result is reported then."""

STUCK_AFTER_USEC = 30_000_000
"""A module that is coming or going for longer hangs; the slowest drivers take some seconds."""

_PRIORITIES = {HealthStatus.OK: 5, HealthStatus.DEGRADED: 4, HealthStatus.FAILING: 3}
_RANK = {status: rank for rank, status in enumerate((HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILING))}


class HealthMonitor:
    """Runs all checks on request and after events that may have changed the status; never on a timer."""

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
        """`trouble` is the result of the daemon's last self-check, empty if it succeeded."""
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
        unsubscribe = self._events.subscribe(
            self._on_event, StepFailed, ModuleAdded, ModuleRemoved, StepSucceeded, ManagerChanged
        )

        def stop() -> None:
            unsubscribe()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        return stop

    async def now(self) -> Health:
        """As `check`, for a request: changed files are read first."""
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
        vitals = HealthInputs(
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
        try:
            self.check()
        except OSError:
            # Out of descriptors or memory: what was known stands until that may be over.
            self._look_within(RETRY)

    def _on_event(self, event: Event) -> None:
        match event:
            case StepFailed():
                self.look_soon()
            case ModuleAdded() | ModuleRemoved() | StepSucceeded():
                self._look_within(HEALTH_DELAY)
            case ManagerChanged(properties) if set(properties) - {"Health", "LoadedCount"}:
                self.look_soon()
            case _:
                pass

    def _hung(self, modules: list[LoadedModule], stuck: set[ModuleName]) -> frozenset[ModuleName]:
        now = self._clock()
        pending = {module.name for module in modules if module.state is not State.LIVE}
        # Another program's modprobe may hang too, without an event; so record since when the state has lasted.
        self._pending_since = {name: self._pending_since.get(name, now) for name in pending}
        return frozenset(
            name for name, since in self._pending_since.items() if name in stuck or now - since >= STUCK_AFTER_USEC
        )

    def _forbidden(self, names: list[ModuleName]) -> dict[ModuleName, Rule]:
        since = {}
        self._listing.refresh()
        for name in self._listing.disabled().intersection(names):
            rules = self._policy.load_rules(name)
            if rules:
                since[name] = rules[0]
        return since


def _record(status: HealthStatus, checks: tuple[HealthCheck, ...]) -> Record:
    worst = [finding.message for finding in checks if finding.status is status and status is not HealthStatus.OK]
    return Record(
        "health.changed",
        f"health is {status}" + (f": {' '.join(worst[:3])}" if worst else ""),
        result=status,
        priority=_PRIORITIES[status],
        extra={"STATUS": status},
    )
