# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make compactions`: objects go while agent and coordinator are cut off, and etcd forgets how.

Agent and coordinator run whole, in this process, with all their watches through one proxy; API server and etcd are real. Simulated is
the agent's kernel. After each round both must know what is gone, and each watch must have begun with one list.
"""

import asyncio
import datetime as dt
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from kmodd.agent.reconciler import Clock, Reconciler
from kmodd.agent.record import StateFolder
from kmodd.coordinator import election
from kmodd.coordinator.cache import NODES
from kmodd.coordinator.coordinator import PODS, Coordinator
from kmodd.coordinator.election import Leadership
from kmodd.coordinator.metrics import Metrics
from kmodd.fleet import kubernetes
from kmodd.fleet.kubernetes import MODULE_SETS, NODE_MODULES, Access, Api, ApiFault
from kmodd.journal.writer import Terminal, make_logger
from tests.fleet.cluster import Cluster, cluster
from tests.fleet.proxy import Proxy
from tests.fleet.simulated_node import SimulatedClient, SimulatedNode

if TYPE_CHECKING:
    from kmodd.agent.node import Node
    from kmodd.client import Client

OURS = "node-of-the-agent"
ON_DEMAND = "disk"
PATIENCE = 20.0
"""Seconds until both must know what happened in a round."""
WATCHES = {
    "modulesets": "sets",
    "nodes": "nodes",
    "nodemodules": "NodeModules of all nodes",
    "pods": "pods of a set",
    "nodemodules metadata.name": "NodeModules of the agent's node",
}
"""Lists that each round must bring, by resource and by a field that is selected."""


class Compactions:
    """A cluster, an agent and a coordinator."""

    def __init__(self, server: Cluster, proxy: Proxy, folder: Path, token: Path) -> None:
        self._server = server
        self._proxy = proxy
        self._folder = folder
        self._access = Access(server.write_kubeconfig("compactions.conf", token_file=token, port=proxy.port))
        self._direct = Api(Access(server.kubeconfig), "tests")
        self._kernel = SimulatedNode()
        self._coordinator: Coordinator | None = None
        self._tasks: list[asyncio.Future[None]] = []
        self._exists = False
        self._expected: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Agent and coordinator work meanwhile."""
        log = (self._folder / "log").open("w")
        logger = make_logger(Terminal(log))
        api = Api(self._access, "kmodd-agent")
        clock = Clock(time.monotonic, lambda: dt.datetime.now(dt.UTC), random.random)
        state = self._folder / "state"
        state.mkdir()
        reconciler = Reconciler(
            OURS,
            api,
            cast("Client", SimulatedClient()),
            cast("Node", self._kernel),
            StateFolder(state),
            "boot",
            clock,
            logger,
        )
        lease_api = Api(Access(self._server.kubeconfig), "tests")
        leadership = Leadership(lease_api, "default", "compactions", "tests")
        await leadership.acquire()

        def connect(trouble: Callable[[ApiFault | None], None]) -> Api:
            return Api(self._access, "kmodd-coordinator", trouble=trouble)

        self._coordinator = Coordinator(connect, leadership, Metrics(), logger)
        work = (reconciler.run(), self._coordinator.run(), leadership.keep())
        self._tasks = [asyncio.ensure_future(each) for each in work]
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for each in (api, lease_api, self._direct):
                await each.close()
            log.close()

    async def begin(self) -> None:
        """What is there before the first round."""
        demand = {"podSelector": {"uses": ON_DEMAND}}
        spec = {"modules": [{"name": "loop"}], "mode": "OnDemand", "demand": demand}
        await self._direct.create(MODULE_SETS, {"metadata": {"name": ON_DEMAND}, "spec": spec})
        await self._appear(0)
        await self._until(0)

    async def round(self, number: int) -> None:
        """All that came in the last round goes, other things come, and etcd keeps nothing of how."""
        self._proxy.refuse = True
        self._proxy.cut()
        await asyncio.sleep(0.02)
        self._proxy.requests.clear()
        await self._disappear(number - 1)
        await self._appear(number)
        await asyncio.to_thread(self._server.compact)
        self._proxy.refuse = False
        await self._until(number)
        lists = Counter(filter(None, map(_list, self._proxy.requests)))
        assert lists == Counter(WATCHES.keys()), (number, lists)

    async def _appear(self, number: int) -> None:
        api = self._direct
        row = {"name": f"module_{number}"}
        await api.create(MODULE_SETS, {"metadata": {"name": f"set-{number}"}, "spec": {"modules": [row]}})
        await api.create(NODES, {"metadata": {"name": f"node-{number}"}})
        pod = {
            "metadata": {"name": f"pod-{number}", "labels": {"uses": ON_DEMAND}},
            "spec": {
                "nodeName": f"node-{number}",
                "containers": [{"name": "main", "image": "none"}],
                "terminationGracePeriodSeconds": 0,
            },
        }
        await api.create(PODS, pod, "default")
        if self._exists and number % 5 == 4:
            # The whole object of the agent's node: that unloads nothing.
            await api.delete(NODE_MODULES, OURS)
            self._exists = False
            return
        spec = {"sets": [{"name": "base", "modules": [row]}]}
        if self._exists:
            await api.patch(NODE_MODULES, OURS, {"spec": spec})
        else:
            await api.create(NODE_MODULES, {"metadata": {"name": OURS}, "spec": spec})
        self._exists, self._expected = True, {row["name"]}

    async def _disappear(self, number: int) -> None:
        for kind, name, namespace in (
            (MODULE_SETS, f"set-{number}", None),
            (NODES, f"node-{number}", None),
            (PODS, f"pod-{number}", "default"),
            (NODE_MODULES, f"node-{number}", None),
        ):
            try:
                await self._direct.delete(kind, name, namespace)
            except ApiFault as fault:
                # The coordinator may not have come to write the NodeModules of the node.
                if (kind, fault.code) != (NODE_MODULES, kubernetes.NOT_FOUND):
                    raise

    async def _until(self, number: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while differences := await self._differences(number):
            assert not (ended := [task for task in self._tasks if task.done()]), (number, ended)
            assert time.monotonic() < deadline, (number, differences)
            await asyncio.sleep(0.02)

    async def _differences(self, number: int) -> list[str]:
        """What agent and coordinator do not know."""
        assert self._coordinator is not None
        # The coordinator writes these itself, for the node that is gone perhaps a moment after that.
        present = {str(item["metadata"]["name"]) for item in (await self._direct.list(NODE_MODULES)).items}
        cache, kept = self._coordinator.cache, (self._folder / "state/specification.json").exists()
        pairs = (
            ("sets", set(cache.sets), {ON_DEMAND, f"set-{number}"}),
            ("nodes", set(cache.nodes), {f"node-{number}"}),
            ("NodeModules", set(cache.modules), present),
            ("pods", cache.demand().get(ON_DEMAND), frozenset({f"node-{number}"})),
            ("modules", self._kernel.loaded, self._expected),
            ("specification", kept, self._exists),
        )
        return [f"{what}: {known} in place of {right}" for what, known, right in pairs if known != right]


def _list(request: str) -> str:
    """What a request lists, as in WATCHES; empty where it is no list."""
    method, target, _ = request.split()
    url = urlsplit(target)
    query = parse_qs(url.query)
    resource = url.path.rpartition("/")[2]
    if method != "GET" or "watch" in query or resource not in {name.split()[0] for name in WATCHES}:
        return ""
    named = query.get("fieldSelector", [""])[0].startswith("metadata.name")
    return f"{resource} metadata.name" if named else resource


async def compactions(folder: Path, rounds: int, *, shown: Callable[[int], None] = lambda _: None) -> None:
    """So many rounds on a server of their own; AssertionError for what was lost."""
    servers = folder / "servers"
    servers.mkdir()
    # Without the watch cache, watches come from etcd, and end with 410 when it forgot.
    with cluster(servers, watch_cache=False) as server, Proxy(server).running() as proxy:
        token = folder / "token"
        await asyncio.to_thread(_all_powerful, server, token)
        made = Compactions(server, proxy, folder, token)
        async with made.running():
            await made.begin()
            for number in range(1, rounds + 1):
                await made.round(number)
                shown(number)


def _all_powerful(server: Cluster, token: Path) -> None:
    server.service_account("everything")
    server.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "everything"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "everything", "namespace": "default"}],
        }
    )
    token.write_text(server.token("everything"))


def main() -> int:
    """The exit code."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    began = time.monotonic()

    def show(number: int) -> None:
        if number % 50 == 0 or number == rounds:
            print(f"{number} compactions, nothing lost, {time.monotonic() - began:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        asyncio.run(compactions(Path(name), rounds, shown=show))
    return 0


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Waits between attempts that a thousand rounds have time for, and a lease that a busy machine keeps."""
    patch.setattr(kubernetes, "FIRST_WAIT", 0.02)
    patch.setattr(kubernetes, "SPREAD", 0.1)
    patch.setattr(election, "RENEW_DEADLINE", 600.0)
    patch.setattr(election, "REQUEST", 60.0)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
