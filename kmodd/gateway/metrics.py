# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metrics of gateway, daemon and notifier in Prometheus' text format (version 0.0.4), with their HELP texts.

On D-Bus, the metrics of daemon and notifier have names and labels only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

MEANINGS = {
    "kmodd_module_requests": "Requests of the kernel for a module, by what came of them.",
    "kmodd_module_requests_lost": "Traced events that the kernel dropped.",
    "kmodd_audit_records_collapsed": "Audit records that were counted but not written, because their user exceeded the rate limit.",
    "kmodd_audit_records_lost": "Audit records that the journal did not accept.",
    "kmodd_build_info": "1, with the versions of kmodd and of the kernel as labels.",
    "kmodd_denials": "Calls denied by polkit or because polkit was unavailable, by method.",
    "kmodd_desired_failures": "Modules that could not be brought to the desired state.",
    "kmodd_desired_modules": "Modules with a desired state in /etc/kmodd/modules.d.",
    "kmodd_drift": "Differences between the desired and the actual state, by kind.",
    "kmodd_health_status": "1 for the current health status, 0 for the others.",
    "kmodd_jobs": "Operations in progress, by state.",
    "kmodd_kernel_call_duration_seconds": "Duration of calls into the kernel in seconds, by action.",
    "kmodd_kernel_calls": "Calls into the kernel, by action and result.",
    "kmodd_kernel_tainted": "The kernel's taint flags as a number; 0 when it is not tainted.",
    "kmodd_leases": "Leases that keep modules loaded.",
    "kmodd_module_failures": "Operations on a module that failed or were refused, by action and error.",
    "kmodd_module_last_change_timestamp_seconds": "Time a module was last inserted or removed, in seconds since 1970-01-01 UTC.",
    "kmodd_module_load_duration_seconds": "Duration of loading a module in the kernel in seconds.",
    "kmodd_module_loads": "Number of times a module was loaded, by any program.",
    "kmodd_module_references": "Reference count of a module.",
    "kmodd_module_size_bytes": "Memory used by a loaded module.",
    "kmodd_module_state": "1 for the current state of a module.",
    "kmodd_module_taint": "1 for each flag by which a loaded module taints the kernel.",
    "kmodd_modules_disabled": "1 when module loading is disabled until reboot.",
    "kmodd_modules_loaded": "Modules that are loaded.",
    "kmodd_notifier_attempts": "Delivery attempts, by endpoint.",
    "kmodd_notifier_delivered": "Messages delivered, by endpoint.",
    "kmodd_notifier_dropped": "Messages dropped, by endpoint.",
    "kmodd_notifier_enabled": "1 for enabled endpoints, 0 for disabled ones.",
    "kmodd_notifier_failures": "Consecutive failures, by endpoint.",
    "kmodd_notifier_oldest_seconds": "Age of the oldest queued message in seconds, by endpoint.",
    "kmodd_notifier_refusals_left_out": "Refusals that were counted but not sent, because of the rate limit.",
    "kmodd_notifier_refused": "Queued messages that the receiver rejected, by endpoint.",
    "kmodd_notifier_waiting": "Queued messages, by endpoint.",
    "kmodd_notifier_watching": "1 while the notifier is connected to kmodd.",
    "kmodd_operations": "Finished operations, by action and result.",
    "kmodd_requests": "D-Bus calls that were checked with polkit, refused or failed, by outcome and method.",
    "kmodd_settings_valid": "1 when the desired state files are valid, 0 when previous ones stay in effect.",
    "kmodd_stuck_calls": "Calls stuck in the kernel.",
    "kmodd_uevent_overflows": "Number of times uevents were lost and everything was read again.",
    "kmodd_uevents": "Uevents about modules.",
}
"""By family: a counter's name is without `_total`."""


TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What the text is: no name of ours needs the quoting of later versions."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Sample = tuple[str, str, Mapping[str, str], float]
"""(name, `counter` or `gauge`, labels, value), as `GetMetrics` answers them."""


class GatewayMetrics:
    """Counters since the gateway started, and gauges of now."""

    def __init__(self) -> None:
        self.streams = 0
        self.connections: Callable[[], int] = lambda: 0
        # Not the library's global registry: that one also has the process and the interpreter, and is shared by tests.
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "kmodd_gateway_requests",
            "Requests answered, by method, route and status.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._durations = Histogram(
            "kmodd_gateway_request_duration_seconds",
            "Duration of requests in seconds, by route.",
            ("route",),
            buckets=BUCKETS,
            registry=registry,
        )
        self._refused = Counter(
            "kmodd_gateway_refused", "Requests refused before routing, by reason.", ("reason",), registry=registry
        )
        self._ended = Counter(
            "kmodd_gateway_event_streams_ended", "Event streams that ended, by reason.", ("reason",), registry=registry
        )
        self._gauge("kmodd_gateway_event_streams", "Open streams of /v1/events.", lambda: self.streams)
        # Read each time: it is set once there is a server.
        self._gauge("kmodd_gateway_connections", "Open connections.", lambda: float(self.connections()))
        self._up = Gauge("kmodd_gateway_daemon_up", "1 while kmodd is available.", registry=registry)

    def _gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        Gauge(name, meaning, registry=self._registry).set_function(read)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered; status 0 when it was not."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        if route != "/v1/events":  # that lasts as long as its follower likes
            self._durations.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """A request was refused before routing."""
        self._refused.labels(reason).inc()

    def stream_ended(self, reason: str) -> None:
        """A follower is gone."""
        self.streams -= 1
        self._ended.labels(reason).inc()

    def text(self, daemon: Iterable[Sample] | None, notifier: Iterable[Sample] = ()) -> bytes:
        """All metrics; None for the daemon's when it is away."""
        self._up.set(daemon is not None)
        return generate_latest(_MetricsSnapshot(self._registry, (*(daemon or ()), *notifier)))


class _MetricsSnapshot:
    """Everybody's metrics at one moment, in the shape of a registry."""

    def __init__(self, own: CollectorRegistry, others: tuple[Sample, ...]) -> None:
        self._own = own
        self._others = others

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        yield from families(self._others)
        for family in self._own.collect():
            # When each counter was made is of no use to Prometheus in this format, and doubles what there is.
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def families(samples: Iterable[Sample]) -> Iterable[Metric]:
    """Samples by family. On the bus a histogram consists of its samples."""
    rows = list(samples)
    histograms = {name.removesuffix("_bucket") for name, _, labels, _ in rows if "le" in labels}
    families: dict[str, Metric] = {}
    for name, kind, labels, value in rows:
        base, _, _ = name.rpartition("_")
        # The library's name of a counter is without its suffix.
        plain = name.removesuffix("_total") if kind == "counter" else name
        family, type_ = (base, "histogram") if base in histograms else (plain, kind)
        if family not in families:
            families[family] = Metric(family, MEANINGS.get(family, ""), type_)
        families[family].add_sample(name, dict(labels), value)
    return families.values()
