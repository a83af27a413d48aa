# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counters since the daemon started and gauges of now, named as Prometheus wants it."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, TypeVar

from kmodd.core.api import Event, Events, JobFinished, ModuleAdded, StepFailed, StepSucceeded
from kmodd.core.registry import Registry
from kmodd.kernel.ports import LoadedModules
from kmodd.model import HealthStatus, Metric

if TYPE_CHECKING:
    from kmodd.names import ModuleName

BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds: most modules load within 50 ms, drivers that wait for hardware take seconds."""

MODULES_MAX = 4096
"""Names that get series of their own; more than any kernel has, and a bound for names that come from callers."""

_Key = TypeVar("_Key", bound=Hashable)
_STATUSES = tuple(HealthStatus)


class _Durations:
    """One histogram."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class Metrics:
    """Counts what is published, and reads the rest when asked."""

    def __init__(
        self,
        *,
        loaded: LoadedModules,
        registry: Registry,
        events: Events,
        version: str,
        jobs: Callable[[], int],
        abandoned: Callable[[], int],
        health: Callable[[], HealthStatus],
    ) -> None:
        self._loaded = loaded
        self._registry = registry
        self._version = version
        self._jobs = jobs
        self._abandoned = abandoned
        self._health = health
        self._operations: Counter[tuple[str, str]] = Counter()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._denials: Counter[str] = Counter()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._loads: Counter[ModuleName] = Counter()
        self._failures: Counter[tuple[ModuleName, str]] = Counter()
        self._last_duration: dict[ModuleName, float] = {}
        self._durations: dict[str, _Durations] = {}
        self.stop = events.subscribe(self._on_event)

    def count(self, what: str, member: str) -> None:
        """Count a request that did not just succeed: `denied`, `granted`, `limited`, `refused` or `failed`, and the method."""
        self._requests[what, member] += 1

    def count_denial(self, action: str) -> None:
        """Count a refusal by polkit."""
        self._denials[action] += 1

    def read(self) -> list[Metric]:
        """Every sample, those of one name together."""
        return [*self._about_daemon(), *self._about_operations(), *self._about_modules()]

    def _on_event(self, event: Event) -> None:
        match event:
            case ModuleAdded(name):
                self._bounded(self._loads, name)
            case JobFinished(action=action, result=result):
                self._operations[action, result] += 1
            case StepSucceeded(name, action, _, duration_usec, True):
                self._calls[action, "ok"] += 1
                self._durations.setdefault(action, _Durations()).add(duration_usec / 1e6)
                if action == "insert" and (name in self._last_duration or len(self._last_duration) < MODULES_MAX):
                    self._last_duration[name] = duration_usec / 1e6
            case StepFailed(name, action, error):
                self._calls[action, error] += 1
                self._bounded(self._failures, (name, action))
            case _:
                pass

    @staticmethod
    def _bounded(counter: Counter[_Key], key: _Key) -> None:
        if key in counter or len(counter) < MODULES_MAX:
            counter[key] += 1

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
        yield Metric("kmodd_jobs", "gauge", (), float(self._jobs()))
        yield Metric("kmodd_stuck_calls", "gauge", (), float(self._abandoned()))

    def _about_operations(self) -> Iterator[Metric]:
        for (action, result), count in sorted(self._operations.items()):
            yield Metric("kmodd_operations_total", "counter", (("action", action), ("result", result)), float(count))
        for (action, result), count in sorted(self._calls.items()):
            yield Metric("kmodd_kernel_calls_total", "counter", (("action", action), ("result", result)), float(count))
        for action, durations in sorted(self._durations.items()):
            total = 0
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), durations.counts, strict=True):
                total += count
                labels = (("action", action), ("le", bound))
                yield Metric("kmodd_kernel_call_duration_seconds_bucket", "counter", labels, float(total))
            yield Metric("kmodd_kernel_call_duration_seconds_sum", "counter", (("action", action),), durations.sum)
            yield Metric("kmodd_kernel_call_duration_seconds_count", "counter", (("action", action),), float(total))
        for action, count in sorted(self._denials.items()):
            yield Metric("kmodd_denials_total", "counter", (("action", action),), float(count))
        for (what, member), count in sorted(self._requests.items()):
            yield Metric("kmodd_requests_total", "counter", (("result", what), ("method", member)), float(count))

    def _about_modules(self) -> Iterator[Metric]:
        modules = list(self._loaded.snapshot().values())
        yield Metric("kmodd_modules_loaded", "gauge", (), float(len(modules)))
        for module in modules:
            yield Metric("kmodd_module_size_bytes", "gauge", (("module", module.name),), float(module.size))
        for module in modules:
            yield Metric("kmodd_module_references", "gauge", (("module", module.name),), float(module.references))
        for name, count in sorted(self._loads.items()):
            yield Metric("kmodd_module_loads_total", "counter", (("module", name),), float(count))
        for (name, action), count in sorted(self._failures.items()):
            labels = (("module", name), ("action", action))
            yield Metric("kmodd_module_failures_total", "counter", labels, float(count))
        for name, seconds in sorted(self._last_duration.items()):
            yield Metric("kmodd_module_last_load_duration_seconds", "gauge", (("module", name),), seconds)
