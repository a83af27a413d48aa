# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counters since the daemon started and gauges, in Prometheus naming, with a bound on the number of series per module."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

from kmodd.core.events import (
    Clock,
    Event,
    Events,
    JobFinished,
    ModuleAdded,
    ModuleRemoved,
    StepFailed,
    StepRefused,
    StepSucceeded,
)
from kmodd.core.registry import Registry
from kmodd.kernel.ports import LoadedModules
from kmodd.model import HealthStatus, Metric, State, StepAction
from kmodd.names import ModuleName

BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds: most modules load within 50 ms, drivers that wait for hardware take seconds."""

MODULES_MAX = 4096
"""Names with separate series; more than any kernel has, and a bound for names that come from callers."""
HISTOGRAMS_MAX = 256
"""Modules with a histogram of how long they took to load; each is fifteen series."""

_STATES = (State.LIVE, State.COMING, State.GOING)
_Key = TypeVar("_Key", bound=Hashable)
Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Durations in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one; an upper bound is inside its bucket."""
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def samples(self, name: str, labels: Labels) -> Iterator[Metric]:
        """As Prometheus wants it: cumulative buckets, then sum and count."""
        total = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self._counts, strict=True):
            total += count
            yield Metric(f"{name}_bucket", "counter", (*labels, ("le", bound)), float(total))
        yield Metric(f"{name}_sum", "counter", labels, self._sum)
        yield Metric(f"{name}_count", "counter", labels, float(total))


class ModuleMetrics:
    """Counts changes of each module, and reads the loaded modules on request."""

    def __init__(self, loaded: LoadedModules, clock: Clock) -> None:
        self._loaded = loaded
        self._clock = clock
        self._loads: Counter[ModuleName] = Counter()
        self._failures: Counter[tuple[str, str, str]] = Counter()
        self._durations: dict[ModuleName, Histogram] = {}
        self._changes: dict[ModuleName, int] = {}

    def on_event(self, event: Event) -> None:
        """Take an event of core."""
        match event:
            case ModuleAdded(name):
                _count(self._loads, name)
                self._changed(name)
            case ModuleRemoved(name):
                self._changed(name)
            case StepSucceeded(name, StepAction.INSERT, _, duration_usec, True):
                if name not in self._durations and len(self._durations) < HISTOGRAMS_MAX:
                    self._durations[name] = Histogram()
                if name in self._durations:
                    self._durations[name].add(duration_usec / 1e6)
            case StepFailed(name, action, error) | StepRefused(name, action, error):
                _count(self._failures, (name, action.value, error))
            case _:
                pass

    def read(self) -> Iterator[Metric]:
        """Every sample, those of one family together."""
        modules = list(self._loaded.snapshot().values())
        yield Metric("kmodd_modules_loaded", "gauge", (), float(len(modules)))
        for module in modules:
            yield Metric("kmodd_module_size_bytes", "gauge", (("module", module.name),), float(module.size))
        for module in modules:
            yield Metric("kmodd_module_references", "gauge", (("module", module.name),), float(module.references))
        for module in modules:
            for state in _STATES if module.state is not State.LIVE else (State.LIVE,):
                labels = (("module", module.name), ("state", state.value))
                yield Metric("kmodd_module_state", "gauge", labels, float(module.state is state))
        for module in modules:
            for letter in module.taint:
                yield Metric("kmodd_module_taint", "gauge", (("module", module.name), ("flag", letter)), 1.0)
        for name, count in sorted(self._loads.items()):
            yield Metric("kmodd_module_loads_total", "counter", (("module", name),), float(count))
        for (about, action, error), count in sorted(self._failures.items()):
            identity = (("module", about), ("action", action), ("error", error))
            yield Metric("kmodd_module_failures_total", "counter", identity, float(count))
        for name, usec in sorted(self._changes.items()):
            yield Metric("kmodd_module_last_change_timestamp_seconds", "gauge", (("module", name),), usec / 1e6)
        for name, durations in sorted(self._durations.items()):
            yield from durations.samples("kmodd_module_load_duration_seconds", (("module", name),))

    def _changed(self, name: ModuleName) -> None:
        if name in self._changes or len(self._changes) < MODULES_MAX:
            self._changes[name] = self._clock()


def _count(counter: Counter[_Key], key: _Key) -> None:
    if key in counter or len(counter) < MODULES_MAX:
        counter[key] += 1


_STATUSES = tuple(HealthStatus)
_JOB_STATES = ("waiting", "running", "stuck")


class Metrics:
    """Counts published events, and reads the rest on request."""

    def __init__(
        self,
        *,
        loaded: LoadedModules,
        registry: Registry,
        events: Events,
        version: str,
        jobs: Callable[[], Iterable[str]],
        abandoned: Callable[[], int],
        health: Callable[[], HealthStatus],
        clock: Clock,
    ) -> None:
        """`jobs` answers the state of each operation under way."""
        self._registry = registry
        self._version = version
        self._jobs = jobs
        self._abandoned = abandoned
        self._health = health
        self._operations: Counter[tuple[str, str]] = Counter()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._durations: dict[str, Histogram] = {}
        self._modules = ModuleMetrics(loaded, clock)
        self.further: tuple[Callable[[], Iterable[Metric]], ...] = ()
        """What other parts tell about themselves."""
        stops = (
            events.subscribe(
                self._modules.on_event, ModuleAdded, ModuleRemoved, StepSucceeded, StepFailed, StepRefused
            ),
            events.subscribe(self._on_event, JobFinished, StepSucceeded, StepFailed),
        )

        def stop() -> None:
            for each in stops:
                each()

        self.stop = stop

    def count(self, what: str, member: str) -> None:
        """Count a request that did not just succeed: `denied`, `granted`, `limited`, `refused` or `failed`, and the method."""
        self._requests[what, member] += 1

    def read(self) -> list[Metric]:
        """Every sample, those of one family together."""
        further = (sample for tell in self.further for sample in tell())
        return [*self._about_daemon(), *self._about_operations(), *further, *self._modules.read()]

    def _on_event(self, event: Event) -> None:
        match event:
            case JobFinished(action=action, result=result):
                self._operations[action, result] += 1
            case StepSucceeded(_, action, _, duration_usec, True):
                self._calls[action, "ok"] += 1
                if action not in self._durations:
                    self._durations[action] = Histogram()
                self._durations[action].add(duration_usec / 1e6)
            case StepFailed(_, action, error):
                self._calls[action, error] += 1
            case _:
                pass

    def _about_daemon(self) -> Iterator[Metric]:
        facts = self._registry.facts()
        yield Metric("kmodd_build_info", "gauge", (("version", self._version), ("kernel", facts.release)), 1.0)
        status = self._health()
        for each in _STATUSES:
            yield Metric("kmodd_health_status", "gauge", (("status", each),), float(each is status))
        yield Metric("kmodd_kernel_tainted", "gauge", (), float(facts.taint))
        yield Metric("kmodd_modules_disabled", "gauge", (), float(facts.modules_disabled))
        yield Metric("kmodd_uevents_total", "counter", (), float(self._registry.uevents))
        yield Metric("kmodd_uevent_overflows_total", "counter", (), float(self._registry.overflows))
        jobs = list(self._jobs())
        for state in _JOB_STATES:
            count = sum(job == state for job in jobs)
            yield Metric("kmodd_jobs", "gauge", (("state", state),), float(count))
        yield Metric("kmodd_stuck_calls", "gauge", (), float(self._abandoned()))

    def _about_operations(self) -> Iterator[Metric]:
        for (action, result), count in sorted(self._operations.items()):
            yield Metric("kmodd_operations_total", "counter", (("action", action), ("result", result)), float(count))
        for (action, result), count in sorted(self._calls.items()):
            yield Metric("kmodd_kernel_calls_total", "counter", (("action", action), ("result", result)), float(count))
        for action, durations in sorted(self._durations.items()):
            yield from durations.samples("kmodd_kernel_call_duration_seconds", (("action", action),))
        for (what, member), count in sorted(self._requests.items()):
            if what == "denied":
                yield Metric("kmodd_denials_total", "counter", (("method", member),), float(count))
        for (what, member), count in sorted(self._requests.items()):
            yield Metric("kmodd_requests_total", "counter", (("result", what), ("method", member)), float(count))
