# SPDX-License-Identifier: LGPL-2.1-or-later
"""A node as its agent sees it: an object in the cluster, a bus with kmodd, a folder; and the agent as a process."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kmodd.client import Client
from kmodd.fleet.resources import NodeModules, parse_node_modules
from tests.fleet.cluster import Cluster, wait_for

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/kubernetes"
PATH = "/apis/kmodd.org/v1alpha1/nodemodules"
OK, CREATED, CONFLICT = 200, 201, 409

T = TypeVar("T")


def module(name: str, *, required: bool = True, version: str = "", **parameters: str) -> dict[str, Any]:
    """One module of a set."""
    row: dict[str, Any] = {"name": name, "required": required}
    if parameters:
        row["parameters"] = parameters
    if version:
        row["version"] = version
    return row


def one_set(name: str, *modules: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    """One set of a node's specification."""
    return {"name": name, "modules": [module(row) if isinstance(row, str) else row for row in modules], **more}


class Node:
    """One node."""

    def __init__(self, cluster: Cluster, address: str, folder: Path, name: str) -> None:
        self.cluster = cluster
        self.address = address
        self.name = name
        self.folder = folder
        self.state = folder / "agent-state"
        self.boot_id = folder / "boot_id"
        self.boot_id.write_text("11111111-2222-3333-4444-555555555555\n")
        self.log = folder / "agent.log"
        self.log.touch()
        token = folder / "token"
        token.write_text(cluster.token("kmodd-agent", "kmodd-system"))
        self.kubeconfig = cluster.write_kubeconfig(f"{name}.conf", token_file=token)

    # --- the cluster -------------------------------------------------------------------------------------------------

    def want(self, *sets: dict[str, Any]) -> int:
        """Write the specification; its generation."""
        document = {
            "apiVersion": "kmodd.org/v1alpha1",
            "kind": "NodeModules",
            "metadata": {"name": self.name},
            "spec": {"sets": list(sets)},
        }
        status, answer = self.cluster.request("POST", PATH, document)
        if status == CONFLICT:
            answer = self.cluster.need(
                "PATCH", f"{PATH}/{self.name}", {"spec": document["spec"]}, content="application/merge-patch+json"
            )
        else:
            assert status == CREATED, answer
        return int(answer["metadata"]["generation"])

    def read(self) -> NodeModules:
        """The object, by the parser of the programs."""
        return parse_node_modules(self.raw())

    def raw(self) -> dict[str, Any]:
        """The object as it is."""
        answer: dict[str, Any] = self.cluster.need("GET", f"{PATH}/{self.name}")
        return answer

    def wait(self, condition: Callable[[NodeModules], bool], seconds: float = 20.0) -> NodeModules:
        """The object once that holds of it."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.read()
            if condition(found):
                return found
            assert time.monotonic() < deadline, f"{found.status}\n{self.log.read_text()}"
            time.sleep(0.05)

    def settled(self, generation: int, seconds: float = 20.0) -> NodeModules:
        """The object once the agent has reported about this generation, with nothing pending."""
        return self.wait(
            lambda found: (
                found.status.observed_generation == generation
                and bool(found.status.conditions)
                and not any(row.state == "Pending" for row in found.status.modules)
            ),
            seconds,
        )

    def state_of(self, name: str) -> tuple[str, str]:
        """(state, reason) of a module."""
        return next(((str(row.state), row.reason) for row in self.read().status.modules if row.name == name), ("", ""))

    def reaches(self, name: str, state: str, reason: str = "", seconds: float = 20.0) -> Any:
        """The module's status once it is like this."""
        found = self.wait(
            lambda found: any(
                (row.name, str(row.state), row.reason) == (name, state, reason) for row in found.status.modules
            ),
            seconds,
        )
        return next(row for row in found.status.modules if row.name == name)

    # --- kmodd -------------------------------------------------------------------------------------------------------

    def call(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """What another client of kmodd does."""

        async def connected() -> T:
            async with await Client.connect(self.address) as client:
                return await work(client)

        return asyncio.run(connected())

    def load(self, name: str, **parameters: str) -> None:
        """Another client loads a module."""
        self.call(lambda client: client.load(name, parameters))

    def unload(self, name: str) -> None:
        """Another client unloads a module."""
        self.call(lambda client: client.unload(name))

    def loaded(self) -> set[str]:
        """Modules that kmodd says are loaded."""
        return {str(row.name) for row in self.call(lambda client: client.list_modules())}

    def until_loaded(self, *names: str, seconds: float = 15.0) -> None:
        """Wait for them."""
        wait_for(lambda: set(names) <= self.loaded(), seconds)

    def until_gone(self, *names: str, seconds: float = 15.0) -> None:
        """Wait until none is there."""
        wait_for(lambda: not set(names) & self.loaded(), seconds)

    def _program(self) -> Path:
        """bin/kmodd-agent as `make install` fills it in."""
        path = self.folder / "kmodd-agent"
        text = (ROOT / "bin/kmodd-agent.in").read_text()
        path.write_text(text.replace("@PYTHON@", sys.executable).replace("@PKGDIR@", str(ROOT)))
        return path

    # --- the agent ---------------------------------------------------------------------------------------------------

    @contextmanager
    def agent(self, *arguments: str, ends: Sequence[int] = (0,)) -> Iterator[subprocess.Popen[str]]:
        """The agent as a process; `ends` are the exit codes that it may have."""
        command = [sys.executable, "-I", "-X", "utf8", str(self._program()), "--node", self.name]
        command += ["--kubeconfig", str(self.kubeconfig), "--state", str(self.state), "--address", self.address]
        command += ["--boot-id", str(self.boot_id), *arguments]
        started = self.log.read_text().count("serves node")
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}
        with (
            self.log.open("a") as log,
            subprocess.Popen(command, cwd=self.folder, stderr=log, text=True, env=environment) as process,
        ):
            try:
                wait_for(lambda: self.log.read_text().count("serves node") > started or process.poll() is not None)
                yield process
                assert "Traceback" not in self.log.read_text(), self.log.read_text()
            finally:
                process.terminate()
                try:
                    code = process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
            assert code in ends, (code, self.log.read_text())


def new_node(cluster: Cluster, address: str, folder: Path) -> Node:
    """A node of its own name, whose agent has the service account and the rights that deploy/ gives it."""
    if cluster.request("GET", "/api/v1/namespaces/kmodd-system")[0] != OK:
        cluster.apply(DEPLOY / "namespace.yaml")
        for document in yaml.safe_load_all((DEPLOY / "agent.yaml").read_text()):
            if document["kind"] in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding"):
                cluster.apply(document)
    return Node(cluster, address, folder, f"node-{os.urandom(4).hex()}")
