# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateway's own metrics, and Prometheus' text format (version 0.0.4) of them and those of the daemon and the notifier."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

from kmodd.gateway.meanings import MEANINGS

TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What the text is: no name of ours needs the quoting of later versions."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Sample = tuple[str, str, Mapping[str, str], float]
"""(name, `counter` or `gauge`, labels, value), as `GetMetrics` answers them."""


class Counts:
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
            "Seconds until a request was answered, by route.",
            ("route",),
            buckets=BUCKETS,
            registry=registry,
        )
        self._refused = Counter(
            "kmodd_gateway_refused", "Requests refused before routing, by reason.", ("reason",), registry=registry
        )
        self._ended = Counter(
            "kmodd_gateway_event_streams_ended", "Followers that ended, by reason.", ("reason",), registry=registry
        )
        self._gauge("kmodd_gateway_event_streams", "Followers of /v1/events now.", lambda: self.streams)
        # Read anew each time: it is set once there is a server.
        self._gauge("kmodd_gateway_connections", "Connections open now.", lambda: float(self.connections()))
        self._up = Gauge("kmodd_gateway_daemon_up", "1 while kmodd answers.", registry=registry)

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
        return generate_latest(_Everything(self._registry, (*(daemon or ()), *notifier)))


class _Everything:
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
    """Samples by family. On the bus a histogram is told as its samples."""
    rows = list(samples)
    histograms = {name.removesuffix("_bucket") for name, _, labels, _ in rows if "le" in labels}
    found: dict[str, Metric] = {}
    for name, kind, labels, value in rows:
        base, _, _ = name.rpartition("_")
        # The library's name of a counter is without its suffix.
        plain = name.removesuffix("_total") if kind == "counter" else name
        family, type_ = (base, "histogram") if base in histograms else (plain, kind)
        if family not in found:
            found[family] = Metric(family, MEANINGS.get(family, ""), type_)
        found[family].add_sample(name, dict(labels), value)
    return found.values()
