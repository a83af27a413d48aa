# SPDX-License-Identifier: LGPL-2.1-or-later
"""Agent and coordinator are killed at each write to the API server and each call that changes a module: before it arrives, and when it
is done and they do not know that yet. Whoever follows them ends where a run ends that nothing disturbs, and nothing is done twice.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

from tests.fleet.bus_proxy import BusProxy
from tests.fleet.cluster import Cluster, wait_for
from tests.fleet.coordinating import GROUP, LEASE, Fleet, Program, agents
from tests.fleet.proxy import Proxy
from tests.fleet.running import Node, module, one_set

if TYPE_CHECKING:
    import subprocess

WRITES = ("POST ", "PUT ", "PATCH ", "DELETE ")
CUTS = ("cut_before", "cut_after")
CALLS = ("Load", "Unload", "Reload", "Hold")
SETS: tuple[list[Any], ...] = (
    [one_set("base", module("loop", max_loop="8"), "vfat"), one_set("other", "dummy")],
    [one_set("base", module("loop", max_loop="16")), one_set("disk", "tun", mode="OnDemand", demanded=True)],
)
"""From one to the other: a reload, a load, an unload with a dependency. Pods need `tun`; `dummy` is another client's."""


class Cut:
    """Ends a connection, once: at the request of this number, of those that count."""

    def __init__(self, proxy: Proxy | BusProxy, where: str, number: int, on_cut: Callable[[], None]) -> None:
        self.done = False
        self._left = number
        self._on_cut = on_cut
        setattr(proxy, where, self._counts)
        proxy.on_cut = self._now

    def _counts(self, request: str) -> bool:
        if request in CALLS or (request.startswith(WRITES) and "/leases" not in request):
            self._left -= 1
            return self._left == 0
        return False

    def end(self, proxy: Proxy | BusProxy) -> None:
        """Cut no more."""
        proxy.cut_before = proxy.cut_after = lambda _: False

    def _now(self) -> None:
        self.done = True
        self._on_cut()


def kill(started: "Queue[subprocess.Popen[Any]]") -> None:
    """End the program, which may be about to be put there."""
    started.get(timeout=10).kill()


# --- the agent -------------------------------------------------------------------------------------------------------

Outcome = tuple[set[str], Counter[tuple[str, str]]]
"""What is loaded, and what was done for it."""


def deeds(node: Node, since: int) -> Counter[tuple[str, str]]:
    """What kmodd did since, by event and module."""
    rows = node.call(lambda client: client.history(since=since, limit=1000))
    return Counter((row.record.event, str(row.record.module)) for row in rows if row.record.event.startswith("module."))


def settled(node: Node, generation: int) -> bool:
    """The agent has reported that everything is as this generation says, and nothing is left of the one before."""
    found = node.read()
    wanted = {row.name for each in found.spec.sets for row in each.modules}
    ready = {row.name for row in found.status.modules if row.state == "Ready"}
    return found.status.observed_generation == generation and wanted == ready == {
        row.name for row in found.status.modules
    }


def test_an_agent_killed_at_any_step_is_followed_by_one_that_does_the_rest(
    kubernetes: Cluster, node: Node, tmp_path: Path
) -> None:
    with Proxy(kubernetes).running() as api, BusProxy(node.address, tmp_path).running() as bus:
        token = node.folder / "token"
        node.kubeconfig = kubernetes.write_kubeconfig(f"{node.name}-proxy.conf", token_file=token, port=api.port)
        node.load("dummy")
        direct, rounds = node.address, count()

        def follow(proxy: Proxy | BusProxy, where: str, number: int) -> tuple[int, bool, Outcome]:
            """The next specification; the agent is killed at that request, if it gets so far (0: at none)."""
            turn = next(rounds)
            since = time.time_ns() // 1000
            generation = node.want(*SETS[turn % 2])
            node.address = bus.address
            started: Queue[subprocess.Popen[str]] = Queue()
            cut = Cut(proxy, where, number, partial(kill, started))
            with node.agent(ends=(0, -9)) as process:
                started.put(process)
                wait_for(lambda: process.poll() is not None or settled(node, generation), 30)
            cut.end(proxy)
            node.address = direct
            if cut.done:
                assert process.returncode == -9
                with node.agent():
                    wait_for(lambda: settled(node, generation), 30)
            return turn, cut.done, (node.loaded(), deeds(node, since))

        undisturbed = [follow(bus, "cut_before", 0)[2] for _ in range(3)][1:]
        kills = Counter[tuple[str, str]]()
        for proxy in (bus, api):
            for where in CUTS:
                for number in count(1):
                    there_and_back = [follow(proxy, where, number) for _ in SETS]
                    for turn, killed, outcome in there_and_back:
                        assert outcome == undisturbed[(turn - 1) % 2], (type(proxy).__name__, where, number)
                        kills[type(proxy).__name__, where] += killed
                    if not any(killed for _, killed, _ in there_and_back):
                        break
        # Unload, unload, reload, load, hold; unload, reload, load. A status is written when all is done, if not before.
        assert all(kills["BusProxy", where] >= 8 and kills["Proxy", where] >= 2 for where in CUTS), kills


# --- the coordinator -------------------------------------------------------------------------------------------------

NODES = ("w0", "w1")
REST = 1.0
"""Seconds in which nothing changes any more."""


def end_state(fleet: Fleet) -> Any:
    """What a cluster's users see, without times and versions."""
    status = fleet.status("base")
    nodes = {}
    for name in NODES:
        condition = fleet.condition(name) or {}
        found = fleet.modules(name) or {}
        nodes[name] = (
            found.get("spec"),
            fleet.label(name, "base"),
            [condition.get(key) for key in ("status", "reason", "message")],
        )
    keys = ("type", "status", "reason", "message")
    conditions = [[row.get(key) for key in keys] for row in status.pop("conditions", [])]
    return nodes, status, conditions


STEPS: tuple[dict[str, Any], ...] = (
    {"modules": [{"name": "loop"}]},
    {"modules": [{"name": "loop", "parameters": {"max_loop": "8"}}]},
    {"modules": [{"name": "loop", "parameters": {"max_loop": "8"}}], "nodeSelector": {"zone": "a"}},
)
"""Of a set: it is given to all nodes, rolled out one by one, and taken from one of them."""


def behind(fleet: Fleet) -> int:
    """Nodes whose agent has not reported about its specification yet; read against the order of a rollout."""
    rows = [row for name in reversed(NODES) if (row := fleet.modules(name)) is not None]
    return sum(row.get("status", {}).get("observedGeneration") != row["metadata"]["generation"] for row in rows)


def rests(fleet: Fleet, program: Program, expected: Any, most: int) -> bool:
    """True once the set is ready (and all is as expected, if anything is) and nothing changes any more; False where the program ends.
    At no time are more nodes behind."""
    since, last = time.monotonic(), None
    deadline = since + 60
    while program.process.poll() is None:
        assert behind(fleet) <= most
        found, now = fleet.get(f"{GROUP}/modulesets/base"), end_state(fleet)
        done = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        done = done and fleet.set_condition("base").get("status") == "True" and behind(fleet) == 0
        if now != last or not done or expected not in (None, now):
            since, last = time.monotonic(), now
        # What is expected of the other runs has to be the end: a status is written once a second at most.
        if time.monotonic() - since > (4 * REST if expected is None else REST):
            return True
        assert time.monotonic() < deadline, (now, expected)
        time.sleep(0.25)
    return False


def lose(proxy: Proxy) -> list[str]:
    """Of each write the server does not get the first, and the program not the answer to the second; the writes that were lost."""
    lost: list[str] = []

    def cut(request: str, times: int) -> bool:
        if request.startswith(WRITES) and "/leases" not in request and lost.count(request) == times:
            lost.append(request)
            return True
        return False

    proxy.cut_before, proxy.cut_after = lambda request: cut(request, 0), lambda request: cut(request, 1)
    proxy.on_cut = lambda: None
    return lost


def test_a_coordinator_killed_at_each_write_is_followed_by_one_that_does_the_rest(
    kubernetes: Cluster, fleet: Fleet
) -> None:
    expected: list[Any] = []
    with Proxy(kubernetes).running() as proxy:
        token = fleet.folder / "coordinator.token"
        through = kubernetes.write_kubeconfig(f"{fleet.folder.name}-proxy.conf", token_file=token, port=proxy.port)

        def follow(step: int, *, disturbed: bool) -> int:
            """Start coordinators until one has nothing left to do; how many were killed before."""
            kills = 0
            while True:
                started: Queue[subprocess.Popen[bytes]] = Queue()
                if disturbed:
                    Cut(proxy, "cut_after", 1, partial(kill, started))
                program = fleet.start(kubeconfig=through)
                started.put(program.process)
                done = rests(fleet, program, expected[step] if expected[step:] else None, 1 if step else len(NODES))
                program.process.kill()
                program.process.wait()
                fleet.server.request("DELETE", LEASE)  # the next one is not to wait for its end
                if done:
                    proxy.cut_before = proxy.cut_after = lambda _: False
                    return kills
                kills += 1

        for way in ("undisturbed", "killed", "lost"):
            for name, zone in zip(NODES, "ab", strict=True):
                fleet.node(name, zone=zone)
            with agents(fleet, *NODES):
                for step, spec in enumerate(STEPS):
                    fleet.apply_set("base", *spec["modules"], nodeSelector=spec.get("nodeSelector", {}))
                    lost = lose(proxy) if way == "lost" else []
                    kills = follow(step, disturbed=way == "killed")
                    assert kills >= (2 if way == "killed" else 0)
                    assert len(lost) >= (6 if way == "lost" else 0)
                    if way == "undisturbed":
                        expected.append(end_state(fleet))
            fleet.clear()
