# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who keeps a module busy: IPVS, IPsec, choices in /sys, disks of several layers, files without a path, other network namespaces."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.kernel.users import process as usage_process
from kmodd.kernel.users.ipsec import State, read_state
from kmodd.kernel.users.netlink import TcpUse, attribute, read_socket
from kmodd.kernel.users.process import Inode
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from tests.kernel.usage_root import FakeRoot


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path)


def commands(users: list[User]) -> list[tuple[Remedy, tuple[str, ...]]]:
    return [(user.remedy, user.words) for user in users]


# --- IPVS -------------------------------------------------------------------------------------------------------------

IPVS = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A000001:0050 rr \n\
  -> 0A000002:0050      Masq    1      0          0
UDP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0035 wrr \n\
FWM  0000002A rr persistent 300 FFFFFFFF
XYZ  0A000001:0050 rr
TCP  nothing rr
TCP  [fd00::1::]:0050 rr
"""


def test_services_of_ipvs(root: FakeRoot) -> None:
    root.put("proc/net/ip_vs", IPVS)
    assert commands(root.found("ip_vs_rr")) == [
        (Remedy.DELETE_SERVICE, ("--tcp-service", "10.0.0.1:80")),
        (Remedy.DELETE_SERVICE, ("--fwmark-service", "42")),
    ]
    assert commands(root.found("ip_vs_wrr")) == [(Remedy.DELETE_SERVICE, ("--udp-service", "[fd00::1]:53"))]
    assert len(root.found("ip_vs")) == 3, "each service holds IPVS itself"


# --- IPsec ------------------------------------------------------------------------------------------------------------

STATE = (
    "0a0000020000000000000000000000000a000001000000000000000000000000000000000000000000002020000000000000000000000000"
    "0a00000200000000000000000000000000000152320000000a000001000000000000000000000000ffffffffffffffffffffffffffffffff"
    "ffffffffffffffffffffffffffffffff00000000000000001e00000000000000000000000000000000000000000000000000000000000000"
    "000000000000000016b10c6b0000000000000000000000000000000000000000000000000000000001000000020001000000000000000000"
    "10000a00000000000000000000000000"
)
"""A state as Linux 6.18 dumps it: `ip xfrm state allocspi src 10.0.0.1 dst 10.0.0.2 proto esp mode tunnel reqid 1 min 256 max 512`."""


def test_a_state_of_ipsec() -> None:
    body = bytes.fromhex(STATE)
    assert read_state(body) == State(4, "10.0.0.1", "10.0.0.2", 50, 0x152)
    algorithm = attribute(18, b"rfc4106(gcm(aes))".ljust(64, b"\0") + bytes(8))
    mark = attribute(21, (7).to_bytes(4, "little") + (255).to_bytes(4, "little"))
    assert read_state(body + algorithm + mark) == State(
        4, "10.0.0.1", "10.0.0.2", 50, 0x152, ("rfc4106(gcm(aes))",), (7, 255)
    )


@given(st.integers(0, 300), st.lists(st.tuples(st.integers(0, 223), st.integers(0, 255)), max_size=6))
def test_any_bytes_are_a_state_or_none(length: int, changes: list[tuple[int, int]]) -> None:
    body = bytearray(bytes.fromhex(STATE))
    for place, value in changes:
        body[place] = value
    read_state(bytes(body[:length]))


NETLINK = "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n0 6   0  00000000 0 0 0 2 0 7\n"


def test_states_of_ipsec_by_their_type(root: FakeRoot) -> None:
    root.put("proc/net/netlink", NETLINK)
    root.states = (
        State(4, "10.0.0.1", "10.0.0.2", 50, 0x100, ("cbc(aes)",)),
        State(6, "fd00::1", "fd00::2", 51, 0x100, mark=(1, 255)),
    )
    ((remedy, words),) = commands(root.found("esp4"))
    assert (remedy, " ".join(words)) == (
        Remedy.DELETE_STATE, "src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x00000100"
    )  # fmt: skip
    ((_, words),) = commands(root.found("ah6"))
    assert " ".join(words) == "src fd00::1 dst fd00::2 proto ah spi 0x00000100 mark 0x1 mask 0xff"
    root.put(
        "proc/crypto",
        "name         : cbc(aes)\ndriver       : cbc(aes-generic)\nmodule       : cbc\nrefcnt       : 3\n",
    )
    root.put("proc/modules", "esp4 1 1 - Live 0x0\n")
    assert [(user.kind, user.remedy) for user in root.found("cbc")] == [
        ("state", Remedy.DELETE_STATE),
        ("crypto", Remedy.NOT_NEEDED),
    ]
    root.put("proc/modules", "")
    root.put("proc/net/netlink", "")
    assert root.found("esp4") == [], "the question would load xfrm_user"


# --- choices ----------------------------------------------------------------------------------------------------------


def test_scheduler_of_a_disk(root: FakeRoot) -> None:
    root.put("sys/block/vda/queue/scheduler", "mq-deadline kyber [bfq] none\n")
    root.put("sys/block/sda/queue/scheduler", "[none] mq-deadline bfq\n")
    assert commands(root.found("bfq")) == [(Remedy.WRITE_SETTING, ("/sys/block/vda/queue/scheduler", "none"))]
    root.put("sys/block/vda/queue/scheduler", "mq-deadline [kyber] none\n")
    assert root.users("kyber_iosched") == [User("scheduler", "/dev/vda", "I/O scheduler kyber")]


def test_governor_of_processors(root: FakeRoot) -> None:
    folder = "sys/devices/system/cpu/cpufreq/policy0"
    root.put(f"{folder}/scaling_governor", "ondemand\n")
    root.put(f"{folder}/scaling_available_governors", "ondemand performance schedutil \n")
    assert commands(root.found("cpufreq_ondemand")) == [
        (Remedy.WRITE_SETTING, (f"/{folder}/scaling_governor", "schedutil"))
    ]


def test_live_patch(root: FakeRoot) -> None:
    root.put("sys/kernel/livepatch/fix_one/enabled", "1\n")
    assert commands(root.found("fix_one")) == [(Remedy.WRITE_SETTING, ("/sys/kernel/livepatch/fix_one/enabled", "0"))]
    root.put("sys/kernel/livepatch/fix_one/enabled", "0\n")
    assert root.found("fix_one") == []


THREADS = "rc 0 0 0\nfh 0 0 0 0 0\nio 0 0\nth 8 0 0.000 0.000\nra 0 0\n"
CONTROL = "{0} 23 0:{0} / /proc/fs/nfsd rw - nfsd nfsd rw\n"


def test_server_of_nfs(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=CONTROL.format(50))
    root.put("proc/net/rpc/nfsd", THREADS)
    assert commands([user for user in root.found("nfsd") if user.kind == "service"]) == [
        (Remedy.WRITE_SETTING, ("/proc/fs/nfsd/threads", "0"))
    ]
    root.put("proc/net/rpc/nfsd", "rc 0 0 0\nth 0 0 0.000 0.000\n")
    assert [user.kind for user in root.found("nfsd")] == ["mount"]


def test_server_of_nfs_whose_file_system_is_not_to_be_seen(root: FakeRoot) -> None:
    """Nothing can be written into a file that is not there."""
    root.put("proc/net/rpc/nfsd", THREADS)
    assert [(user.kind, user.remedy) for user in root.found("nfsd")] == [("service", Remedy.NONE)]


@pytest.mark.parametrize(
    ("here", "own", "expected"),
    [
        (False, "", []),
        (True, "2\n", ["2 threads"]),
        (True, "0\n", []),
        (True, "", ["up to 8 threads, if it runs"]),
    ],
    ids=["there alone", "both", "the file system alone", "not to be read"],
)
def test_server_of_nfs_in_another_network_namespace(root: FakeRoot, here: bool, own: str, expected: list[str]) -> None:
    """It stops with the umount of its file system, and its threads may be counted as the system's own."""
    root.process(1, "/sbin/init", ns="mnt:[1]", mountinfo=CONTROL.format(50) if here else "")
    if own:
        root.put("proc/1/root/proc/fs/nfsd/threads", own)
    root.process(7, "/bin/serve", ns="mnt:[7]", mountinfo=CONTROL.format(51))
    root.link("proc/self/ns/net", "net:[1]")
    root.link("proc/1/ns/net", "net:[1]")
    root.link("proc/7/ns/net", "net:[7]")
    for path in ("proc/net/rpc/nfsd", "proc/7/net/rpc/nfsd"):
        root.put(path, THREADS)
    users = [user for user in root.found("nfsd") if user.kind == "service"]
    doubt = ", if it runs," if here else ""
    assert users[-1].detail == (
        f"the server of the network namespace of pid 7{doubt} stops with the umount of /proc/fs/nfsd; its clients wait until it runs again"
    )
    assert (users[-1].remedy, users[-1].netns, users[-1].owner) == (Remedy.NOT_NEEDED, "pid 7", 0)
    assert [(user.detail.partition(";")[0], user.remedy) for user in users[:-1]] == [
        (words, Remedy.WRITE_SETTING) for words in expected
    ]


def test_a_copy_of_the_file_system_of_nfs_stops_no_server(root: FakeRoot) -> None:
    """A mount namespace of its own, in the same network namespace: the system's own mount stays."""
    root.process(1, "/sbin/init", ns="mnt:[1]", mountinfo=CONTROL.format(50))
    root.process(7, "/bin/serve", ns="mnt:[7]", mountinfo="70 60 0:50 / /proc/fs/nfsd rw - nfsd nfsd rw\n")
    for path in ("proc/net/rpc/nfsd", "proc/7/net/rpc/nfsd"):
        root.put(path, THREADS)
    users = [user for user in root.found("nfsd") if user.kind == "service"]
    assert [(user.remedy, user.pid) for user in users] == [(Remedy.WRITE_SETTING, None)]


FORMATS = "40 23 0:37 / /proc/sys/fs/binfmt_misc rw shared:17 - binfmt_misc binfmt_misc rw\n"


LOG_OUT = (Remedy.LOG_OUT, ("iqn.2026-01.example:disk", "10.0.0.1:3260"))


def session(root: FakeRoot, address: str = "10.0.0.1", mounts: str = "20 1 254:0 / / rw - ext4 /dev/vda rw\n") -> None:
    """Of iSCSI, with a disk that has a partition."""
    host = "sys/devices/platform/host3"
    root.process(1, "/sbin/init", mountinfo=mounts)
    root.put(f"{host}/scsi_host/host3/proc_name", "iscsi_tcp\n")
    root.put(f"{host}/session1/iscsi_session/session1/targetname", "iqn.2026-01.example:disk\n")
    connection = f"{host}/session1/connection1:0/iscsi_connection/connection1:0"
    root.put(f"{connection}/persistent_address", f"{address}\n")
    root.put(f"{connection}/persistent_port", "3260\n")
    root.link("sys/class/iscsi_session/session1", str(root.path / host / "session1/iscsi_session/session1"))
    disk = f"{host}/session1/target3:0:0/3:0:0:0/block/sda"
    root.put(f"{disk}/dev", "8:0\n")
    root.put(f"{disk}/sda1/dev", "8:1\n")
    root.put("proc/modules", "iscsi_tcp 1 1 - Live 0x0\n")


@pytest.mark.parametrize(("address", "portal"), [("10.0.0.1", "10.0.0.1:3260"), ("fd00::1", "[fd00::1]:3260")])
def test_session_of_iscsi(root: FakeRoot, address: str, portal: str) -> None:
    session(root, address)
    (user,) = root.found("iscsi_tcp")
    assert (user.remedy, user.words) == (Remedy.LOG_OUT, ("iqn.2026-01.example:disk", portal))
    assert user.detail == f"iSCSI, portal {portal}; a logout takes away sda, also while in use"
    assert root.found("ib_iser") == []


@pytest.mark.parametrize("device", ["8:0", "8:1", "253:0", "0:30"], ids=["disk", "partition", "mapping", "btrfs"])
def test_no_command_ends_a_session_with_the_root_file_system(root: FakeRoot, device: str) -> None:
    """iscsiadm does not refuse: the disks go though they are mounted."""
    type_, source = ("btrfs", "/dev/sda1") if device == "0:30" else ("ext4", "/dev/x")
    session(root, mounts=f"20 1 {device} / / rw - {type_} {source} rw\n")
    root.put("sys/dev/block/253:0/slaves/sda1/dev", "8:1\n")
    root.put("sys/fs/btrfs/1-2/devices/sda1")
    root.put("sys/class/block/sda1/dev", "8:1\n")
    users = [user for user in root.found("iscsi_tcp") if user.kind == "session"]
    assert commands(users) == [(Remedy.NONE, ())]
    assert users[0].detail.endswith("; the root file system is on them")


@pytest.mark.parametrize(
    ("path", "modules", "module"),
    [
        ("target/core/iblock_0/a/info", "", "target_core_iblock"),
        ("target/core/fileio_0/a/info", "", "target_core_file"),
        ("nvmet/subsystems/a/attr_serial", "", "nvmet"),
        ("x", "nvmet 1 1 - Live 0x0\n", "nvmet"),
        ("target/core/fileio_1/a/hba", "", "target_core_file"),
        ("x", "zfs 1 0 - Live 0x0\n", "zfs"),
    ],
    ids=["a device of LIO", "a file that is one", "nvmet", "without configfs", "a file that is not known", "zfs"],
)
def test_no_command_ends_a_session_whose_disks_others_may_have(
    root: FakeRoot, path: str, modules: str, module: str
) -> None:
    """Which ones is not looked at."""
    session(root)
    root.put("proc/modules", "target_core_iblock 1 0 - Live 0x0\niscsi_tcp 1 1 - Live 0x0\n")
    info = "Status: ACTIVATED\n        TCM FILEIO ID: 0        File: {}  Size: 33554432  Mode: O_DSYNC Async: 0\n"
    root.put("sys/kernel/config/target/core/fileio_0/b/info", info.format("/var/tmp/disk"))
    assert commands(root.found("iscsi_tcp")) == [LOG_OUT], "a file of a file system is no disk"
    root.put(f"sys/kernel/config/{path}", info.format("/dev/sda"))
    root.put("proc/modules", f"iscsi_tcp 1 1 - Live 0x0\n{modules}")
    (user,) = root.found("iscsi_tcp")
    assert (user.remedy, user.words) == (Remedy.NONE, ())
    assert user.detail.endswith(f"; {module} may have them in use")


def test_binary_formats(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=FORMATS)
    root.link("proc/1/root", str(root.path))
    for name in ("register", "status", "python 3"):
        root.put(f"proc/sys/fs/binfmt_misc/{name}")
    assert commands(root.found("binfmt_misc")) == [
        (Remedy.UNMOUNT, ()),
        (Remedy.WRITE_SETTING, ("/proc/sys/fs/binfmt_misc/python 3", "-1")),
    ]


def test_formats_are_not_looked_at_where_the_automount_would_mount_them(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo="40 23 0:37 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n")
    root.put("proc/sys/fs/binfmt_misc/trap")
    budget = Budget()
    assert root.found("binfmt_misc", budget) == []
    assert budget.partial == "/proc/sys/fs/binfmt_misc is not mounted"


# --- disks ------------------------------------------------------------------------------------------------------------


def disk(root: FakeRoot, name: str, number: str, major: str) -> None:
    root.put(f"sys/block/{name}/dev", f"{number}\n")
    root.link(f"sys/dev/block/{number}", f"{root.path}/sys/block/{name}")
    root.link(f"sys/class/block/{name}", f"{root.path}/sys/block/{name}")
    root.put("proc/devices", f"Character devices:\n\nBlock devices:\n{number.partition(':')[0]} {major}\n")


def test_every_disk_of_btrfs_is_mounted(root: FakeRoot) -> None:
    """It shows a number of its own, and one of its devices as the source."""
    disk(root, "ram0", "1:0", "ramdisk")
    disk(root, "ram1", "1:1", "brd")
    for name in ("ram0", "ram1"):
        root.put(f"sys/fs/btrfs/0f8e/devices/{name}/size", "1")
    root.process(1, "/sbin/init", mountinfo="40 23 0:41 / /srv rw - btrfs /dev/ram0 rw\n")
    root.put("proc/modules", "btrfs 1 1 - Live 0x0\n")
    users = root.users("brd")
    assert users == [
        User("block", "/dev/ram0", "mounted at /srv"),
        User("block", "/dev/ram1", "mounted at /srv"),
    ]


def test_journal_on_another_disk(root: FakeRoot) -> None:
    disk(root, "vdb", "254:16", "virtblk")
    disk(root, "ram1", "1:1", "brd")
    root.process(1, "/sbin/init", mountinfo="40 23 254:16 / /srv rw - ext4 /dev/vdb rw\n")
    root.process(77, "jbd2/ram1")
    root.put("proc/77/comm", "jbd2/ram1\n")
    root.put("sys/fs/ext4/vdb/journal_task", "77\n")
    (user,) = root.found("brd")
    assert (user.name, user.detail) == ("/dev/ram1", "journal of what is mounted at /srv")
    assert (user.remedy, user.target) == (Remedy.UNMOUNT, "/srv")
    root.put("proc/77/comm", "jbd2/vdb-8\n")
    assert root.found("brd") == []


def test_disk_of_nbd_that_is_connected(root: FakeRoot) -> None:
    disk(root, "nbd0", "43:0", "nbd")
    assert root.found("nbd") == []
    root.put("sys/block/nbd0/pid", "812\n")
    (user,) = root.found("nbd")
    assert (user.remedy, user.target, user.detail) == (Remedy.DISCONNECT_DISK, "/dev/nbd0", "connected, pid 812")


def test_compressor_of_zram(root: FakeRoot) -> None:
    root.put("sys/block/zram0/comp_algorithm", "lzo [lz4] zstd\n")
    root.put("sys/block/zram0/disksize", "0\n")
    assert root.found("lz4") == []
    root.put("sys/block/zram0/disksize", "16777216\n")
    (user,) = root.found("lz4")
    assert (user.remedy, user.target) == (Remedy.RESET_DISK, "/dev/zram0")


def test_caches_of_bcache(root: FakeRoot) -> None:
    disk(root, "vdb", "254:16", "virtio_blk")
    root.put("sys/block/vdb/holders/bcache0/dev", "252:0")
    for file in ("sys/block/bcache0/bcache/stop", "sys/fs/bcache/6a2cd2cd-c9ae-4fd1-9cd9-9d8f2a0f2b0c/stop"):
        root.put(file)
    stop = (Remedy.STOP_CACHE, ("/sys/block/bcache0/bcache/stop",))
    assert commands(root.found("bcache")) == [
        stop,
        (Remedy.STOP_CACHE, ("/sys/fs/bcache/6a2cd2cd-c9ae-4fd1-9cd9-9d8f2a0f2b0c/stop",)),
    ]
    assert commands(root.found("virtio_blk")) == [stop]


# --- open files -------------------------------------------------------------------------------------------------------


def test_virtual_machine_and_a_buffer_for_dma(root: FakeRoot) -> None:
    root.process(9, "/usr/bin/qemu", ("anon_inode:kvm-vm", "/dmabuf:", "anon_inode:[eventfd]"))
    root.put("proc/9/fdinfo/1", "pos:\t0\nflags:\t02\nsize:\t4096\nexp_name:\ti915\n")
    assert root.users("kvm_intel") == [User("process", "/usr/bin/qemu", "pid 9 anon_inode:kvm-vm")]
    assert root.users("i915") == [User("process", "/usr/bin/qemu", "pid 9 /dmabuf:")]


def test_device_node_that_is_not_in_dev(root: FakeRoot, tmp_path: Path) -> None:
    node = tmp_path / "node"
    os.mknod(node, 0o020666, os.makedev(10, 223))
    root.process(5, "/usr/bin/cat", (str(node), "/etc/passwd"))
    assert root.users("uinput") == [User("process", "/usr/bin/cat", f"pid 5 {node}")]


def test_file_system_that_was_unmounted_while_it_was_in_use(root: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_process, "inode", lambda _: Inode("", (0, 0), (7, 5)))
    root.process(1, "/sbin/init")
    root.process(5, "/usr/bin/tail", ("/mnt/x",))
    root.put("run/udev/data/b7:5", "S:x\nE:ID_FS_TYPE=vfat\n")
    assert {user.detail for user in root.found("vfat") if user.pid == 5 and "/mnt" in user.detail} == {
        "pid 5 /mnt/x of a file system that is unmounted"
    }
    root.put("proc/1/mountinfo", "40 23 7:5 / /mnt rw - vfat /dev/loop5 rw\n")
    assert not [user for user in root.found("vfat") if "unmounted" in user.detail]


def test_upper_layer_of_tcp(root: FakeRoot) -> None:
    layer = attribute(19, attribute(1, b"tls\0"), nested=True)
    body = bytes(68) + (77).to_bytes(4, "little") + attribute(4, b"cubic\0") + layer
    uses = tuple(read_socket(body))
    assert uses == (TcpUse(77, "cubic", "tcp_cubic"), TcpUse(77, "tls", "tls"))
    root.tcp = uses
    root.put("proc/modules", "tcp_diag 1 0 - Live 0x0\n")
    root.process(5, "/usr/bin/curl", ("socket:[77]",))
    assert root.users("tls") == [User("process", "/usr/bin/curl", "pid 5 socket TCP with tls")]


# --- other network namespaces -----------------------------------------------------------------------------------------


def elsewhere(root: FakeRoot) -> None:
    root.process(1, "/sbin/init")
    root.process(7, "/usr/bin/sleep")
    root.link("proc/1/ns/net", "net:[1]")
    root.link("proc/self", "1")
    root.link("proc/7/ns/net", "net:[2]")
    root.put("run/netns/blue")


def test_what_is_unexplained_may_be_set_up_in_another_namespace(root: FakeRoot) -> None:
    elsewhere(root)
    users = root.found("nft_ct")
    assert [(user.kind, user.name, user.pid, user.remedy) for user in users] == [
        ("namespace", "pid 7", 7, Remedy.NONE),
        ("namespace", "blue", None, Remedy.NONE),
    ]
    assert root.found("loop") == [], "nothing of it is set up in one namespace"


def test_netlink_socket_in_another_namespace(root: FakeRoot) -> None:
    elsewhere(root)
    root.put("proc/7/net/netlink", NETLINK.replace("0 6  ", "0 12 ").replace("2 0 7", "2 0 4711"))
    root.process(8, "/usr/bin/ulogd", ("socket:[4711]",))
    root.link("proc/8/ns/net", "net:[2]")
    (user,) = root.found("nfnetlink")
    assert (user.kind, user.detail, user.netns) == ("process", "pid 8 socket NETLINK", "pid 7")


def test_unit_and_container_of_a_process(root: FakeRoot) -> None:
    root.process(5, "/usr/bin/cat", ("anon_inode:kvm-vm",), cgroup="/system.slice/qemu.service")
    root.process(6, "/usr/bin/dog", ("anon_inode:kvm-vm",), cgroup=f"/machine.slice/libpod-{'a' * 64}.scope/x")
    assert [(user.unit, user.container) for user in root.found("kvm")] == [
        ("qemu.service", ""),
        (f"libpod-{'a' * 64}.scope", "a" * 64),
    ]
