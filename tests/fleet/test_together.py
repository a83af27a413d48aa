# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a ModuleSet to the kernel and back: coordinator, agent and kmodd as processes, on a real API server. The kernel is simulated."""

import subprocess
import sys
from pathlib import Path

import yaml

from tests.fleet.cluster import Cluster, wait_for
from tests.fleet.coordinating import GROUP, Fleet
from tests.fleet.running import DEPLOY, Node, new_node
from tests.gateway.processes import daemon

KUBECTL = Path(sys.executable).with_name("kubectl")


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
        fleet.delete(f"{GROUP}/modulesets/base")
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


def kubectl(server: Cluster, arguments: str, *, given: str | None = None) -> str:
    """What it prints."""
    command = [str(KUBECTL), "--kubeconfig", str(server.kubeconfig), *arguments.split()]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=60).stdout


def test_uninstalling_in_the_documented_order_leaves_nothing(own_kubernetes: Cluster, bus: str, tmp_path: Path) -> None:
    """docs/fleet.md. Of what kustomize makes, this server has no admission policies, and its definitions are at a port of their own.
    Nothing here ends a namespace, as a controller does."""
    server, policies = own_kubernetes, ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    made = yaml.safe_load_all(kubectl(server, f"kustomize {DEPLOY}"))
    documents = [document for document in made if document["kind"] not in policies]
    text = yaml.safe_dump_all(document for document in documents if document["kind"] != "CustomResourceDefinition")
    kubectl(server, "apply --validate=false -f -", given=text)
    with daemon(bus):
        node = new_node(server, bus, tmp_path)
        fleet = Fleet(server, tmp_path)
        fleet.node(node.name, zone="1")
        before = node.loaded(), fleet.get(f"/api/v1/nodes/{node.name}")["metadata"]["labels"]
        fleet.start()
        try:
            with node.agent():
                demand = {"podSelector": {"uses": "tun"}, "unloadAfterSeconds": 0}
                fleet.apply_set("base", {"name": "vfat"})
                fleet.apply_set("vpn", {"name": "tun"}, mode="OnDemand", demand=demand)
                fleet.pod("one", node.name, uses="tun")
                wait_for(lambda: [fleet.label(node.name, name) for name in ("base", "vpn")] == ["ready"] * 2, 30)
                kubectl(server, "delete modulesets --all")
                wait_for(lambda: fleet.condition(node.name) is None, 30)
                wait_for(lambda: not node.read().status.modules)
                now = node.loaded(), fleet.get(f"/api/v1/nodes/{node.name}")["metadata"]["labels"]
                assert now == before
                kubectl(server, "delete --ignore-not-found --wait=false -f -", given=text)
                for document in documents:
                    if document["kind"] == "CustomResourceDefinition":
                        port = server.extensions_port if server.modern else 0
                        server.need("DELETE", server.path_of(document), port=port)
                wait_for(lambda: server.request("GET", f"{GROUP}/nodemodules")[0] == 404, 30)
                for document in documents:
                    found = fleet.get(server.path_of(document))
                    assert found is None or found["metadata"]["deletionTimestamp"], document
        finally:
            fleet.stop()
