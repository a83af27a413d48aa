# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps a mount busy, so that it ends before the umount: processes, swap files, loop devices, other mounts; and where fstab has it."""

import os
from pathlib import Path

import pytest

from kmodd.core.diagnosis.advice import advised, command, free
from kmodd.kernel.users import block as usage_block
from kmodd.kernel.users import process as usage_process
from kmodd.kernel.users.process import Inode, inode_below
from kmodd.kernel.users.tasks import Budget, Limits
from kmodd.model import Remedy, User
from tests.kernel.usage_root import FakeRoot

Found = dict[str, Inode]


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path)


@pytest.fixture
def inodes(monkeypatch: pytest.MonkeyPatch) -> Found:
    """What statx(2) answers of links, by the end of their paths; nothing of others."""
    known: Found = {}

    def inode(link: str | Path) -> Inode | None:
        return next((found for end, found in known.items() if str(link).endswith(end)), None)

    monkeypatch.setattr(usage_process, "inode", inode)
    monkeypatch.setattr(usage_process, "inode_below", lambda folder, name: inode(f"{folder}{name}"))
    monkeypatch.setattr(usage_block, "inode", inode)
    return known


def commands(users: list[User]) -> list[str]:
    return [line for line in free("m", advised(users), dependents=False) if line != "udevadm settle"][:-1]


TABLE = """\
20 1 254:0 / / rw - ext4 /dev/vda rw
30 20 1:0 / /data rw - vfat /dev/ram0 rw
31 30 0:50 / /data/tmp rw - tmpfs none rw
32 30 1:0 /x /data/y\\040z rw - vfat /dev/ram0 rw
"""


def test_a_mount_goes_with_what_is_mounted_on_it_and_the_lower_one_last(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=TABLE)
    found = root.found("vfat")
    assert [(user.name, user.remedy) for user in found] == [
        ("/data", Remedy.UNMOUNT_TREE),
        ("/data/y z", Remedy.UNMOUNT),
    ]
    assert found[0].detail == "type vfat, source /dev/ram0, with other mounts on it"
    assert commands(found) == ["umount '/data/y z'", "umount --recursive /data"]


@pytest.mark.parametrize("number", [30, -1], ids=["by its mount", "by its device"])
def test_a_process_with_a_file_of_it_ends_before_the_umount(root: FakeRoot, inodes: Found, number: int) -> None:
    root.process(1, "/sbin/init", mountinfo=TABLE)
    root.process(7, "/usr/bin/less", ("/data/a", "/data/b", "/etc/passwd"))
    inodes["7/cwd"] = Inode("", (0, 0), (254, 0), 20)
    inodes["7/fd/0"] = inodes["7/fd/1"] = Inode("", (0, 0), (1, 0), number)
    users = [user for user in root.found("vfat") if user.kind == "process"]
    assert [user.level for user in users] == [1], "one file stands for all"
    assert users[0].detail in {"pid 7 /data/a", "pid 7 /data/b"}
    assert commands(root.found("vfat"))[0] == "kill 7"
    assert [user.detail for user in root.found("ext4") if user.kind == "process"] == [], "the root is not unmounted"


def test_a_file_of_a_copy_in_a_container_does_not_keep_the_original(root: FakeRoot, inodes: Found) -> None:
    root.process(1, "/sbin/init", mountinfo=TABLE)
    root.process(7, "/usr/bin/less", ("/data/a",))
    inodes["7/fd/0"] = Inode("", (0, 0), (1, 0), 99)
    assert [user.kind for user in root.found("vfat")] == ["mount", "mount"]


MAPS = """\
7f0000000000-7f0000001000 r--p 00000000 fe:00 7                          /usr/lib/libc.so.6
7f0000001000-7f0000002000 rw-s 00000000 01:00 9                          /data/a b
7f0000002000-7f0000003000 rw-s 00001000 01:00 9                          /data/a b
7f0000003000-7f0000004000 rw-p 00000000 00:00 0
7f0000004000-7f0000005000 rw-s 00000000 00:05 8                          /dev/ram1
7f0000005000-7f0000006000 rw-s 00000000 00:05 6                          /dev/gone (deleted)
7f0000006000-7f0000007000 rw-s 00000000 00:0e 5                          anon_inode:kvm-vcpu:0
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0                          [stack]
"""


def mapping(root: FakeRoot, inodes: Found, *, ns: str = "mnt:[1]") -> None:
    """Two processes; the second one has closed what it has mapped."""
    root.process(1, "/sbin/init", mountinfo=TABLE, ns="mnt:[1]")
    root.process(7, "/usr/bin/db", ns=ns)
    root.put("proc/7/maps", MAPS)
    inodes["proc/1/root/dev/"] = Inode("", (0, 0), (0, 5), 21)


def test_a_process_with_a_mapping_of_it_ends_before_the_umount(root: FakeRoot, inodes: Found) -> None:
    """A file whose descriptor is closed."""
    mapping(root, inodes)
    found = root.found("vfat")
    assert [(user.detail, user.level) for user in found if user.kind == "process"] == [("pid 7 /data/a b, mapped", 1)]
    assert commands(found)[0] == "kill 7"


def test_a_file_that_is_open_and_mapped_is_one_user(root: FakeRoot, inodes: Found) -> None:
    mapping(root, inodes)
    inodes["7/cwd"] = Inode("", (0, 0), (1, 0), 30)
    assert len([user for user in root.found("vfat") if user.kind == "process"]) == 1


def test_a_mapping_in_another_mount_namespace_may_be_of_a_copy(root: FakeRoot, inodes: Found) -> None:
    mapping(root, inodes, ns="mnt:[2]")
    assert [user.kind for user in root.found("vfat")] == ["mount", "mount"]


def test_a_mapping_of_a_device(root: FakeRoot, inodes: Found) -> None:
    """Device nodes are found where root has them, and not where a process says they are."""
    mapping(root, inodes, ns="mnt:[2]")
    root.put("proc/devices", "Block devices:\n  1 ramdisk\n")
    root.put("proc/modules", "brd 1 1 - Live 0x0\nkvm 1 1 - Live 0x0\n")
    root.put("sys/dev/block/1:1/dev", "1:1\n")
    root.link("sys/dev/block/1:1/device/driver/module", "../../brd")
    root.put("sys/module/brd/drivers/pci:brd")
    inodes["dev/ram1"] = Inode("block", (1, 1), (0, 5), 21, 8)
    found = [(set(modules), user.detail) for modules, user in root.search() if user.kind == "process"]
    assert found == [({"brd"}, "pid 7 /dev/ram1, mapped"), ({"kvm"}, "pid 7 anon_inode:kvm-vcpu:0, mapped")]
    for node in (Inode("block", (1, 1), (0, 70), 21, 8), Inode("block", (1, 1), (0, 5), 21, 9)):
        inodes["dev/ram1"] = node
        assert root.found("brd") == [], "it is another one than the process has mapped"
    inodes["dev/ram1"] = Inode("block", (1, 1), (0, 5), 21, 8)
    root.put("proc/7/maps", MAPS.replace("/dev/ram1", "/home/far/dev/ram1"))
    assert root.found("brd") == [], "what a process has mounted there may be on a file server"


def test_a_node_is_looked_up_on_its_own_file_system_alone(tmp_path: Path) -> None:
    folder = tmp_path / "dev"
    (folder / "a").mkdir(parents=True)
    (folder / "a/b").touch()
    (folder / "link").symlink_to("a")
    (folder / "self").symlink_to("/proc/self")
    (tmp_path / "other").touch()
    found = inode_below(f"{folder}/", "a/b")
    assert found is not None
    assert found.ino == (folder / "a/b").stat().st_ino
    for name in ("link", "link/b", "self/maps", "../other", "/etc/passwd", "a/gone"):
        assert inode_below(f"{folder}/", name) is None, name
    assert inode_below("/", "proc/version") is None, "/proc is mounted there"
    assert inode_below(f"{tmp_path}/nothing", "a") is None


def test_a_process_whose_mappings_cannot_be_read_takes_no_more_than_their_time(
    root: FakeRoot, inodes: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel waits for a lock of the process, as long as its owner likes; here for who writes into a pipe. What was read
    before is kept, and what is left out is said.
    """
    mapping(root, inodes)
    root.process(8, "/usr/bin/far", ns="mnt:[1]")
    os.mkfifo(root.path / "proc/8/maps")
    children: list[int] = []
    fork = os.fork

    def noted() -> int:
        children.append(fork())
        return children[-1]

    monkeypatch.setattr(os, "fork", noted)
    budget = Budget(Limits(mapping_seconds=0.3, seconds=60))
    details = [user.detail for user in root.found("vfat", budget) if user.kind == "process"]
    assert details == ["pid 7 /data/a b, mapped"]
    assert budget.partial == "the mappings of some processes could not be read in time"
    (child,) = children
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)


def test_mappings_are_looked_at_where_they_can_hold_something(root: FakeRoot, inodes: Found) -> None:
    """The kernel takes long to list them. What has the root file system is in use in any case."""
    mapping(root, inodes)
    root.put("proc/7/maps", MAPS * 2000)
    root.put("proc/devices", "Block devices:\n253 virtblk\n254 virtblk\n")
    root.put("proc/1/mountinfo", TABLE.splitlines()[0])
    too_long = "a process has more than 1 MiB of mappings"
    for modules, partial in (
        ("crc16 1 1 - Live 0x0\nkvm 1 0 - Live 0x0\n", ""),
        ("virtio_blk 1 1 - Live 0x0\n", ""),
        ("kvm 1 1 - Live 0x0\n", too_long),
    ):
        budget = Budget(Limits(mapping_bytes_per_process=1 << 20))
        root.put("proc/modules", modules)
        root.search(budget)
        assert budget.partial == partial, modules


def test_mappings_are_bounded(root: FakeRoot, inodes: Found) -> None:
    """What is left out is said."""
    mapping(root, inodes)
    budget = Budget(Limits(mapping_bytes_per_process=1 << 20))
    root.put("proc/7/maps", MAPS * 2000)
    root.found("vfat", budget)
    assert budget.partial == "a process has more than 1 MiB of mappings"


def test_a_swap_file_ends_before_the_umount(root: FakeRoot, inodes: Found) -> None:
    root.process(1, "/sbin/init", mountinfo=TABLE)
    root.put("proc/swaps", "Filename Type Size Used Priority\n/data/a\\040b file 1 0 -2\n/elsewhere file 1 0 -3\n")
    inodes["proc/1/root/data/a b"] = Inode("", (0, 0), (1, 0), 30)
    found = root.found("vfat")
    assert [(user.kind, user.name, user.remedy) for user in found if user.level] == [
        ("file", "/data/a b", Remedy.SWAP_OFF)
    ]
    assert commands(found) == ["swapoff '/data/a b'", "umount '/data/y z'", "umount --recursive /data"]


def test_an_export_ends_before_the_umount(root: FakeRoot, inodes: Found) -> None:
    """What the kernel lists is a folder of a mount or the mount itself; blanks and tabs are escaped (seq_path)."""
    root.process(1, "/sbin/init", mountinfo=TABLE)
    rows = (
        "/data/a\\040b\t*.example(ro,fsid=0)",
        "/data/a\\040b\t10.0.0.9",
        "/data/y\\040z\t10.0.0.0/8(rw)",
        "/data/y\\040z\tfd00::/64(rw)",
        "/other\t*(ro)",
    )
    root.put("proc/fs/nfs/exports", "\n".join(("# Version 1.1", "# Path Client(Flags) # IPs", *rows, "no export", "")))
    root.put("var/lib/nfs/etab", "\n".join(rows))
    root.put("etc/exports", "# of this machine\n/data/y\\040z 10.0.0.0/8(rw)\n")
    inodes["proc/1/root/data/a b/"] = inodes["proc/1/root/data/y z/"] = Inode("", (0, 0), (1, 0), 30)
    found = [user for user in root.found("vfat") if user.kind == "export"]
    assert [(command(user), user.file, user.line) for user in found] == [
        ("exportfs -u '*.example:/data/a b'", "", 0),
        ("exportfs -u '10.0.0.0/8:/data/y z'", "/etc/exports", 2),
        ("", "/etc/exports", 2),
    ]


EXPORTED = """\
20 1 254:0 / / rw - ext4 /dev/vda rw
30 20 1:0 / /srv rw - vfat /dev/ram0 rw
31 30 1:1 / /srv/share/more rw - vfat /dev/ram1 rw
"""


@pytest.mark.parametrize(
    ("etab", "kernel", "expected"),
    [
        ("/srv(rw)", "/srv(rw)", ["exportfs -u 10.0.0.1:/srv"]),
        ("", "/srv(rw)", [""]),
        ("/srv(rw)", "/srv/share/more(rw)", [""]),
        ("/srv(rw,crossmnt)", "/srv/share/more(rw)", ["exportfs -u 10.0.0.1:/srv"]),
        ("/srv(rw,crossmnt) /srv/share(crossmnt)", "/srv/share/more(rw)", [""]),
        ("/srv/share(rw)", "/srv(ro,v4root) /srv/share(rw)", ["exportfs -u 10.0.0.1:/srv/share", "not needed"]),
        ("/srv/share(rw) /srv/far(rw)", "/srv(ro,v4root) /srv/share(rw)", ["exportfs -u 10.0.0.1:/srv/share", ""]),
        ("", "/srv(ro,v4root)", [""]),
    ],
    ids=[
        *(
            "exported",
            "by no exportfs",
            "mounted below it",
            "mounted below it and exported with it",
            "with two of them",
        ),
        *("on the way to it", "on the way to others as well", "on an unknown way"),
    ],
)
def test_what_exportfs_does_not_know_it_cannot_take_back(
    root: FakeRoot, inodes: Found, etab: str, kernel: str, expected: list[str]
) -> None:
    root.process(1, "/sbin/init", mountinfo=EXPORTED)
    for path, text in (("var/lib/nfs/etab", etab), ("proc/fs/nfs/exports", f"# {kernel}")):
        root.put(path, "".join(f"{line.replace('(', chr(9) + '10.0.0.1(')}\n" for line in text.split()))
    inodes["root/srv/"] = inodes["root/srv/share/"] = Inode("", (0, 0), (1, 0), 30)
    inodes["root/srv/share/more/"] = Inode("", (0, 0), (1, 1), 31)
    found = advised(user for user in root.found("vfat") if user.kind == "export")
    assert [user.command or user.remedy.value.replace("-", " ") for user in found] == expected


def test_a_line_that_is_cut_off_names_no_client(root: FakeRoot, inodes: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    """`10.0.0.10` begins as another client's address does."""
    root.process(1, "/sbin/init", mountinfo=EXPORTED)
    table = "/srv\t10.0.0.2(rw)\n/srv\t10.0.0.1(rw,s"
    root.put("proc/fs/nfs/exports", f"{table}ync)\n")
    inodes["root/srv/"] = Inode("", (0, 0), (1, 0), 30)
    budget = Budget()
    monkeypatch.setattr(usage_block, "_EXPORTS_MAX", len(table))
    assert [user.name for user in root.found("vfat", budget) if user.kind == "export"] == ["10.0.0.2:/srv"]
    assert budget.partial == "there are more exports than are examined"


@pytest.mark.parametrize("below", ["254:0 / /srv rw - ext4 /dev/vda", "1:0 / /srv rw - ext4 /dev/ram0"])
def test_an_exported_mount_point_is_of_what_is_mounted_there(root: FakeRoot, inodes: Found, below: str) -> None:
    """And not of the mount that the folder is in, be that the root or another one."""
    lines = (
        "20 1 254:0 / / rw - ext4 /dev/vda rw",
        f"30 20 {below} rw",
        "31 30 7:0 / /srv/share rw - vfat /dev/x rw",
        "",
    )
    root.process(1, "/sbin/init", mountinfo="\n".join(lines))
    root.put("proc/fs/nfs/exports", "# Version 1.1\n/srv/share\t10.0.0.1(rw)\n")
    inodes["proc/1/root/srv/share/"] = Inode("", (0, 0), (7, 0), 31)
    assert [user.name for user in root.found("vfat") if user.kind == "export"] == ["10.0.0.1:/srv/share"]
    assert [user for user in root.found("ext4") if user.kind == "export"] == []


def test_what_stands_on_a_loop_device_on_a_file_goes_from_the_top(root: FakeRoot, inodes: Found) -> None:
    upper = "40 20 7:0 / /mnt rw - ext4 /dev/loop0 rw\n"
    root.process(1, "/sbin/init", mountinfo=TABLE.replace("/data/y\\040z", "/data/y") + upper)
    root.put("sys/block/loop0/dev", "7:0\n")
    root.put("sys/block/loop0/loop/backing_file", "/data/image\n")
    root.put("sys/block/loop0/loop/autoclear", "0\n")
    root.link("sys/dev/block/7:0", str(root.path / "sys/block/loop0"))
    root.put("proc/devices", "Block devices:\n  1 ramdisk\n  7 loop\n")
    root.process(7, "/usr/bin/less", ("/mnt/a",))
    inodes["proc/1/root/data/image"] = Inode("", (0, 0), (1, 0), 30)
    inodes["7/fd/0"] = Inode("", (0, 0), (7, 0), 40)
    expected = ["kill 7", "umount /mnt", "losetup --detach /dev/loop0", "umount /data/y", "umount --recursive /data"]
    root.put("proc/modules", "loop 1 1 - Live 0x0\n")
    assert commands(root.found("vfat")) == expected
    lines = free("vfat", advised(root.found("vfat")), dependents=False)
    assert lines[lines.index("umount /data/y") - 1] == "udevadm settle", (
        "udev may have the device open, and so the file"
    )


def test_a_loop_device_on_a_file_of_the_root_stands_on_nothing(root: FakeRoot, inodes: Found) -> None:
    root.process(1, "/sbin/init", mountinfo=TABLE)
    root.put("sys/block/loop0/dev", "7:0\n")
    root.put("sys/block/loop0/loop/backing_file", "/data/tmp/image\n")
    inodes["proc/1/root/data/tmp/image"] = Inode("", (0, 0), (0, 50), 31)
    assert [user.kind for user in root.found("vfat")] == ["mount", "mount"], "the file is on another mount"


def test_no_server_is_waited_for_to_find_the_file_of_a_loop_device(
    root: FakeRoot, inodes: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path on FUSE is looked up by a process of its owner's, which may never answer."""
    table = "20 1 254:0 / / rw - ext4 /dev/vda rw\n30 20 0:60 / /far rw - fuse.sshfs host:/ rw\n"
    root.process(1, "/sbin/init", mountinfo=table)
    root.put("sys/block/loop0/dev", "7:0\n")
    root.put("sys/block/loop0/loop/backing_file", "/far/image\n")
    looked_up: list[str] = []
    monkeypatch.setattr(usage_block, "inode", lambda path: looked_up.append(str(path)))
    assert commands(root.found("fuse")) == ["losetup --detach /dev/loop0", "umount /far"]
    assert looked_up == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("40 30 0:70 / /far/near rw - tmpfs tmpfs rw\n", []),
        ("40 30 0:70 / /far rw - tmpfs tmpfs rw\n", []),
        ("25 20 0:70 / /far/near rw - tmpfs tmpfs rw\n", ["losetup --detach /dev/loop0"]),
        ("40 30 0:70 / /far/nearby rw - tmpfs tmpfs rw\n", ["losetup --detach /dev/loop0"]),
    ],
    ids=["below it", "over it", "hidden by it", "beside the file"],
)
def test_a_file_of_another_mount_is_not_of_the_one_below_it(
    root: FakeRoot, inodes: Found, line: str, expected: list[str]
) -> None:
    """A loop device with a file on a tmpfs, which no module is behind, in a folder of FUSE."""
    table = "20 1 254:0 / / rw - ext4 /dev/vda rw\n30 20 0:60 / /far rw - fuse.sshfs host:/ rw\n" + line
    root.process(1, "/sbin/init", mountinfo=table)
    root.put("sys/block/loop0/dev", "7:0\n")
    root.put("sys/block/loop0/loop/backing_file", "/far/near/image\n")
    assert [line for line in commands(root.found("fuse")) if line.startswith("losetup")] == expected


def test_the_server_of_a_file_system_ends_with_its_mount(root: FakeRoot, inodes: Found) -> None:
    table = "20 1 254:0 / / rw - ext4 /dev/vda rw\n30 20 0:60 / /far rw - fuse.sshfs host:/ rw\n"
    root.process(1, "/sbin/init", mountinfo=table)
    root.put("proc/misc", "229 fuse\n")
    root.process(7, "/usr/bin/sshfs", ("/dev/fuse",))
    inodes["7/fd/0"] = Inode("char", (10, 229), (0, 5), 22)
    assert [(user.kind, user.remedy) for user in root.found("fuse")] == [
        ("mount", Remedy.UNMOUNT),
        ("process", Remedy.NOT_NEEDED),
    ]
    assert commands(root.found("fuse")) == ["umount /far"]
    (root.path / "proc/1/mountinfo").write_text(table.splitlines()[0] + "\n")
    assert commands(root.found("fuse")) == ["kill 7"]


# --- where the configuration has it -----------------------------------------------------------------------------------


def test_line_of_fstab(root: FakeRoot) -> None:
    root.put("etc/fstab", "# devices\n\n/dev/ram0 /data vfat ro 0 0\n/dev/ram0 /data/y\\040z vfat ro\n")
    root.process(1, "/sbin/init", mountinfo=TABLE)
    assert [(user.file, user.line) for user in root.found("vfat")] == [("/etc/fstab", 3), ("/etc/fstab", 4)]
    (root.path / "etc/fstab").chmod(0o600)
    assert {user.file for user in root.found("vfat")} == {""}, "not everyone may read it"


def test_line_of_sysctl(root: FakeRoot) -> None:
    root.put("proc/sys/net/core/default_qdisc", "fq\n")
    root.put("usr/lib/sysctl.d/50-a.conf", "net.core.default_qdisc = fq\n")
    root.put("etc/sysctl.d/50-a.conf", "")
    assert [user.file for user in root.found("sch_fq")] == [""], "the file of /etc masks the other"
    root.put("etc/sysctl.d/90-b.conf", "; mine\n-net/core/default_qdisc=fq\n")
    assert [(user.file, user.line) for user in root.found("sch_fq")] == [("/etc/sysctl.d/90-b.conf", 2)]
    root.put("etc/sysctl.conf", "net.core.default_qdisc=fq_codel\n")
    assert [user.file for user in root.found("sch_fq")] == [""], "the value comes from elsewhere"


def test_lines_of_mappings_and_arrays(root: FakeRoot) -> None:
    root.put("etc/crypttab", "safe UUID=1 none luks\n")
    root.put("etc/mdadm/mdadm.conf", "HOMEHOST <system>\nARRAY /dev/md7 metadata=1.2\n")
    root.put("sys/block/dm-0/dev", "253:0\n")
    root.put("sys/block/dm-0/dm/name", "safe\n")
    root.put("sys/block/md7/dev", "9:7\n")
    root.put("sys/block/md7/md/level", "raid1\n")
    root.put("proc/devices", "Block devices:\n  9 md\n253 device-mapper\n")
    assert [(user.file, user.line) for user in root.found("dm_mod")] == [("/etc/crypttab", 1)]
    assert [(user.file, user.line) for user in root.found("md_mod")] == [("/etc/mdadm/mdadm.conf", 2)]
