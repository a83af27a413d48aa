# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that end or hang while something is under way: the next look finds where everything is, and goes on from there.

An agent that is killed while it loads, outages of the API server and a coordinator that hangs: test_agent.py, test_agent_failures.py and
test_coordinator.py. Agent and coordinator killed at each of their writes and calls: test_kills_at_writes.py.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fleet.cluster import Cluster, wait_for
from tests.fleet.coordinating import LEASE, Fleet, agents
from tests.fleet.running import module, new_node, one_set
from tests.gateway.processes import daemon

if TYPE_CHECKING:
    import subprocess

AWAY = 0.7
"""Seconds, less than a load takes."""


@contextmanager
def stopped(process: "subprocess.Popen[str]") -> Iterator[None]:
    """SIGSTOP for a moment."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextmanager
def paused(cluster: Cluster, name: str) -> Iterator[None]:
    """The same of a server."""
    cluster.pause(name)
    try:
        yield
    finally:
        cluster.resume(name)


def test_what_hangs_or_ends_in_the_middle_of_a_load_or_reload(kubernetes: Cluster, bus: str, tmp_path: Path) -> None:
    """Each time a load or a reload of the module is under way. kmodd's simulated kernel ends with it, as a real one does not."""
    node = new_node(kubernetes, bus, tmp_path)
    with ExitStack() as stack:
        kmodd = stack.enter_context(daemon(bus))
        agent = stack.enter_context(node.agent())
        times = iter(range(1000, 1100))

        def under_way() -> str:
            value = str(next(times))
            node.want(one_set("slow", module("kmodd_test_slow", ms=value)))
            node.wait(lambda found: any("about to be" in row.message for row in found.status.modules))
            return value

        def as_specified(value: str) -> None:
            node.wait(lambda found: [dict(row.parameters) for row in found.status.modules] == [{"ms": value}], 40)
            assert node.reaches("kmodd_test_slow", "Ready", seconds=40).owned_by_agent

        hangs: tuple[Callable[[], AbstractContextManager[None]], ...] = (
            lambda: stopped(kmodd),
            lambda: stopped(agent),
            lambda: paused(kubernetes, "etcd"),
            lambda: paused(kubernetes, "kube-apiserver"),
        )
        for hang in hangs:
            value = under_way()
            with hang():
                time.sleep(AWAY)
            as_specified(value)
        value = under_way()
        kmodd.kill()
        kmodd.wait()
        stack.enter_context(daemon(bus))
        as_specified(value)
        node.want()
        node.until_gone("kmodd_test_slow")


def test_a_coordinator_that_is_killed_in_a_rollout_is_followed_by_one_that_keeps_its_bounds(fleet: Fleet) -> None:
    """One node at a time, whoever decides. The lease is deleted, for the next one not to wait for its end."""
    nodes = [f"k{number}" for number in range(4)]
    for name in nodes:
        fleet.node(name)

    def updated() -> int:
        rows = [fleet.entry(name, "base")["modules"][0].get("parameters") for name in nodes]
        return rows.count({"max_loop": "8"})

    def behind() -> int:
        rows = [fleet.modules(name) for name in nodes]
        return sum(row["status"].get("observedGeneration") != row["metadata"]["generation"] for row in rows)

    fleet.apply_set("base", {"name": "loop"})
    program = fleet.start()
    with agents(fleet, *nodes):
        wait_for(lambda: fleet.status("base").get("ready") == len(nodes), 30)
    # No agent reports: the first node is changed, and the coordinator ends.
    fleet.apply_set("base", {"name": "loop", "parameters": {"max_loop": "8"}})
    wait_for(lambda: updated() == 1)
    program.process.kill()
    program.process.wait()
    fleet.delete(LEASE)
    following = fleet.start("two")
    wait_for(lambda: following.leading, 30)
    wait_for(lambda: following.metric('kmodd_fleet_nodes{set="base",standing="moving"}') == 1)
    assert (updated(), behind()) == (1, 1)
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, behind())
        return updated() == len(nodes) and fleet.set_condition("base").get("status") == "True"

    with agents(fleet, *nodes):
        wait_for(done, 30)
    assert most == 1
