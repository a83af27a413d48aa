# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps modules busy in other network namespaces: named there, and ended there or from outside."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.clock import clock
from tests.system.client import Client, soon
from tests.system.explains import explains
from tests.system.test_users import freed, kinds, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

UNIT = "kmodd-inspector-namespaces"
SECONDS_MAX = 5.0
"""Of one call: the searches end after two, the second kind begins with the first, and the machine is emulated."""


@pytest.fixture(scope="module")
def alice(vm: Machine) -> Iterator[Client]:
    """A client without any rights."""
    made = Client(vm, user="alice")
    yield made
    made.process.end()


@pytest.fixture(scope="module")
def bob(vm: Machine) -> Iterator[Client]:
    """Another one."""
    made = Client(vm, user="bob")
    yield made
    made.process.end()


@contextmanager
def namespace(vm: Machine, script: str, user: str = "root") -> Iterator[str]:
    """The pid of a process in a network namespace of its own, in which this was run."""
    options = ["--net"] if user == "root" else ["--user", "--map-root-user", "--net"]
    command = ["unshare", *options, "sh", "-ec", f"{script}\necho made\nexec sleep 600"]
    process = vm.start(command, user=user)
    try:
        process.wait_for_output("made", 120)
        yield vm.check("pgrep --exact --newest sleep").strip()
    finally:
        process.kill()
        process.wait()


def public(user: Client, module: str) -> dict[str, Any]:
    """What this user is shown, of a search that had enough time."""
    return soon(lambda: whole(user.explain(module)), "a search that has enough time")


def started(vm: Machine) -> bool:
    return bool(vm.check(f"systemctl list-units --no-legend '{UNIT}@*'").strip())


def test_without_namespaces_nothing_enters_any(vm: Machine, client: Client) -> None:
    vm.check("nft 'add table inet t; add chain inet t c; add rule inet t c ct state new'")
    assert kinds(client.explain("nft_ct")) == [("rule", "inet t c handle 2")]
    assert not started(vm)
    vm.check("nft flush ruleset")


@explains("a rule of nf_tables in another network namespace", "ip netns exec")
def test_rule_in_a_named_namespace(vm: Machine, client: Client, alice: Client) -> None:
    """The same rule in the host's namespace and in another one: each has its command."""
    inside = "ip netns exec blue "
    rule = "nft 'add table inet t; add chain inet t c; add rule inet t c ct state new'"
    vm.check(f"ip netns add blue; {rule}; {inside}{rule}")
    command = "nft delete rule inet t c handle 2"
    explained = freed(vm, client, "nft_ct", command, inside + command)
    assert started(vm)
    assert [(user["detail"], user.get("netns", "")) for user in explained["users"]] == [
        ("ct, bitwise, cmp", ""),
        ("ct, bitwise, cmp, in network namespace blue", "blue"),
    ]
    # Others learn how many rules there are, and not where.
    vm.check(f"{inside}nft add rule inet t c ct state new; {inside}nft add rule inet t c ct state new")
    answer = alice.explain("nft_ct")
    assert [(user["kind"], user["name"], user["detail"]) for user in answer["users"]] == [
        ("rule", "", "2 rules of netfilter")
    ]
    assert "blue" not in json.dumps(answer)
    assert not answer["free"]
    vm.check(f"nft flush ruleset; {inside}nft flush ruleset; modprobe -r nft_ct")


SET_UP = """
ip link set lo up
nft 'add table inet t; add limit inet t slow { rate 5/second ; }; add set inet t s { type ipv4_addr ; limit rate 1/second ; }'
tc qdisc add dev lo root handle 1: htb default 10
tc class add dev lo parent 1: classid 1:10 htb rate 1mbit
tc qdisc add dev lo parent 1:10 handle 20: sfq
tc filter add dev lo parent 1: protocol ip prio 3 u32 match ip dport 80 0xffff flowid 1:10 action gact pass
tc actions add action police rate 1mbit burst 10k index 7
iptables-legacy -A OUTPUT -m owner --uid-owner 5 -j ACCEPT
iptables-legacy -A OUTPUT -m owner --uid-owner 6 -j ACCEPT
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 mode tunnel enc 'cbc(aes)' 0x0123456789abcdef0123456789abcdef
ipset create hosts hash:ip
iptables-legacy -A INPUT -m set --match-set hosts src -j ACCEPT
ipvsadm -A -t 127.0.0.1:80 -s wrr
ip tuntap add tap9 mode tap
sysctl -q net.ipv4.tcp_congestion_control=bbr
"""
KINDS = (
    ("nft_limit", ("nft delete set inet t s", "nft delete limit inet t slow")),
    ("sch_sfq", ("tc qdisc del dev lo parent 1:10",)),
    ("act_police", ("tc actions del action police index 7",)),
    ("cls_u32", ("tc filter del dev lo parent 1: pref 3",)),
    ("sch_htb", ("tc qdisc del dev lo root",)),
    ("xt_owner", ("iptables-legacy -t filter -D OUTPUT 2", "iptables-legacy -t filter -D OUTPUT 1")),
    ("esp4", ("ip xfrm state delete src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x00000100",)),
    ("ip_set_hash_ip", ("iptables-legacy -t filter -D INPUT 1", "ipset destroy hosts")),
    ("ip_vs_wrr", ("ipvsadm --delete-service --tcp-service 127.0.0.1:80",)),
    ("tcp_bbr", ("sysctl net.ipv4.tcp_congestion_control=cubic",)),
    ("tun", ("ip link delete dev tap9",)),
)


@explains("traffic control, a set, a state or a service in another network namespace", "ip netns exec")
def test_everything_in_a_named_namespace(vm: Machine, client: Client, alice: Client) -> None:
    """Others see how much there is of a kind, and neither what it is nor where."""
    vm.write_file("/tmp/set-up", SET_UP)
    vm.check("modprobe tcp_bbr; ip netns exec blue sh -e /tmp/set-up")
    for module, commands in KINDS:
        hidden = public(alice, module)
        assert [user["name"] for user in hidden["users"] if user["name"] or not user["count"]] == [], module
        assert "blue" not in json.dumps(hidden)
        assert (hidden["free"], "users" in hidden["withheld"]) == ([], True)
        explained = freed(
            vm, client, module, *(f"ip netns exec blue {command}" for command in commands), data=module == "tun"
        )
        assert {user["netns"] for user in explained["users"]} == {"blue"}, module
    vm.check("ip netns del blue")


@explains("a rule in the network namespace of a process of root", "nsenter --net=")
def test_rule_in_the_namespace_of_a_process_of_root(vm: Machine, client: Client) -> None:
    vm.write_file("/tmp/set-up", SET_UP.partition("tc qdisc")[0] + "iptables-legacy -A OUTPUT -m owner --uid-owner 5")
    with namespace(vm, ". /tmp/set-up") as pid:
        inside = f"nsenter --net=/proc/{pid}/ns/net "
        explained = freed(vm, client, "nft_limit", *(inside + command for command in KINDS[0][1]))
        assert explained["users"][0]["detail"].endswith(f", in the network namespace of pid {pid}")
        freed(vm, client, "xt_owner", inside + "iptables-legacy -t filter -D OUTPUT 1")


@explains("what is in the network namespace of a user or a container", "kill")
def test_namespace_of_a_user_is_ended_from_outside(vm: Machine, client: Client, alice: Client, bob: Client) -> None:
    """It is never entered. Its user sees what is in it, as in it, and another user does not."""
    vm.check("modprobe ip_tables; modprobe iptable_filter; modprobe xt_owner; modprobe sch_fq; modprobe nft_ct")
    script = (
        "ip link set lo up; tc qdisc add dev lo root fq; "
        "XTABLES_LOCKFILE=/tmp/lock-of-alice iptables-legacy -A OUTPUT -m owner --uid-owner 0; "
        "nft 'add table inet t; add chain inet t c; add rule inet t c ct state new'"
    )
    with namespace(vm, script, "alice") as pid:
        seen = alice.explain("nft_ct")
        assert [(user["name"], user["pid"], user["command"]) for user in seen["users"]] == [
            ("inet t c handle 2", int(pid), f"kill {pid}")
        ]
        for module in ("nft_ct", "xt_owner", "sch_fq"):
            (user,) = public(bob, module)["users"]
            assert (user["name"], user["count"]) == ("", 1), module
            assert not {"pid", "exe", "unit", "netns", "command"} & user.keys(), module
        for module in ("xt_owner", "sch_fq"):
            assert [user["command"] for user in client.explain(module)["users"]] == [f"kill {pid}"]
        explained = client.explain("nft_ct")
        assert explained["partial"] == ""
        assert explained["free"] == [f"kill {pid}", "kmodctl unload nft_ct"]
        vm.check(explained["free"][0])
        soon(lambda: client.explain("nft_ct")["references"] == 0, "the kernel takes the namespace down")
        vm.check(explained["free"][1])
    soon(lambda: client.explain("xt_owner")["references"] == 0, "the kernel takes the namespace down")


def test_a_namespace_that_goes_is_kept_by_no_search(vm: Machine, client: Client) -> None:
    vm.check("ip netns add blue; ip netns exec blue tc qdisc add dev lo root fq")
    soon(lambda: ("qdisc", "fq on lo") in kinds(client.explain("sch_fq")), "what was just set up is in the answer")
    vm.check("ip netns del blue")
    soon(lambda: client.explain("sch_fq")["references"] == 0, "the kernel takes the namespace down")
    soon(lambda: client.explain("sch_fq")["partial"] == "", "nothing is left out")
    vm.check("modprobe -r sch_fq")


HOSTILE = r"""
ip link set lo up
nft 'add table inet t; add chain inet t c'
for n in $(seq 150); do echo "add rule inet t c ct state new"; done >/tmp/hostile
for n in $(seq 5); do nft -f /tmp/hostile; done
for n in $(seq 40); do ip link add "$(printf 'x\033[%dm' $n)" type dummy; done
"""


def test_fifty_namespaces_and_a_full_one_cost_no_more_than_allowed(vm: Machine, client: Client) -> None:
    """A user's namespace with thousands of rules and names with escapes hides nothing of root's."""
    vm.check(
        "modprobe dummy numdummies=0; for n in $(seq 50); do ip netns add n$n; done; "
        "for n in $(seq 400); do sleep 700 & done; ip netns exec n50 tc qdisc add dev lo root fq"
    )
    with namespace(vm, HOSTILE, "alice"):
        client.explain("sch_fq")
        soon(lambda: started(vm), "the process that enters runs")
        begin = clock()
        explained = client.explain("nf_tables")
        took = clock() - begin
        assert took < SECONDS_MAX, f"{took:.1f} s"
        assert "\x1b" not in json.dumps(explained)
        soon(
            lambda: kinds(client.explain("sch_fq")) == [("qdisc", "fq on lo")], "the last of root's is reached in time"
        )
    begin = clock()
    explained = client.explain("sch_fq")
    took = clock() - begin
    assert took < SECONDS_MAX, f"{took:.1f} s"
    assert explained["users"], "what was not examined is named"
    soon(
        lambda: client.explain("sch_fq")["free"][:1] == ["ip netns exec n50 tc qdisc del dev lo root"],
        "the last one is reached in time",
    )
    vm.check("pkill --full '^sleep 700'; for n in $(seq 50); do ip netns del n$n; done")


CONFINED = """
import ctypes, json, os, socket, subprocess, sys, time
channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel.connect("/run/kmodd-inspector-namespaces.socket")
channel.recv(64)
pid = int(subprocess.run(["pgrep", "-nf", "users/[i]nspector"], capture_output=True, text=True).stdout)
status = dict(line.split(":\\t", 1) for line in open(f"/proc/{pid}/status").read().splitlines())
def ask(*paths):
    files = [os.open(path, os.O_RDONLY) for path in paths]
    socket.send_fds(channel, [json.dumps({"namespaces": [None] * len(files)}).encode()], files)
    while "end" not in (answer := json.loads(channel.recv(1 << 16))):
        pass
    return answer["partial"]
print(json.dumps({
    "mount": ask("/proc/1/ns/mnt"), "pid": ask("/proc/1/ns/pid"), "file": ask("/etc/passwd"), "net": ask("/run/netns/blue"),
    "home": os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/1/ns/net"),
    "capabilities": status["CapEff"], "user": int(status["Uid"].split()[0]), "seccomp": status["Seccomp"],
}))
"""


def test_it_enters_network_namespaces_alone(vm: Machine) -> None:
    vm.check("ip netns add blue")
    answer: dict[str, Any] = json.loads(vm.check(["python3", "-c", CONFINED]))
    refused = "a network namespace cannot be entered"
    assert all(answer[kind].startswith(refused) for kind in ("mount", "pid", "file")), answer
    assert answer["net"] == ""
    assert answer["home"], "it has left every namespace that it entered"
    assert int(answer["capabilities"], 16) == 1 << 21 | 1 << 12
    assert answer["user"] != 0
    assert answer["seccomp"] == "2"
    vm.check("ip netns del blue")


def test_without_it_the_namespaces_are_said_to_be_unread(vm: Machine, client: Client) -> None:
    vm.check("ip netns add blue; ip netns exec blue ip link set lo up; ip netns exec blue tc qdisc add dev lo root fq")
    vm.check(f"systemctl mask --runtime --now {UNIT}.socket; systemctl stop '{UNIT}@*'")
    time.sleep(0.5)  # An answer is kept for a moment.
    explained = client.explain("sch_fq")
    assert "other network namespaces were not examined" in explained["partial"]
    assert ("namespace", "blue") in kinds(explained)
    vm.check(f"systemctl unmask --runtime {UNIT}.socket; systemctl start {UNIT}.socket")
    command = "ip netns exec blue tc qdisc del dev lo root"
    soon(lambda: client.explain("sch_fq")["free"][:1] == [command], "they are examined again")
    vm.check(f"{command}; ip netns del blue; modprobe -r sch_fq")


def test_nothing_was_denied(vm: Machine) -> None:
    assert "Traceback" not in vm.journal()
    # The test above has handed over what is no network namespace.
    lines = [line for line in vm.journal("_TRANSPORT=kernel").splitlines() if 'apparmor="DENIED"' in line]
    assert not [line for line in lines if "/etc/passwd" not in line], lines
