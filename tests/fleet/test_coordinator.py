# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd-coordinator as a process, on a real API server. Agents are threads here that write a status, as the real ones do."""

import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.fleet.cluster import wait_for
from tests.fleet.coordinating import ACCOUNT, GROUP, LEASE, MERGE, Fleet, agents


@pytest.fixture(autouse=True)
def _without_errors(fleet: Fleet, tmp_path: Path) -> Iterator[None]:
    yield
    fleet.stop()
    for log in tmp_path.glob("*.log"):
        print(log.read_text())  # shown where the test failed
        assert "Traceback" not in log.read_text(), log.read_text()
        assert "daemon.bug" not in log.read_text(), log.read_text()


LOOP = {"name": "loop"}


def _equal(read: Callable[[], object], expected: object) -> bool:
    return read() == expected


def test_a_set_goes_to_the_nodes_it_selects_and_its_status_says_so(fleet: Fleet) -> None:
    for name in ("a", "b", "c"):
        fleet.node(name, zone="1" if name != "c" else "2")
    fleet.apply_set("base", LOOP, nodeSelector={"zone": "1"})
    fleet.start()
    wait_for(lambda: fleet.entry("a", "base") and fleet.entry("b", "base"), 30)
    assert fleet.modules("c") is None
    found = fleet.modules("a")
    uid = fleet.get("/api/v1/nodes/a")["metadata"]["uid"]
    assert found["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": uid}]
    assert found["spec"]["sets"][0]["modules"] == [{"name": "loop", "required": True}]
    wait_for(lambda: fleet.status("base").get("nodes") == 2)
    assert fleet.label("a", "base") == "unavailable"
    fleet.report("a")
    fleet.report("b", "Failed", "NoSuchModule", "module loop does not exist")
    wait_for(lambda: fleet.label("a", "base") == "ready" and fleet.label("c", "base") is None)
    wait_for(lambda: fleet.status("base").get("failed") == 1)
    status = fleet.status("base")
    assert (status["ready"], status["updated"], status["blocked"]) == (1, 2, 0)
    assert status["topReasons"] == [
        {"reason": "NoSuchModule", "nodes": 1, "example": "b", "message": "module loop does not exist"}
    ]
    assert fleet.set_condition("base")["message"] == (
        "1 of 2 nodes ready; NoSuchModule on 1 node, such as b: module loop does not exist"
    )
    wait_for(lambda: fleet.condition("a") and fleet.condition("a")["status"] == "True")
    wait_for(lambda: fleet.condition("b") and fleet.condition("b")["reason"] == "NoSuchModule")
    assert fleet.condition("c") is None
    wait_for(lambda: [row["reason"] for row in fleet.events("b")] == ["NoSuchModule"])
    assert fleet.events("b")[0]["type"] == "Warning"
    fleet.report("b")
    wait_for(lambda: fleet.set_condition("base").get("status") == "True")
    assert "topReasons" not in fleet.status("base") or fleet.status("base")["topReasons"] == []
    # The node leaves the selector: entry, label and condition go.
    fleet.server.need("PATCH", "/api/v1/nodes/a", {"metadata": {"labels": {"zone": "2"}}}, content=MERGE)
    wait_for(lambda: fleet.entry("a", "base") is None and fleet.label("a", "base") is None)
    wait_for(lambda: fleet.condition("a") is None)


def test_kubectl_reads_like_a_sentence(fleet: Fleet) -> None:
    kubectl = Path(sys.executable).with_name("kubectl")
    fleet.node("a")
    fleet.apply_set("base", LOOP)
    fleet.start()
    wait_for(lambda: fleet.entry("a", "base"), 30)
    fleet.report("a", "Blocked", "InUse", "module loop is in use by mount /mnt")
    wait_for(lambda: fleet.status("base").get("blocked") == 1)
    shown = subprocess.run(
        [kubectl, "--kubeconfig", fleet.server.kubeconfig, "get", "modulesets"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shown[0].split() == ["NAME", "WANTED", "MODULES", "NODES", "READY", "FAILED", "BLOCKED", "BECAUSE", "AGE"]
    assert shown[1].split()[:8] == ["base", "Always", "loop", "1", "0", "0", "1", "InUse"]
    waited = subprocess.run(
        [
            kubectl,
            "--kubeconfig",
            fleet.server.kubeconfig,
            "wait",
            "moduleset/base",
            "--for=condition=Ready",
            "--timeout=1s",
        ],
        capture_output=True,
        text=True,
    )
    assert waited.returncode != 0
    fleet.report("a")
    subprocess.run(
        [
            kubectl,
            "--kubeconfig",
            fleet.server.kubeconfig,
            "wait",
            "moduleset/base",
            "--for=condition=Ready",
            "--timeout=10s",
        ],
        check=True,
    )


def test_pods_bring_the_modules_of_their_node_and_take_them_away(fleet: Fleet) -> None:
    fleet.node("a")
    fleet.node("b")
    demand = {"podSelector": {"uses": "nbd"}, "unloadAfterSeconds": 5}
    fleet.apply_set("nbd", {"name": "nbd"}, mode="OnDemand", demand=demand)
    fleet.pod("other", "a", uses="other")
    fleet.start()
    with agents(fleet, "a", "b"):
        wait_for(lambda: fleet.label("a", "nbd") == "loadable" and fleet.label("b", "nbd") == "loadable", 30)
        fleet.pod("one", "a", uses="nbd")
        fleet.pod("two", "a", uses="nbd")
        wait_for(lambda: fleet.label("a", "nbd") == "ready")
        assert fleet.entry("a", "nbd")["demanded"] is True
        assert fleet.entry("a", "nbd")["unloadAfterSeconds"] == 5
        assert fleet.entry("b", "nbd")["demanded"] is False
        fleet.delete("/api/v1/namespaces/default/pods/one")
        time.sleep(1)
        assert fleet.entry("a", "nbd")["demanded"] is True
        done = {"status": {"phase": "Succeeded"}}
        path = "/api/v1/namespaces/default/pods/two/status"
        fleet.server.need("PATCH", path, done, content=MERGE)
        wait_for(lambda: fleet.entry("a", "nbd")["demanded"] is False)
        wait_for(lambda: fleet.label("a", "nbd") == "loadable")


def test_a_reload_goes_over_the_nodes_two_at_a_time_and_stops_at_a_failure(fleet: Fleet) -> None:
    nodes = [f"n{number}" for number in range(6)]
    for name in nodes:
        fleet.node(name)
    fleet.apply_set("base", LOOP, rollout={"maxUnavailable": 2, "stopAfterFailures": 2})
    fleet.start()
    bad = {"n2"}
    most = 0

    def state(node: str) -> tuple[str, ...]:
        changed = (fleet.entry(node, "base") or {}).get("modules", [{}])[0].get("parameters") == {"max_loop": "8"}
        return ("Failed", "InitFailed", "module loop: init failed") if changed and node in bad else ("Ready",)

    def updated() -> list[str]:
        rows = {name: fleet.entry(name, "base")["modules"][0].get("parameters") for name in nodes}
        return [name for name, parameters in rows.items() if parameters == {"max_loop": "8"}]

    with agents(fleet, *nodes, state=state):
        wait_for(lambda: fleet.status("base").get("ready") == 6, 30)
        fleet.apply_set(
            "base",
            {"name": "loop", "parameters": {"max_loop": "8"}},
            rollout={"maxUnavailable": 2, "stopAfterFailures": 1},
        )
        deadline = time.monotonic() + 20
        while fleet.set_condition("base", "Progressing").get("reason") != "Stopped":
            assert time.monotonic() < deadline, fleet.status("base")
            rows = [fleet.modules(name) for name in nodes]
            most = max(
                most, sum(row["status"].get("observedGeneration") != row["metadata"]["generation"] for row in rows)
            )
        time.sleep(1)
        stopped = updated()
        assert "n2" in stopped
        assert len(stopped) < 6
        assert most <= 2
        assert fleet.set_condition("base", "Progressing")["message"].endswith(
            "1 node failed after the change and rollout.stopAfterFailures is 1"
        )
        wait_for(lambda: any(row["reason"] == "Stopped" and row["type"] == "Warning" for row in fleet.events("base")))
        # The node is repaired: the agent tries again and succeeds, and the rollout goes on.
        bad.clear()
        wait_for(lambda: len(updated()) == 6, 20)
        wait_for(lambda: fleet.set_condition("base", "Progressing").get("reason") == "Complete")


def test_paused_keeps_every_node_as_it_is(fleet: Fleet) -> None:
    fleet.node("a")
    fleet.apply_set("base", LOOP)
    fleet.start()
    with agents(fleet, "a"):
        wait_for(lambda: fleet.label("a", "base") == "ready", 30)
        before = fleet.modules("a")["spec"]
        fleet.apply_set("base", {"name": "dummy"}, rollout={"paused": True})
        fleet.node("b")
        wait_for(lambda: fleet.set_condition("base", "Progressing").get("reason") == "Paused")
        time.sleep(1)
        assert fleet.modules("a")["spec"] == before
        assert fleet.modules("b") is None
        fleet.apply_set("base", {"name": "dummy"}, rollout={"paused": False})
        wait_for(lambda: fleet.entry("a", "base")["modules"][0]["name"] == "dummy")
        wait_for(lambda: fleet.entry("b", "base") is not None)


def test_the_kubelets_conditions_and_others_labels_stay(fleet: Fleet) -> None:
    fleet.node("a", zone="1")
    kubelet = [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}]
    path = "/api/v1/nodes/a/status"
    fleet.server.need(
        "PATCH", path, {"status": {"conditions": kubelet}}, content="application/strategic-merge-patch+json"
    )
    fleet.apply_set("base", LOOP)
    fleet.start()
    with agents(fleet, "a"):
        wait_for(lambda: fleet.condition("a") and fleet.condition("a")["status"] == "True", 30)
        node = fleet.get("/api/v1/nodes/a")
        assert {row["type"] for row in node["status"]["conditions"]} == {"Ready", "KernelModulesReady"}
        assert node["metadata"]["labels"] == {"zone": "1", "modules.kmodd.org/base": "ready"}
        # What someone else takes away is put back.
        patch = {"metadata": {"labels": {"modules.kmodd.org/base": None}}}
        fleet.server.need("PATCH", "/api/v1/nodes/a", patch, content=MERGE)
        wait_for(lambda: fleet.label("a", "base") == "ready")
        fleet.delete(f"{GROUP}/modulesets/base")
        wait_for(lambda: fleet.modules("a")["spec"]["sets"] == [] and fleet.label("a", "base") is None)
        wait_for(lambda: fleet.condition("a") is None)
        assert {row["type"] for row in fleet.get("/api/v1/nodes/a")["status"]["conditions"]} == {"Ready"}


def test_a_reboot_is_noticed_before_the_agent_reports(fleet: Fleet) -> None:
    fleet.node("a")

    def boot(name: str) -> None:
        info = dict.fromkeys(
            ("machineID", "systemUUID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion"), "x"
        ) | dict.fromkeys(("kubeProxyVersion", "operatingSystem", "architecture"), "x")
        body = {"status": {"nodeInfo": info | {"bootID": name}}}
        fleet.server.need("PATCH", "/api/v1/nodes/a/status", body, content=MERGE)

    boot("11111111-2222-3333-4444-555555555555")
    fleet.apply_set("base", LOOP)
    fleet.start()
    wait_for(lambda: fleet.entry("a", "base"), 30)
    fleet.report("a", boot="11111111-2222-3333-4444-555555555555")
    wait_for(lambda: fleet.label("a", "base") == "ready")
    boot("66666666-2222-3333-4444-555555555555")
    wait_for(lambda: fleet.label("a", "base") == "unavailable")
    wait_for(lambda: fleet.condition("a")["status"] == "False")
    fleet.report("a", boot="66666666-2222-3333-4444-555555555555")
    wait_for(lambda: fleet.label("a", "base") == "ready" and fleet.condition("a")["status"] == "True")


def test_the_same_failure_again_is_one_event_that_counts(fleet: Fleet) -> None:
    fleet.node("a")
    fleet.apply_set("base", LOOP)
    first = fleet.start()
    wait_for(lambda: fleet.entry("a", "base"), 30)

    def counts() -> list[int]:
        return [row["count"] for row in fleet.events("a") if row["reason"] == "NoDevice"]

    for count in (1, 2):
        fleet.report("a", "Failed", "NoDevice", "module loop found no device")
        wait_for(partial(_equal, counts, [count]))
        fleet.report("a")
        wait_for(lambda: fleet.label("a", "base") == "ready")
    assert first.metric('kmodd_fleet_nodes{set="base",standing="ready"}') == 1
    # A new process reports a failure that it finds, and counts none that was reported already.
    fleet.report("a", "Failed", "NoDevice", "module loop found no device")
    wait_for(lambda: counts() == [3])
    first.process.terminate()
    assert first.process.wait(10) == 0
    second = fleet.start("two")
    wait_for(lambda: second.leading, 30)
    wait_for(lambda: second.metric('kmodd_fleet_nodes{set="base",standing="failed"}') == 1)
    time.sleep(0.5)
    assert counts() == [3]


def test_what_someone_else_writes_into_a_spec_is_put_back(fleet: Fleet) -> None:
    fleet.node("a")
    fleet.apply_set("base", LOOP)
    program = fleet.start()
    wait_for(lambda: fleet.entry("a", "base"), 30)
    foreign = {"name": "foreign", "modules": [{"name": "dummy"}]}
    for sets in ([], [foreign], [foreign, {"name": "base", "modules": [{"name": "dummy"}]}]):
        # The agent reports meanwhile: a write of a version that is not the present one is refused (409), and decided about again.
        fleet.server.need("PATCH", f"{GROUP}/nodemodules/a", {"spec": {"sets": sets}}, content=MERGE)
        for _ in range(5):
            fleet.report("a")
        wait_for(lambda: [each["name"] for each in fleet.modules("a")["spec"]["sets"]] == ["base"])
        wait_for(lambda: fleet.entry("a", "base")["modules"][0]["name"] == "loop")
        fleet.report("a")
        wait_for(lambda: fleet.label("a", "base") == "ready")
    assert program.metric('kmodd_coordinator_writes_total{result="written",what="spec"}') is not None


def test_a_set_that_cannot_be_read_leaves_nodes_as_they_are(fleet: Fleet) -> None:
    fleet.node("a", zone="1")
    fleet.apply_set("base", LOOP)
    program = fleet.start()
    with agents(fleet, "a"):
        wait_for(lambda: fleet.label("a", "base") == "ready", 30)
        # The server takes it, for its schema knows nothing of labels; no node could ever have it.
        fleet.apply_set("base", {"name": "dummy"}, nodeSelector={"zone": "not a label"})
        wait_for(lambda: fleet.set_condition("base").get("reason") == "InvalidArgs")
        assert "nodes keep what they were given" in fleet.set_condition("base")["message"]
        assert fleet.entry("a", "base")["modules"][0]["name"] == "loop"
        assert fleet.label("a", "base") == "ready"
        assert program.metric('kmodd_fleet_unreadable_objects{kind="ModuleSet"}') == 1
        fleet.apply_set("base", {"name": "dummy"}, nodeSelector={"zone": "1"})
        wait_for(lambda: fleet.entry("a", "base")["modules"][0]["name"] == "dummy", 20)
        wait_for(lambda: fleet.set_condition("base").get("status") == "True")


def test_a_node_that_comes_back_under_its_name_is_another_one(fleet: Fleet) -> None:
    fleet.node("a")
    fleet.apply_set("base", LOOP)
    fleet.start()
    with agents(fleet, "a"):
        wait_for(lambda: fleet.label("a", "base") == "ready", 30)
    first = fleet.modules("a")["metadata"]
    fleet.delete("/api/v1/nodes/a")
    fleet.node("a")
    # What the garbage collector does, which does not run here.
    fleet.delete(f"{GROUP}/nodemodules/a")
    wait_for(lambda: (fleet.modules("a") or {"metadata": first})["metadata"]["uid"] != first["uid"])
    uid = fleet.get("/api/v1/nodes/a")["metadata"]["uid"]
    assert fleet.modules("a")["metadata"]["ownerReferences"][0]["uid"] == uid
    assert fleet.label("a", "base") in (None, "unavailable")
    with agents(fleet, "a"):
        wait_for(lambda: fleet.label("a", "base") == "ready")


def test_one_replica_works_and_another_takes_over(fleet: Fleet) -> None:
    fleet.node("a")
    first = fleet.start("one")
    wait_for(lambda: first.leading, 30)
    second = fleet.start("two")
    wait_for(lambda: "waits for the lease" in second.text(), 30)
    assert fleet.get(LEASE)["spec"]["holderIdentity"].startswith("one_")
    time.sleep(3)
    assert not second.leading
    # In order: the lease is given up, and the other one need not wait for its end.
    first.process.terminate()
    began = time.monotonic()
    assert first.process.wait(10) == 0
    wait_for(lambda: second.leading, 8)
    assert time.monotonic() - began < 8
    # Not in order: after the lease's duration.
    third = fleet.start("three")
    wait_for(lambda: "waits for the lease" in third.text(), 30)
    second.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: third.leading, 30)
    fleet.apply_set("base", LOOP)
    wait_for(lambda: fleet.entry("a", "base"))
    second.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "the lease was lost" in second.text(), 20)
    assert second.metric("kmodd_coordinator_leader") == 0
    assert fleet.get(LEASE)["spec"]["holderIdentity"].startswith("three_")
    assert fleet.get(LEASE)["spec"]["leaseTransitions"] >= 2


def test_probe_and_metrics_are_served_and_nothing_else(fleet: Fleet) -> None:
    program = fleet.start()
    wait_for(lambda: program.leading, 30)
    assert program.fetch("/healthz") == (200, "ok\n")
    assert program.metric("kmodd_coordinator_leader") == 1
    with pytest.raises(urllib.error.HTTPError, match="404"):
        program.fetch("/debug")


def test_after_an_outage_of_the_api_server_work_goes_on(fleet: Fleet) -> None:
    fleet.node("a")
    fleet.apply_set("base", LOOP)
    program = fleet.start()
    with agents(fleet, "a"):
        wait_for(lambda: fleet.label("a", "base") == "ready", 30)
    fleet.server.pause("kube-apiserver")
    try:
        wait_for(lambda: "the lease was lost" in program.text(), 30)
        assert program.fetch("/healthz") == (200, "ok\n")
    finally:
        fleet.server.resume("kube-apiserver")
    with agents(fleet, "a"):
        fleet.apply_set("base", LOOP, {"name": "dummy"})
        wait_for(lambda: len(fleet.entry("a", "base")["modules"]) == 2, 60)
        # Versions that etcd has forgotten (410): a list comes first.
        fleet.server.compact()
        fleet.apply_set("more", {"name": "nbd"})
        wait_for(lambda: fleet.label("a", "more") == "ready", 30)


def test_it_may_write_what_deploy_allows_and_nothing_else(fleet: Fleet) -> None:
    fleet.node("a")
    for method, path in (
        ("GET", "/api/v1/secrets"),
        ("DELETE", f"{GROUP}/nodemodules/a"),
        ("DELETE", "/api/v1/nodes/a"),
        ("POST", f"{GROUP}/modulesets"),
        ("PATCH", f"{GROUP}/nodemodules/a/status"),
        ("GET", "/api/v1/namespaces/kmodd-system/secrets"),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/kmodd-system/leases/other"),
        ("POST", "/api/v1/namespaces/default/pods"),
    ):
        status, _ = fleet.server.request(
            method, path, {} if method in ("POST", "PUT", "PATCH") else None, user=ACCOUNT, content=MERGE
        )
        assert status == 403, (method, path, status)
