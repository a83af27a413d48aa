# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metrics, alert rules and the dashboard for Grafana, by the judgement of Prometheus' own promtool."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kmodd.agent.metrics import Metrics as AgentMetrics
from kmodd.coordinator.metrics import Metrics as CoordinatorMetrics
from kmodd.gateway.metrics import MEANINGS, GatewayMetrics
from tests.gateway.processes import Gateway

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "docs/alerts.yml"
NAME = re.compile(r"\bkmodd_[a-z_]+\b")


@pytest.fixture(scope="module")
def promtool() -> str:
    done = subprocess.run([ROOT / "tests/setup/promtool"], stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return done.stdout.strip()


def check(promtool: str, *arguments: str, text: bytes | None = None) -> None:
    """It finds nothing to complain about."""
    done = subprocess.run([promtool, *arguments], input=text, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert not done.stderr, done.stderr.decode()


@pytest.fixture(scope="module")
def metrics(served: Gateway) -> bytes:
    """After all sorts of things happened."""
    served.ask("POST", "/module/load/loop")
    served.ask("POST", "/module/load/kmodd_test_fail")
    served.ask("POST", "/module/load/no_such_thing")
    served.ask("GET", "/v1/modules", token="kmodd_0_0")
    with served.socket() as sock:
        sock.sendall(
            f"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.token}\r\n\r\n".encode()
        )
        assert sock.recv(4096)
    deadline = time.monotonic() + 10
    # Operations are counted after their replies, and what is exposed is kept for a moment.
    while b"kmodd_operations_total" not in (body := served.ask("GET", "/metrics").body):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return body


def test_what_is_exposed_is_as_prometheus_likes_it(promtool: str, metrics: bytes) -> None:
    check(promtool, "check", "metrics", text=metrics)


def test_every_metric_says_what_it_means(metrics: bytes) -> None:
    families = list(text_string_to_metric_families(metrics.decode()))
    assert len(families) > 20
    assert not [family.name for family in families if len(family.documentation) < 10]
    in_source = {
        name.removesuffix("_total")
        for path in (ROOT / "kmodd/core").rglob("*.py")
        for name in re.findall(r'"(kmodd_[a-z_]+)"', path.read_text())
        if not name.startswith("kmodd_test_")
    }
    of_notifier = {f"kmodd_notifier_{name}" for name in re.findall(
        r'\("(\w+?)(?:_total)?", "(?:counter|gauge)", "', (ROOT / "kmodd/notifier/endpoints.py").read_text()
    )}  # fmt: skip
    assert len(of_notifier) > 4
    assert MEANINGS.keys() == in_source | of_notifier | {"kmodd_notifier_watching"}


def test_a_histogram_of_the_daemons_is_one(metrics: bytes) -> None:
    families = {family.name: family for family in text_string_to_metric_families(metrics.decode())}
    found = families["kmodd_kernel_call_duration_seconds"]
    assert found.type == "histogram"
    assert {sample.name.rpartition("_")[2] for sample in found.samples} == {"bucket", "count", "sum"}
    assert families["kmodd_operations"].type == "counter"


@pytest.mark.parametrize("value", ['a"b', "a\\b", "two\nlines", "\u202e", "{}", "x" * 5000])
def test_no_label_can_break_the_text(promtool: str, value: str) -> None:
    text = GatewayMetrics().text([("kmodd_module_loads_total", "counter", {"module": value}, 1.0)])
    check(promtool, "check", "metrics", text=text)
    (found,) = [
        sample.labels["module"]
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == "kmodd_module_loads_total"
    ]
    assert found == value


def test_alerts_are_rules(promtool: str) -> None:
    check(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(ALERTS))


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(promtool: str, tmp_path: Path) -> None:
    text = (ROOT / "tests/gateway/alerts_test.yml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
    assert alerts == set(re.findall(r"alertname: (\w+)", text))
    file = tmp_path / "alerts_test.yml"
    file.write_text(text.replace("[RULES]", json.dumps([str(ALERTS)])))
    check(promtool, "test", "rules", str(file))


def expressions() -> list[str]:
    """Everything the dashboard asks for."""
    document = json.loads((ROOT / "docs/grafana.json").read_text())
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    return [target["expr"] for panel in document["panels"] for target in panel["targets"]]


def test_the_dashboard_asks_in_prometheus_language(promtool: str, tmp_path: Path) -> None:
    asked = [text.replace("$__rate_interval", "5m").replace("$__range", "1h") for text in expressions()]
    assert len(asked) > 10
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(asked)]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    check(promtool, "check", "rules", str(file))


@pytest.mark.parametrize("what", ["dashboard", "alerts"])
def test_every_queried_metric_exists(what: str, metrics: bytes, tmp_path: Path) -> None:
    told = [family.name for family in text_string_to_metric_families(metrics.decode())]
    # A histogram's samples, and a counter's, are named by suffixes of its own name.
    registries = CoordinatorMetrics().registry, AgentMetrics(tmp_path / "agent.prom").registry
    fleet = {family.name for registry in registries for family in registry.collect()}
    known = {name + end for name in {*told, *MEANINGS, *fleet} for end in ("", "_total", "_bucket", "_count", "_sum")}
    text = " ".join(expressions() if what == "dashboard" else re.findall(r"expr: (.*)", ALERTS.read_text()))
    names = set(NAME.findall(text))
    assert len(names) > 5
    assert names <= known
