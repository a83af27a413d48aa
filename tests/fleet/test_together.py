# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a ModuleSet to the kernel and back: coordinator, agent and kmodd as processes, on a real API server. The kernel is simulated."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.fleet.cluster import ROOT, Cluster, wait_for
from tests.fleet.coordinating import Fleet
from tests.fleet.running import Node


@pytest.fixture
def fleet(kubernetes: Cluster, tmp_path: Path) -> Iterator[Fleet]:
    for document in yaml.safe_load_all((ROOT / "deploy/kubernetes/coordinator.yaml").read_text()):
        if document["kind"] not in ("Deployment", "Service", "NetworkPolicy"):
            kubernetes.apply(document)
    made = Fleet(kubernetes, tmp_path)
    yield made
    made.stop()
    made.clear()


def test_a_set_is_loaded_explained_and_unloaded(node: Node, fleet: Fleet) -> None:
    fleet.node(node.name)
    fleet.start()
    with node.agent():
        fleet.apply_set("base", {"name": "loop", "parameters": {"max_loop": "8"}})
        node.until_loaded("loop", seconds=30)
        wait_for(lambda: fleet.label(node.name, "base") == "ready")
        wait_for(lambda: fleet.set_condition("base").get("status") == "True")
        wait_for(lambda: (fleet.condition(node.name) or {}).get("status") == "True")
        # A reload, by the rollout; and a module that does not exist.
        fleet.apply_set("base", {"name": "loop", "parameters": {"max_loop": "16"}}, {"name": "no_such_thing"})
        wait_for(lambda: fleet.status("base").get("failed") == 1, 30)
        status = fleet.status("base")
        assert status["topReasons"][0]["reason"] == "NoSuchModule"
        assert "no_such_thing" in status["topReasons"][0]["message"]
        assert fleet.label(node.name, "base") == "unavailable"
        wait_for(lambda: any(row["reason"] == "NoSuchModule" for row in fleet.events(node.name)))
        fleet.apply_set("base", {"name": "loop", "parameters": {"max_loop": "16"}})
        wait_for(lambda: fleet.label(node.name, "base") == "ready", 30)
        fleet.delete("/apis/kmodd.org/v1alpha1/modulesets/base")
        node.until_gone("loop")
        wait_for(lambda: fleet.label(node.name, "base") is None)


def test_a_pod_brings_a_module_and_its_end_takes_it_away(node: Node, fleet: Fleet) -> None:
    fleet.node(node.name)
    fleet.start()
    with node.agent():
        demand = {"podSelector": {"uses": "loop"}, "unloadAfterSeconds": 1}
        fleet.apply_set("loop", {"name": "loop"}, mode="OnDemand", demand=demand)
        wait_for(lambda: fleet.label(node.name, "loop") == "loadable", 30)
        assert "loop" not in node.loaded()
        fleet.pod("one", node.name, uses="loop")
        node.until_loaded("loop")
        wait_for(lambda: fleet.label(node.name, "loop") == "ready")
        fleet.delete("/api/v1/namespaces/default/pods/one")
        node.until_gone("loop")
        wait_for(lambda: fleet.label(node.name, "loop") == "loadable")
