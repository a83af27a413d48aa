# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps modules busy, of further kinds: the commands that kmodd prints end it, in their order."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

import pytest

from tests.system.client import soon
from tests.system.explains import explains
from tests.system.test_users import freed, kinds

if TYPE_CHECKING:
    from tests.system.client import Client
    from tests.vm.machine import Machine

HOLD = """
import socket, sys, time
made = eval(sys.argv[1])
print("open", flush=True)
time.sleep(600)
"""


def hold(vm: Machine, expression: str) -> str:
    """The pid of a process of root that has what this makes."""
    vm.write_file("/tmp/hold.py", HOLD)
    process = vm.start(["python3", "/tmp/hold.py", expression])
    process.wait_for_output("open")
    return vm.check("pgrep -nf '^python3 /tmp/hold.py'").strip()


# --- netfilter, IPVS, IPsec -------------------------------------------------------------------------------------------


@explains("a rule of iptables-legacy or ip6tables-legacy", "iptables-legacy -t")
def test_rules_of_iptables_legacy(vm: Machine, client: Client) -> None:
    """Several in one chain, with one between them that holds another module."""
    vm.check(
        "for chain in OUTPUT OUTPUT mine; do iptables-legacy -N mine 2>/dev/null; "
        "iptables-legacy -A $chain -m owner --uid-owner 5 -j ACCEPT; iptables-legacy -A $chain -p udp -m multiport "
        "--dports 5,6 -j ACCEPT; done; ip6tables-legacy -A OUTPUT -m owner --uid-owner 5 -j ACCEPT"
    )
    explained = freed(
        vm,
        client,
        "xt_owner",
        "iptables-legacy -t filter -D OUTPUT 3",
        "iptables-legacy -t filter -D mine 1",
        "iptables-legacy -t filter -D OUTPUT 1",
        "ip6tables-legacy -t filter -D OUTPUT 1",
    )
    assert {kind for kind, _ in kinds(explained)} == {"rule"}
    assert vm.check("iptables-legacy -S | grep -c multiport").strip() == "3", "no other rule is gone"
    freed(vm, client, "xt_multiport")
    vm.check("iptables-legacy -A OUTPUT -p udp -j mine")
    flush, delete = "iptables-legacy -t filter -F", "iptables-legacy -t filter -X mine"
    freed(vm, client, "iptable_filter", flush, delete)


@explains("a service of IPVS", "ipvsadm --delete-service")
def test_service_of_ipvs(vm: Machine, client: Client) -> None:
    vm.check(
        "modprobe ip_vs; ipvsadm -A -t 127.0.0.1:80 -s wrr; ipvsadm -a -t 127.0.0.1:80 -r 127.0.0.2:80 -m; "
        "ipvsadm -A -f 7 -s rr; ipvsadm -A -u '[::1]:53' -s rr"
    )
    freed(vm, client, "ip_vs_wrr", "ipvsadm --delete-service --tcp-service 127.0.0.1:80")
    freed(vm, client, "ip_vs_rr")
    freed_references = client.explain("ip_vs")["references"]
    assert freed_references == 0


@explains("a state of IPsec", "ip xfrm state delete")
def test_state_of_ipsec(vm: Machine, client: Client) -> None:
    key = "0x0123456789abcdef0123456789abcdef"
    vm.check(
        f"ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 mode tunnel enc 'cbc(aes)' {key} "
        f"auth 'hmac(sha256)' {key}{key[2:]}"
    )
    freed(vm, client, "esp4", "ip xfrm state delete src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x00000100")


# --- kernel settings --------------------------------------------------------------------------------------------------


@explains("the I/O scheduler of a disk", "echo none")
def test_scheduler_of_a_disk(vm: Machine, client: Client) -> None:
    before = vm.check("cat /sys/block/vda/queue/scheduler")
    vm.check("modprobe bfq; echo bfq >/sys/block/vda/queue/scheduler")
    freed(vm, client, "bfq", """sh -c 'echo none >"$1"' sh /sys/block/vda/queue/scheduler""")
    chosen = before.split("[")[1].split("]")[0]
    vm.check(f"echo {chosen} >/sys/block/vda/queue/scheduler")


@explains("a binary format", "echo -1")
def test_binary_format(vm: Machine, client: Client) -> None:
    vm.check(
        "systemctl stop proc-sys-fs-binfmt_misc.automount; modprobe binfmt_misc; "
        "mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc; "
        "echo ':a b:E::kinds::/bin/true:' >/proc/sys/fs/binfmt_misc/register"
    )
    freed(
        vm,
        client,
        "binfmt_misc",
        """sh -c 'echo -1 >"$1"' sh '/proc/sys/fs/binfmt_misc/a b'""",
        "umount /proc/sys/fs/binfmt_misc",
    )
    vm.check("systemctl start proc-sys-fs-binfmt_misc.automount")


@explains("the NFS server", "echo 0")
def test_server_of_nfs(vm: Machine, client: Client) -> None:
    # Version 3 would need rpcbind.
    vm.check(
        "modprobe nfsd; mount -t nfsd nfsd /proc/fs/nfsd; echo -3 >/proc/fs/nfsd/versions; "
        "ip link set lo up; echo 2 >/proc/fs/nfsd/threads; grep -qx 2 /proc/fs/nfsd/threads"
    )
    freed(vm, client, "nfsd", """sh -c 'echo 0 >"$1"' sh /proc/fs/nfsd/threads""", "umount /proc/fs/nfsd")


# --- block devices ----------------------------------------------------------------------------------------------------


@explains("an array", "mdadm --stop")
def test_array(vm: Machine, client: Client) -> None:
    vm.check(
        "modprobe brd rd_nr=2; mdadm --create /dev/md7 --run --level=1 --raid-devices=2 --assume-clean /dev/ram0 /dev/ram1; "
        "udevadm settle"
    )
    explained = freed(vm, client, "raid1")
    assert ("array", "/dev/md7") in kinds(explained)
    assert "mdadm --stop /dev/md7" in explained["free"]
    vm.check("modprobe -r brd")


@explains("a file system on several disks", "umount")
def test_disks_of_btrfs(vm: Machine, client: Client) -> None:
    """The second one is in use as well, which no mount table shows."""
    vm.check(
        "modprobe btrfs; modprobe brd rd_nr=2 rd_size=131072; mkfs.btrfs -q -d raid0 -m raid0 /dev/ram0 /dev/ram1; "
        "mount /dev/ram0 /mnt; udevadm settle"
    )
    soon(lambda: client.explain("brd")["references"] == 2, "udev has let go")
    explained = freed(vm, client, "brd", "umount /mnt", data=True)
    assert kinds(explained) == [("block", "/dev/ram0"), ("block", "/dev/ram1")]


@explains("a journal on another disk", "umount")
def test_journal_on_another_disk(vm: Machine, client: Client) -> None:
    vm.check(
        "modprobe brd rd_nr=1; truncate -s 32M /var/tmp/system; mke2fs -q -b 4096 -O journal_dev /dev/ram0; "
        "mkfs.ext4 -q -b 4096 -J device=/dev/ram0 /var/tmp/system; mount -o loop /var/tmp/system /mnt; udevadm settle"
    )
    soon(lambda: client.explain("brd")["references"] == 1, "udev has let go")
    explained = freed(vm, client, "brd", "umount /mnt", data=True)
    assert [user["detail"] for user in explained["users"]] == ["journal of what is mounted at /mnt"]


@explains("a connected disk of nbd", "nbd-client --disconnect")
def test_disk_of_nbd(vm: Machine, client: Client) -> None:
    """Connected over netlink: no process has it open."""
    vm.write_file("/tmp/server.py", NBD_SERVER)
    server = vm.start(["python3", "/tmp/server.py"])
    server.wait_for_output("listening")
    vm.check("modprobe nbd nbds_max=1; nbd-client -N kinds 127.0.0.1 10809 /dev/nbd0; udevadm settle")
    explained = freed(vm, client, "nbd", data=True)
    assert "nbd-client --disconnect /dev/nbd0" in explained["free"]
    server.kill()
    server.wait()


NBD_SERVER = """
import socket, struct
listening = socket.socket(); listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("127.0.0.1", 10809)); listening.listen(); print("listening", flush=True)
def take(peer, size):
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        if not part: raise SystemExit
        data += part
    return data
SIZE = 1 << 20
while True:
    peer, _ = listening.accept()
    peer.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3)); take(peer, 4)
    while True:
        _, option, length = struct.unpack(">8sII", take(peer, 16)); data = take(peer, length)
        def reply(kind, body=b""): peer.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(body)) + body)
        if option == 1: peer.sendall(struct.pack(">QH", SIZE, 1)); break
        if option in (6, 7):
            reply(3, struct.pack(">HQH", 0, SIZE, 1)); reply(1)
            if option == 7: break
        else: reply(0x80000001)
    while True:
        magic, flags, kind, handle, place, length = struct.unpack(">IHHQQI", take(peer, 28))
        if kind == 2: break
        if kind == 1: take(peer, length)
        peer.sendall(struct.pack(">IIQ", 0x67446698, 0, handle) + (bytes(length) if kind == 0 else b""))
"""


@explains("the compressor of zram", "zramctl --reset")
def test_compressor_of_zram(vm: Machine, client: Client) -> None:
    vm.check(
        "modprobe zram; echo lz4 >/sys/block/zram0/comp_algorithm; echo 16M >/sys/block/zram0/disksize; udevadm settle"
    )
    explained = freed(vm, client, "lz4")
    assert "zramctl --reset /dev/zram0" in explained["free"]
    vm.check("modprobe -r zram")


@explains("a device or a set of bcache", "bcache/stop")
def test_cache(vm: Machine, client: Client) -> None:
    vm.check(
        "modprobe brd rd_nr=2 rd_size=65536; modprobe bcache; make-bcache -C /dev/ram0 -B /dev/ram1 >/dev/null; "
        "for disk in ram0 ram1; do echo /dev/$disk >/sys/fs/bcache/register; done; udevadm settle; ls /sys/fs/bcache"
    )
    explained = freed(vm, client, "bcache", data=True)
    assert any(command.endswith("/sys/block/bcache0/bcache/stop") for command in explained["free"])
    vm.check("udevadm settle; sleep 1; modprobe -r brd")


# --- open files and sockets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "expression", "what"),
    [
        ("vsock", "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)", "socket AF_VSOCK"),
        ("vhost_net", "open('/dev/vhost-net')", "/dev/vhost-net"),
    ],
)
@explains("a socket of vsock or a device of vhost", "kill")
def test_process(vm: Machine, client: Client, module: str, expression: str, what: str) -> None:
    vm.check(f"modprobe {module}; udevadm settle")
    pid = hold(vm, expression)
    explained = freed(vm, client, module, f"kill {pid}")
    assert [user["detail"] for user in explained["users"]] == [f"pid {pid} {what}"]


def test_protocol_that_holds_itself(vm: Machine, client: Client) -> None:
    """SCTP makes a socket in each network namespace, and nothing but a reboot ends it: no command is printed."""
    vm.check("modprobe sctp")
    pid = hold(vm, "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)")
    explained = client.explain("sctp")
    assert [(user["kind"], user.get("command", "")) for user in explained["users"]] == [
        ("process", f"kill {pid}"),
        ("socket", ""),
    ]
    assert explained["free"] == []
    assert vm.run(f"kill {pid}; sleep 1; rmmod sctp").code != 0


@explains("a device node that is not in /dev", "kill")
def test_device_node_outside_dev(vm: Machine, client: Client) -> None:
    vm.check("modprobe vhost_net; udevadm settle; cp -a /dev/vhost-net /var/tmp/node")
    pid = hold(vm, "open('/var/tmp/node')")
    explained = freed(vm, client, "vhost_net", f"kill {pid}")
    assert [user["detail"] for user in explained["users"]] == [f"pid {pid} /var/tmp/node"]
    vm.check("rm /var/tmp/node")


@explains("TLS of a TCP socket", "kill")
def test_tls_of_a_socket(vm: Machine, client: Client) -> None:
    vm.check("modprobe tcp_diag; modprobe tls")
    made = (
        "(lambda server: (server.bind(('127.0.0.1', 0)), server.listen(), "
        "(lambda peer: (peer, peer.connect(server.getsockname()), peer.setsockopt(6, 31, b'tls')))(socket.socket()), "
        "server))(socket.socket())"
    )
    pid = hold(vm, made)
    explained = freed(vm, client, "tls", f"kill {pid}")
    assert [user["detail"] for user in explained["users"]] == [f"pid {pid} socket TCP with tls"]


@explains("a file system that was unmounted lazily", "kill")
def test_file_system_that_was_unmounted_lazily(vm: Machine, client: Client) -> None:
    vm.check(
        "truncate -s 8M /var/tmp/fat; mkfs.vfat /var/tmp/fat >/dev/null; mount -o loop /var/tmp/fat /mnt; udevadm settle"
    )
    pid = hold(vm, "__import__('os').chdir('/mnt')")
    vm.check("umount --lazy /mnt")
    explained = freed(vm, client, "vfat", f"kill {pid}")
    assert "unmounted" in explained["users"][0]["detail"]


# --- what keeps a mount busy ------------------------------------------------------------------------------------------


@explains("a process, swap space, a loop device or a mount on what is mounted", "umount --recursive")
def test_what_keeps_a_mount_busy(vm: Machine, client: Client) -> None:
    """Everything that an umount would stumble over goes before it, the uppermost first."""
    vm.check(
        "modprobe brd rd_nr=1 rd_size=65536; mkfs.vfat /dev/ram0 >/dev/null; mkdir -p /srv/stick; mount /dev/ram0 /srv/stick; "
        "cd /srv/stick; mkdir below; mount -t tmpfs none below; truncate -s 8M image; mkfs.ext4 -q image; losetup /dev/loop5 image; "
        "mount /dev/loop5 /mnt; dd if=/dev/zero of=swap bs=1M count=2 2>/dev/null; mkswap swap 2>/dev/null; swapon swap 2>/dev/null; "
        "echo '/dev/ram0 /srv/stick vfat noauto 0 0' >>/etc/fstab; udevadm settle",
        timeout=120,
    )
    lower, upper = hold(vm, "__import__('os').chdir('/srv/stick')"), hold(vm, "open('/mnt/file', 'w')")
    line = int(vm.check("wc -l </etc/fstab"))
    explained = freed(
        vm,
        client,
        "vfat",
        f"kill {upper}",
        "umount /mnt",
        "swapoff /srv/stick/swap",
        f"kill {lower}",
        "udevadm settle",
        "losetup --detach /dev/loop5",
        "udevadm settle",
        "umount --recursive /srv/stick",
        "udevadm settle",
    )
    mounted = next(user for user in explained["users"] if user["kind"] == "mount")
    assert (mounted["file"], mounted["line"]) == ("/etc/fstab", line)
    vm.check("sed -i '$d' /etc/fstab; modprobe -r brd")


# --- devices and sockets of one process -------------------------------------------------------------------------------


def together(vm: Machine, client: Client, command: str, opened: dict[str, str]) -> None:
    """One process holds each of these modules by what it has open: it is named, and when it has ended each can be unloaded."""
    client.explain(next(iter(opened)))
    time.sleep(0.5)  # What was just opened is not in an answer that is still kept.
    for module, what in opened.items():
        explained = client.explain(module)
        assert explained["references"] > 0, module
        assert [user["detail"] for user in explained["users"] if user["kind"] == "process"] == [
            f"pid {command.split()[1]} {what}"
        ]
        assert command in explained["free"], module
    vm.check(command)
    for module in opened:
        vm.check(f"kmodctl unload {module} --dependents --disconnect")


@explains("a virtual machine of KVM", "kill")
def test_virtual_machine(vm: Machine, client: Client) -> None:
    vm.check("modprobe kvm_amd; udevadm settle")
    pid = hold(vm, "(lambda kvm: (kvm, __import__('fcntl').ioctl(kvm, 0xAE01, 0)))(open('/dev/kvm', 'rb+', 0))")
    explained = freed(vm, client, "kvm_amd", f"kill {pid}")
    assert [user["detail"] for user in explained["users"]] == [f"pid {pid} anon_inode:kvm-vm"]


@explains("an input device, a terminal, a tap device, registers of a processor", "kill")
def test_devices(vm: Machine, client: Client) -> None:
    vm.check(
        "modprobe mousedev; modprobe msr; modprobe ttyprintk; modprobe uhid; ip link add low type dummy; "
        "ip link add link low name tap5 type macvtap; ip link set low up; ip link set tap5 up; udevadm settle"
    )
    tap = "/dev/tap" + vm.check("cat /sys/class/net/tap5/ifindex").strip()
    opened = {"mousedev": "/dev/input/mice", "msr": "/dev/cpu/0/msr", "uhid": "/dev/uhid", "macvtap": tap}
    opened["ttyprintk"] = "/dev/ttyprintk"
    pid = hold(vm, f"[__import__('os').open(path, 2 if 'msr' not in path else 0) for path in {list(opened.values())}]")
    together(vm, client, f"kill {pid}", opened)
    vm.check("ip link del low; modprobe -r dummy")


@explains("a socket of a protocol (TIPC, RDS, L2TP, PF_KEY)", "kill")
def test_sockets_of_protocols(vm: Machine, client: Client) -> None:
    vm.check("modprobe tipc; modprobe rds; modprobe l2tp_ip; modprobe af_key")
    pid = hold(vm, "[socket.socket(*each) for each in ((30, 4), (21, 5), (2, 2, 115), (15, 3, 2))]")
    opened = {"tipc": "TIPC", "rds": "RDS", "l2tp_ip": "L2TP/IP", "af_key": "KEY"}
    together(vm, client, f"kill {pid}", {module: f"socket {name}" for module, name in opened.items()})


def bound(subsystem: int, kind: int, command: bytes) -> str:
    """A socket of nfnetlink after a request to bind it to queue or group 5."""
    body = struct.pack(">BBH", 0, 0, 5) + struct.pack("=HH", 4 + len(command), 1) + command.ljust(4, b"\0")
    message = struct.pack("=IHHII", 16 + len(body), subsystem << 8 | kind, 5, 1, 0) + body
    return (
        f"(lambda each: (each, each.bind((0, 0)), each.send({message!r}), each.recv(4096)))(socket.socket(16, 3, 12))"
    )


@explains("a program that takes packets from NFQUEUE or NFLOG", "kill")
def test_queue_and_group_of_netfilter(vm: Machine, client: Client) -> None:
    """As suricata and ulogd have them."""
    vm.check("modprobe nfnetlink_queue; modprobe nfnetlink_log")
    pid = hold(vm, f"[{bound(3, 2, struct.pack('>BBH', 1, 0, 2))}, {bound(4, 1, bytes([1]))}]")
    together(vm, client, f"kill {pid}", dict.fromkeys(("nfnetlink_queue", "nfnetlink_log"), "socket NETLINK"))


def test_line_discipline(vm: Machine, client: Client) -> None:
    # The outer end of a pseudoterminal, whose inner one is unlocked (TIOCSPTLCK).
    outer = hold(
        vm, "(lambda end: (end, __import__('fcntl').ioctl(end, 0x40045431, bytes(4))))(open('/dev/ptmx', 'rb+', 0))"
    )
    terminal = vm.check("ls -tr /dev/pts/[0-9]* | tail -n 1").strip()
    vm.check(f"modprobe pps_ldisc; ldattach pps {terminal}")
    pid = vm.check("pgrep --exact ldattach").strip()
    client.explain("pps_ldisc")
    vm.check("sleep 0.5")  # What was just set up is not in an answer that is still kept.
    explained = client.explain("pps_ldisc")
    assert [user["detail"] for user in explained["users"]] == [f"pid {pid} {terminal} with its line discipline"]
    assert explained["free"] == [f"kill {pid}", "kmodctl unload pps_ldisc"]
    # The machine has no serial line to spare. A pseudoterminal keeps its discipline until its outer end is closed too.
    vm.check(f"kill {pid} {outer}; while pgrep --exact ldattach; do sleep 0.1; done; kmodctl unload pps_ldisc")


@explains("a snapshot of LVM", "dmsetup remove")
def test_snapshot_of_lvm(vm: Machine, client: Client) -> None:
    """Its mappings are told apart by what LVM calls them."""
    vm.check(
        "modprobe brd rd_nr=2; dmsetup create vg-root --uuid LVM-root --table '0 2048 linear /dev/ram0 0'; "
        "dmsetup create vg-lv-cow --uuid LVM-lv-cow --table '0 2048 linear /dev/ram1 0'; "
        "dmsetup create vg-lv --uuid LVM-lv --table '0 2048 snapshot /dev/mapper/vg-root /dev/mapper/vg-lv-cow N 8'; udevadm settle"
    )
    freed(vm, client, "dm_snapshot", "dmsetup remove vg-lv", data=True)
    vm.check("dmsetup remove vg-lv-cow; dmsetup remove vg-root; udevadm settle; modprobe -r brd")


# --- interfaces and consoles ------------------------------------------------------------------------------------------

TEAM = """
import socket, struct
def attribute(number, value): return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
def ask(kind, command, body):
    message = struct.pack("=BBH", command, 1, 0) + body
    channel.send(struct.pack("=IHHII", 16 + len(message), kind, 5, 1, 0) + message)
    return channel.recv(65536)
channel = socket.socket(16, 3, 16); channel.bind((0, 0))
answer = ask(16, 3, attribute(2, b"team\\0"))
family = struct.unpack_from("=H", answer, answer.index(struct.pack("=HH", 6, 1)) + 4)[0]
option = attribute(1, b"mode\\0") + attribute(3, bytes([5])) + attribute(4, b"roundrobin\\0")
answer = ask(family, 1, attribute(1, struct.pack("=I", socket.if_nametoindex("team5"))) + attribute(2, attribute(1, option)))
assert struct.unpack_from("=i", answer, 16)[0] == 0, answer
"""


@explains("the mode of a team", "ip link delete")
def test_mode_of_a_team(vm: Machine, client: Client) -> None:
    vm.check("modprobe team_mode_roundrobin; ip link add team5 type team")
    vm.write_file("/tmp/team.py", TEAM)
    vm.check("python3 /tmp/team.py")
    freed(vm, client, "team_mode_roundrobin", "ip link delete dev team5")
    vm.check("modprobe -r team")


@explains("a target of netconsole", "rmdir")
def test_target_of_netconsole(vm: Machine, client: Client) -> None:
    vm.check("modprobe netconsole; mkdir /sys/kernel/config/netconsole/far")
    # The console of the kernel's that it registers goes with it, targets or not.
    freed(vm, client, "netconsole", "rmdir /sys/kernel/config/netconsole/far", data=True)


# --- what rules of iptables take besides their extensions -------------------------------------------------------------


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
@explains("a logger, a helper or a set of ipset that a rule of iptables names", "ipset destroy")
def test_arguments_of_rules(vm: Machine, client: Client, program: str) -> None:
    vm.check(
        f"modprobe nf_log_syslog; {program} -A OUTPUT -p udp --dport 9 -j LOG; ipset create hosts hash:ip; "
        f"{program} -t raw -A OUTPUT -p tcp --dport 21 -j CT --helper ftp; "
        f"{program} -A OUTPUT -m set --match-set hosts dst -j ACCEPT"
    )
    freed(vm, client, "nf_conntrack_ftp")
    freed(vm, client, "nf_log_syslog")
    vm.check("ipset create both list:set; ipset add both hosts; sleep 0.5")
    (hosts,) = (user for user in client.explain("ip_set_hash_ip")["users"] if user["kind"] == "set")
    assert "which a set of sets or something else refers to" in hosts["detail"]
    assert "command" not in hosts, "it would fail"
    vm.check("ipset destroy both")
    explained = freed(vm, client, "ip_set_hash_ip")
    assert [kind for kind, _ in kinds(explained)] == ["rule", "set"]
    assert explained["free"][-2] == "ipset destroy hosts"
    vm.check("iptables-legacy -t raw -F; iptables-legacy -F; nft flush ruleset")


def test_nothing_was_denied(vm: Machine) -> None:
    assert "Traceback" not in vm.journal()
    assert 'apparmor="DENIED"' not in vm.journal("_TRANSPORT=kernel")
