# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateway's own metrics, and the Prometheus text format (version 0.0.4) of all of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds in seconds."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Sample = tuple[str, str, Mapping[str, str], float]
"""(name, `counter` or `gauge`, labels, value), as `GetMetrics` answers them."""

_HELP = {
    "kmodd_gateway_requests_total": "Requests answered, by method, route and status.",
    "kmodd_gateway_request_duration_seconds": "Seconds until a request was answered, by route.",
    "kmodd_gateway_refused_total": "Requests refused before routing, by reason.",
    "kmodd_gateway_event_streams": "Followers of /v1/events now.",
    "kmodd_gateway_event_streams_ended_total": "Followers that ended, by reason.",
    "kmodd_gateway_connections": "Connections open now.",
    "kmodd_gateway_daemon_up": "1 while kmodd answers.",
}


class Counts:
    """Counters since the gateway started, and gauges of now."""

    def __init__(self) -> None:
        self.streams = 0
        self.connections: Callable[[], int] = lambda: 0
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._durations: dict[str, list[float]] = {}
        self._refused: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered; status 0 when it was not."""
        self._requests[method if method in METHODS else "other", route, status] += 1
        if route == "/v1/events":
            return  # it lasts as long as its follower likes
        row = self._durations.setdefault(route, [0.0] * (len(BUCKETS) + 2))
        for place, bound in enumerate(BUCKETS):
            if seconds <= bound:
                row[place] += 1
        row[-2] += 1
        row[-1] += seconds

    def refused(self, reason: str) -> None:
        """A request was refused before routing."""
        self._refused[reason] += 1

    def stream_ended(self, reason: str) -> None:
        """A follower is gone."""
        self.streams -= 1
        self._ended[reason] += 1

    def text(self, daemon: Iterable[Sample] | None) -> bytes:
        """All metrics; None for the daemon's when it is away."""
        families: dict[str, tuple[str, list[str]]] = {}

        def add(name: str, kind: str, labels: Mapping[str, str], value: float, *, suffix: str = "") -> None:
            families.setdefault(name, (kind, []))[1].append(_line(name + suffix, labels, value))

        rows = list(daemon or ())
        # On the bus a histogram is told as its samples.
        histograms = {name.removesuffix("_bucket") for name, _, labels, _ in rows if "le" in labels}
        for name, kind, labels, value in rows:
            base, _, suffix = name.rpartition("_")
            if base in histograms:
                add(base, "histogram", labels, value, suffix=f"_{suffix}")
            else:
                add(name, kind, labels, value)
        for name, kind, labels, value in self._own(up=daemon is not None):
            add(name, kind, labels, value)
        for route, row in sorted(self._durations.items()):
            name = "kmodd_gateway_request_duration_seconds"
            bounds = [*((str(bound), count) for bound, count in zip(BUCKETS, row, strict=False)), ("+Inf", row[-2])]
            for bound, count in bounds:
                add(name, "histogram", {"route": route, "le": bound}, count, suffix="_bucket")
            add(name, "histogram", {"route": route}, row[-2], suffix="_count")
            add(name, "histogram", {"route": route}, row[-1], suffix="_sum")
        lines: list[str] = []
        for name, (kind, samples) in families.items():
            if name in _HELP:
                lines.append(f"# HELP {name} {_HELP[name]}")
            lines += [f"# TYPE {name} {kind}", *samples]
        return ("\n".join(lines) + "\n").encode()

    def _own(self, *, up: bool) -> Sequence[Sample]:
        return [
            *(
                (
                    "kmodd_gateway_requests_total",
                    "counter",
                    {"method": method, "route": route, "status": str(status)},
                    float(count),
                )
                for (method, route, status), count in sorted(self._requests.items())
            ),
            *(("kmodd_gateway_refused_total", "counter", {"reason": r}, float(n)) for r, n in self._refused.items()),
            *(
                ("kmodd_gateway_event_streams_ended_total", "counter", {"reason": r}, float(n))
                for r, n in self._ended.items()
            ),
            ("kmodd_gateway_event_streams", "gauge", {}, float(self.streams)),
            ("kmodd_gateway_connections", "gauge", {}, float(self.connections())),
            ("kmodd_gateway_daemon_up", "gauge", {}, float(up)),
        ]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    number = str(int(value)) if value == int(value) else repr(value)
    return f"{name}{{{told}}} {number}" if told else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
