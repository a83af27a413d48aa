# SPDX-License-Identifier: LGPL-2.1-or-later
"""A node of a cluster on a real kernel: kmodd, polkit's rule and the agent under its unit in the machine, the API server on this host.

There is no kubelet: the Node and its pods are objects that the tests write. The last tests leave a kernel that loads nothing more.
"""

from __future__ import annotations

import base64
import json
import re
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.fleet.cluster import ROOT, Cluster, cluster
from tests.fleet.coordinating import GROUP, MERGE, Fleet
from tests.fleet.running import PATH, Node, module, new_node, one_set
from tests.system.client import Client, Kmodctl, loaded, record, soon
from tests.system.service import show
from tests.vm import agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

T = "kmodd_test_"
NAME = "kmodd-vm"
"""The machine's host name, which is the node's where nothing else is given."""
UNIT = "kmodd-agent.service"
PATIENCE = 180.0
"""Seconds; the agent waits up to 40 between attempts, and an emulated machine that is shared is slow."""
RULE = "/etc/polkit-1/rules.d/50-kmodd-agent.rules"
EARLIER_RULE = "/etc/polkit-1/rules.d/40-kmodd-agent.rules"
LISTED: dict[str, list[str]] = {
    f"{T}params": ["an_int=41", "a_bool=Y"],
    f"{T}dep_a": [],
    f"{T}dep_b": [],
    f"{T}slow": ["ms=15000"],
    f"{T}good": [],
    f"{T}fail": [],
    f"{T}init_wait": [],
    f"{T}exit_wait": [],
    "loop": [],
    "dummy": [],
    "veth": [],
}


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The API server, with what the deployment gives agents and the coordinator."""
    with cluster(tmp_path_factory.mktemp("kubernetes")) as made:
        yield made


@pytest.fixture(scope="module")
def node(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The node's object."""
    made = new_node(kubernetes, "", tmp_path_factory.mktemp("node"))
    made.name = NAME
    return made


@pytest.fixture(scope="module")
def vm(kubernetes: Cluster, node: Node) -> Iterator[Machine]:
    """A machine with the agent installed and configured, not started yet."""
    with agent.start(kubernetes.port) as machine:
        machine.write_file("/etc/kmodd/agent.kubeconfig", kubeconfig(kubernetes, node), mode=0o600)
        yield machine


@pytest.fixture(scope="module")
def fleet(kubernetes: Cluster, vm: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The coordinator's side; the Node says which boot it is, as kubelet has it."""
    for document in yaml.safe_load_all((ROOT / "deploy/kubernetes/coordinator.yaml").read_text()):
        if document["kind"] not in ("Deployment", "Service", "NetworkPolicy"):
            kubernetes.apply(document)
    made = Fleet(kubernetes, tmp_path_factory.mktemp("fleet"))
    kubernetes.request("DELETE", f"{PATH}/{NAME}")
    made.node(NAME)
    say_boot(kubernetes, boot_id(vm))
    made.start()
    yield made
    made.stop()


def kubeconfig(kubernetes: Cluster, node: Node) -> str:
    """As an administrator writes it for a node: with everything in it."""
    authority = base64.b64encode(kubernetes.ca.read_bytes()).decode()
    server = {"server": f"https://{agent.API}:{agent.PORT}", "certificate-authority-data": authority}
    text: str = yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "node",
            "clusters": [{"name": "node", "cluster": server}],
            "users": [{"name": "node", "user": {"token": (node.folder / "token").read_text()}}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": "node"}}],
        }
    )
    return text


def rule(vm: Machine, modules: dict[str, list[str]], *, inspects: bool = False) -> None:
    """The shipped rule with this list."""
    text = (ROOT / "deploy/kubernetes/node/50-kmodd-agent.rules").read_text()
    text, count = re.subn(
        r"(?s)(var kmoddAgentModules = )\{.*?\};", lambda found: f"{found[1]}{json.dumps(modules)};", text
    )
    assert count == 1
    closed = "var kmoddAgentMayInspect = false;"
    assert closed in text
    vm.write_file(RULE, text.replace(closed, "var kmoddAgentMayInspect = true;") if inspects else text)


def boot_id(vm: Machine) -> str:
    """Of the machine's kernel."""
    return vm.check("cat /proc/sys/kernel/random/boot_id").strip()


def say_boot(kubernetes: Cluster, boot: str) -> None:
    """The Node has this boot ID, which kubelet would write."""
    information = dict.fromkeys(
        (
            "machineID",
            "systemUUID",
            "kernelVersion",
            "osImage",
            "containerRuntimeVersion",
            "kubeletVersion",
            "kubeProxyVersion",
            "operatingSystem",
            "architecture",
        ),
        "",
    )
    body = {"status": {"nodeInfo": {**information, "bootID": boot}}}
    kubernetes.need("PATCH", f"/api/v1/nodes/{NAME}/status", body, content=MERGE)


def start(vm: Machine) -> None:
    """Start the agent; it is ready when systemd says so."""
    vm.check(["systemctl", "restart", UNIT], timeout=PATIENCE)


def main_pid(vm: Machine) -> int:
    """The agent's process."""
    return int(show(vm, "MainPID", UNIT))


def uid(vm: Machine) -> int:
    """The agent's user."""
    return int(vm.check(["id", "-u", "kmodd-agent"]))


def is_gone(vm: Machine, *, left: frozenset[str] = frozenset()) -> None:
    soon(lambda: loaded(vm) == left, "what the agent loaded is gone", PATIENCE)


def test_an_agent_without_a_rule_may_do_nothing(vm: Machine, node: Node) -> None:
    node.want(one_set("base", f"{T}good"))
    start(vm)
    status = node.reaches(f"{T}good", "Failed", "InteractiveAuthorizationRequired", PATIENCE)
    assert status.message
    assert status.next_try
    assert loaded(vm) == set()


def test_the_agent_runs_as_its_own_user_without_capabilities(vm: Machine) -> None:
    lines = dict(
        line.split(":", 1) for line in vm.check(f"cat /proc/{main_pid(vm)}/status").splitlines() if ":" in line
    )
    assert lines["Uid"].split() == [str(uid(vm))] * 4
    assert lines["NoNewPrivs"].strip() == "1"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(lines[kind], 16) == 0, kind
    assert int(lines["VmRSS"].split()[0]) <= 48 * 1024, lines["VmRSS"]
    # It listens nowhere, and its only file on the disk is its own.
    assert vm.check(f"ss -Hltnp | grep -c 'pid={main_pid(vm)},' || true").strip() == "0"
    assert vm.check("stat -c '%U %a' /var/lib/kmodd-agent").split() == ["kmodd-agent", "700"]


def test_a_set_appears_and_its_modules_come(vm: Machine, node: Node, client: Client) -> None:
    rule(vm, LISTED)
    node.want(one_set("base", module(f"{T}params", an_int="41"), f"{T}dep_b"))
    status = node.reaches(f"{T}params", "Ready", seconds=PATIENCE)
    assert status.owned_by_agent
    node.reaches(f"{T}dep_b", "Ready", seconds=PATIENCE)
    assert loaded(vm) == {"params", "dep_a", "dep_b"}
    assert vm.check(f"cat /sys/module/{T}params/parameters/an_int").strip() == "41"
    found = node.read().status
    assert (found.boot_id, found.kernel_release) == (boot_id(vm), vm.check("uname -r").strip())
    properties = client.properties("/org/kmodd1", "org.kmodd1.Manager")
    assert (properties["BootId"], properties["Version"]) == (found.boot_id, found.kmodd_version)
    by = client.explain(f"{T}dep_b")["loaded-by"]
    assert (by["uid"], by["reason"]) == (uid(vm), "ModuleSet base")
    assert record(vm, "KMODD_EVENT=module.loaded", f"KMODD_MODULE={T}dep_b")["KMODD_ON_BEHALF_OF"] == "ModuleSet/base"
    node.want()
    is_gone(vm)


def test_the_kernels_log_is_shown_where_the_rule_allows_it(vm: Machine, node: Node) -> None:
    assert vm.check("sysctl -n kernel.dmesg_restrict").strip() == "1"
    node.want(one_set("base", f"{T}fail"))
    assert node.reaches(f"{T}fail", "Failed", "InitFailed", PATIENCE).kernel_log == ()
    rule(vm, LISTED, inspects=True)
    node.want(one_set("base", f"{T}good"))
    node.reaches(f"{T}good", "Ready", seconds=PATIENCE)
    node.want(one_set("base", f"{T}fail"))
    status = node.reaches(f"{T}fail", "Failed", "InitFailed", PATIENCE)
    assert any(f"{T}fail" in line for line in status.kernel_log), status
    rule(vm, LISTED)
    node.want()
    is_gone(vm)


def test_a_restart_of_the_daemon_keeps_who_loaded_what(vm: Machine, node: Node, client: Client) -> None:
    """The rule allows the agent to unload what its own user loaded."""
    node.want(one_set("base", f"{T}dep_b"))
    node.reaches(f"{T}dep_b", "Ready", seconds=PATIENCE)
    before = client.explain(f"{T}dep_b")["loaded-by"]
    vm.check(["systemctl", "restart", "kmodd.service"], timeout=PATIENCE)
    assert client.explain(f"{T}dep_b")["loaded-by"] == before
    node.wait(lambda found: bool(found.status.modules) and found.status.modules[0].owned_by_agent, PATIENCE)
    node.want()
    is_gone(vm)


def test_a_rule_reads_the_set_that_a_step_is_for(vm: Machine, node: Node) -> None:
    text = """polkit.addRule(function (action, subject) {
        if (subject.user === "kmodd-agent" && action.lookup("on-behalf-of") === "ModuleSet/other") { return polkit.Result.NO; }
    });"""
    vm.write_file(EARLIER_RULE, text)
    node.want(one_set("other", f"{T}dep_a"), one_set("base", f"{T}good"))
    node.reaches(f"{T}dep_a", "Failed", "AccessDenied", PATIENCE)
    node.reaches(f"{T}good", "Ready", seconds=PATIENCE)
    assert loaded(vm) == {"good"}
    vm.check(["rm", EARLIER_RULE])
    node.want()
    is_gone(vm)


def test_a_busy_module_is_blocked_with_its_holder_and_goes_when_that_does(vm: Machine, node: Node) -> None:
    node.want(one_set("base", f"{T}dep_a", "loop"))
    node.reaches(f"{T}dep_a", "Ready", seconds=PATIENCE)
    node.reaches("loop", "Ready", seconds=PATIENCE)
    vm.check(f"modprobe {T}dep_b; truncate -s 1M /var/tmp/disk; losetup /dev/loop0 /var/tmp/disk")
    node.want()
    status = node.reaches(f"{T}dep_a", "Blocked", "InUse", PATIENCE)
    assert [(user.kind, user.name) for user in status.users] == [("module", f"{T}dep_b")]
    status = node.reaches("loop", "Blocked", "InUse", PATIENCE)
    assert [(user.kind, user.name) for user in status.users] == [("loop", "/dev/loop0")], status
    ready = next(row for row in node.read().status.conditions if row.type == "Ready")
    assert (str(ready.status), ready.reason) == ("False", "InUse")
    assert loaded(vm) == {"dep_a", "dep_b"}
    vm.check(f"rmmod {T}dep_b; losetup --detach /dev/loop0")
    is_gone(vm)
    soon(lambda: "loop" not in vm.check("cut -d' ' -f1 /proc/modules").split(), "loop is gone", PATIENCE)


def test_hostile_specifications_get_what_the_rule_lists(vm: Machine, node: Node) -> None:
    before = vm.check("cut -d' ' -f1 /proc/modules | sort")
    hostile = {
        "other": module("nbd"),
        "built": module(f"{T}chardev"),
        "value": module(f"{T}params", an_int="42"),
        "more": module(f"{T}params", an_int="41", secret="1"),
        "two": module(f"{T}params", a_charp="x an_int=41"),
        "joined": module(f"{T}params", an_int="41 a_bool=Y"),
        "none": module("dummy", numdummies="200"),
        "dependency": module(f"{T}dep_c"),
    }
    seen = {}
    for name, row in hostile.items():
        node.want(one_set(name, row))
        found = node.wait(
            lambda found, name=name: any(  # type: ignore[misc] # a default binds the name
                (one.name, str(one.state)) == (name, "Failed") for one in found.status.sets
            ),
            PATIENCE,
        )
        seen[name] = found.status.sets[0].reason
    assert seen == {**dict.fromkeys(hostile, "AccessDenied"), "joined": "BadParameter"}
    assert vm.check("cut -d' ' -f1 /proc/modules | sort") == before
    assert loaded(vm) == set()
    node.want()


@pytest.mark.parametrize(
    "arguments",
    [
        ("load", "--override-policy", f"{T}good"),
        ("load", "nbd"),
        ("load", f"{T}params", "an_int=42"),
        ("unload", f"{T}xz"),
        ("unload", "dummy"),
        ("reload", "dummy"),
        ("config", "blacklist", f"{T}good"),
        ("config", "autoload", f"{T}good"),
        ("config", "options", f"{T}params", "an_int=1"),
        ("config", "apply"),
        ("log",),
    ],
    ids=" ".join,
)
def test_who_takes_the_agent_over_gets_what_the_rule_lists(
    vm: Machine, agents: Kmodctl, arguments: tuple[str, ...]
) -> None:
    """Any program of the agent's user, not only the agent. `dummy` is listed, and loaded by root."""
    vm.check(f"modprobe -a {T}xz dummy")
    before = vm.check("cut -d' ' -f1 /proc/modules | sort; ls /etc/modprobe.d /etc/modules-load.d")
    ended = agents(*arguments)
    assert ended.code == 4, ended
    assert vm.check("cut -d' ' -f1 /proc/modules | sort; ls /etc/modprobe.d /etc/modules-load.d") == before
    vm.check(f"rmmod {T}xz dummy")


@pytest.fixture(scope="module")
def agents(vm: Machine) -> Iterator[Kmodctl]:
    """kmodctl of the agent's user."""
    made = Kmodctl(vm, user="kmodd-agent")
    yield made
    made.process.end()


def test_an_agent_that_was_killed_while_it_loaded_knows_the_module_for_its_own(vm: Machine, node: Node) -> None:
    """The rule gives it neither the history nor org.kmodd1.inspect: kmodd says of a module that our own user loaded it."""
    node.want(one_set("base", module(f"{T}slow", ms="15000")))
    soon(lambda: f"{T}slow" in vm.check("cat /proc/modules"), "init runs", PATIENCE)
    before = main_pid(vm)
    vm.check(f"kill -9 {before}")
    soon(lambda: main_pid(vm) not in (0, before), "systemd started the next agent", PATIENCE)
    assert node.reaches(f"{T}slow", "Ready", seconds=PATIENCE).owned_by_agent
    node.want()
    is_gone(vm)


def test_pods_bring_modules_and_their_end_takes_them_away(
    vm: Machine, node: Node, fleet: Fleet, client: Client
) -> None:
    demand = {"podSelector": {"uses": "disk"}, "unloadAfterSeconds": 2}
    fleet.apply_set("disk", {"name": f"{T}dep_b"}, mode="OnDemand", demand=demand)
    soon(lambda: fleet.label(NAME, "disk") == "loadable", "the set is loadable", PATIENCE)
    assert loaded(vm) == set()
    fleet.pod("one", NAME, uses="disk")
    node.reaches(f"{T}dep_b", "Ready", seconds=PATIENCE)
    soon(lambda: fleet.label(NAME, "disk") == "ready", "the set is ready", PATIENCE)
    held = soon(lambda: client.explain(f"{T}dep_b")["users"], "the agent holds it", PATIENCE)
    assert [user["kind"] for user in held] == ["lease"]
    assert client.refused("Unload", f"{T}dep_b", {}).name == "InUse"
    # The end of the agent ends the lease, and unloads nothing.
    vm.check(["systemctl", "stop", UNIT], timeout=PATIENCE)
    soon(lambda: client.explain(f"{T}dep_b")["users"] == [], "it is not held any more", PATIENCE)
    time.sleep(15)  # longer than kmodd's own grace time
    assert loaded(vm) == {"dep_a", "dep_b"}
    start(vm)
    soon(lambda: client.explain(f"{T}dep_b")["users"], "the next agent holds it", PATIENCE)
    fleet.delete("/api/v1/namespaces/default/pods/one")
    is_gone(vm)
    soon(lambda: fleet.label(NAME, "disk") == "loadable", "the set is loadable again", PATIENCE)
    fleet.delete(f"{GROUP}/modulesets/disk")
    assert [user["name"] for user in held] == ["kmodd-agent"]


def test_a_reboot_is_noticed(vm: Machine, node: Node, fleet: Fleet, kubernetes: Cluster) -> None:
    fleet.apply_set("base", {"name": f"{T}dep_b"})
    node.reaches(f"{T}dep_b", "Ready", seconds=PATIENCE)
    soon(lambda: fleet.label(NAME, "base") == "ready", "the set is ready", PATIENCE)
    before = boot_id(vm)
    vm.check(["systemctl", "stop", UNIT], timeout=PATIENCE)
    vm.reboot()
    now = boot_id(vm)
    assert now != before
    say_boot(kubernetes, now)
    # The last report is of another boot: nothing is known of this one.
    soon(lambda: fleet.label(NAME, "base") == "unavailable", "the report counts no more", PATIENCE)
    assert loaded(vm) == set()
    start(vm)
    soon(lambda: fleet.label(NAME, "base") == "ready", "the set is ready again", PATIENCE)
    found = node.read().status
    assert found.boot_id == now
    assert found.modules[0].owned_by_agent
    assert loaded(vm) == {"dep_a", "dep_b"}
    fleet.delete(f"{GROUP}/modulesets/base")
    is_gone(vm)


@pytest.fixture
def listed(vm: Machine, node: Node, fleet: Fleet) -> None:
    """The agent runs and may use what is listed, and the specification is the test's alone."""
    fleet.stop()
    rule(vm, LISTED)
    if show(vm, "ActiveState", UNIT) != "active":
        start(vm)
    node.want()
    is_gone(vm)


def release(vm: Machine, name: str) -> None:
    """Let the init or exit function of the module return."""
    vm.check(f"echo 1 > /sys/kernel/{name}/release")


@pytest.mark.usefixtures("listed")
def test_a_module_that_another_process_loads_is_busy(vm: Machine, node: Node) -> None:
    name = f"{T}init_wait"
    vm.check(f"systemd-run -q modprobe {name}; until test -e /sys/kernel/{name}/release; do sleep .1; done")
    node.want(one_set("base", name))
    assert "another process" in node.reaches(name, "Failed", "Busy", PATIENCE).message
    release(vm, name)
    assert not node.reaches(name, "Ready", seconds=PATIENCE).owned_by_agent
    node.want()
    node.wait(lambda found: not found.status.modules, PATIENCE)
    assert loaded(vm) == {"init_wait"}, "it is of another process"
    vm.check(["rmmod", name])


@pytest.mark.usefixtures("listed")
def test_calls_that_do_not_return_are_reasons(vm: Machine, node: Node) -> None:
    """`TimedOut` for the step itself, `Stuck` for an agent that does not know of it, `LimitsExceeded` for one too many."""
    vm.write_file("/etc/kmodd/kmodd.toml", "[operations]\ntimeout = 8\nstuck-max = 2\n")
    vm.check("kmodctl config reload")
    hanging, leaving = f"{T}init_wait", f"{T}exit_wait"
    node.want(one_set("hangs", hanging))
    status = node.reaches(hanging, "Failed", "TimedOut", PATIENCE)
    assert not status.next_try
    assert "/stack" in status.hint
    vm.check(["systemctl", "stop", UNIT], timeout=PATIENCE)
    vm.check(["rm", "/var/lib/kmodd-agent/record.json"])
    start(vm)
    assert not node.reaches(hanging, "Failed", "Stuck", PATIENCE).next_try
    node.want(one_set("hangs", hanging), one_set("leaves", leaving))
    node.reaches(leaving, "Ready", seconds=PATIENCE)
    node.want(one_set("hangs", hanging))
    node.reaches(leaving, "Failed", "TimedOut", PATIENCE)
    node.want(one_set("hangs", hanging), one_set("base", f"{T}dep_a"))
    assert node.reaches(f"{T}dep_a", "Failed", "LimitsExceeded", PATIENCE).next_try
    release(vm, leaving)
    release(vm, hanging)
    assert node.reaches(f"{T}dep_a", "Ready", seconds=PATIENCE).owned_by_agent
    node.reaches(hanging, "Ready", seconds=PATIENCE)
    node.want()
    is_gone(vm, left=frozenset({"init_wait"}))
    vm.check(f"rmmod {hanging}; rm /etc/kmodd/kmodd.toml; kmodctl config reload")


def test_a_kernel_that_is_locked_down_is_a_reason(vm: Machine, node: Node, fleet: Fleet) -> None:
    fleet.stop()  # the specification is the test's again
    vm.check("echo integrity > /sys/kernel/security/lockdown")
    node.want(one_set("base", f"{T}good"), one_set("other", "dummy"))
    status = node.reaches(f"{T}good", "Failed", "Lockdown", PATIENCE)
    assert not status.next_try
    assert node.reaches("dummy", "Ready", seconds=PATIENCE).owned_by_agent  # signed


def test_a_kernel_that_loads_nothing_more_is_a_reason(vm: Machine, node: Node) -> None:
    vm.check("sysctl -w kernel.modules_disabled=1")
    node.want(one_set("base", "veth"))
    assert not node.reaches("veth", "Failed", "ModulesDisabled", PATIENCE).next_try
    node.reaches("dummy", "Failed", "ModulesDisabled", PATIENCE)
