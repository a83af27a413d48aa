# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each error of the table as a reason in the cluster, and an agent whose API server, kmodd or rights go away."""

import asyncio
import datetime as dt
import http.client
import io
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml

from kmodd.agent import planning
from kmodd.agent.reconciler import Clock, Reconciler
from kmodd.agent.record import StateFolder
from kmodd.errors import ERRORS
from kmodd.fleet.kubernetes import Access, Api
from kmodd.fleet.resources import NodeModules
from kmodd.journal.writer import Terminal, make_logger
from tests.cli.private_bus import private_bus
from tests.fleet.cluster import CRDS, Cluster, wait_for
from tests.fleet.running import Node, module, new_node, one_set
from tests.fleet.simulated_node import BAD, SimulatedClient, SimulatedNode
from tests.fleet.test_agent import conditions, states
from tests.gateway.processes import daemon

if TYPE_CHECKING:
    from kmodd.agent.node import Node as Kmodd
    from kmodd.client import Client

PROVOKED = {
    "NoSuchModule": module("nowhere"),
    "UnknownParameter": module("dummy", nosuch="1"),
    "BadParameter": module("kmodd_test_params", level="11"),
    "DisabledByPolicy": module("dccp"),
    "BadModule": module("kmodd_test_bad_file"),
    "BadSignature": module("kmodd_test_bad_signature"),
    "WrongKernel": module("kmodd_test_wrong_kernel"),
    "UnknownSymbol": module("kmodd_test_bad_symbol"),
    "NoDevice": module("kmodd_test_nodev"),
    "InitFailed": module("kmodd_test_fail"),
    "Builtin": module("unix", x="1"),
    "Crashed": module("kmodd_test_init_oops"),
    "NoSuchVersion": module("loop", version="9"),
    "Conflict": module("veth"),
}
# What the usual simulated kernel cannot be brought to say, or what is no failure of a module that a set wants.
ELSEWHERE = {
    "Failed": "a bug of kmodd",
    "InvalidArgs": "the specification as a whole, below",
    "InUse": "unloading, tests/fleet/test_agent.py",
    "NotRemovable": "unloading, below",
    "Unavailable": "kmodd as a whole, below",
    "AccessDenied": "tests/fleet/test_agent_kernel.py, and polkit's own in tests/system/test_fleet.py",
    "InteractiveAuthorizationRequired": "polkit, tests/system/test_fleet.py",
    "ModuleTreeMissing": "tests/fleet/test_agent_kernel.py",
    "Lockdown": "tests/fleet/test_agent_kernel.py, tests/system/test_fleet.py",
    "ModulesDisabled": "tests/fleet/test_agent_kernel.py, tests/system/test_fleet.py",
    "NotPermitted": "tests/fleet/test_agent_kernel.py",
    "TimedOut": "tests/fleet/test_agent_kernel.py",
    "Stuck": "tests/fleet/test_agent_kernel.py",
    "Busy": "tests/fleet/test_agent_kernel.py",
    "LimitsExceeded": "tests/fleet/test_agent_kernel.py",
    "NotLoaded": "parameters alone",
    "NoSuchParameter": "parameters alone",
    "ReadOnlyParameter": "parameters alone",
    "NoSuchEndpoint": "the notifier",
    "NoSuchResponse": "responses",
    "Shadows": "the store's import",
}


def test_every_error_is_provoked_or_has_its_place() -> None:
    assert set(PROVOKED) | set(ELSEWHERE) == {error.name() for error in ERRORS.values()}
    assert not set(PROVOKED) & set(ELSEWHERE)


def test_each_error_of_the_table_is_a_reason(node: Node) -> None:
    """All of them on one node, each in a set of its own, so that none stands in another's way."""
    sets = [one_set(reason.lower(), row) for reason, row in PROVOKED.items() if reason != "Conflict"]
    sets += [one_set("conflict", module("veth", a="1")), one_set("conflict2", module("veth", a="2"))]
    generation = node.want(*sets)
    with node.agent():
        found = node.settled(generation, 60)
        seen = {row.name: row for row in found.status.modules}
        for reason, row in PROVOKED.items():
            status = seen[row["name"]]
            assert (str(status.state), status.reason) == ("Failed", reason), status
            assert status.message, reason
            assert not status.message.endswith("."), status.message
        assert any("flux capacitor" in line for line in seen["kmodd_test_fail"].kernel_log)
        assert seen["nowhere"].hint
        assert {str(row.state) for row in found.status.sets} == {"Failed"}
        assert conditions(found)["Ready"][0] == "False"
        assert conditions(found)["Loadable"][0] == "False"
        # What was refused for good is not tried again; what may pass is said when.
        assert not seen["kmodd_test_bad_symbol"].next_try
        assert seen["kmodd_test_fail"].next_try


def test_what_cannot_be_unloaded_is_said_to_be_so(node: Node) -> None:
    node.want(one_set("a", "kmodd_test_permanent"))
    with node.agent():
        node.reaches("kmodd_test_permanent", "Ready")
        node.want()
        node.reaches("kmodd_test_permanent", "Failed", "NotRemovable")
        assert conditions(node.read())["Ready"] == ("False", "NotRemovable")


def test_an_operation_of_others_is_waited_for(node: Node) -> None:
    """kmodd serialises; the agent's call waits its turn, and what others loaded is theirs."""
    node.want(one_set("a", module("kmodd_test_slow", ms="800")))
    with node.agent():
        node.reaches("kmodd_test_slow", "Ready")
        node.unload("kmodd_test_slow")
        node.until_loaded("kmodd_test_slow")


def test_an_agent_without_kmodd_says_so_and_goes_on_when_it_is_back(
    kubernetes: Cluster, bus: str, tmp_path: Path
) -> None:
    node = new_node(kubernetes, bus, tmp_path)
    node.want(one_set("a", "loop"))
    with node.agent():
        found = node.wait(lambda seen: conditions(seen).get("KmoddReachable") == ("False", "Unavailable"))
        assert conditions(found)["Ready"] == ("Unknown", "Unavailable")
        with daemon(bus) as process:
            node.reaches("loop", "Ready")
            process.kill()
            process.wait()
            found = node.wait(lambda seen: conditions(seen)["KmoddReachable"] == ("False", "Unavailable"))
            assert states(found) == {"loop": ("Ready", "")}  # what was last known
        # Its simulated kernel is a new one too.
        with daemon(bus):
            node.wait(lambda seen: conditions(seen)["KmoddReachable"][0] == "True")
            node.until_loaded("loop")


def test_a_kmodd_that_was_stopped_is_not_started(kubernetes: Cluster, bus: str, tmp_path: Path) -> None:
    """Who stopped it meant to: the bus would start it for any call."""
    node = new_node(kubernetes, bus, tmp_path)
    node.want(one_set("a", "loop"))
    with daemon(bus) as process, node.agent():
        node.reaches("loop", "Ready")
        started = tmp_path / "started"
        (tmp_path / "services" / "org.kmodd1.service").write_text(
            f"[D-BUS Service]\nName=org.kmodd1\nExec=/usr/bin/touch {started}\n"
        )
        process.terminate()
        process.wait()
        node.wait(lambda seen: conditions(seen)["KmoddReachable"] == ("False", "Unavailable"))
        node.want(one_set("a", "loop", "dummy"))
        time.sleep(1)
        assert not started.exists()


def test_the_agent_ends_with_the_bus(kubernetes: Cluster, tmp_path: Path) -> None:
    with private_bus(tmp_path) as address:
        node = new_node(kubernetes, address, tmp_path)
        with daemon(address):
            pid = bus_pid(address)
            with node.agent(ends=(1,)) as process:
                os.kill(pid, signal.SIGTERM)
                assert process.wait(10) == 1
                assert "connection to the bus was lost" in node.log.read_text()


def bus_pid(address: str) -> int:
    """Of the bus that serves this address."""
    folder = address.partition("unix:path=")[2].rpartition("/")[0]
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if command[0] == "dbus-daemon" and f"--config-file={folder}/bus.conf" in command:
            return int(entry.name)
    raise AssertionError(address)


def test_a_busy_agent_is_stopped_and_another_goes_on(node: Node) -> None:
    """SIGSTOP for a while: events were missed, and the present is what counts."""
    node.want(one_set("a", "loop"))
    with node.agent() as process:
        node.reaches("loop", "Ready")
        process.send_signal(signal.SIGSTOP)
        node.unload("loop")
        generation = node.want(one_set("a", "loop", "dummy"))
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        node.settled(generation)
        node.until_loaded("loop", "dummy")


def test_an_outage_of_the_api_unloads_nothing_and_loads_go_on(
    own_kubernetes: Cluster, bus: str, tmp_path: Path
) -> None:
    """API server and etcd killed, kmodd restarted as by a reboot, the agent too: the last specification is enough."""
    node = new_node(own_kubernetes, bus, tmp_path)
    node.want(one_set("a", module("loop", max_loop="4")), one_set("b", "vfat"))
    with daemon(bus):
        with node.agent():
            node.reaches("vfat", "Ready")
            own_kubernetes.kill("kube-apiserver")
            own_kubernetes.kill("etcd")
            node.unload("vfat")
            node.until_loaded("vfat")
        assert {"loop", "vfat"} <= node.loaded()
    node.boot_id.write_text("77777777-2222-3333-4444-555555555555\n")
    with daemon(bus), node.agent():
        node.until_loaded("loop", "vfat")
        time.sleep(1)
        own_kubernetes.start_etcd()
        own_kubernetes.start_server()
        wait_for(lambda: served(own_kubernetes), 30)
        generation = node.want(one_set("b", "vfat"))
        found = node.settled(generation, 60)
        assert found.status.boot_id.startswith("77777777")
        node.until_gone("loop")
        # A server that hangs, with its connections open, holds nothing up either.
        own_kubernetes.pause("kube-apiserver")
        node.unload("vfat")
        node.until_loaded("vfat")
        own_kubernetes.resume("kube-apiserver")
        # And a server that lets everything pass is not relied upon.
        take_everything(own_kubernetes)
        node.want(one_set("b", "../vfat"))
        wait_for(lambda: ready(node)["reason"] == "InvalidArgs", 60)
        assert "spec.sets[0].modules[0].name" in ready(node)["message"]
        assert "vfat" in node.loaded()
        node.want(one_set("b", "dummy"))
        node.until_gone("vfat")
        node.until_loaded("dummy")


async def test_a_clock_that_jumps_changes_dates_and_nothing_else(
    kubernetes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decades back and ahead: what is due is due by the monotonic clock. The agent is whole, its kernel simulated in this process."""
    monkeypatch.setattr(planning, "FIRST_WAIT", 0.3)
    node, now = new_node(kubernetes, "", tmp_path), [dt.datetime(2026, 1, 2, tzinfo=dt.UTC)]
    clock = Clock(time.monotonic, lambda: now[0], random.random)
    api = Api(Access(node.kubeconfig), "kmodd-agent")
    node.state.mkdir()
    reconciler = Reconciler(
        node.name,
        api,
        cast("Client", SimulatedClient()),
        cast("Kmodd", SimulatedNode(bad=True)),
        StateFolder(node.state),
        "boot",
        clock,
        make_logger(Terminal(io.StringIO())),
    )

    async def wait(condition: Callable[[NodeModules], bool]) -> NodeModules:
        return await asyncio.to_thread(node.wait, condition)

    await asyncio.to_thread(node.want, one_set("a", module("loop", max_loop=BAD)))
    work = asyncio.ensure_future(reconciler.run())
    try:
        tries = 0
        for year in (2026, 1999, 2099):
            now[0] = dt.datetime(year, 1, 2, tzinfo=dt.UTC)
            found = await wait(lambda found: any(row.attempts > tries for row in found.status.modules))  # noqa: B023 - waited for here
            tries = found.status.modules[0].attempts
            assert found.status.modules[0].reason == "InitFailed"
        await asyncio.to_thread(node.want, one_set("a", "loop"))
        found = await wait(lambda found: conditions(found).get("Ready", ("",))[0] == "True")
        assert found.status.last_contact.startswith("2099-01-02")
        times = {row.type: row.last_transition_time[:4] for row in found.status.conditions}
        assert times["Ready"] == "2099", times
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await api.close()


def ready(node: Node) -> Any:
    """The condition, of an object that our own parser refuses."""
    return next(row for row in node.raw()["status"]["conditions"] if row["type"] == "Ready")


def served(cluster: Cluster) -> bool:
    """The group answers again."""
    status, _ = cluster.request("GET", "/apis/kmodd.org/v1alpha1/nodemodules")
    return status == http.client.OK


def take_everything(cluster: Cluster) -> None:
    """Replace the schema by one that allows all."""
    definition = next(
        row for row in yaml.safe_load_all(CRDS.read_text()) if row["spec"]["names"]["kind"] == "NodeModules"
    )
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    cluster.apply(definition)
    bad = {
        "apiVersion": "kmodd.org/v1alpha1",
        "kind": "NodeModules",
        "metadata": {"name": "probe"},
        "spec": {"sets": [one_set("b", "../x")]},
    }
    path = "/apis/kmodd.org/v1alpha1/nodemodules?dryRun=All"
    wait_for(lambda: cluster.request("POST", path, bad)[0] == http.client.CREATED)


def test_the_agent_may_write_its_status_and_nothing_else(kubernetes: Cluster, node: Node) -> None:
    """As the service account that deploy/ gives it."""
    node.want(one_set("a", "loop"))
    user = "system:serviceaccount:kmodd-system:kmodd-agent"
    ours = f"/apis/kmodd.org/v1alpha1/nodemodules/{node.name}"
    merge = "application/merge-patch+json"
    assert kubernetes.request("GET", ours, user=user)[0] == http.client.OK
    assert kubernetes.request("PATCH", f"{ours}/status", {"status": {}}, content=merge, user=user)[0] == http.client.OK
    for method, path, body in (
        ("PATCH", ours, {"spec": {"sets": []}}),
        ("DELETE", ours, None),
        ("GET", "/apis/kmodd.org/v1alpha1/modulesets", None),
        ("GET", "/api/v1/pods", None),
        ("GET", "/api/v1/nodes", None),
        ("GET", "/api/v1/namespaces/kmodd-system/secrets", None),
        ("GET", "/apis/coordination.k8s.io/v1/leases", None),
    ):
        status, _ = kubernetes.request(method, path, body, content=merge, user=user)
        assert status == http.client.FORBIDDEN, (method, path, status)


@pytest.mark.parametrize("arguments", [("--kubeconfig", "/nonexistent"), ("--boot-id", "/nonexistent")])
def test_a_bad_configuration_ends_the_agent_for_good(node: Node, arguments: tuple[str, str]) -> None:
    """EX_CONFIG, which the unit does not restart."""
    with node.agent(*arguments, ends=(78,)) as process:
        process.wait(10)
    assert "kmodd-agent ends: " in node.log.read_text()
