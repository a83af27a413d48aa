# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metrics of single modules, with a bound on how many series there can be."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import TypeVar

from kmodd.core.api import Clock, Event, ModuleAdded, ModuleRemoved, StepFailed, StepSucceeded
from kmodd.kernel.ports import LoadedModules
from kmodd.model import Metric, State, StepAction
from kmodd.names import ModuleName

BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds: most modules load within 50 ms, drivers that wait for hardware take seconds."""

MODULES_MAX = 4096
"""Names that get series of their own; more than any kernel has, and a bound for names that come from callers."""
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
    """Counts what happens to each module, and reads what is loaded when asked."""

    def __init__(self, loaded: LoadedModules, clock: Clock) -> None:
        self._loaded = loaded
        self._clock = clock
        self._loads: Counter[ModuleName] = Counter()
        self._failures: Counter[tuple[ModuleName, str, str]] = Counter()
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
            case StepFailed(name, action, error):
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
        for (name, action, error), count in sorted(self._failures.items()):
            told = (("module", name), ("action", action), ("error", error))
            yield Metric("kmodd_module_failures_total", "counter", told, float(count))
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
