# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metrics of the agent in a file, from a real run."""

import stat
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kmodd.agent.settings import Settings
from kmodd.startup.options import UsageError
from tests.fleet.cluster import wait_for
from tests.fleet.running import Node, one_set


def samples(file: Path) -> dict[tuple[str, ...], float]:
    """By name and values of labels; empty while there is no file."""
    if not file.exists():
        return {}
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_file_says_what_the_agent_does(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "agent.prom"
    node.want(one_set("base", "loop", "kmodd_test_nodev"), one_set("disk", "vfat", mode="OnDemand", demanded=True))
    with node.agent("--metrics", str(file)):
        node.reaches("vfat", "Ready")
        wait_for(lambda: samples(file).get(("kmodd_agent_leases",)) == 1)
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        found = samples(file)
        assert found["kmodd_agent_steps_total", "load", "done"] == 2
        assert found["kmodd_agent_steps_total", "load", "failed"] >= 1
        assert found["kmodd_agent_modules", "Ready"] == 2
        assert found["kmodd_agent_modules", "Failed"] == 1
        assert (found["kmodd_agent_api_up",], found["kmodd_agent_daemon_up",]) == (1, 1)
        assert found["kmodd_agent_status_writes_total", "done"] >= 1
        node.want()
        wait_for(lambda: samples(file).get(("kmodd_agent_steps_total", "unload", "done")) == 3)  # vfat, fat and loop
        assert samples(file)["kmodd_agent_leases",] == 0
    assert not file.exists()


def test_an_idle_agent_writes_no_metrics(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "agent.prom"
    generation = node.want(one_set("base", "loop"))
    with node.agent("--metrics", str(file)):
        node.settled(generation)
        time.sleep(2.5)
        before = file.stat().st_mtime_ns
        time.sleep(3)
        assert file.stat().st_mtime_ns == before


def test_metrics_that_cannot_be_written_are_reported_once_and_hinder_nothing(node: Node, tmp_path: Path) -> None:
    node.want(one_set("base", "loop"))
    with node.agent("--metrics", str(tmp_path / "nowhere" / "agent.prom")):
        node.reaches("loop", "Ready")
        wait_for(lambda: "metrics cannot be written" in node.log.read_text())
        node.want()
        node.until_gone("loop")
        time.sleep(1.5)
    assert node.log.read_text().count("metrics cannot be written") == 1


def test_the_name_is_one_that_the_collector_reads() -> None:
    with pytest.raises(UsageError, match=r"does not end in \.prom"):
        Settings.parse(["--metrics", "/run/agent.txt"], {}, "host")
