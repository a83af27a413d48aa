# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps modules busy in other network namespaces: it is named, and the commands that kmodd prints end it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.clock import clock
from tests.system.client import Client, soon
from tests.system.explains import explains
from tests.system.test_users import kinds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.channel import Command
    from tests.vm.machine import Machine

RULE = "nft 'add table inet t; add chain inet t c; add rule inet t c ct state new'"
KEY = "0x0123456789abcdef0123456789abcdef"
BLUE = "ip netns exec blue"


@pytest.fixture
def _blue(vm: Machine) -> Iterator[None]:
    vm.check("ip netns add blue")
    yield
    vm.check("ip netns del blue")


def freed(vm: Machine, client: Client, module: str, *commands: str) -> dict[str, Any]:
    """These commands are printed; run by root as they stand and in this order, they leave the module unloaded.

    A machine that is busy with other tests may not have the time for all mounts and processes: no test is about these here.
    """
    client.explain(module)  # Starts the inspectors, where there are none.
    time.sleep(0.5)  # What was just set up is not in an answer that is still kept.
    explained: dict[str, Any] = client.explain(module)
    assert explained["references"] > 0, f"{module} is busy"
    assert client.refused("Unload", module, {}).name == "InUse"
    assert "network namespace" not in explained["partial"], explained["partial"]
    if commands:
        assert explained["free"] == [*commands, f"kmodctl unload {module}"], explained["users"]
    else:
        assert len(explained["free"]) > 1, explained["users"]
    for command in explained["free"]:
        vm.check(command)
    assert module not in vm.check("lsmod | cut -d' ' -f1").split()
    return explained


def in_namespace(vm: Machine, script: str, *unshare: str, user: str = "root") -> tuple[Command, str]:
    """A process in a network namespace of its own in which this was run, and its pid."""
    words = ["unshare", "--net", *unshare, "sh", "-c", f"{script}; echo made $$; exec sleep 600"]
    process = vm.start(words, user=user)
    process.wait_for_output("made")
    return process, vm.check("pgrep -nfx 'sleep 600'").strip()


# --- in one that has a name -------------------------------------------------------------------------------------------


@explains("what is set up in a network namespace with a name", "ip netns exec")
@pytest.mark.usefixtures("_blue")
def test_what_is_set_up_in_a_named_namespace(vm: Machine, client: Client) -> None:
    vm.check(f"{BLUE} {RULE}; {BLUE} tc qdisc add dev lo root fq; {BLUE} ipset create hosts hash:ip")
    explained = freed(vm, client, "nft_ct", f"{BLUE} nft delete rule inet t c handle 2")
    assert kinds(explained) == [("rule", "inet t c handle 2")]
    assert explained["users"][0]["netns"] == "blue"
    freed(vm, client, "sch_fq", f"{BLUE} tc qdisc del dev lo root")
    freed(vm, client, "ip_set_hash_ip", f"{BLUE} ipset destroy hosts")
    algorithms = f"enc 'cbc(aes)' {KEY} auth 'hmac(sha256)' {KEY}{KEY[2:]}"
    vm.check(
        f"{BLUE} ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 mode tunnel {algorithms}; "
        f"modprobe ip_vs; {BLUE} ipvsadm -A -t 127.0.0.1:80 -s wrr"
    )
    freed(vm, client, "esp4", f"{BLUE} ip xfrm state delete src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x00000100")
    freed(vm, client, "ip_vs_wrr", f"{BLUE} ipvsadm --delete-service --tcp-service 127.0.0.1:80")


@pytest.mark.usefixtures("_blue")
def test_rules_of_iptables_legacy_here_and_there(vm: Machine, client: Client) -> None:
    rule = "iptables-legacy -A OUTPUT -m owner --uid-owner 5 -j ACCEPT"
    vm.check(f"{rule}; {BLUE} {rule}")
    delete = "iptables-legacy -t filter -D OUTPUT 1"
    freed(vm, client, "xt_owner", delete, f"{BLUE} {delete}")


@pytest.mark.usefixtures("_blue")
def test_congestion_control_that_a_namespace_has_inherited(vm: Machine, client: Client) -> None:
    """A new one takes the default of the host's, and holds the module when the host has another default again."""
    before = vm.check("sysctl -n net.ipv4.tcp_congestion_control").strip()
    vm.check("modprobe tcp_bbr; sysctl net.ipv4.tcp_congestion_control=bbr; ip netns add red")
    vm.check(f"sysctl net.ipv4.tcp_congestion_control={before}")
    explained = freed(vm, client, "tcp_bbr")
    assert explained["free"][0].startswith("ip netns exec red sysctl net.ipv4.tcp_congestion_control=")
    vm.check("ip netns del red")


# --- in one of processes ----------------------------------------------------------------------------------------------


@explains("what is set up in a network namespace of processes", "kill")
def test_what_is_set_up_in_the_namespace_of_a_process(vm: Machine, client: Client) -> None:
    process, pid = in_namespace(vm, RULE)
    freed(vm, client, "nft_ct", f"kill {pid}")
    process.wait()


def test_what_a_user_has_set_up_is_ended_from_outside(vm: Machine, client: Client) -> None:
    """In a user namespace of the user's: no command enters it, and the user sees it, others do not."""
    vm.check("modprobe sch_fq")
    process, pid = in_namespace(vm, "tc qdisc add dev lo root fq", "--user", "--map-root-user", user="alice")
    alice, bob = Client(vm, user="alice"), Client(vm, user="bob")
    assert [(user["name"], user["netns"]) for user in alice.explain("sch_fq")["users"]] == [("fq on lo", f"pid {pid}")]
    assert [(user["name"], user["count"]) for user in bob.explain("sch_fq")["users"]] == [("", 1)]
    for each in (alice, bob):
        each.process.end()
    freed(vm, client, "sch_fq", f"kill {pid}")
    process.wait()


# --- its bounds and rights --------------------------------------------------------------------------------------------


def test_fifty_namespaces_are_searched_in_time(vm: Machine, client: Client) -> None:
    vm.check("for n in $(seq 50); do ip netns add n$n; done; ip netns exec n50 " + RULE)
    client.explain("nft_ct")
    time.sleep(0.5)
    begin = clock()
    explained = client.explain("nft_ct")
    took = clock() - begin
    print(f"{took:.2f} s with 50 namespaces")
    assert "network namespace" not in explained["partial"], explained["partial"]
    assert kinds(explained) == [("rule", "inet t c handle 2")]
    assert explained["free"][0] == "ip netns exec n50 nft delete rule inet t c handle 2"
    assert took < 2.0
    vm.check("for n in $(seq 50); do ip netns del n$n; done")
    soon(lambda: client.explain("nft_ct")["references"] == 0, "the kernel takes the namespaces down")


@pytest.mark.usefixtures("_blue")
def test_it_is_started_for_what_a_namespace_may_hold_alone(vm: Machine, client: Client) -> None:
    vm.check("systemctl stop 'kmodd-netns@*'; modprobe loop")
    client.explain("loop")
    assert vm.check("systemctl list-units --no-legend 'kmodd-netns@*'").strip() == ""
    vm.check(f"{BLUE} {RULE}")
    client.explain("nft_ct")
    assert "kmodd-netns@" in vm.check("systemctl list-units --no-legend 'kmodd-netns@*'")


@pytest.mark.usefixtures("_blue")
def test_without_it_the_answer_says_what_is_missing(vm: Machine, client: Client) -> None:
    vm.check(f"{BLUE} {RULE}; systemctl stop kmodd-netns.socket 'kmodd-netns@*'")
    explained = client.explain("nft_ct")
    assert "the inspector of network namespaces did not answer" in explained["partial"]
    assert [user["kind"] for user in explained["users"]] == ["kernel"]
    vm.check("systemctl start kmodd-netns.socket")
    assert "network namespace" not in client.explain("nft_ct")["partial"]


RIGHTS = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_NET_ADMIN")


def test_each_of_its_rights_is_necessary(vm: Machine, client: Client) -> None:
    rule = "iptables-legacy -A OUTPUT -m owner --uid-owner 5 -j ACCEPT"
    process, _ = in_namespace(vm, f"{RULE}; {rule}")
    folder = "/run/systemd/system/kmodd-netns@.service.d"
    vm.check(f"mkdir -p {folder}")
    for right in RIGHTS:
        rest = " ".join(each for each in RIGHTS if each != right)
        drop = f"[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet={rest}\nAmbientCapabilities=\nAmbientCapabilities={rest}\n"
        vm.write_file(f"{folder}/less.conf", drop)
        vm.check("systemctl daemon-reload; systemctl stop 'kmodd-netns@*'")
        time.sleep(0.5)
        for module in ("nft_ct", "xt_owner") if right != "CAP_DAC_READ_SEARCH" else ("xt_owner",):
            explained = client.explain(module)
            missing = "network namespace" if right != "CAP_DAC_READ_SEARCH" else "tables of iptables-legacy"
            assert missing in explained["partial"], (right, module)
            assert [user["kind"] for user in explained["users"]] == ["kernel"], (right, module)
    vm.check(f"rm -r {folder}; systemctl daemon-reload; systemctl stop 'kmodd-netns@*'")
    soon(lambda: kinds(client.explain("xt_owner"))[0][0] == "rule", "with all of them it is found")
    process.kill()
    process.wait()


def test_nothing_was_denied(vm: Machine) -> None:
    assert "Traceback" not in vm.journal()
    assert 'apparmor="DENIED"' not in vm.journal("_TRANSPORT=kernel")
