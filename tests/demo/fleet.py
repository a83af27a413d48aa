# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make demo-fleet`: module sets on a real Kubernetes API, by what kubectl shows.

Two nodes, each with an agent and a kmodd as processes. Their kernel is simulated, and there is no kubelet: a pod is an object that is
written as if it had been bound to its node.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from tests.cli.private_bus import private_bus
from tests.fleet.cluster import ROOT, Cluster, cluster, wait_for
from tests.fleet.coordinating import GROUP, Fleet
from tests.fleet.running import Node
from tests.gateway.processes import daemon

KUBECTL = Path(sys.executable).with_name("kubectl")
NODES = ("worker-1", "worker-2")
KUBELET = {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}}
"""What a kubelet says of its node."""


class Stage:
    """Types commands and shows what they print."""

    def __init__(self, server: Cluster, fleet: Fleet, *, colour: bool) -> None:
        self.server = server
        self.fleet = fleet
        self._colour = colour
        self._scenes = 0

    def paint(self, style: str, text: str) -> str:
        """The text in a style, where there are colours."""
        return f"\x1b[{style}m{text}\x1b[0m" if self._colour else text

    def scene(self, title: str, text: str) -> None:
        """Announce a scene."""
        self._scenes += 1
        print(f"\n{self.paint('1;36', f'── {self._scenes}. {title} ')}\n{text}\n", flush=True)

    def kubectl(self, arguments: str) -> None:
        """Run it and show what it says."""
        print(self.paint("1", f"$ kubectl {arguments}"), flush=True)
        self._run(*shlex.split(arguments))
        print(flush=True)

    def apply(self, document: dict[str, Any]) -> None:
        """Show a document and apply it."""
        text = yaml.safe_dump(document, sort_keys=False)
        print(self.paint("1", "$ kubectl apply -f - <<END"), text + "END", sep="\n", flush=True)
        self._run("apply", "-f", "-", given=json.dumps(document))
        print(flush=True)

    def status(self, node: str, module: str) -> None:
        """Show what a node's agent says about a module."""
        self.kubectl(f"get nodemodules {node} -o \"jsonpath={{.status.modules[?(@.name=='{module}')]}}\"")
        print()

    def _run(self, *arguments: str, given: str | None = None) -> None:
        command = [str(KUBECTL), "--kubeconfig", str(self.server.kubeconfig), *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
        print(done.stdout + done.stderr, end="", flush=True)
        assert done.returncode == 0, "a command failed"


def module_set(name: str, *modules: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A ModuleSet."""
    return {
        "apiVersion": "kmodd.org/v1alpha1",
        "kind": "ModuleSet",
        "metadata": {"name": name},
        "spec": {**spec, "modules": list(modules)},
    }


def play(stage: Stage, nodes: list[Node]) -> None:
    """The tour."""
    fleet = stage.fleet

    def phase(name: str) -> str:
        return str(fleet.set_condition(name, "Progressing").get("reason"))

    def seen(name: str) -> bool:
        found = fleet.get(f"{GROUP}/modulesets/{name}")
        return bool(found["metadata"]["generation"] == found.get("status", {}).get("observedGeneration"))

    def ready(name: str) -> bool:
        return bool(fleet.set_condition(name).get("status") == "True")

    stage.scene("A module on every node", "An administrator says what nodes need; each node brings itself there.")
    stage.apply(module_set("storage", {"name": "loop", "parameters": {"max_loop": "8"}}))
    wait_for(lambda: ready("storage"), 60)
    stage.kubectl("get modulesets,nodemodules")
    stage.kubectl("get nodes -L modules.kmodd.org/storage")

    stage.scene(
        "A reload goes over the nodes one at a time",
        "A changed parameter takes the module away for a moment. The init function of this module takes as many milliseconds.",
    )
    slow = {"name": "kmodd_test_slow", "parameters": {"ms": "500"}}
    stage.apply(module_set("slow", slow))
    wait_for(lambda: ready("slow"), 60)
    stage.apply(module_set("slow", {**slow, "parameters": {"ms": "2000"}}, rollout={"maxUnavailable": 1}))
    shown = ""
    deadline = time.monotonic() + 60
    while not (seen("slow") and phase("slow") == "Complete" and ready("slow")):
        assert time.monotonic() < deadline
        message = str(fleet.set_condition("slow", "Progressing").get("message"))
        if seen("slow") and message != shown:
            print(f"  {message}", flush=True)
            shown = message
        time.sleep(0.05)
    print(f"  {len(nodes)} nodes ready\n", flush=True)
    stage.kubectl("get modulesets")

    stage.scene("A failure has its reason in the cluster", "The name of kmodd's error, its sentence and what helps.")
    stage.apply(module_set("broken", {"name": "kmodd_test_bad_symbol"}))
    wait_for(lambda: fleet.status("broken").get("failed") == len(nodes), 60)
    stage.kubectl("get modulesets")
    stage.status("worker-1", "kmodd_test_bad_symbol")
    wait_for(lambda: bool(fleet.events("worker-1")), 20)
    stage.kubectl("get events --field-selector involvedObject.name=worker-1")
    stage.kubectl("delete moduleset broken")

    stage.scene(
        "A busy module is never removed by force",
        "On worker-1 another program loads nft_nat, which uses nf_nat; then the set is deleted.",
    )
    stage.apply(module_set("nat", {"name": "nf_nat"}))
    wait_for(lambda: ready("nat"), 60)
    nodes[0].load("nft_nat")
    stage.kubectl("delete moduleset nat")
    nodes[0].reaches("nf_nat", "Blocked", "InUse", seconds=60)
    nodes[1].until_gone("nf_nat", seconds=60)
    stage.kubectl("get nodemodules")
    stage.status("worker-1", "nf_nat")
    nodes[0].unload("nft_nat")
    print("The other program unloads nft_nat: the agent hears of it.\n", flush=True)
    nodes[0].wait(lambda found: all(row.name != "nf_nat" for row in found.status.modules), 60)
    stage.kubectl("get nodemodules")

    stage.scene("Pods bring their modules", "While a pod with the label is bound to a node, and five seconds longer.")
    demand = {"podSelector": {"uses": "tun"}, "unloadAfterSeconds": 5}
    stage.apply(module_set("vpn", {"name": "tun"}, mode="OnDemand", demand=demand))
    wait_for(lambda: [fleet.label(name, "vpn") for name in NODES] == ["loadable", "loadable"], 60)
    stage.kubectl("get nodes -L modules.kmodd.org/vpn")
    fleet.pod("client", "worker-2", uses="tun")
    print("A pod with the label uses=tun is bound to worker-2.\n")
    wait_for(lambda: fleet.label("worker-2", "vpn") == "ready", 60)
    stage.kubectl("get nodes -L modules.kmodd.org/vpn")
    fleet.delete("/api/v1/namespaces/default/pods/client")
    print("The pod is gone.\n")
    wait_for(lambda: "tun" not in nodes[1].loaded(), 60)
    print("Five seconds later the module is, too.\n")

    stage.scene("Without the API server", "The server is stopped; agents follow what they were given last.")
    stage.server.pause("kube-apiserver")
    nodes[0].unload("loop")
    print("Another program unloaded loop on worker-1.")
    nodes[0].until_loaded("loop", seconds=60)
    print("The agent loaded it again.\n", flush=True)
    stage.server.resume("kube-apiserver")
    wait_for(lambda: ready("storage"), 60)
    stage.kubectl("get modulesets,nodemodules")


def main() -> int:
    """0 when everything came as it should."""
    begin = time.monotonic()
    print(
        "Kubernetes' API server, etcd, coordinator, agents and kmodd start; the nodes' kernel is simulated.", flush=True
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "cluster").mkdir()
        server = stack.enter_context(cluster(folder / "cluster"))
        for name in ("namespace", "agent", "coordinator"):
            for document in yaml.safe_load_all((ROOT / f"deploy/kubernetes/{name}.yaml").read_text()):
                if document["kind"] not in ("DaemonSet", "Deployment", "Service", "NetworkPolicy"):
                    server.apply(document)
        (folder / "fleet").mkdir()
        fleet = Fleet(server, folder / "fleet")
        stack.callback(fleet.stop)
        nodes = []
        for name in NODES:
            place = folder / name
            place.mkdir()
            bus = stack.enter_context(private_bus(place, log=subprocess.DEVNULL))
            stack.enter_context(daemon(bus))
            fleet.node(name)
            server.need(
                "PATCH", f"/api/v1/nodes/{name}/status", KUBELET, content="application/strategic-merge-patch+json"
            )
            node = Node(server, bus, place, name)
            stack.enter_context(node.agent())
            nodes.append(node)
        fleet.start()
        play(Stage(server, fleet, colour=sys.stdout.isatty()), nodes)
    print(f"The tour took {time.monotonic() - begin:.0f} s. docs/fleet.md has the rest.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
