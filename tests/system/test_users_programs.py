# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps modules busy that further programs set up: ebtables-legacy, container runtimes, the NFS server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.system.client import Client, soon
from tests.system.explains import explains
from tests.system.test_users import freed, kinds, whole
from tests.system.test_users_kinds import HOLD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine


@pytest.fixture(scope="module")
def alice(vm: Machine) -> Iterator[Client]:
    """A client without any rights."""
    made = Client(vm, user="alice")
    yield made
    made.process.end()


# --- ebtables-legacy --------------------------------------------------------------------------------------------------


@explains("a rule of ebtables-legacy", "ebtables-legacy -t")
def test_rules_of_ebtables_legacy(vm: Machine, client: Client) -> None:
    """Several in one chain, with one between them that holds another module, and in another network namespace."""
    from_address = "-p IPv4 --ip-source 10.0.0.1 -j DROP"
    vm.check(
        f"ebtables-legacy -N mine; ebtables-legacy -A INPUT {from_address}; ebtables-legacy -A INPUT --limit 5/second -j ACCEPT; "
        f"ebtables-legacy -A INPUT {from_address}; ebtables-legacy -A mine {from_address}; ip netns add blue; ip netns add green; "
        f"ip netns exec blue ebtables-legacy -A FORWARD {from_address}"
    )
    explained = freed(
        vm,
        client,
        "ebt_ip",
        "ebtables-legacy -t filter -D INPUT 3",
        "ebtables-legacy -t filter -D mine 1",
        "ebtables-legacy -t filter -D INPUT 1",
        "ip netns exec blue ebtables-legacy -t filter -D FORWARD 1",
    )
    assert {(kind, detail) for kind, detail in ((user["kind"], user["detail"]) for user in explained["users"])} == {
        ("rule", "ip"),
        ("rule", "ip, in network namespace blue"),
    }
    assert vm.check("ebtables-legacy -L INPUT").count("--limit-burst") == 1, "no other rule is gone"
    freed(vm, client, "ebt_limit", "ebtables-legacy -t filter -D INPUT 1")
    vm.check("ebtables-legacy -A INPUT -j mine; ip netns exec blue ebtables-legacy -A FORWARD -j DROP")
    flush = "ebtables-legacy -t filter -F"
    freed(vm, client, "ebtable_filter", flush, f"ip netns exec blue {flush}")
    vm.check("ip netns del blue; ip netns del green")


# --- containers -------------------------------------------------------------------------------------------------------

INSIDE = """
ip link set lo up
nft 'add table inet t; add chain inet t c; add rule inet t c ct state new'
exec sleep 600
"""
BUNDLE = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["/usr/bin/sh", "-ec", INSIDE],
        "env": ["PATH=/usr/sbin:/usr/bin"],
        "cwd": "/",
        "capabilities": {kind: ["CAP_NET_ADMIN"] for kind in ("bounding", "effective", "permitted")},
    },
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/usr", "type": "none", "source": "/usr", "options": ["bind", "ro"]},
    ],
    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
}


@explains("what is in a container of crun", "crun delete --force")
def test_container_is_ended_by_its_runtime(vm: Machine, client: Client) -> None:
    """Its network namespace is root's, and is not entered: the runtime ends it."""
    vm.write_file("/var/tmp/web/config.json", json.dumps(BUNDLE))
    vm.check(
        "modprobe nft_ct; cd /var/tmp/web; mkdir -p rootfs/proc rootfs/usr rootfs/dev; "
        "for each in bin lib lib64 sbin; do ln -s usr/$each rootfs/$each; done; "
        "crun --systemd-cgroup run --detach web </dev/null >/var/tmp/web/log 2>&1 || { cat log; false; }"
    )
    soon(lambda: ("rule", "inet t c handle 2") in kinds(client.explain("nft_ct")), "the rule is in the answer")
    explained = client.explain("nft_ct")
    assert [(user["container"], user["unit"]) for user in explained["users"]] == [("web", "crun-web.scope")]
    assert explained["free"] == ["crun delete --force web", "kmodctl unload nft_ct"]
    assert explained["partial"] == ""
    vm.check(explained["free"][0])
    soon(lambda: client.explain("nft_ct")["references"] == 0, "the kernel takes the namespace down")
    vm.check(explained["free"][1])


@explains("the first process of a process namespace", "kill -KILL")
def test_first_process_of_a_namespace(vm: Machine, client: Client) -> None:
    """The kernel keeps every other signal from it, as from most containers' first process."""
    vm.check("modprobe vhost_net; udevadm settle")
    vm.write_file("/tmp/hold.py", HOLD)
    process = vm.start(["unshare", "--pid", "--fork", "python3", "/tmp/hold.py", "open('/dev/vhost-net')"])
    process.wait_for_output("open")
    pid = vm.check("pgrep -nf '^python3 /tmp/hold.py'").strip()
    freed(vm, client, "vhost_net", f"kill -KILL {pid}")
    process.wait()


# --- NFS --------------------------------------------------------------------------------------------------------------

SERVE = r"""
import os, time
# What rpc.mountd answers to the kernel: who a client is, and what it may have (svc_export_parse in fs/nfsd/export.c).
# Read-only, any port, no checks of the tree above, with a number of its own, 0: the root of NFS version 4.
FLAGS = 0x1 | 0x2 | 0x400 | 0x2000
until = int(time.time()) + 3600
for cache, line in (
    ("auth.unix.ip", f"nfsd 127.0.0.1 {until} 127.0.0.1"),
    ("nfsd.export", f"127.0.0.1 /srv/share {until} {FLAGS} 65534 65534 0"),
    ("nfsd.fh", rf"127.0.0.1 1 \x00000000 {until} /srv/share"),
):
    file = os.open(f"/proc/net/rpc/{cache}/channel", os.O_WRONLY)
    os.write(file, line.encode() + b"\n")
    os.close(file)
"""


@pytest.fixture
def share(vm: Machine) -> Iterator[None]:
    """A file system that is exported, and a server for version 4: earlier ones would need rpcbind."""
    vm.write_file("/tmp/serve.py", SERVE)
    vm.check(
        "ip link set lo up; truncate -s 8M /var/tmp/share; mkfs.vfat /var/tmp/share >/dev/null; mkdir -p /srv/share /var/lib/nfs; "
        "mount -o loop /var/tmp/share /srv/share; echo '/srv/share 127.0.0.1(ro,insecure,no_subtree_check,fsid=0)' >/etc/exports; "
        "modprobe nfsd; mount -t nfsd nfsd /proc/fs/nfsd; echo -3 >/proc/fs/nfsd/versions; echo 2 >/proc/fs/nfsd/threads; "
        "exportfs -a; sleep 2; python3 /tmp/serve.py; udevadm settle"
    )
    yield
    vm.run(
        "umount --force --lazy /mnt; exportfs -ua; echo 0 >/proc/fs/nfsd/threads; umount /proc/fs/nfsd; umount /srv/share; rm /etc/exports"
    )


@explains("an export of the NFS server", "exportfs -u")
@pytest.mark.usefixtures("share")
def test_export_of_nfs(vm: Machine, client: Client, alice: Client) -> None:
    """The server keeps the folder open: an umount alone fails."""
    assert vm.run("umount /srv/share").code != 0
    assert ("export", "127.0.0.1:/srv/share") in kinds(alice.explain("vfat")), "everybody may read the list"
    explained = freed(vm, client, "vfat", "exportfs -u 127.0.0.1:/srv/share", "umount /srv/share")
    (export,) = (user for user in explained["users"] if user["kind"] == "export")
    assert (export["file"], export["line"]) == ("/etc/exports", 1)


CROSSING = r"""
import os, time
# As above; with crossmnt (0x4000), and what version 4 has on the way to it (0x10000).
until = int(time.time()) + 3600
for cache, line in (
    ("auth.unix.ip", f"nfsd 127.0.0.1 {until} 127.0.0.1"),
    ("nfsd.export", f"127.0.0.1 / {until} {0x16403} 65534 65534 0"),
    ("nfsd.export", f"127.0.0.1 /srv/tree {until} {0x14403} 65534 65534 0"),
    ("nfsd.export", f"127.0.0.1 /srv/tree/share {until} {0x4403} 65534 65534 5"),
    ("nfsd.export", f"127.0.0.1 /srv/tree/share/below {until} {0x4403} 65534 65534 6"),
    ("nfsd.fh", rf"127.0.0.1 1 \x00000000 {until} /"),
    ("nfsd.fh", rf"127.0.0.1 1 \x05000000 {until} /srv/tree/share"),
    ("nfsd.fh", rf"127.0.0.1 1 \x06000000 {until} /srv/tree/share/below"),
):
    file = os.open(f"/proc/net/rpc/{cache}/channel", os.O_WRONLY)
    os.write(file, line.encode() + b"\n")
    os.close(file)
"""


@explains("a mount below an export with crossmnt, or on the way to exports", "exportfs -u")
def test_exports_that_lead_to_others(vm: Machine, client: Client) -> None:
    """The table of exportfs has the folder alone that was exported; all else goes with it."""
    vm.write_file("/tmp/crossing.py", CROSSING)
    mounts = "; ".join(
        f"truncate -s 8M /var/tmp/{n}; mkfs.vfat /var/tmp/{n} >/dev/null; mkdir -p {path}; mount -o loop /var/tmp/{n} {path}"
        for n, path in enumerate(("/srv/tree", "/srv/tree/share/below"))
    )
    vm.check(
        f"ip link set lo up; mkdir -p /var/lib/nfs; {mounts}; touch /var/lib/nfs/etab; "
        "echo '/srv/tree/share 127.0.0.1(ro,insecure,no_subtree_check,crossmnt,fsid=5)' >/etc/exports; modprobe nfsd; "
        "mount -t nfsd nfsd /proc/fs/nfsd; echo -3 >/proc/fs/nfsd/versions; echo 2 >/proc/fs/nfsd/threads; exportfs -a; sleep 2; "
        "python3 /tmp/crossing.py; udevadm settle"
    )
    explained = freed(
        vm,
        client,
        "vfat",
        "exportfs -u 127.0.0.1:/srv/tree/share",
        "umount /srv/tree/share/below",
        "umount --recursive /srv/tree",
    )
    exported = "exported by the NFS server, whose clients may have files open there"
    assert {user["name"]: user["detail"] for user in explained["users"] if user["kind"] == "export"} == {
        "127.0.0.1:/srv/tree": "on the way to exports of the NFS server",
        "127.0.0.1:/srv/tree/share": exported,
        "127.0.0.1:/srv/tree/share/below": f"{exported}, as a part of /srv/tree/share",
    }
    vm.check("echo 0 >/proc/fs/nfsd/threads; umount /proc/fs/nfsd; rm /etc/exports")


@explains("the NFS server of another network namespace", "umount")
def test_server_of_nfs_in_another_network_namespace(vm: Machine, client: Client) -> None:
    """The file system nfsd is mounted for its network namespace alone, by a process that has a mount namespace of its own."""
    vm.check("modprobe nfsd; ip netns add blue; ip netns exec blue ip link set lo up")
    serve = "mount -t nfsd nfsd /proc/fs/nfsd; echo -3 >/proc/fs/nfsd/versions; echo 2 >/proc/fs/nfsd/threads; echo made; exec sleep 600"
    process = vm.start(["ip", "netns", "exec", "blue", "sh", "-ec", serve])
    process.wait_for_output("made")
    pid = vm.check("pgrep --exact --newest sleep").strip()
    explained = freed(vm, client, "nfsd", f"umount --internal-only --namespace {pid} /proc/fs/nfsd")
    (server,) = (user for user in explained["users"] if user["kind"] == "service")
    assert server["netns"] == "blue"
    assert server["detail"].startswith("the server of network namespace blue stops with the umount of /proc/fs/nfsd")
    process.kill()
    process.wait()
    vm.check("ip netns del blue")


@explains("a mount of NFS", "umount")
@pytest.mark.usefixtures("share")
def test_mount_of_nfs(vm: Machine, client: Client) -> None:
    """Without mount.nfs(8), which would only fill in the addresses; the kernel is given half a minute."""
    vm.check(
        "timeout --signal=KILL 30 mount -i -t nfs4 -o vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,soft 127.0.0.1:/ /mnt",
        timeout=60,
    )
    assert ("mount", "/mnt") in kinds(client.explain("nfs"))
    explained = soon(lambda: whole(client.explain("nfsv4")), "a search that has enough time")
    assert explained["free"] == ["umount /mnt", "kmodctl unload nfsv4"]
    vm.check(explained["free"][0])
    soon(lambda: client.explain("nfsv4")["references"] == 0, "the kernel lets the server go")
    vm.check(explained["free"][1])


# --- iSCSI ------------------------------------------------------------------------------------------------------------

TARGET = "iqn.2026-01.example:disk"
OFFER = f"""
modprobe target_core_file; modprobe iscsi_target_mod; ip link set lo up
truncate -s 32M /var/tmp/disk
cd /sys/kernel/config/target
mkdir -p core/fileio_0/d
echo fd_dev_name=/var/tmp/disk,fd_dev_size=33554432 >core/fileio_0/d/control
echo 1 >core/fileio_0/d/enable
group=iscsi/{TARGET}/tpgt_1
mkdir -p $group/lun/lun_0 $group/np/127.0.0.1:3260
ln -s $PWD/core/fileio_0/d $group/lun/lun_0/disk
echo 0 >$group/attrib/authentication
echo 1 >$group/attrib/generate_node_acls
echo 0 >$group/attrib/demo_mode_write_protect
echo 1 >$group/enable
mkdir -p /etc/iscsi /run/lock/iscsi
echo InitiatorName=iqn.2026-01.example:machine >/etc/iscsi/initiatorname.iscsi
echo 'node.startup = manual' >/etc/iscsi/iscsid.conf
modprobe iscsi_tcp
iscsid </dev/null >/dev/null 2>&1
iscsiadm --mode discovery --type sendtargets --portal 127.0.0.1
iscsiadm --mode node --targetname {TARGET} --login
udevadm settle
"""


@explains("a session of iSCSI", "iscsiadm --mode node --targetname")
@explains("a target of LIO for iSCSI", "rmdir /sys/kernel/config/target")
def test_both_ends_of_iscsi(vm: Machine, client: Client, alice: Client) -> None:
    """A disk that this machine offers, and has itself over the loopback interface, with a file system that is mounted."""
    vm.write_file("/tmp/offer", OFFER)
    vm.check("sh -e /tmp/offer", timeout=120)
    disk = "/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-iqn.2026-01.example:disk-lun-0"
    vm.check(f"mkfs.ext4 -q {disk}; mount {disk} /mnt; udevadm settle")
    assert ("session", TARGET) in kinds(alice.explain("iscsi_tcp")), "everybody may read it in /sys"
    out = f"iscsiadm --mode node --targetname {TARGET} --portal 127.0.0.1:3260 --logout"
    explained = freed(vm, client, "iscsi_tcp", data=True)
    assert explained["free"][0] == "umount /mnt"
    assert explained["free"][-2] == out
    explained = freed(vm, client, "iscsi_target_mod")
    assert explained["free"][-2] == "rmdir /sys/kernel/config/target/iscsi"
    vm.check("pkill iscsid; cd /sys/kernel/config/target/core; rmdir fileio_0/d fileio_0; modprobe -r target_core_file")


def test_nothing_was_denied(vm: Machine) -> None:
    assert "Traceback" not in vm.journal()
    assert 'apparmor="DENIED"' not in vm.journal("_TRANSPORT=kernel")
