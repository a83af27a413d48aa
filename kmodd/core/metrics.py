# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counters since the daemon started and gauges of now, named as Prometheus wants it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from kmodd.core.api import Clock, Event, Events, JobFinished, StepFailed, StepSucceeded
from kmodd.core.metrics_modules import Histogram, ModuleMetrics
from kmodd.core.registry import Registry
from kmodd.kernel.ports import LoadedModules
from kmodd.model import HealthStatus, Metric

_STATUSES = tuple(HealthStatus)
_JOB_STATES = ("waiting", "running", "stuck")


class Metrics:
    """Counts what is published, and reads the rest when asked."""

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
        self.stop = events.subscribe(self._on_event)

    def count(self, what: str, member: str) -> None:
        """Count a request that did not just succeed: `denied`, `granted`, `limited`, `refused` or `failed`, and the method."""
        self._requests[what, member] += 1

    def read(self) -> list[Metric]:
        """Every sample, those of one family together."""
        further = (sample for tell in self.further for sample in tell())
        return [*self._about_daemon(), *self._about_operations(), *further, *self._modules.read()]

    def _on_event(self, event: Event) -> None:
        self._modules.on_event(event)
        match event:
            case JobFinished(action=action, result=result):
                self._operations[action, result] += 1
            case StepSucceeded(_, action, _, duration_usec, True):
                self._calls[action, "ok"] += 1
                self._durations.setdefault(action, Histogram()).add(duration_usec / 1e6)
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
