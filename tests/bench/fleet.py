# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make bench-fleet`: a cluster's modules from intent to status. `python3 -m tests.bench.fleet [NODES]`

Real: API server, etcd, TLS, the coordinator as a process, and each agent's whole code from its watch to its status, with a
connection and a token of its own, several agents in a process. Simulated: kernel and bus, Nodes and Pods, which are objects without a
kubelet. A load or unload takes as long as agents need that are processes, each with a kmodd and a bus of its own: these are measured
first, and end then. Loads fail where the scene says so. Servers, coordinator and agents share this machine.
"""

import argparse
import asyncio
import datetime as dt
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from kmodd.agent.reconciler import Clock, Reconciler
from kmodd.agent.record import StateFolder
from kmodd.fleet import kubernetes
from kmodd.fleet.kubernetes import NODE_MODULES, Access, Api, Listing
from kmodd.fleet.resources import parse_node_modules
from kmodd.journal.writer import Terminal, make_logger
from tests.cli.private_bus import private_bus
from tests.fleet import simulated_node
from tests.fleet.cluster import ROOT, Cluster, cluster
from tests.fleet.running import Node as NodeOfProcesses
from tests.fleet.running import one_set
from tests.fleet.simulated_node import BAD, SimulatedClient, SimulatedNode
from tests.gateway.processes import daemon

if TYPE_CHECKING:
    from kmodd.agent.node import Node
    from kmodd.client import Client

GROUP = "/apis/kmodd.org/v1alpha1"
SYSTEM = "kmodd-system"
OUTAGE = 120.0
CHURN_SECONDS, CHURN_RATE = 20.0, 50.0
WATCH = 660.0
"""Seconds in which each agent's watch ends once: at rest, that is all it does."""
HOUR = 3600.0
LIFETIME = 24 * 3600
"""Seconds that tokens are good for: longer than thousands of nodes take on a slow machine."""
FILES = 2
"""Connections of an agent at most: a watch, and what it writes by."""
WITHIN = 0.1
"""Share by which calibrated agents may differ from full processes."""
MERGE = "application/merge-patch+json"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "POD_NAME": "bench"}


# --- an agent ---------------------------------------------------------------------------------------------------------


async def agents(folder: Path, names: list[str]) -> None:
    """Agents of these nodes, until the process is ended. Each line of input sets the seconds of a load, if it has any, and is
    answered with the number of requests that they sent."""
    clock = Clock(time.monotonic, lambda: dt.datetime.now(dt.UTC), random.random)
    logger = make_logger(Terminal((folder / f"agents-{os.getpid()}.log").open("w")))
    apis, tasks = [], []
    for name in names:
        api = Api(Access(folder / f"{name}.conf"), "kmodd-agent", user_agent="kmodd-agent/bench")
        state = folder / f"state-{name}"
        state.mkdir()
        reconciler = Reconciler(
            name,
            api,
            cast("Client", SimulatedClient()),
            cast("Node", SimulatedNode(bad=int(name.rpartition("-")[2]) % 100 == 7)),
            StateFolder(state),
            f"boot-of-{name}",
            clock,
            logger,
        )
        apis.append(api)
        tasks.append(asyncio.ensure_future(reconciler.run()))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip():
            simulated_node.LOAD = float(line)
        print(sum(api.requests for api in apis), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for api in apis:
        await api.close()


# --- the scenes ---------------------------------------------------------------------------------------------------------


class Observer:
    """What the cluster shows about each node, and when."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.nodes: dict[str, tuple[Any, ...]] = {}
        self._seen: list[str] = []
        """Names of what changed, in order."""
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        """Watch for ever."""
        async with aclosing(self._api.follow(NODE_MODULES)) as changes:
            async for change in changes:
                for item in change.items if isinstance(change, Listing) else (change.object,):
                    found = parse_node_modules(item)
                    self.nodes[found.metadata.name] = (found, time.monotonic())
                    self._seen.append(found.metadata.name)
                self._changed.set()

    async def times(
        self, names: list[str], began: float, done: Any, seconds: float, *, share: float = 1.0
    ) -> list[float]:
        """Seconds from `began` until each of the nodes was as `done` says; until that share of them is, or the time is over."""
        reached: dict[str, float] = {}
        pending, changed = set(names), names
        deadline = time.monotonic() + seconds
        while True:
            # Only what changed since the last look: to look at thousands for each change would take the time that is measured.
            for name in changed:
                if name in pending and name in self.nodes and done(self.nodes[name][0]):
                    pending.discard(name)
                    reached[name] = self.nodes[name][1] - began
            if len(reached) >= share * len(names):
                break
            at = len(self._seen)
            self._changed.clear()
            if time.monotonic() > deadline:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._changed.wait()
            changed = self._seen[at:]
        return sorted(reached.values())


def ready(name: str, **parameters: str) -> Any:
    """A set is ready, with these parameters of its first module, by a report about the present specification."""

    def check(found: Any) -> bool:
        entry = next((each for each in found.spec.sets if each.name == name), None)
        report = next((each for each in found.status.sets if each.name == name), None)
        if entry is None or report is None or found.status.observed_generation != found.metadata.generation:
            return False
        right = dict(entry.modules[0].parameters) == parameters
        return right and report.generation == entry.generation and report.state == "Ready"

    return check


def reported(sets: int) -> Any:
    """The agent reported so many sets, all ready, about the present specification."""

    def check(found: Any) -> bool:
        status = found.status
        current = bool(status.conditions) and status.observed_generation == found.metadata.generation
        return current and [row.state for row in status.sets] == ["Ready"] * sets and not status.modules[2 * sets :]

    return check


def show(what: str, times: list[float], total: int) -> None:
    """One line of the result."""
    points = [times[min(int(len(times) * share), len(times) - 1)] for share in (0.5, 0.99, 1.0)] if times else []
    text = "  ".join(f"{label} {value:6.2f} s" for label, value in zip(("p50", "p99", "max"), points, strict=False))
    print(f"  {what:<46} {len(times):>5} of {total:<5} {text}", flush=True)


def usage(pid: int) -> tuple[float, float]:
    """(MiB resident, seconds of processor time)."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return resident / 1024, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def module_set(name: str, modules: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    """A ModuleSet."""
    return {
        "apiVersion": "kmodd.org/v1alpha1",
        "kind": "ModuleSet",
        "metadata": {"name": name},
        "spec": {"modules": modules, **spec},
    }


class Bench:
    """One run."""

    def __init__(self, server: Cluster, folder: Path, count: int, processes: int) -> None:
        self.server = server
        self.folder = folder
        self.names = [f"node-{number:05}" for number in range(count)]
        self.processes = processes
        self.children: dict[str, subprocess.Popen[str]] = {}

    def prepare(self) -> None:
        """Objects, accounts and tokens."""
        for name in ("namespace", "agent", "coordinator"):
            for document in yaml.safe_load_all((ROOT / f"deploy/kubernetes/{name}.yaml").read_text()):
                if document["kind"] not in ("Deployment", "DaemonSet", "Service", "NetworkPolicy"):
                    self.server.apply(document)
        for name in self.names:
            self.server.need("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
            self._access(name, "kmodd-agent")
        self._access("coordinator", "kmodd-coordinator")

    def _access(self, name: str, account: str) -> None:
        token = self.folder / f"{name}.token"
        token.write_text(self.server.token(account, SYSTEM, seconds=LIFETIME))
        path = self.server.write_kubeconfig(f"{name}.conf", token_file=token)
        path.rename(self.folder / f"{name}.conf")

    def start_coordinator(self) -> None:
        """The coordinator as a process."""
        log = (self.folder / "coordinator.log").open("w")
        self.children["coordinator"] = subprocess.Popen(
            [sys.executable, "-m", "kmodd.coordinator.main", "--kubeconfig", str(self.folder / "coordinator.conf")],
            stderr=log,
            cwd=ROOT,
            env=ENVIRONMENT,
            text=True,
        )

    def start_agents(self) -> None:
        """Agents, many in a process."""
        size = -(-len(self.names) // self.processes)
        for number in range(self.processes):
            names = self.names[number * size : (number + 1) * size]
            self.children[f"agents-{number}"] = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.fleet", "--agents", str(self.folder), *names],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=ENVIRONMENT,
                text=True,
            )

    @contextmanager
    def full(self, count: int) -> Iterator[list[str]]:
        """Names of nodes whose agent is a process, with a bus and a kmodd, on a simulated kernel."""
        with ExitStack() as stack:
            names = [f"full-{number:02}" for number in range(count)]
            for name in names:
                place = self.folder / name
                place.mkdir()
                bus = stack.enter_context(private_bus(place, log=subprocess.DEVNULL))
                stack.enter_context(daemon(bus))
                node = NodeOfProcesses(self.server, bus, place, name)
                stack.enter_context(node.agent())
            yield names

    def requests(self, load: float | None = None) -> int:
        """Requests that all agents have sent; with `load`, let each load take as many seconds from now on."""
        total = 0
        for name, child in self.children.items():
            if name.startswith("agents"):
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write("\n" if load is None else f"{load}\n")
                child.stdin.flush()
                total += int(child.stdout.readline())
        return total

    def stop(self) -> None:
        """End the programs."""
        for child in self.children.values():
            child.kill()
            child.wait()

    async def calibrate(self, observer: Observer, count: int) -> None:
        """Measure as many nodes of both kinds, one after the other, and let simulated loads take what the others need more."""
        with self.full(count) as names:
            real = [await self.step(observer, name) for name in names]
        chosen = self.names[:count]
        before = [await self.step(observer, name) for name in chosen]
        load = max(simulated_node.LOAD + statistics.median(real) - statistics.median(before), 0.0)
        await asyncio.to_thread(self.requests, load)
        after = [await self.step(observer, name) for name in chosen]
        show("one module, agent, kmodd and bus as processes", sorted(real), count)
        show(f"the same, simulated, a load takes {load * 1000:.0f} ms", sorted(after), count)
        ratio = statistics.median(after) / statistics.median(real)
        print(
            f"    simulated to real: {ratio:.2f}{'' if abs(ratio - 1) <= WITHIN else ', NOT WITHIN 10 %'}", flush=True
        )
        for name in [*names, *chosen]:
            self.server.need("DELETE", f"{GROUP}/nodemodules/{name}")

    async def step(self, observer: Observer, name: str) -> float:
        """Seconds from a specification of one more module to the report that it is ready, and leave nothing loaded."""
        took = 0.0
        for sets in (
            [one_set("first", "dummy")],
            [one_set("first", "dummy"), one_set("second", "veth")],
            [],
        ):
            document = {
                "apiVersion": "kmodd.org/v1alpha1",
                "kind": "NodeModules",
                "metadata": {"name": name},
                "spec": {"sets": sets},
            }
            began = time.monotonic()
            await asyncio.to_thread(self.server.apply, document)
            (seconds,) = await observer.times([name], began, reported(len(sets)), 60)
            took = seconds if len(sets) > 1 else took
        return took

    async def run(self, full: int, rest: float) -> None:
        """All scenes, with so many agents as processes and so many seconds of rest."""
        count = len(self.names)
        observer = Observer(Api(Access(self.server.kubeconfig), "bench"))
        following = asyncio.ensure_future(observer.follow())
        good = [name for name in self.names if int(name.rpartition("-")[2]) % 100 != 7]
        try:
            if full:
                await self.calibrate(observer, min(full, count))
            self.server.apply(module_set("warm", [{"name": "dummy"}]))
            began = time.monotonic()
            self.start_coordinator()
            show(
                "from nothing, the coordinator started",
                await observer.times(self.names, began, ready("warm"), 600),
                count,
            )

            began = time.monotonic()
            self.server.apply(module_set("base", [{"name": "loop"}]))
            show("a set for every node", await observer.times(self.names, began, ready("base"), 300), count)
            wide = {"maxUnavailable": max(count // 10, 1), "stopAfterFailures": 0}
            began = time.monotonic()
            changed = module_set("base", [{"name": "loop", "parameters": {"max_loop": "8"}}], rollout=wide)
            self.server.apply(changed)
            times = await observer.times(self.names, began, ready("base", max_loop="8"), 300)
            show(f"reload, {wide['maxUnavailable']} nodes at a time", times, count)

            began = time.monotonic()
            self.server.apply(module_set("base", [{"name": "loop", "parameters": {"max_loop": BAD}}], rollout=wide))
            times = await observer.times(good, began, ready("base", max_loop=BAD), 300)
            show("reload that fails on 1 % of the nodes", times, len(good))
            status = self.server.need("GET", f"{GROUP}/modulesets/base")["status"]
            print(f"    the set's status: {status['ready']} ready, {status['failed']} failed, {status['topReasons']}")

            sent = await asyncio.to_thread(self.requests)
            self.server.kill("kube-apiserver")
            await asyncio.sleep(OUTAGE)
            await asyncio.to_thread(self.server.start_server)
            began = time.monotonic()
            await asyncio.to_thread(self.server.apply, module_set("after", [{"name": "nbd"}]))
            times = await observer.times(self.names, began, ready("after"), 300)
            show(f"a set right after {OUTAGE:.0f} s without API server", times, count)
            await asyncio.sleep(max(began + 60 - time.monotonic(), 0))
            sent = await asyncio.to_thread(self.requests) - sent
            print(f"    requests of the agents in the outage and the minute after: {sent / count:.1f} for each node")

            await self.churn(observer)

            if rest:
                await asyncio.sleep(15)
                before = await asyncio.to_thread(self.requests)
                await asyncio.sleep(rest)
                sent = await asyncio.to_thread(self.requests) - before
                hourly = sent / count / rest * HOUR
                short = "" if rest >= WATCH else f"; {WATCH:.0f} s have each watch end once"
                print(f"  requests of an agent at rest: {hourly:.1f} an hour (measured for {rest:.0f} s{short})")
            self.costs()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def churn(self, observer: Observer) -> None:
        """Pods come, on nodes at random, and go."""
        demand = {"podSelector": {"uses": "zram"}, "unloadAfterSeconds": 0}
        self.server.apply(module_set("zram", [{"name": "zram"}], mode="OnDemand", demand=demand))
        idle = lambda found: any(each.name == "zram" for each in found.spec.sets)  # noqa: E731 - as `ready` makes them
        await observer.times(self.names, time.monotonic(), idle, 120)
        pods = int(CHURN_SECONDS * CHURN_RATE)
        waits = []

        async def one(number: int, name: str) -> None:
            path = "/api/v1/namespaces/default/pods"
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"pod-{number}", "labels": {"uses": "zram"}},
                "spec": {"nodeName": name, "containers": [{"name": "main", "image": "none"}]},
            }
            began = time.monotonic()
            await asyncio.to_thread(self.server.need, "POST", path, pod)
            waits.extend(await observer.times([name], began, ready("zram"), 120))
            await asyncio.to_thread(self.server.need, "DELETE", f"{path}/pod-{number}?gracePeriodSeconds=0")

        tasks = []
        for number in range(pods):
            tasks.append(asyncio.ensure_future(one(number, random.choice(self.names))))  # noqa: S311 - no secret
            await asyncio.sleep(1 / CHURN_RATE)
        await asyncio.gather(*tasks)
        show(f"modules of pods, {CHURN_RATE:.0f} pods a second", sorted(waits), pods)

    def costs(self) -> None:
        """Memory and processor time of each program."""
        for name, pid in {**self.server.pids, **{name: child.pid for name, child in self.children.items()}}.items():
            resident, seconds = usage(pid)
            agents = -(-len(self.names) // self.processes) if name.startswith("agents") else 1
            text = f" ({resident / agents:.1f} MiB, {seconds / agents:.2f} s for each agent)" if agents > 1 else ""
            print(f"  {name:<24} {resident:7.0f} MiB  {seconds:7.1f} s processor{text}")


def main() -> int:
    """The exit code."""
    if sys.argv[1:2] == ["--agents"]:
        with suppress(KeyboardInterrupt):
            asyncio.run(agents(Path(sys.argv[2]), sys.argv[3:]))
        return 0
    parser = argparse.ArgumentParser(prog="bench-fleet")
    parser.add_argument("nodes", type=int, nargs="?", default=100)
    parser.add_argument(
        "--processes", type=int, default=0, help="of simulated agents (default: one for 100 nodes, at most 8)"
    )
    parser.add_argument("--full", type=int, default=20, help="agents as processes to calibrate by; 0 for none")
    parser.add_argument(
        "--rest", type=float, default=WATCH, help="seconds in which requests at rest are counted; 0 for none"
    )
    arguments = parser.parse_args()
    count = arguments.nodes
    processes = arguments.processes or max(1, min(8, count // 100))
    kubernetes.SPREAD = 1.0  # of the observer, in this process: it sees what comes after the outage when it comes
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if limit < FILES * count + 1000:
        parser.error(
            f"{count} nodes need {FILES * count + 1000} open files in the API server, and {limit} are allowed (ulimit -Hn)"
        )
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        (folder / "cluster").mkdir()
        with cluster(folder / "cluster") as server:
            bench = Bench(server, folder, count, processes)
            print(f"{count} nodes, kernel and bus simulated, {os.cpu_count()} processors for everything", flush=True)
            bench.prepare()
            try:
                bench.start_agents()
                asyncio.run(bench.run(arguments.full, arguments.rest))
            finally:
                bench.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
