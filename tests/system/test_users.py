# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps modules busy beside mounts, devices and processes: the commands that kmodd prints end it, in their order."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.client import Client, soon
from tests.system.explains import explains

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine


@pytest.fixture(scope="module")
def alice(vm: Machine) -> Iterator[Client]:
    """A client without any rights."""
    made = Client(vm, user="alice")
    yield made
    made.process.end()


def freed(vm: Machine, client: Client, module: str, *commands: str, data: bool = False) -> dict[str, Any]:
    """These commands are printed; run by root as they stand and in this order, they leave the module unloaded.

    With `data` the module has a disk that holds some, which goes with it.
    """
    client.explain(module)  # Starts an inspector, where there is none.
    time.sleep(0.5)  # What was just set up is not in an answer that is still kept.
    explained: dict[str, Any] = client.explain(module)
    if explained["partial"]:
        # The machine is emulated on processors that do other things as well.
        explained = soon(lambda: whole(client.explain(module)), "a search that has enough time")
    assert explained["references"] > 0, f"{module} is busy"
    assert client.refused("Unload", module, {}).name == "InUse"
    if commands:
        unload = f"kmodctl unload {module}" + (" --disconnect" if data else "")
        assert explained["free"] == [*commands, unload], explained["users"]
    else:
        assert len(explained["free"]) > 1, explained["users"]
    assert explained["partial"] == "", "the search ended within its time"
    for command in explained["free"]:
        vm.check(command)
    assert module not in vm.check("lsmod | cut -d' ' -f1").split()
    return explained


def whole(explained: dict[str, Any]) -> dict[str, Any]:
    """An answer of which nothing was left out; empty for another."""
    return explained if explained["partial"] == "" else {}


def kinds(explained: dict[str, Any]) -> list[tuple[str, str]]:
    return [(user["kind"], user["name"]) for user in explained["users"]]


# --- traffic control --------------------------------------------------------------------------------------------------


@explains("a queueing discipline", "tc qdisc del")
def test_qdisc(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("tc qdisc add dev lo root fq")
    assert kinds(alice.explain("sch_fq")) == [("qdisc", "fq on lo")], "everybody may list them"
    freed(vm, client, "sch_fq", "tc qdisc del dev lo root")


@explains("a filter or an action of traffic control", "tc filter del")
def test_qdiscs_filters_and_actions(vm: Machine, client: Client) -> None:
    vm.check(
        "tc qdisc add dev lo root handle 1: htb default 10; tc class add dev lo parent 1: classid 1:10 htb rate 1mbit; "
        "tc qdisc add dev lo parent 1:10 handle 20: sfq; "
        "tc filter add dev lo parent 1: protocol ip prio 3 u32 match ip dport 80 0xffff flowid 1:10 action gact pass; "
        "tc filter add dev lo parent 1: protocol ip prio 4 handle 7 fw flowid 1:10; "
        "tc qdisc add dev lo clsact; tc filter add dev lo egress prio 5 matchall action mirred egress redirect dev lo; "
        "tc actions add action police rate 1mbit burst 10k index 7"
    )
    freed(vm, client, "sch_sfq", "tc qdisc del dev lo parent 1:10")
    filters = "tc filter del dev lo parent 1: pref 3"
    assert client.explain("act_gact")["free"][0] == filters
    freed(vm, client, "cls_u32", filters)
    assert client.unload("act_gact") == ["act_gact"]
    freed(vm, client, "cls_fw", "tc filter del dev lo parent 1: pref 4")
    freed(vm, client, "act_mirred", "tc filter del dev lo egress pref 5")
    freed(vm, client, "act_police", "tc actions del action police index 7")
    freed(vm, client, "sch_ingress", "tc qdisc del dev lo clsact")
    freed(vm, client, "sch_htb", "tc qdisc del dev lo root")


@explains("a default of the network", "sysctl")
def test_defaults_of_the_network(vm: Machine, client: Client) -> None:
    """A default that is set holds its module, and each interface that comes up gets a qdisc of it."""
    before = vm.check("sysctl -n net.core.default_qdisc").strip()
    vm.write_file("/etc/sysctl.d/90-kmodd-test.conf", "# for all interfaces\nnet.core.default_qdisc = sfq\n")
    vm.check("sysctl net.core.default_qdisc=sfq; modprobe tun; ip tuntap add tap9 mode tap; ip link set tap9 up")
    explained = freed(
        vm,
        client,
        "sch_sfq",
        "sysctl net.core.default_qdisc=pfifo_fast",
        "tc qdisc replace dev tap9 root pfifo_fast",
    )
    assert ("/etc/sysctl.d/90-kmodd-test.conf", 2) in [
        (user.get("file"), user.get("line")) for user in explained["users"]
    ]
    vm.check("rm /etc/sysctl.d/90-kmodd-test.conf")
    vm.check(f"ip link del tap9; modprobe -r tun; sysctl net.core.default_qdisc={before}")
    before = vm.check("sysctl -n net.ipv4.tcp_congestion_control").strip()
    vm.check("modprobe tcp_bbr; sysctl net.ipv4.tcp_congestion_control=bbr")
    explained = freed(vm, client, "tcp_bbr")
    assert kinds(explained) == [("sysctl", "net.ipv4.tcp_congestion_control")]
    vm.check(f"sysctl net.ipv4.tcp_congestion_control={before}")


# --- configfs ---------------------------------------------------------------------------------------------------------


@explains("an item in configfs (null_blk, nvmet, LIO)", "rmdir")
def test_configfs_item(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("modprobe null_blk nr_devices=0; mkdir /sys/kernel/config/nullb/a")
    assert kinds(alice.explain("null_blk")) == [("configfs", "/sys/kernel/config/nullb/a")]
    freed(vm, client, "null_blk", "rmdir /sys/kernel/config/nullb/a")


@explains("a subsystem that nvmet offers on a port", "unlink /sys/kernel/config/nvmet")
def test_configfs_trees_are_taken_down_from_their_ends(vm: Machine, client: Client) -> None:
    vm.check("modprobe nvmet; modprobe nvmet_tcp")
    vm.check(
        "cd /sys/kernel/config/nvmet; mkdir subsystems/s hosts/h ports/1 subsystems/s/namespaces/1; "
        "ln -s ../../../hosts/h subsystems/s/allowed_hosts/h || ln -s $PWD/hosts/h subsystems/s/allowed_hosts/h; "
        "echo tcp >ports/1/addr_trtype; echo ipv4 >ports/1/addr_adrfam; echo 127.0.0.1 >ports/1/addr_traddr; "
        "echo 4420 >ports/1/addr_trsvcid; ln -s $PWD/subsystems/s ports/1/subsystems/s; ls -R . | head -60"
    )
    assert client.explain("nvmet_tcp")["free"][0] == "unlink /sys/kernel/config/nvmet/ports/1/subsystems/s"
    vm.check("unlink /sys/kernel/config/nvmet/ports/1/subsystems/s; modprobe -r nvmet_tcp")
    freed(vm, client, "nvmet")
    vm.check("modprobe target_core_mod; modprobe target_core_file; modprobe tcm_loop; truncate -s 8M /var/tmp/lun")
    vm.check(
        "cd /sys/kernel/config/target; mkdir -p core/fileio_0/d; "
        "echo fd_dev_name=/var/tmp/lun,fd_dev_size=8388608 >core/fileio_0/d/control; echo 1 >core/fileio_0/d/enable; "
        "mkdir -p loopback/naa.5001405000000001/tpgt_1/lun/lun_0; "
        "ln -s $PWD/core/fileio_0/d loopback/naa.5001405000000001/tpgt_1/lun/lun_0/link"
    )
    freed(vm, client, "tcm_loop")
    freed(
        vm, client, "target_core_file", *(f"rmdir /sys/kernel/config/target/core/fileio_0{end}" for end in ("/d", ""))
    )
    client.unload("target_core_mod", dependents=True)


OFFER = """
modprobe target_core_file; modprobe tcm_loop; modprobe nvmet
truncate -s 8M /var/tmp/fat; mkfs.vfat /var/tmp/fat >/dev/null; mount -o loop /var/tmp/fat /mnt; truncate -s 1M /mnt/lun /mnt/disk
cd /sys/kernel/config/target
mkdir -p core/fileio_0/d loopback/naa.5001405000000001/tpgt_1/lun/lun_0
echo fd_dev_name=/mnt/lun,fd_dev_size=1048576 >core/fileio_0/d/control
echo 1 >core/fileio_0/d/enable
ln -s $PWD/core/fileio_0/d loopback/naa.5001405000000001/tpgt_1/lun/lun_0/link
cd ../nvmet
mkdir subsystems/s subsystems/s/namespaces/1
echo -n /mnt/disk >subsystems/s/namespaces/1/device_path
echo 1 >subsystems/s/namespaces/1/enable
udevadm settle
"""


@explains("a file that LIO or nvmet offers", "rmdir")
def test_files_that_targets_offer_go_before_the_mount(vm: Machine, client: Client) -> None:
    vm.write_file("/tmp/offer", OFFER)
    vm.check("sh -e /tmp/offer")
    assert vm.run("umount /mnt").code != 0
    target, nvmet = "/sys/kernel/config/target", "/sys/kernel/config/nvmet"
    explained = freed(
        vm,
        client,
        "vfat",
        f"unlink {target}/loopback/naa.5001405000000001/tpgt_1/lun/lun_0/link",
        f"rmdir {nvmet}/subsystems/s/namespaces/1",
        f"rmdir {target}/core/fileio_0/d",
        "umount /mnt",
    )
    assert {user["detail"].rpartition(", ")[2] for user in explained["users"] if user["kind"] == "configfs"} == {
        "offers /mnt/lun",
        "offers /mnt/disk",
    }
    vm.check(
        f"rmdir {nvmet}/subsystems/s {target}/core/fileio_0; cd {target}/loopback; rmdir naa.5001405000000001/tpgt_1/lun/lun_0; "
        "rmdir naa.5001405000000001/tpgt_1 naa.5001405000000001; rmdir ../loopback; modprobe -r tcm_loop target_core_file nvmet"
    )


# --- block devices ----------------------------------------------------------------------------------------------------


@explains("a loop device on a disk", "losetup --detach")
def test_loop_device_on_a_disk_of_the_module(vm: Machine, client: Client) -> None:
    vm.check("modprobe brd rd_nr=1; losetup /dev/loop5 /dev/ram0; udevadm settle")
    soon(lambda: client.explain("brd")["references"] == 1, "udev has let go")
    explained = freed(vm, client, "brd", "losetup --detach /dev/loop5")
    assert [user["detail"] for user in explained["users"]] == ["/dev/ram0"]


def test_devices_on_top_of_each_other(vm: Machine, client: Client) -> None:
    """A loop device on a mapping on a loop device on a RAM disk, mounted: all of it keeps the RAM disk's module busy."""
    vm.check(
        "modprobe brd rd_nr=1; losetup /dev/loop5 /dev/ram0; dmsetup create low --table '0 8192 linear /dev/loop5 0'; "
        "losetup /dev/loop6 /dev/mapper/low; mkfs.ext4 -q /dev/loop6; mount /dev/loop6 /mnt; udevadm settle"
    )
    soon(lambda: client.explain("brd")["references"] == 1, "udev has let go")
    wait = "udevadm settle"
    upper = ("umount /mnt", wait, "losetup --detach /dev/loop6", wait, "dmsetup remove low")
    freed(vm, client, "brd", *upper, wait, "losetup --detach /dev/loop5", wait, data=True)


@explains("a mapping of device-mapper", "dmsetup remove")
def test_mapping_that_nothing_uses(vm: Machine, client: Client) -> None:
    """It holds device-mapper and its target; which one the kernel says to nobody but root, so it is not guessed among several."""
    vm.check("dmsetup create alone --table '0 2048 zero'; dmsetup create linear --table '0 8 error'; udevadm settle")
    uncertain = client.explain("dm_zero")
    assert uncertain["free"] == []
    assert "dmsetup table" in str(uncertain["users"])
    vm.check("dmsetup remove linear")
    freed(vm, client, "dm_zero", "dmsetup remove alone")


@explains("swap space", "swapoff")
def test_swap_on_compressed_memory(vm: Machine, client: Client) -> None:
    vm.check("modprobe zram; echo 16M >/sys/block/zram0/disksize; udevadm settle; mkswap /dev/zram0; swapon /dev/zram0")
    freed(vm, client, "zram", "swapoff /dev/zram0", data=True)


# --- sockets ----------------------------------------------------------------------------------------------------------

HOLD_ALG = """
import socket, sys, time
listening = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
listening.bind(("hash", "sha256"))
accepted, _ = listening.accept()
listening.close()
print("open", flush=True)
time.sleep(600)
"""


@explains("a socket of the crypto API", "kill")
def test_socket_of_the_crypto_api(vm: Machine, client: Client, alice: Client) -> None:
    """An accepted one alone is open: it keeps the type of the one that was bound. Another process has one that is not bound."""
    vm.write_file("/tmp/hold_alg.py", HOLD_ALG)
    process = vm.start(["python3", "/tmp/hold_alg.py"], user="bob")
    process.wait_for_output("open")
    pid = vm.check("pgrep -f '^python3 /tmp/hold_alg.py'").strip()
    hidden = soon(lambda: whole(alice.explain("algif_hash")), "a search that has enough time")
    assert [(user["kind"], user["name"], user.get("count")) for user in hidden["users"]] == [("process", "", 1)]
    assert "users" in hidden["withheld"]
    unbound = vm.start(
        ["python3", "-c", "import socket,time; s=socket.socket(38,5); print('open',flush=True); time.sleep(600)"]
    )
    unbound.wait_for_output("open")
    time.sleep(0.5)
    explained = soon(lambda: whole(client.explain("algif_hash")), "a search that has enough time")
    details = {user["detail"].split(" ", 2)[2] for user in explained["users"] if user["kind"] == "candidate"}
    assert details == {"socket ALG, which may be bound to it"}
    assert len([user for user in explained["users"] if user["kind"] == "candidate"]) == 2
    assert explained["free"] == []
    unbound.kill()
    unbound.wait()
    explained = freed(vm, client, "algif_hash", f"kill {pid}")
    assert [user["detail"] for user in explained["users"]] == [f"pid {pid} socket ALG"]
    process.wait()


def test_netlink_socket(vm: Machine, client: Client) -> None:
    code = "import socket,time; s=socket.socket(16,3,12); s.bind((0,0)); print('open',flush=True); time.sleep(600)"
    vm.check("modprobe nfnetlink")
    process = vm.start(["python3", "-c", code])
    process.wait_for_output("open")
    explained = soon(lambda: client.explain("nfnetlink"), "it")
    assert ("process", "socket NETLINK") in [
        (user["kind"], user["detail"].split(" ", 2)[2]) for user in explained["users"]
    ]
    process.kill()
    process.wait()


BBR = """
import socket, time
s = socket.socket()
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
s.bind(("127.0.0.1", 0))
s.listen()
print("open", flush=True)
time.sleep(600)
"""


@explains("the congestion control of a socket", "kill")
def test_congestion_control_of_a_socket(vm: Machine, client: Client) -> None:
    vm.check("modprobe tcp_diag; modprobe tcp_bbr")
    process = vm.start(["python3", "-c", BBR])
    process.wait_for_output("open")
    explained = freed(vm, client, "tcp_bbr")
    assert [user["detail"].split(" ", 2)[2] for user in explained["users"]] == ["socket TCP with bbr"]
    assert explained["free"][0] == f"kill {explained['users'][0]['pid']}"
    process.wait()


# --- watchdogs -------------------------------------------------------------------------------------


@explains("a running watchdog", "echo V")
def test_watchdog_without_a_keepalive(vm: Machine, client: Client) -> None:
    """Whoever had it open has ended without stopping it."""
    vm.check("modprobe softdog soft_margin=3600 soft_noboot=1; udevadm settle; sh -c 'echo x >/dev/watchdog0'")
    freed(vm, client, "softdog", """sh -c 'echo V >"$1"' sh /dev/watchdog0""")


# --- netfilter --------------------------------------------------------------------------------------------------------


@explains("a rule of nf_tables", "nft delete rule")
def test_rule_of_nf_tables(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("nft 'add table inet t; add chain inet t c; add rule inet t c ct state established accept'")
    answer = alice.explain("nft_ct")
    assert [(user["kind"], user["name"], user["detail"]) for user in answer["users"]] == [
        ("rule", "", "1 rule of netfilter")
    ]
    assert "free" not in answer or not answer["free"]
    explained = freed(vm, client, "nft_ct", "nft delete rule inet t c handle 2")
    assert [(user["kind"], user["name"], user["detail"]) for user in explained["users"]] == [
        ("rule", "inet t c handle 2", "ct, bitwise, cmp, immediate")
    ]
    vm.check("nft add rule inet t c counter")
    explained = client.explain("nf_tables")
    assert explained["free"][0] == "nft delete table inet t"
    assert kinds(explained)[-1] == ("table", "inet t")
    vm.check("nft delete table inet t")


TABLES = """
table inet t {
  set grown { type ipv4_addr; size 16; flags dynamic; }
  set named { type ipv4_addr; limit rate 1/second; }
  limit slow { rate 5/second; }
  ct helper h { type "ftp" protocol tcp; }
  chain c {
    type filter hook input priority 0; policy accept;
    ct state established accept
    limit rate 1/second accept
    ip saddr @named accept
    limit name "slow"
    ct state related log
    meta l4proto udp udp dport 999 reject with icmpx admin-prohibited
  }
  chain d {
    add @grown { ip saddr limit rate 2/second }
  }
}
table ip n {
  chain post {
    type nat hook postrouting priority 100; policy accept;
    oifname "x" masquerade
  }
}
"""


@explains("a chain, a set or an object of nf_tables", "nft delete chain")
def test_everything_in_tables(vm: Machine, client: Client) -> None:
    vm.write_file("/tmp/tables", TABLES)
    vm.check("modprobe nf_log_syslog; nft -f /tmp/tables")
    freed(vm, client, "nft_reject_inet")
    freed(vm, client, "nft_log")
    assert client.explain("nf_log_syslog")["references"] == 0
    limited = freed(vm, client, "nft_limit")
    assert {kind for kind, _ in kinds(limited)} == {"rule", "set", "object"}
    freed(vm, client, "nf_conntrack_ftp", "nft delete ct helper inet t h")
    freed(vm, client, "nft_masq")
    freed(vm, client, "nft_chain_nat", "nft delete chain ip n post")
    freed(vm, client, "nft_ct")
    vm.check("nft flush ruleset")


@explains("a set of ipset", "ipset destroy")
def test_rules_and_sets_made_by_iptables_and_ipset(vm: Machine, client: Client) -> None:
    vm.check("iptables-nft -A INPUT -m conntrack --ctstate NEW -m owner --uid-owner 5 -j ACCEPT || "
             "iptables-nft -A OUTPUT -m conntrack --ctstate NEW -m owner --uid-owner 5 -j ACCEPT")  # fmt: skip
    freed(vm, client, "xt_owner")
    vm.check("nft flush ruleset; ipset create hosts hash:ip")
    freed(vm, client, "ip_set_hash_ip", "ipset destroy hosts")


# --- character sets ---------------------------------------------------------------------------------------------------


@explains("a mount by its character set", "umount")
def test_mount_by_its_options(vm: Machine, client: Client) -> None:
    vm.check("truncate -s 8M /var/tmp/fat; mkfs.vfat /var/tmp/fat >/dev/null")
    vm.check("mount -o loop,iocharset=ascii,codepage=437 /var/tmp/fat /mnt")
    assert ("mount", "/mnt") in kinds(client.explain("nls_cp437"))
    explained = freed(vm, client, "nls_ascii", "umount /mnt")
    assert [user["detail"].rpartition(", ")[2] for user in explained["users"]] == ["iocharset=ascii"]


# --- the rights of the inspector --------------------------------------------------------------------------------------


def test_without_its_right_the_rules_are_said_to_be_unread(vm: Machine, client: Client) -> None:
    """CAP_NET_ADMIN is in the unit for the dumps of netfilter: without it the answer says what was not looked at."""
    vm.check("nft 'add table inet t; add chain inet t c; add rule inet t c ct state established accept'")
    rights = "CAP_SYS_PTRACE CAP_DAC_READ_SEARCH"
    drop = f"[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet={rights}\nAmbientCapabilities=\nAmbientCapabilities={rights}\n"
    folder = "/run/systemd/system/kmodd-inspector@.service.d"
    vm.check(f"mkdir -p {folder}")
    vm.write_file(f"{folder}/less.conf", drop)
    vm.check("systemctl daemon-reload; systemctl stop 'kmodd-inspector@*'")
    time.sleep(0.5)
    explained = client.explain("nft_ct")
    assert "the rules of nf_tables cannot be read" in explained["partial"]
    assert [user["kind"] for user in explained["users"]] == ["kernel"]
    vm.check(f"rm -r {folder}; systemctl daemon-reload; systemctl stop 'kmodd-inspector@*'; nft flush ruleset")
    time.sleep(0.5)
    assert client.explain("nft_ct")["partial"] == ""


def test_nothing_was_denied(vm: Machine) -> None:
    assert "Traceback" not in vm.journal()
    assert 'apparmor="DENIED"' not in vm.journal("_TRANSPORT=kernel")
