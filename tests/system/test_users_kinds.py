# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps modules busy, of further kinds: the commands that kmodd prints end it, in their order."""

from __future__ import annotations

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


def test_nothing_was_denied(vm: Machine) -> None:
    assert "Traceback" not in vm.journal()
    assert 'apparmor="DENIED"' not in vm.journal("_TRANSPORT=kernel")
