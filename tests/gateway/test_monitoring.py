# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dashboard and the alert rules for Prometheus ask for metrics that there are."""

import json
import re
from pathlib import Path

from kmodd.gateway.counts import Counts

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\bkmodd_[a-z_]+\b")


def known() -> set[str]:
    """Every metric of the daemon, by its source, and of the gateway."""
    counts = Counts()
    counts.request("GET", "/health", 200, 0.1)
    counts.refused("rate")
    counts.streams = 1
    counts.stream_ended("left")
    found = set(NAME.findall(counts.text([]).decode()))
    for path in (ROOT / "kmodd").rglob("*.py"):
        found |= set(re.findall(r'"(kmodd_[a-z_]+)"', path.read_text()))
    # A histogram's samples are named by suffixes of its own name.
    return found | {name + suffix for name in found for suffix in ("_bucket", "_count", "_sum")}


def test_the_dashboard_asks_for_what_there_is() -> None:
    document = json.loads((ROOT / "docs/grafana.json").read_text())
    expressions = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    assert len(expressions) > 10
    assert {name for text in expressions for name in NAME.findall(text)} <= known()
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])


def test_alerts_ask_for_what_there_is_and_say_what_to_do() -> None:
    text = (ROOT / "docs/alerts.yml").read_text()
    rules = text.split("- alert: ")[1:]
    assert len(rules) > 5
    for rule in rules:
        fields = dict(re.findall(r"^\s+(\w+): *(.*)$", rule, re.MULTILINE))
        assert {"expr", "severity", "summary", "description"} <= fields.keys(), rule
        assert fields["severity"] in {"info", "warning", "critical"}
        for opening, closing in ("()", "[]", "{}"):
            assert fields["expr"].count(opening) == fields["expr"].count(closing)
    names = set(NAME.findall(" ".join(re.findall(r"expr: (.*)", text))))
    assert names
    assert names <= known()
