# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who keeps a module busy: each source on a made-up root."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.kernel.usage import USERS_MAX
from kmodd.model import User
from tests.kernel.usage_root import FakeRoot, number


@pytest.fixture
def root(tmp_path: Path) -> Iterator[FakeRoot]:
    yield FakeRoot(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names
    FakeRoot(tmp_path).users("loop")
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - names


def mount(point: str, kind: str, source: str, device: str = "0:50", root: str = "/") -> str:
    return f"30 1 {device} {root} {point} rw,noatime shared:1 - {kind} {source} rw\n"


def test_nothing_there_is_nobody(root: FakeRoot) -> None:
    assert root.users("overlay") == []


# --- mounts -----------------------------------------------------------------------------------------------------------


def test_mount_of_the_modules_file_system(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/", "ext4", "/dev/vda1") + mount("/merged", "overlay", "overlay"))
    assert root.users("overlay") == [User("mount", "/merged", "type overlay, source overlay")]


def test_file_system_whose_module_has_another_name(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/cdrom", "iso9660", "/dev/sr0"))
    assert root.users("isofs") == [User("mount", "/cdrom", "type iso9660, source /dev/sr0")]


def test_subtype_belongs_to_its_file_system(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/far", "fuse.sshfs", "host:/srv"))
    assert root.users("fuse") == [User("mount", "/far", "type fuse.sshfs, source host:/srv")]


def test_spaces_and_hostile_mount_points_are_made_safe(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/a\\040b\\012\x1b[31m\u202e", "overlay", "none"))
    assert root.users("overlay")[0].name == "/a b\\x0a\\x1b[31m\\u202e"


def test_other_namespaces_are_read_once_and_said_to_be(root: FakeRoot) -> None:
    table = mount("/", "ext4", "/dev/vda1") + mount("/shared", "overlay", "o")
    root.process(1, "/sbin/init", mountinfo=table, ns="mnt:[1]")
    root.process(20, "/usr/sbin/a", mountinfo=table, ns="mnt:[2]")
    root.process(30, "/usr/bin/c", mountinfo=table + mount("/inside", "overlay", "o"), ns="mnt:[3]")
    root.process(31, "/usr/bin/d", mountinfo=mount("/never", "overlay", "o"), ns="mnt:[3]")
    assert root.users("overlay") == [
        User("mount", "/shared", "type overlay, source o"),
        User("mount", "/inside", "type overlay, source o, in the mount namespace of pid 30"),
    ]


def test_folders_bound_onto_themselves_in_a_sandbox_are_no_more_mounts(root: FakeRoot) -> None:
    shared = mount("/srv/data", "overlay", "o", root="/pool")
    root.process(1, "/sbin/init", mountinfo=shared, ns="mnt:[1]")
    sandbox = mount("/srv/data/state", "overlay", "o", root="/pool/state")
    container = mount("/volume", "overlay", "o", root="/pool/state") + mount(
        "/srv/data/state", "overlay", "o", root="/poolx"
    )
    root.process(20, "/usr/sbin/a", mountinfo=shared + sandbox, ns="mnt:[2]")
    root.process(30, "/usr/bin/c", mountinfo=container, ns="mnt:[3]")
    assert [(user.name, user.detail.rpartition(", ")[2]) for user in root.users("overlay")] == [
        ("/srv/data", "source o"),
        ("/volume", "in the mount namespace of pid 30"),
        ("/srv/data/state", "in the mount namespace of pid 30"),
    ]


def test_namespaces_that_cannot_be_told_apart_are_all_read(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/a", "overlay", "o"))
    root.process(9, "/usr/bin/c", mountinfo=mount("/b", "overlay", "o"))
    assert [user.name for user in root.users("overlay")] == ["/a", "/b"]


@pytest.mark.parametrize("text", ["garbage", "1 2 3 - x", "- - -", "30 1 0:1 / /x rw - overlay", "\n\n"])
def test_broken_mountinfo_is_passed_over(root: FakeRoot, text: str) -> None:
    root.process(1, "/sbin/init", mountinfo=text)
    assert root.users("overlay") == []


# --- loop devices -----------------------------------------------------------------------------------------------------


def test_loop_device_with_its_file(root: FakeRoot) -> None:
    root.put("sys/block/loop0/loop/backing_file", "/srv/disk.img\n")
    root.put("sys/block/loop1/size", "0\n")
    root.put("sys/block/loop2/loop/backing_file", "/srv/mounted.img\n")
    root.put("sys/block/loop2/loop/autoclear", "1\n")
    assert root.users("loop") == [
        User("loop", "/dev/loop0", "/srv/disk.img"),
        User("loop", "/dev/loop2", "/srv/mounted.img, detaches itself"),
    ]
    assert root.users("nbd") == []


# --- processes --------------------------------------------------------------------------------------------------------


def test_process_with_a_misc_device_open_by_its_registered_name(root: FakeRoot) -> None:
    major, minor = number("/dev/zero").split(":")
    root.put("proc/devices", f"Character devices:\n  {major} kmodd_test_chardev\n\nBlock devices:\n  7 loop\n")
    root.process(1234, "/usr/bin/holder", ("/dev/null", "/dev/zero", "/dev/zero", "socket:[1]", "/etc/passwd"))
    users = root.users("kmodd_test_chardev")
    assert User("process", "/usr/bin/holder", "pid 1234 /dev/zero") in users
    assert all(user.kind == "process" for user in users)
    assert len(users) == 2, "one per path: /dev/null has the same major, /dev/zero is open twice"
    assert minor


def test_process_by_the_driver_behind_the_device(root: FakeRoot) -> None:
    root.link(f"sys/dev/char/{number('/dev/zero')}/device/driver/module", "../../../../module/ftdi-sio")
    root.process(5, "/usr/bin/minicom", ("/dev/zero",))
    assert root.users("ftdi_sio") == [User("process", "/usr/bin/minicom", "pid 5 /dev/zero")]


def test_process_by_the_device_nodes_alias(root: FakeRoot) -> None:
    root.put(f"sys/dev/char/{number('/dev/zero')}/uevent", "MAJOR=1\nMINOR=5\nDEVNAME=snd/seq\n")
    root.process(5, "/usr/bin/aplay", ("/dev/zero",))
    assert [user.kind for user in root.users("snd_seq")] == ["process"]


def test_kernel_threads_and_unreadable_executables_have_their_name_in_brackets(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    root.process(7, "/x/worker", ("/dev/zero",))
    (root.path / "proc/7/exe").unlink()
    assert root.users("mem") == [User("process", "[worker]", "pid 7 /dev/zero")]


def test_process_that_is_gone_meanwhile_is_passed_over(root: FakeRoot) -> None:
    (root.path / "proc/99").mkdir(parents=True)
    root.link("proc/98/fd/0", "/dev/vanished (deleted)")
    root.put("proc/notapid/fd/0")
    assert root.users("mem") == []


def test_hostile_process_names_are_made_safe(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    root.process(7, "/tmp/evil\nname\x1b[2J", ("/dev/zero",))
    assert root.users("mem")[0].name == "/tmp/evil\\x0aname\\x1b[2J"


# --- block devices ----------------------------------------------------------------------------------------------------


def test_block_device_mounted_swapped_and_part_of_another(root: FakeRoot) -> None:
    root.put("sys/block/nbd0/dev", "43:0\n")
    root.put("sys/block/nbd0/nbd0p1/dev", "43:1\n")
    root.put("sys/block/nbd0/nbd0p1/partition", "1\n")
    root.put("sys/block/nbd0/nbd0p2/dev", "43:2\n")
    root.put("sys/block/nbd0/nbd0p2/partition", "2\n")
    root.link("sys/block/nbd0/nbd0p2/holders/dm-0", "../../../dm-0")
    root.put("sys/block/vda/dev", "254:0\n")
    root.put("proc/swaps", "Filename Type Size Used Priority\n/dev/nbd0 partition 1 0 -2\n")
    root.process(1, "/sbin/init", mountinfo=mount("/mnt", "ext4", "/dev/nbd0p1", "43:1"))
    assert root.users("nbd") == [
        User("block", "/dev/nbd0", "swap"),
        User("block", "/dev/nbd0p1", "mounted at /mnt"),
        User("block", "/dev/nbd0p2", "part of /dev/dm-0"),
    ]


def test_driver_of_a_block_device_whose_name_the_kernel_cut(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n  1 mem\n\nBlock devices:\n253 kmodd_test_bloc\n")
    root.put("proc/modules", "kmodd_test_blockdev 16384 1 - Live 0x0\nloop 40960 0 - Live 0x0\n")
    root.put("sys/block/disk0/dev", "253:0\n")
    root.process(1, "/sbin/init", mountinfo=mount("/mnt", "ext4", "/dev/disk0", "253:0"))
    assert root.users("kmodd_test_blockdev") == [User("block", "/dev/disk0", "mounted at /mnt")]
    assert root.users("loop") == []


def test_unused_block_device_holds_nothing(root: FakeRoot) -> None:
    root.put("sys/block/nbd0/dev", "43:0\n")
    assert root.users("nbd") == []


@pytest.mark.parametrize(
    ("disk", "files", "module"),
    [
        ("dm-0", {"dm/uuid": "CRYPT-LUKS2-1-x\n"}, "dm_crypt"),
        ("dm-0", {"dm/uuid": "LVM-1\n"}, "dm_mod"),
        ("md0", {"md/level": "raid5\n"}, "raid456"),
        ("md0", {"md/level": "raid1\n"}, "raid1"),
        ("md0", {"md/level": "raid1\n"}, "md_mod"),
    ],
)
def test_stacked_device_holds_its_targets_module(root: FakeRoot, disk: str, files: dict[str, str], module: str) -> None:
    device = "253:0" if disk == "dm-0" else "9:0"
    root.put(f"sys/block/{disk}/dev", device + "\n")
    for name, text in files.items():
        root.put(f"sys/block/{disk}/{name}", text)
    (root.path / "sys/dev/block").mkdir(parents=True)
    root.link(f"sys/dev/block/{device}", f"../../block/{disk}")
    root.put("proc/devices", "Character devices:\n  1 mem\n\nBlock devices:\n  9 md\n253 device-mapper\n")
    root.process(1, "/sbin/init", mountinfo=mount("/data", "ext4", f"/dev/{disk}", device))
    assert root.users(module) == [User("block", f"/dev/{disk}", "mounted at /data")]


def test_scsi_disk_holds_its_host_adapter(root: FakeRoot) -> None:
    host = "sys/devices/pseudo_0/adapter0/host2"
    root.put(f"{host}/scsi_host/host2/proc_name", "scsi_debug\n")
    root.put(f"{host}/target2:0:0/2:0:0:0/block/sda/dev", "8:0\n")
    disk = f"{host}/target2:0:0/2:0:0:0/block/sda"
    root.link(f"{disk}/device", "../../../2:0:0:0")
    root.link(f"{host}/target2:0:0/2:0:0:0/subsystem", "../../../../../../bus/scsi")
    root.link("sys/dev/block/8:0", f"../../../{disk}")
    root.link("sys/block/sda", f"../../{disk}")
    root.process(1, "/sbin/init", mountinfo=mount("/mnt", "ext4", "/dev/sda", "8:0"))
    assert root.users("scsi_debug") == [User("block", "/dev/sda", "mounted at /mnt")]


# --- network interfaces -----------------------------------------------------------------------------------------------


def test_interface_by_driver_by_kind_and_by_alias(root: FakeRoot) -> None:
    for interface in ("eth0", "dummy0", "bond0", "lo"):
        root.put(f"sys/class/net/{interface}/operstate", "up\n" if interface == "eth0" else "down\n")
    root.link("sys/class/net/eth0/device/driver/module", "../../../../module/virtio_net")
    root.kinds = {"dummy0": "dummy", "bond0": "bond"}
    assert root.users("virtio_net") == [User("netdev", "eth0", "driver virtio_net, state up")]
    assert root.users("dummy") == [User("netdev", "dummy0", "link kind dummy, state down")]
    assert root.users("bonding") == [User("netdev", "bond0", "link kind bond, state down")]


def test_without_rtnetlink_sysfs_shows_some_kinds(root: FakeRoot) -> None:
    root.kinds = OSError(errno.EAFNOSUPPORT, "refused by the sandbox")
    root.put("sys/class/net/br0/bridge/bridge_id")
    root.put("sys/class/net/vx0/uevent", "DEVTYPE=vxlan\nINTERFACE=vx0\n")
    root.put("sys/class/net/lo/uevent", "INTERFACE=lo\n")
    assert root.users("bridge") == [User("netdev", "br0", "link kind bridge, state unknown")]
    assert root.users("vxlan") == [User("netdev", "vx0", "link kind vxlan, state unknown")]


# --- devices ----------------------------------------------------------------------------------------------------------


def test_devices_bound_to_its_drivers(root: FakeRoot) -> None:
    folder = "sys/module/virtio_net/drivers/virtio:virtio_net"
    root.put(f"{folder}/bind")
    root.link(f"{folder}/module", "../../../../module/virtio_net")
    root.link(f"{folder}/virtio1", "../../../../devices/virtio1")
    assert root.users("virtio_net") == [User("device", "virtio1", "driver virtio_net, bus virtio")]


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_users_are_bounded_and_certain_ones_come_first(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo="".join(mount(f"/m{n}", "overlay", "o") for n in range(200)))
    root.link("sys/module/overlay/drivers/x:y/z", "nowhere")
    users = root.users("overlay")
    assert len(users) == USERS_MAX
    assert {user.kind for user in users} == {"mount"}


def test_long_texts_are_cut(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/" + "x" * 5000, "overlay", "o"))
    assert len(root.users("overlay")[0].name) == 256
