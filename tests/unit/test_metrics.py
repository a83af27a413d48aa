# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metrics count what is published and follow Prometheus' conventions."""

import re

from prometheus_client.parser import text_string_to_metric_families

from kmodd.core.events import EventHub, JobFinished, ModuleAdded, StepFailed, StepRefused, StepSucceeded
from kmodd.core.metrics import BUCKETS, HISTOGRAMS_MAX, MODULES_MAX, Metrics
from kmodd.core.registry import Registry
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import HealthStatus, LoadedBy, Record, StepAction
from kmodd.names import ModuleName

M = ModuleName
BY = LoadedBy(0, ":1.1", "", 1)


class Counted:
    """Metrics over a simulated kernel."""

    def __init__(self) -> None:
        self.kernel = SimulatedKernel(pace=0)
        self.hub = EventHub(lambda *_: None)
        registry = Registry(self.kernel.loaded, self.kernel.facts, self.hub, self, lambda: 1)
        self.metrics = Metrics(
            loaded=self.kernel.loaded,
            registry=registry,
            events=self.hub,
            version="1.2",
            jobs=lambda: ["waiting", "running", "waiting"],
            abandoned=lambda: 1,
            health=lambda: HealthStatus.DEGRADED,
            clock=lambda: 5_000_000,
        )

    def record(self, record: Record) -> None:
        raise AssertionError(record)

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(value for _, value in sample.labels): sample.value
            for sample in self.metrics.read()
            if sample.name == name
        }


def test_operations_and_calls_are_counted_by_what_became_of_them() -> None:
    counted = Counted()
    for result in ("done", "done", "InUse"):
        counted.hub.publish(JobFinished(1, ":1.1", "unload", "loop", result))
    counted.hub.publish(StepSucceeded(M("loop"), StepAction.INSERT, BY, 20_000))
    counted.hub.publish(StepFailed(M("i8k"), StepAction.INSERT, "NoDevice", 1))
    assert counted.values("kmodd_operations_total") == {("unload", "done"): 2, ("unload", "InUse"): 1}
    assert counted.values("kmodd_kernel_calls_total") == {("insert", "ok"): 1, ("insert", "NoDevice"): 1}
    assert counted.values("kmodd_module_failures_total") == {("i8k", "insert", "NoDevice"): 1}
    counted.hub.publish(StepRefused("pcspkr", StepAction.INSERT, "DisabledByPolicy"))
    assert counted.values("kmodd_module_failures_total")["pcspkr", "insert", "DisabledByPolicy"] == 1
    assert ("insert", "DisabledByPolicy") not in counted.values("kmodd_kernel_calls_total"), "the kernel was not asked"
    assert counted.values("kmodd_module_load_duration_seconds_sum") == {("loop",): 0.02}
    assert counted.values("kmodd_module_load_duration_seconds_bucket")["loop", "0.025"] == 1


def test_durations_are_a_cumulative_histogram() -> None:
    counted = Counted()
    for usec in (500, 1000, 20_000, 60_000_000):
        counted.hub.publish(StepSucceeded(M("loop"), StepAction.INSERT, BY, usec))
    buckets = counted.values("kmodd_kernel_call_duration_seconds_bucket")
    assert len(buckets) == len(BUCKETS) + 1
    assert buckets["insert", "0.001"] == 2, "an upper bound is inside its bucket"
    assert buckets["insert", "0.025"] == 3
    assert buckets["insert", "30.0"] == 3
    assert buckets["insert", "+Inf"] == 4
    assert list(buckets.values()) == sorted(buckets.values())
    assert counted.values("kmodd_kernel_call_duration_seconds_count") == {("insert",): 4}
    assert counted.values("kmodd_kernel_call_duration_seconds_sum") == {("insert",): 60.0215}


def test_gauges_are_read_on_demand() -> None:
    counted = Counted()
    counted.kernel.modprobe("vfat")
    counted.hub.publish(ModuleAdded(M("vfat")))
    assert counted.values("kmodd_module_size_bytes")["vfat",] == 20480
    assert counted.values("kmodd_module_references")["fat",] == 1
    assert counted.values("kmodd_module_loads_total") == {("vfat",): 1}
    assert counted.values("kmodd_modules_loaded")[()] == len(counted.kernel.loaded.snapshot())
    assert counted.values("kmodd_health_status") == {("ok",): 0, ("degraded",): 1, ("failing",): 0}
    assert counted.values("kmodd_jobs") == {("waiting",): 2, ("running",): 1, ("stuck",): 0}
    assert counted.values("kmodd_module_last_change_timestamp_seconds") == {("vfat",): 5}
    assert counted.values("kmodd_module_state")["fat", "live"] == 1
    assert counted.values("kmodd_stuck_calls") == {(): 1}
    assert ("1.2", counted.kernel.facts.read().release) in counted.values("kmodd_build_info")


def test_denials_and_requests() -> None:
    counted = Counted()
    counted.metrics.count("denied", "Load")
    counted.metrics.count("limited", "Load")
    assert counted.values("kmodd_denials_total") == {("Load",): 1}
    assert counted.values("kmodd_requests_total") == {("limited", "Load"): 1, ("denied", "Load"): 1}


def busy() -> Counted:
    """Metrics with a sample of every kind."""
    counted = Counted()
    counted.kernel.modprobe("vfat")
    for module in ("loop", "vfat"):
        counted.hub.publish(ModuleAdded(M(module)))
        counted.hub.publish(StepSucceeded(M(module), StepAction.INSERT, BY, 20_000))
        counted.hub.publish(StepSucceeded(M(module), StepAction.REMOVE, BY, 20_000))
        counted.hub.publish(StepFailed(M(module), StepAction.INSERT, "NoDevice", 1))
    counted.hub.publish(JobFinished(1, ":1.1", "unload", "loop", "done"))
    counted.metrics.count("denied", "Load")
    return counted


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_names_types_and_order_are_as_prometheus_wants_them() -> None:
    samples = busy().metrics.read()
    names = [family(sample.name) for sample in samples]
    assert [name for i, name in enumerate(names) if name in names[:i] and names[i - 1] != name] == [], (
        "a family comes in one run"
    )
    assert len({(sample.name, sample.labels) for sample in samples}) == len(samples)
    for sample in samples:
        assert re.fullmatch(r"kmodd_[a-z_]+[a-z]", sample.name)
        counts = sample.name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert sample.type == ("counter" if counts else "gauge"), sample.name


def test_prometheus_own_parser_reads_them() -> None:
    lines: list[str] = []
    for sample in busy().metrics.read():
        kind = "histogram" if family(sample.name) != sample.name else sample.type
        # The exposition format names a counter's family without its suffix only in OpenMetrics; here with it.
        declared = f"# TYPE {family(sample.name)} {kind}"
        if declared not in lines:
            lines.append(declared)
        labels = ",".join(f'{key}="{value}"' for key, value in sample.labels)
        lines.append(f"{sample.name}{{{labels}}} {sample.value}")
    families = {each.name: each for each in text_string_to_metric_families("\n".join(lines) + "\n")}
    assert families["kmodd_module_load_duration_seconds"].type == "histogram"
    assert families["kmodd_kernel_call_duration_seconds"].type == "histogram"
    assert families["kmodd_module_failures"].type == "counter"
    assert sum(len(each.samples) for each in families.values()) == len([line for line in lines if line[0] != "#"])
    for each in families.values():
        if each.type == "histogram":
            buckets = [sample.value for sample in each.samples if sample.labels.get("le") == "+Inf"]
            assert buckets == [sample.value for sample in each.samples if sample.name.endswith("_count")]


def test_names_that_callers_make_up_cannot_fill_the_memory() -> None:
    counted = Counted()
    for number in range(MODULES_MAX + 10):
        counted.hub.publish(StepFailed(M(f"m{number}"), StepAction.INSERT, "NoDevice", 1))
        counted.hub.publish(StepSucceeded(M(f"m{number}"), StepAction.INSERT, BY, 1))
    assert len(counted.values("kmodd_module_failures_total")) == MODULES_MAX
    assert len(counted.values("kmodd_module_load_duration_seconds_count")) == HISTOGRAMS_MAX


def test_after_stop_nothing_is_counted() -> None:
    counted = Counted()
    counted.metrics.stop()
    counted.hub.publish(JobFinished(1, ":1.1", "unload", "loop", "done"))
    assert counted.values("kmodd_operations_total") == {}
