# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who keeps a module busy: each source on a made-up root."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kmodd.core.diagnosis.advice import command
from kmodd.kernel.files import readlink
from kmodd.kernel.users.process import SocketModules, SocketUse, inode
from kmodd.kernel.users.tasks import Budget, Limits, Tasks, namespace_owner
from kmodd.model import Remedy, User
from tests.kernel.usage_root import FakeRoot, number


@pytest.fixture
def root(tmp_path: Path) -> Iterator[FakeRoot]:
    yield FakeRoot(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names
    FakeRoot(tmp_path).users("loop")
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - names


NUMBERS = count(30)


def mount(point: str, kind: str, source: str, device: str = "0:50", root: str = "/") -> str:
    return f"{next(NUMBERS)} 1 {device} {root} {point} rw,noatime shared:1 - {kind} {source} rw\n"


def test_an_empty_machine_has_no_users(root: FakeRoot) -> None:
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
    root.process(1, "/sbin/init", mountinfo=mount("/", "ext4", "/dev/vda1"), ns="mnt:[1]")
    root.process(30, "/usr/bin/c", mountinfo=mount("/inside", "overlay", "o"), ns="mnt:[3]")
    root.process(31, "/usr/bin/d", mountinfo=mount("/never", "overlay", "o"), ns="mnt:[3]")
    assert root.users("overlay") == [
        User("mount", "/inside", "type overlay, source o, in the mount namespace of pid 30"),
    ]


def test_indistinguishable_namespaces_are_all_read(root: FakeRoot) -> None:
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
    mounted, *itself = root.users(module)
    assert mounted == User("block", f"/dev/{disk}", "mounted at /data")
    assert itself == ([User("array", "/dev/md0", files["md/level"].strip())] if disk == "md0" else [])


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


# --- what ends it -----------------------------------------------------------------------------------------------------

INITIAL, OTHERS = "user:[1]", "user:[77]"


def in_namespace(root: FakeRoot, *, user_ns: str, owner: str, **more: Any) -> User:
    """An overlay mounted in a mount namespace beside that of process 1, as two processes see it."""
    root.process(1, "/sbin/init", mountinfo=mount("/", "ext4", "/dev/vda1"), ns="mnt:[1]", user_ns=INITIAL)
    root.process(77, "/usr/bin/a", mountinfo=mount("/m", "overlay", "o"), ns="mnt:[7]", user_ns=user_ns, **more)
    root.process(78, "/usr/bin/b", ns="mnt:[7]", user_ns=user_ns)
    root.owners = {"mnt:[1]": INITIAL, "mnt:[7]": owner}
    (user,) = root.found("overlay")
    assert user.pid == 77
    return user


def test_mount_of_the_machine_is_unmounted(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/a\\040b", "overlay", "o") + mount("/", "overlay", "o"))
    first, second = root.found("overlay")
    assert (first.remedy, first.target, first.pid, first.owner) == (Remedy.UNMOUNT, "/a b", None, None)
    assert second.remedy is Remedy.NONE, "the root file system stays"


def test_namespace_of_roots_is_entered_by_the_machines_umount(root: FakeRoot) -> None:
    user = in_namespace(root, user_ns=INITIAL, owner=INITIAL)
    assert (user.remedy, user.target) == (Remedy.UNMOUNT, "/m")


@pytest.mark.parametrize(
    ("user_ns", "owner"),
    [(OTHERS, OTHERS), (OTHERS, INITIAL), (INITIAL, OTHERS), ("", INITIAL), (INITIAL, "")],
    ids=["its own", "the process is a stranger's", "root has entered a stranger's", "unreadable", "unknown owner"],
)
def test_namespace_of_a_stranger_is_never_entered(root: FakeRoot, user_ns: str, owner: str) -> None:
    """Whoever made it chooses what each path and program in it is."""
    user = in_namespace(root, user_ns=user_ns, owner=owner)
    assert (user.remedy, user.pids) == (Remedy.KILL, (77, 78)), "it is there as long as one process is in it"


@pytest.mark.parametrize(
    ("cgroup", "remedy", "target"),
    [
        ("/machine.slice/machine-web\\x2d1.scope/payload", Remedy.TERMINATE_MACHINE, "web-1"),
        ("/machine.slice/systemd-nspawn@web.service/payload", Remedy.TERMINATE_MACHINE, "web"),
        (f"/machine.slice/libpod-{'ab' * 32}.scope/container", Remedy.STOP_PODMAN, "ab" * 32),
        (f"/system.slice/docker-{'cd' * 32}.scope", Remedy.STOP_DOCKER, "cd" * 32),
        ("/system.slice/crun-web.1.scope/container", Remedy.DELETE_CRUN, "web.1"),
        ("/system.slice/runc-web-1.scope", Remedy.DELETE_RUNC, "web-1"),
        ("/system.slice/runc--a.scope", Remedy.KILL, ""),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/crun-web.scope", Remedy.KILL, ""),
        ("/user.slice/user-1000.slice/user@1000.service/machine-web.scope", Remedy.KILL, ""),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{'ab' * 32}.scope", Remedy.KILL, ""),
        ("/system.slice/a.service/machine-web.scope", Remedy.KILL, ""),
        ("/user.slice/user-1000.slice/user@1000.service/a::/machine.slice/machine-web.scope", Remedy.KILL, ""),
        (f"/user.slice/user-1000.slice/user@1000.service/0::/system.slice/docker-{'ab' * 32}.scope", Remedy.KILL, ""),
        ("/machine.slice/machine-$(id).scope", Remedy.KILL, ""),
        ("/machine.slice/machine-a\\x0ab.scope", Remedy.KILL, ""),
        ("", Remedy.KILL, ""),
    ],
)
def test_container_is_ended_by_what_runs_it(root: FakeRoot, cgroup: str, remedy: Remedy, target: str) -> None:
    """And by nothing that its inside, or a user with groups of their own, has named."""
    user = in_namespace(root, user_ns=OTHERS, owner=OTHERS, cgroup=cgroup)
    assert (user.remedy, user.target) == (remedy, target)


@pytest.mark.parametrize(
    ("cgroup", "parent", "remedy", "target"),
    [
        ("/system.slice/a@b.service", 1, Remedy.STOP_UNIT, "a@b.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", 1, Remedy.STOP_UNIT, "getty@tty1.service"),
        ("/system.slice/a.service", 500, Remedy.KILL, ""),
        ("/system.slice/a.service/b.service", 1, Remedy.KILL, ""),
        ("/user.slice/user-0.slice/a.service", 1, Remedy.KILL, ""),
        ("/user.slice/user-1000.slice/user@1000.service/a::/system.slice/ssh.service", 1, Remedy.KILL, ""),
        ("/system.slice/a b.service", 1, Remedy.KILL, ""),
    ],
)
def test_service_is_stopped_and_another_process_ended(
    root: FakeRoot, cgroup: str, parent: int, remedy: Remedy, target: str
) -> None:
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    root.process(44, "/usr/bin/x", ("/dev/zero",), cgroup=cgroup, parent=parent)
    root.group(cgroup, 44)
    (user,) = root.found("mem")
    assert (user.remedy, user.target) == (remedy, target)
    assert (user.pid, user.exe, user.owner) == (44, "/usr/bin/x", os.getuid())
    assert user.pids == ((44,) if remedy is Remedy.KILL else ())


@pytest.mark.parametrize(
    ("ignored", "printed"), [("384004", "kill -HUP 44"), ("4001", "kill -KILL 44"), ("1", "kill 44")]
)
def test_process_that_ignores_a_signal_is_sent_another(root: FakeRoot, ignored: str, printed: str) -> None:
    """Bash at a terminal ignores SIGTERM (bash(1), SIGNALS), and what nohup started SIGHUP."""
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    root.process(44, "/bin/bash", ("/dev/zero",))
    root.put("proc/44/status", f"Name:\tbash\nSigIgn:\t{ignored:0>16}\n")
    assert [command(user) for user in root.found("mem")] == [printed]


@pytest.mark.parametrize(
    ("name", "numbers", "handled", "printed"),
    [
        ("sleep", "44\t1", "0", "kill -KILL 44"),
        ("nginx", "44\t1", "4000", "kill 44"),
        ("systemd", "44\t1", "4000", "kill -KILL 44"),
        ("sleep", "44\t7", "0", "kill 44"),
        ("sleep", "44", "0", "kill 44"),
    ],
)
def test_first_process_of_a_namespace_is_ended(
    root: FakeRoot, name: str, numbers: str, handled: str, printed: str
) -> None:
    """The kernel drops SIGTERM for it unless it has a handler, and an init does something else then (systemd(1), SIGNALS)."""
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    root.process(44, f"/bin/{name}", ("/dev/zero",))
    root.put("proc/44/status", f"Name:\t{name}\nNSpid:\t{numbers}\nSigIgn:\t{0:016}\nSigCgt:\t{handled:0>16}\n")
    assert [command(user) for user in root.found("mem")] == [printed]


def test_what_a_service_started_and_let_go_is_ended_and_not_the_service(root: FakeRoot) -> None:
    """As `ldattach`, or anything that becomes a daemon: a child of process 1, as the service's own."""
    cgroup = "/system.slice/a.service"
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    for pid, begin in ((40, 100), (44, 900)):
        root.process(pid, "/usr/bin/x", ("/dev/zero",), cgroup=cgroup, parent=1)
        root.put(f"proc/{pid}/stat", f"{pid} (x) S 1 {'0 ' * 17}{begin} 0\n")
    root.group(cgroup, 40, 44)
    assert [(user.pid, user.remedy) for user in root.found("mem")] == [(40, Remedy.STOP_UNIT), (44, Remedy.KILL)]


@pytest.mark.parametrize("others", ["root's", "unknown"])
def test_service_with_processes_of_several_users_is_not_stopped(root: FakeRoot, others: str) -> None:
    """As cron: what a user has it start is in the service's group, and may have become a child of process 1."""
    cgroup = "/system.slice/cron.service"
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    root.process(40, "/usr/sbin/cron", cgroup=cgroup, parent=1)
    root.process(44, "/home/alice/x", ("/dev/zero",), cgroup=cgroup, parent=1)
    os.chown(root.path / "proc/44", 1000, -1)
    if others == "root's":
        root.group(cgroup, 40, 44)
    (user,) = root.found("mem")
    assert (user.remedy, user.pids) == (Remedy.KILL, (44,))


def test_devices_below_another_are_taken_apart(root: FakeRoot) -> None:
    root.put("sys/block/nbd0/dev", "43:0\n")
    for holder in ("dm-0", "md1", "bcache0"):
        root.link(f"sys/block/nbd0/holders/{holder}", f"../../{holder}")
    root.put("sys/block/dm-0/dm/name", "vg-root\n")
    root.put("sys/block/md1/md/level", "raid1\n")
    root.put("proc/swaps", "Filename Type Size Used Priority\n/dev/nbd0 partition 1 0 -2\n")
    assert [(user.remedy, user.target) for user in root.found("nbd")] == [
        (Remedy.SWAP_OFF, "/dev/nbd0"),
        (Remedy.NONE, ""),
        (Remedy.REMOVE_MAPPING, "vg-root"),
        (Remedy.STOP_ARRAY, "/dev/md1"),
    ]


# --- bounds -----------------------------------------------------------------------------------------------------------


def limited(**limits: Any) -> Budget:
    return Budget(Limits(**limits))


def test_mount_tables_are_read_up_to_a_limit(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/mine", "overlay", "o"), ns="mnt:[1]")
    for pid in range(20, 40):
        table = "".join(mount(f"/x{n}", "tmpfs", "t") for n in range(2000)) + mount(f"/o{pid}", "overlay", "o")
        root.process(pid, "/usr/bin/a", mountinfo=table, ns=f"mnt:[{pid}]")
    budget = limited(mount_bytes=1 << 20, seconds=60)
    users = root.found("overlay", budget)
    assert users[0].name == "/mine"
    assert 1 < len(users) < 20
    assert budget.partial == "the mount tables have more than 1 MiB"


def test_mount_tables_of_one_user_leave_room_for_those_of_another(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", ns="mnt:[1]")
    for pid in (20, 21, 22, 30):
        table = "".join(mount(f"/x{n}", "tmpfs", "t") for n in range(8000)) if pid < 30 else ""
        root.process(pid, "/usr/bin/a", mountinfo=table + mount(f"/o{pid}", "overlay", "o"), ns=f"mnt:[{pid}]")
        os.chown(root.path / f"proc/{pid}", 1000 if pid < 30 else 1001, -1)
    budget = limited(mount_bytes_per_user=1 << 19, seconds=60)
    assert [user.name for user in root.found("overlay", budget)] == ["/o20", "/o30"]
    assert budget.partial == "the mount tables of a user have more than 0 MiB"


def test_mount_tables_leave_time_for_processes(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    root.process(1, "/sbin/init", ("/dev/zero",), mountinfo=mount("/mine", "overlay", "o"))
    now = iter([0.0, 0.0, *[0.6] * 1000])
    budget = Budget(Limits(seconds=1), clock=lambda: next(now))
    assert [user.kind for user in root.found("mem", budget)] == ["process"]
    assert budget.partial == "the mount tables took more than 0.5 s"


def test_the_systems_own_mounts_are_found_however_slow_the_machine_is(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/mine", "overlay", "o"), ns="mnt:[1]")
    root.process(2, "/usr/bin/a", mountinfo=mount("/other", "overlay", "o"), ns="mnt:[2]")
    now = iter([0.0, 0.0, 0.0, *[0.6] * 1000])
    assert [user.name for user in root.found("overlay", Budget(Limits(seconds=1), clock=lambda: next(now)))] == [
        "/mine"
    ]


def test_no_more_namespaces_than_allowed_are_read_roots_first(root: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    root.process(1, "/sbin/init", ns="mnt:[1]")
    for pid in range(2, 12):
        root.process(pid, "/usr/bin/a", mountinfo=mount(f"/o{pid}", "overlay", "o"), ns=f"mnt:[{pid}]")
        os.chown(root.path / f"proc/{pid}", 1000 if pid < 10 else 0, -1)
    budget = limited(namespaces=3)
    assert [user.name for user in root.found("overlay", budget)] == ["/o10", "/o11", "/o2"]
    assert budget.partial == "there are more than 3 mount namespaces"


def test_users_take_turns(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    for pid in range(10, 20):
        root.process(pid, "/usr/bin/flood", ("/dev/zero",) * 10)
        os.chown(root.path / f"proc/{pid}", 1000, -1)
    root.process(30, "/usr/bin/victim", ("/dev/zero",))
    os.chown(root.path / "proc/30", 1001, -1)
    budget = limited(descriptors_per_user=15)
    assert [user.pid for user in root.found("mem", budget)] == [10, 30, 11]
    assert budget.partial == "a user has more than 15 open files"


def test_process_that_may_not_be_dumped_counts_as_its_users(root: FakeRoot) -> None:
    """What is in its folder in /proc is root's, and any user can make one: it is neither first nor without a limit for that."""
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    for pid, user in ((10, 1000), (11, 1000), (12, 0)):
        root.process(pid, "/usr/bin/a", ("/dev/zero",) * 3)
        os.chown(root.path / f"proc/{pid}", user, -1)
    users = root.found("mem", limited(descriptors_per_user=4))
    assert [(user.pid, user.owner) for user in users] == [(12, 0), (10, 0), (11, 0)]
    budget = limited(descriptors_per_user=2)
    assert [user.pid for user in root.found("mem", budget)] == [12, 10]
    assert budget.partial == "a user has more than 2 open files"


def test_descriptors_of_one_process_are_limited(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n  1 mem\n")
    root.process(10, "/usr/bin/flood", ("/etc/passwd",) * 50 + ("/dev/zero",))
    budget = limited(descriptors_per_process=20)
    root.found("mem", budget)
    assert budget.partial == "a process has more than 20 open files"


def test_the_search_ends_in_time(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/mine", "overlay", "o"))
    seconds = iter(range(1000))
    budget = Budget(Limits(seconds=1), clock=lambda: float(next(seconds)))
    root.found("overlay", budget)
    assert "the search was ended after 1 s" in budget.partial


def test_mounts_that_concern_no_module_are_not_kept(root: FakeRoot) -> None:
    table = "".join(mount(f"/x{n}", "tmpfs", "t") for n in range(5000)) + mount("/mine", "overlay", "o")
    root.process(1, "/sbin/init", mountinfo=table)
    budget = limited(mounts=10)
    assert [user.name for user in root.found("overlay", budget)] == ["/mine"]
    assert budget.partial == ""


def test_the_target_of_a_link_is_read_without_a_file_server() -> None:
    zero = inode("/dev/zero")
    assert zero is not None
    assert (zero.kind, zero.number) == ("char", (1, 5))
    plain, status = inode("/etc/passwd"), Path("/etc/passwd").stat()
    assert plain is not None
    assert (plain.kind, plain.on) == ("", (os.major(status.st_dev), os.minor(status.st_dev)))
    assert inode("/nowhere") is None


def test_users_are_bounded_and_certain_ones_come_first(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo="".join(mount(f"/m{n}", "overlay", "o") for n in range(200)))
    root.link("sys/module/overlay/drivers/x:y/z", "nowhere")
    budget = Budget()
    users = root.found("overlay", budget)
    assert len(users) == Limits().users
    assert {user.kind for user in users} == {"mount"}
    assert (budget.partial, set(budget.crowded)) == ("", {"overlay"})


def test_long_texts_are_cut(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=mount("/" + "x" * 5000, "overlay", "o"))
    assert len(root.users("overlay")[0].name) == 256


def test_owner_of_a_namespace_is_read_from_the_kernel() -> None:
    with subprocess.Popen(
        ["unshare", "--user", "--mount", "sh", "-c", "echo made; read _"], stdin=-1, stdout=-1
    ) as made:
        assert made.stdout is not None
        made.stdout.readline()
        folder = Path(f"/proc/{made.pid}/ns")
        owner, mine = namespace_owner(folder / "mnt"), namespace_owner(Path("/proc/self/ns/mnt"))
        assert owner == readlink(folder / "user") != mine
        made.communicate(b"\n")


# --- sockets -----------------------------------------------------------------------------------------------------------

FLAGS = "y  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n"


@pytest.fixture
def protocols(tmp_path: Path) -> SocketModules:
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/protocols").write_text(
        "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh gp em\n"
        f"UNIX-STREAM 1024   12  -1   NI       0   yes  faked-unix      {FLAGS}\n"
        f"UNIX      1024     12  -1   NI       0   yes  faked-unix      {FLAGS}\n"
        f"TWO WORDS 1024     12  -1   NI       0   yes  spaced      {FLAGS}\n"
        "broken\n"
    )
    return SocketModules(tmp_path, {"faked_unix": 1, "spaced": 1})


def test_socket_is_known_by_its_protocol(protocols: SocketModules) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        link = Path(f"/proc/self/fd/{opened.fileno()}")
        assert protocols.uses(link, link.readlink().name) == [SocketUse("UNIX", frozenset({"faked_unix"}))]


def test_protocols_of_modules_that_are_not_loaded_are_not_looked_for(protocols: SocketModules, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        link = Path(f"/proc/self/fd/{opened.fileno()}")
        assert SocketModules(tmp_path, {"spaced": 1}).uses(link, link.readlink().name) == []


def test_what_is_no_socket_has_no_protocol(protocols: SocketModules) -> None:
    assert protocols.uses(Path("/proc/self/exe"), "/usr/bin/python3") == []
    assert protocols.uses(Path("/proc/self/fd/999"), "socket:[1]") == []


def test_owner_of_a_real_process_that_may_not_be_dumped_is_root_and_its_user_is_its_own() -> None:
    """The kernel is the judge (task_dump_owner in fs/proc/base.c): a program of which its own user may see nothing in /proc."""
    program = (
        "import ctypes, os; os.setgid(65534); os.setuid(65534); "
        "ctypes.CDLL(None).prctl(4, *[ctypes.c_ulong(0)] * 4); print(flush=True); input()"  # PR_SET_DUMPABLE
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        tasks = {task.pid: task for task in Tasks(Path("/"), Budget()).all}
        process.communicate(b"\n")
    assert (tasks[process.pid].user, tasks[process.pid].uid) == (65534, 0)
    assert (tasks[os.getpid()].user, tasks[os.getpid()].uid) == (os.geteuid(), os.geteuid())
