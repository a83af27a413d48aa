# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a node's specification to its status: the agent as a process, a real API server, kmodd on a simulated kernel."""

import json
import time
from pathlib import Path

import pytest

from kmodd.fleet.resources import ConditionStatus, NodeModules
from tests.fleet.running import PATH, Node, module, one_set


def conditions(found: NodeModules) -> dict[str, tuple[str, str]]:
    """(status, reason) by type."""
    return {row.type: (str(row.status), row.reason) for row in found.status.conditions}


def states(found: NodeModules) -> dict[str, tuple[str, str]]:
    """(state, reason) by module."""
    return {row.name: (str(row.state), row.reason) for row in found.status.modules}


def test_a_set_is_loaded_in_order_with_its_parameters(node: Node) -> None:
    generation = node.want(one_set("storage", module("loop", max_loop="4"), "vfat"))
    with node.agent():
        node.settled(generation)
        found = node.wait(lambda seen: dict(seen.status.modules[0].parameters) == {"max_loop": "4"})
    status = found.status
    assert [(row.name, str(row.state), row.reason, row.owned_by_agent) for row in status.modules] == [
        ("loop", "Ready", "", True),
        ("vfat", "Ready", "", True),
    ]
    assert {"loop", "fat", "vfat"} <= node.loaded()
    assert status.kernel_release == "6.1.0-simulated-amd64"
    assert status.boot_id == node.boot_id.read_text().strip()
    assert [(row.name, str(row.state)) for row in status.sets] == [("storage", "Ready")]
    assert {kind: status for kind, (status, _) in conditions(found).items()} == {
        "Ready": "True",
        "KmoddReachable": "True",
        "Drifted": "False",
        "Loadable": "True",
    }


def test_conditions_begin_unknown(node: Node) -> None:
    """A node whose first load takes long is not called anything before it was looked at."""
    node.want(one_set("slow", module("kmodd_test_slow", ms="1500")))
    with node.agent():
        first = node.wait(lambda found: bool(found.status.conditions))
        assert all(row.status is ConditionStatus.UNKNOWN for row in first.status.conditions), first
        node.reaches("kmodd_test_slow", "Pending")
        node.reaches("kmodd_test_slow", "Ready")


def test_what_left_the_specification_is_unloaded_with_what_came_with_it(node: Node) -> None:
    node.want(one_set("storage", "vfat"))
    with node.agent():
        node.until_loaded("vfat", "fat")
        generation = node.want(one_set("other", "loop"))
        node.until_gone("vfat", "fat")
        node.until_loaded("loop")
        assert set(states(node.settled(generation))) == {"loop"}


def test_what_others_loaded_is_never_unloaded(node: Node) -> None:
    node.load("loop")
    node.load("fat")
    node.want(one_set("storage", "loop", "vfat"))
    with node.agent():
        node.reaches("loop", "Ready")
        assert not node.reaches("loop", "Ready").owned_by_agent
        assert node.reaches("vfat", "Ready").owned_by_agent
        node.settled(node.want())
        node.until_gone("vfat")
        time.sleep(0.5)
        assert {"loop", "fat"} <= node.loaded()


def test_a_module_that_others_removed_and_loaded_again_is_theirs(node: Node) -> None:
    node.want(one_set("storage", "loop"))
    with node.agent() as process:
        assert node.reaches("loop", "Ready").owned_by_agent
        time.sleep(5.5)  # longer than kmodd has to show a module that was just loaded
        process.terminate()
        process.wait()
    node.unload("loop")
    node.load("loop")
    with node.agent():
        node.wait(lambda found: not found.status.modules[0].owned_by_agent)
        node.settled(node.want())
        time.sleep(0.5)
        assert "loop" in node.loaded()


def test_the_record_survives_the_agent_and_exit_unloads_nothing(node: Node) -> None:
    node.want(one_set("storage", "vfat"))
    with node.agent():
        node.until_loaded("vfat")
        node.reaches("vfat", "Ready")
    assert {"vfat", "fat"} <= node.loaded()
    node.want()
    with node.agent():
        node.until_gone("vfat", "fat")


def test_an_agent_that_was_away_does_not_begin_with_the_old_specification(node: Node) -> None:
    node.want(one_set("storage", "loop"))
    with node.agent():
        node.reaches("loop", "Ready")
    node.unload("loop")
    node.want(one_set("storage", "dummy"))
    node.cluster.pause("kube-apiserver")  # slow, and not away
    try:
        with node.agent():
            time.sleep(2)
            node.cluster.resume("kube-apiserver")
            node.reaches("dummy", "Ready")
    finally:
        node.cluster.resume("kube-apiserver")
    assert node.log.read_text().count("loop is loaded") == 1


def test_an_agent_that_was_killed_while_it_loaded_knows_the_module_for_its_own(node: Node) -> None:
    node.want(one_set("slow", module("kmodd_test_slow", ms="2000")))
    with node.agent(ends=(-9,)) as process:
        node.reaches("kmodd_test_slow", "Pending")
        process.kill()
        process.wait()
    node.until_loaded("kmodd_test_slow")
    with node.agent():
        assert node.reaches("kmodd_test_slow", "Ready").owned_by_agent
        node.want()
        node.until_gone("kmodd_test_slow")


def test_another_boot_forgets_what_was_loaded(node: Node) -> None:
    node.want(one_set("storage", "loop"))
    with node.agent():
        node.reaches("loop", "Ready")
    node.boot_id.write_text("99999999-2222-3333-4444-555555555555\n")
    with node.agent():
        found = node.wait(lambda seen: seen.status.boot_id.startswith("99999999"))
        assert not found.status.modules[0].owned_by_agent
        node.settled(node.want())
        time.sleep(0.5)
        assert "loop" in node.loaded()


def test_changed_parameters_reload_what_the_agent_loaded(node: Node) -> None:
    node.want(one_set("storage", module("loop", max_loop="4")))
    with node.agent():
        node.reaches("loop", "Ready")
        node.settled(node.want(one_set("storage", module("loop", max_loop="16"))))
        found = node.wait(lambda seen: dict(seen.status.modules[0].parameters) == {"max_loop": "16"})
        assert found.status.modules[0].owned_by_agent
        node.want()
        node.until_gone("loop")


@pytest.mark.parametrize(("policy", "state"), [("Report", "Drifted"), ("Reload", "Ready")])
def test_foreign_parameters_are_reported_or_reloaded(node: Node, policy: str, state: str) -> None:
    node.load("loop", max_loop="2")
    generation = node.want(one_set("storage", module("loop", max_loop="4"), whenForeignParameters=policy))
    with node.agent():
        found = node.settled(generation)
        assert states(found)["loop"] == (state, "Conflict" if state == "Drifted" else "")
        assert conditions(found)["Drifted"][0] == ("True" if state == "Drifted" else "False")
        wanted = "2" if policy == "Report" else "4"
        node.wait(lambda seen: dict(seen.status.modules[0].parameters) == {"max_loop": wanted})


def test_a_drift_is_noticed_and_the_module_brought_back(node: Node) -> None:
    node.want(one_set("storage", "loop"))
    with node.agent():
        node.reaches("loop", "Ready")
        time.sleep(0.5)
        node.unload("loop")
        node.until_loaded("loop")


def test_a_busy_module_is_blocked_with_its_users_and_goes_when_they_do(node: Node) -> None:
    """kmodd_test_soft is held by another module, so its release is an event."""
    node.want(one_set("net", "nf_nat"))
    with node.agent():
        node.reaches("nf_nat", "Ready")
        node.load("nft_nat")
        node.want()
        status = node.reaches("nf_nat", "Blocked", "InUse")
        assert [(user.kind, user.name) for user in status.users] == [("module", "nft_nat")]
        assert status.message
        assert status.next_try
        assert conditions(node.read())["Ready"] == ("False", "InUse")
        node.unload("nft_nat")
        node.until_gone("nf_nat")
        node.wait(lambda found: not found.status.modules)


def test_a_busy_module_is_not_tried_for_ever(node: Node) -> None:
    node.want(one_set("disk", "kmodd_test_mounted"))
    with node.agent():
        node.reaches("kmodd_test_mounted", "Ready")
        node.want()
        status = node.reaches("kmodd_test_mounted", "Blocked", "InUse")
        assert [(user.kind, user.name) for user in status.users] == [("mount", "/mnt")]
        assert status.hint
        for name in ("dummy", "veth", "tun"):
            node.load(name)
        time.sleep(1)
        assert node.reaches("kmodd_test_mounted", "Blocked", "InUse").attempts == 1
        # Wanted again, it is not blocked any more.
        node.want(one_set("disk", "kmodd_test_mounted"))
        node.reaches("kmodd_test_mounted", "Ready")


def test_a_changed_mind_is_seen_after_the_step_under_way(node: Node) -> None:
    node.want(one_set("slow", module("kmodd_test_slow", ms="1500"), "loop", "vfat"))
    with node.agent():
        node.reaches("kmodd_test_slow", "Pending")
        node.settled(node.want(one_set("slow", "dummy")))
        node.until_gone("kmodd_test_slow")
        assert "agent" not in node.loaded()
        assert not {"loop", "vfat"} & node.loaded()
        assert "loop is loaded" not in node.log.read_text()


def test_modules_on_demand_are_loadable_loaded_and_unloaded_after_the_grace_time(node: Node) -> None:
    def demand(*, now: bool) -> int:
        return node.want(one_set("nbd", "loop", mode="OnDemand", demanded=now, unloadAfterSeconds=2))

    demand(now=False)
    with node.agent():
        node.reaches("loop", "Loadable")
        assert "loop" not in node.loaded()
        assert conditions(node.read())["Ready"][0] == "True"
        demand(now=True)
        node.reaches("loop", "Ready")
        demand(now=False)
        time.sleep(1)
        assert "loop" in node.loaded()
        node.until_gone("loop")
        node.reaches("loop", "Loadable")


def test_sets_wait_for_those_they_name(node: Node) -> None:
    generation = node.want(
        one_set("base", "kmodd_test_nodev"),
        one_set("top", "loop", after=["base"]),
        one_set("alone", "dummy", after=["elsewhere"]),
    )
    with node.agent():
        found = node.settled(generation)
        assert states(found)["loop"] == ("Blocked", "")
        assert states(found)["dummy"] == ("Ready", "")
        assert "base" in found.status.modules[1].message
        node.settled(node.want(one_set("base", "veth"), one_set("top", "loop", after=["base"])))
        node.reaches("loop", "Ready")


def test_a_module_that_is_not_required_holds_nothing_up(node: Node) -> None:
    generation = node.want(one_set("net", module("kmodd_test_nodev", required=False), "loop"))
    with node.agent():
        found = node.settled(generation)
        assert states(found) == {"kmodd_test_nodev": ("Failed", "NoDevice"), "loop": ("Ready", "")}
        assert [str(row.state) for row in found.status.sets] == ["Ready"]
        assert conditions(found)["Ready"][0] == "True"
        assert conditions(found)["Loadable"] == ("False", "NoDevice")


def test_sets_that_disagree_are_a_conflict_and_nothing_is_loaded(node: Node) -> None:
    generation = node.want(one_set("a", module("loop", max_loop="4")), one_set("b", module("loop", max_loop="8")))
    with node.agent():
        found = node.settled(generation)
        assert states(found)["loop"] == ("Failed", "Conflict")
        assert "loop" not in node.loaded()
        node.want(one_set("a", module("loop", max_loop="4")))
        node.reaches("loop", "Ready")


def test_a_missing_version_of_the_store_is_said_to_be_missing(node: Node) -> None:
    generation = node.want(one_set("gpu", module("loop", version="550.1")))
    with node.agent():
        found = node.settled(generation)
        assert states(found)["loop"] == ("Failed", "NoSuchVersion")
        assert found.status.modules[0].hint
        assert "loop" not in node.loaded()


def test_what_may_not_be_tried_again_in_this_boot_is_not_tried_by_the_next_agent(node: Node) -> None:
    node.want(one_set("bad", "kmodd_test_init_oops"))
    with node.agent():
        status = node.reaches("kmodd_test_init_oops", "Failed", "Crashed")
        assert any("NULL pointer" in line for line in status.kernel_log)
    tries = node.log.read_text().count("cannot load")
    with node.agent():
        time.sleep(1.5)
        node.reaches("kmodd_test_init_oops", "Failed", "Crashed")
        assert node.log.read_text().count("cannot load") == tries == 1


def test_what_may_pass_is_tried_again_with_back_off(node: Node) -> None:
    node.want(one_set("hardware", "kmodd_test_nodev"))
    with node.agent():
        status = node.reaches("kmodd_test_nodev", "Failed", "NoDevice")
        assert (status.attempts, bool(status.next_try)) == (1, True)
        node.wait(lambda found: found.status.modules[0].attempts == 2)
        time.sleep(2)
        assert node.read().status.modules[0].attempts == 2


def test_a_hostile_specification_on_disk_is_not_obeyed(node: Node) -> None:
    """Without an API, the kept specification is all there is; one that is not as the schema says counts as none."""
    node.state.mkdir(mode=0o700)
    kept = node.state / "specification.json"
    node.kubeconfig = node.cluster.write_kubeconfig("nowhere.conf", certificate=node.cluster.admin, port=1)
    for bad in (
        "{",
        json.dumps({"metadata": {"name": "another"}, "spec": {"sets": [one_set("a", "loop")]}}),
        json.dumps({"metadata": {"name": node.name}, "spec": {"sets": [one_set("a", "../../loop")]}}),
        json.dumps(
            {"metadata": {"name": node.name}, "spec": {"sets": [one_set("a", module("loop", max_loop='1" x'))]}}
        ),
    ):
        kept.write_text(bad)
        with node.agent():
            time.sleep(0.7)
        assert "loop" not in node.loaded()
    kept.write_text(json.dumps({"metadata": {"name": node.name}, "spec": {"sets": [one_set("a", "loop")]}}))
    with node.agent():
        node.until_loaded("loop")


def test_an_object_that_is_deleted_unloads_nothing(node: Node) -> None:
    node.want(one_set("storage", "loop"))
    with node.agent():
        node.reaches("loop", "Ready")
        node.cluster.need("DELETE", f"{PATH}/{node.name}")
        time.sleep(1)
        assert "loop" in node.loaded()
        assert not (node.state / "specification.json").exists()
        node.want()
        node.until_gone("loop")


def test_nothing_is_asked_of_the_api_at_rest(node: Node) -> None:
    generation = node.want(one_set("storage", "loop"))
    with node.agent():
        node.settled(generation)
        time.sleep(1)
        version = node.raw()["metadata"]["resourceVersion"]
        time.sleep(3)
        assert node.raw()["metadata"]["resourceVersion"] == version


@pytest.mark.parametrize("metrics", [False, True])
def test_the_agent_is_small(node: Node, tmp_path: Path, *, metrics: bool) -> None:
    """At most 40 MB resident, and asleep: what it consumed in two seconds of rest."""
    generation = node.want(one_set("storage", "loop", "vfat"))
    with node.agent(*(("--metrics", str(tmp_path / "agent.prom")) if metrics else ())) as process:
        node.settled(generation)
        time.sleep(1.5)
        folder = f"/proc/{process.pid}"

        def cpu() -> int:
            with open(f"{folder}/stat") as stat:  # noqa: PTH123 - one line
                fields = stat.read().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        before = cpu()
        time.sleep(2)
        assert cpu() - before <= 2
        with open(f"{folder}/status") as lines:  # noqa: PTH123 - one line
            resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        assert resident <= 40 * 1024, resident
