# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cluster as the coordinator sees it: nodes, pods and sets, small agents, and the coordinator as a process."""

import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.fleet.cluster import ROOT, Cluster

GROUP = "/apis/kmodd.org/v1alpha1"
ACCOUNT = "system:serviceaccount:kmodd-system:kmodd-coordinator"
NAMESPACE = "kmodd-system"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/kmodd-coordinator"
MERGE = "application/merge-patch+json"


class Fleet:
    """Nodes, pods and sets in the cluster, and small agents."""

    def __init__(self, server: Cluster, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        token = folder / "coordinator.token"
        token.write_text(server.token("kmodd-coordinator", NAMESPACE))
        self.kubeconfig = server.write_kubeconfig(f"coordinator-{folder.name}.conf", token_file=token)

    # --- the program ---

    def start(self, name: str = "one", *, kubeconfig: Path | None = None) -> "Program":
        log = self.folder / f"{name}-{len(self.processes)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "kmodd.coordinator.main",
                    "--kubeconfig",
                    str(kubeconfig or self.kubeconfig),
                    "--metrics",
                    "127.0.0.1:0",
                ],
                stderr=stream,
                env={"PATH": "/usr/bin:/bin", "POD_NAME": name},
                cwd=ROOT,
            )
        self.processes.append(process)
        return Program(process, log)

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    # --- the cluster ---

    def node(self, name: str, **labels: str) -> None:
        self.server.need(
            "POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        )

    def get(self, path: str) -> Any:
        status, answer = self.server.request("GET", path)
        return answer if status == 200 else None

    def modules(self, node: str) -> Any:
        return self.get(f"{GROUP}/nodemodules/{node}")

    def entry(self, node: str, name: str) -> Any:
        found = self.modules(node)
        return next((each for each in found["spec"]["sets"] if each["name"] == name), None) if found else None

    def label(self, node: str, name: str) -> str | None:
        labels = self.get(f"/api/v1/nodes/{node}")["metadata"].get("labels") or {}
        found: str | None = labels.get(f"modules.kmodd.org/{name}")
        return found

    def condition(self, node: str) -> Any:
        rows = self.get(f"/api/v1/nodes/{node}")["status"].get("conditions") or []
        return next((row for row in rows if row["type"] == "KernelModulesReady"), None)

    def apply_set(self, name: str, *modules: dict[str, Any], **spec: Any) -> None:
        document = {
            "apiVersion": "kmodd.org/v1alpha1",
            "kind": "ModuleSet",
            "metadata": {"name": name},
            "spec": {"modules": [*modules], **spec},
        }
        self.server.apply(document)

    def status(self, name: str) -> Any:
        return (self.get(f"{GROUP}/modulesets/{name}") or {}).get("status") or {}

    def set_condition(self, name: str, type_: str = "Ready") -> Any:
        rows = self.status(name).get("conditions") or []
        return next((row for row in rows if row["type"] == type_), {})

    def report(self, node: str, state: str = "Ready", reason: str = "", message: str = "", *, boot: str = "") -> None:
        """What an agent writes about its node: every set of its spec in this state."""
        found = self.modules(node)
        rows = []
        for each in found["spec"].get("sets", []):
            idle = each["mode"] == "OnDemand" and not each["demanded"]
            row = {"name": each["name"], "state": "Loadable" if idle and state == "Ready" else state}
            row |= {"generation": each.get("generation", 0)}
            row |= ({"reason": reason} if reason else {}) | ({"message": message} if message else {})
            rows.append(row)
        status = {
            "observedGeneration": found["metadata"]["generation"],
            "lastContact": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "sets": rows,
        } | ({"bootID": boot} if boot else {})
        document = {
            "apiVersion": "kmodd.org/v1alpha1",
            "kind": "NodeModules",
            "metadata": {"name": node},
            "status": status,
        }
        path = f"{GROUP}/nodemodules/{node}/status?fieldManager=agent&force=true"
        self.server.need("PATCH", path, document, content="application/apply-patch+yaml")

    def pod(self, name: str, node: str, namespace: str = "default", **labels: str) -> None:
        self.server.need(
            "POST",
            f"/api/v1/namespaces/{namespace}/pods",
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": labels},
                "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
            },
        )

    def delete(self, path: str) -> None:
        self.server.need("DELETE", f"{path}?gracePeriodSeconds=0")

    def events(self, name: str) -> list[Any]:
        rows = self.get("/api/v1/namespaces/default/events")["items"]
        return [row for row in rows if row["involvedObject"]["name"] == name]

    def clear(self) -> None:
        """Leave nothing for the next test."""
        for path in (
            f"{GROUP}/modulesets",
            f"{GROUP}/nodemodules",
            "/api/v1/namespaces/default/events",
            "/api/v1/namespaces/default/pods",
        ):
            self.server.need("DELETE", f"{path}?gracePeriodSeconds=0")
        for node in self.get("/api/v1/nodes")["items"]:
            self.delete(f"/api/v1/nodes/{node['metadata']['name']}")
        self.server.request("DELETE", LEASE)


class Program:
    """One process."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    def text(self) -> str:
        return self.log.read_text()

    @property
    def leading(self) -> bool:
        return "the lease is held" in self.text()

    def fetch(self, path: str) -> tuple[int, str]:
        found = re.search(r"metrics are served at port (\d+)", self.text())
        assert found, self.text()
        with closing(urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=10)) as answer:
            return answer.status, answer.read().decode()

    def metric(self, line: str) -> float | None:
        text = self.fetch("/metrics")[1]
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else None


@contextmanager
def agents(fleet: Fleet, *nodes: str, state: Callable[[str], tuple[str, ...]] = lambda _: ("Ready",)) -> Iterator[None]:
    """Agents that report about every spec as soon as they see it."""
    ended = threading.Event()

    def work() -> None:
        seen: dict[str, tuple[int, tuple[str, ...]]] = {}
        while not ended.wait(0.05):
            for node in nodes:
                # What fails is tried again, as by an agent: a server that is slow, or that another test stopped a moment ago.
                with suppress(AssertionError, OSError):
                    found = fleet.modules(node)
                    if found is None:
                        continue
                    now = (found["metadata"]["generation"], state(node))
                    if seen.get(node) != now:
                        fleet.report(node, *now[1])
                        seen[node] = now

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
