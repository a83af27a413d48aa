# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a system needs, read from files below a fake root."""

from pathlib import Path

import pytest

from kmodd.kernel.needs import SystemNeeds
from kmodd.model.surface import Reading

MOUNTINFO = """\
22 1 254:3 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw
23 22 8:1 / /boot/efi rw shared:2 - vfat /dev/sda1 rw,codepage=850,iocharset=ascii
24 22 0:45 / /mnt/with\\040space rw - fuse.sshfs host:/ rw
"""
FSTAB = """\
# comment
UUID=1 / ext4 defaults 0 1
LABEL=x /srv/data btrfs,xfs noauto 0 0
/dev/sda2 none swap sw 0 0
"""


class Root:
    """Files and links below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("proc/1/mountinfo", MOUNTINFO)

    def write(self, name: str, text: str = "") -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def link(self, name: str, target: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def read(self, source: str, kinds: dict[str, str] | None = None) -> Reading:
        readings = SystemNeeds(self.path, kinds=lambda: kinds or {}).read()
        return next(reading for reading in readings if reading.source == source)

    def requests(self, source: str, *, floor: bool | None = None, kinds: dict[str, str] | None = None) -> set[str]:
        reading = self.read(source, kinds)
        assert reading.fault == ""
        return {want.request for want in reading.wants if floor is None or want.floor is floor}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made = Root(tmp_path)
    # Root on LVM in LUKS on a disk behind a controller.
    disk = "sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/block/sda"
    made.write(f"{disk}/sda1/partition", "1\n")
    made.write("sys/devices/pci0000:00/0000:00:1f.2/modalias", "pci:v00008086d00002922\n")
    made.link("sys/devices/pci0000:00/0000:00:1f.2/driver", "../../../bus/pci/drivers/ahci")
    made.link("sys/bus/pci/drivers/ahci/module", "../../../../module/ahci")
    made.write("sys/module/ahci/initstate", "live\n")
    for name, uuid, slave in (("dm-3", "LVM-x\n", "dm-1"), ("dm-1", "CRYPT-LUKS2-x\n", "sda1")):
        made.write(f"sys/devices/virtual/block/{name}/dm/uuid", uuid)
        made.write(f"sys/devices/virtual/block/{name}/dm/name", f"{name}-name\n")
        made.write(f"sys/devices/virtual/block/{name}/slaves/{slave}")
        made.link(f"sys/class/block/{name}", f"../../devices/virtual/block/{name}")
    made.link("sys/class/block/sda1", f"../../{disk.removeprefix('sys/')}/sda1")
    made.link("sys/class/block/sda", f"../../{disk.removeprefix('sys/')}")
    made.link("sys/dev/block/254:3", "../../devices/virtual/block/dm-3")
    made.link("sys/dev/block/8:1", f"../../{disk.removeprefix('sys/')}/sda1")
    made.write("sys/module/dm_mod/initstate", "live\n")
    made.write("sys/module/dm_crypt/initstate", "live\n")
    made.write("proc/crypto", "name : xts(aes)\nmodule       : xts\n\nname : sha1\nmodule       : kernel\n")
    return made


def test_the_whole_stack_below_the_root_is_a_floor(root: Root) -> None:
    floor = root.requests("mounts", floor=True)
    assert {"ext4", "fs-ext4", "vfat", "nls_cp850", "nls_ascii", "dm_mod", "dm_crypt", "xts", "ahci"} <= floor
    assert "pci:v00008086d00002922" in floor
    assert root.requests("mounts", floor=False) == {"fs-fuse", "fuse"}


def test_swap_lies_on_a_stack_too(root: Root) -> None:
    root.write("proc/swaps", "Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2\n/swapfile file 1 0 -3\n")
    assert {"ahci"} <= root.requests("swap", floor=True)


def test_the_table_of_file_systems(root: Root) -> None:
    root.write("etc/fstab.real", FSTAB)
    root.link("etc/fstab", "fstab.real")
    assert root.requests("fstab", floor=True) == {"fs-ext4", "ext4"}
    assert root.requests("fstab", floor=False) == {"fs-btrfs", "btrfs", "fs-xfs", "xfs"}


def test_volumes_that_are_not_open_need_the_usual_ciphers(root: Root) -> None:
    assert root.requests("crypttab") == set()
    root.write("etc/crypttab", "# x\nswap /dev/sdb1 /dev/urandom swap,cipher=serpent-cbc-essiv:sha256\n")
    assert {"dm_crypt", "crypto-xts", "crypto-serpent", "crypto-sha256"} <= root.requests("crypttab")


def test_units_name_modules(root: Root) -> None:
    units = "usr/lib/systemd/system"
    root.write(
        f"{units}/a.service", "[Unit]\nWants=modprobe@loop.service\n[Service]\nExecStartPre=-/sbin/modprobe -q nbd\n"
    )
    root.write(f"{units}/b.service", "[Service]\n# modprobe commented\nExecStop=/sbin/modprobe -r removed\n")
    root.write(f"{units}/srv.mount", "[Mount]\nWhat=x\nType=cifs\n")
    root.write(f"{units}/mnt.automount", "[Automount]\nWhere=/mnt\n")
    root.link("etc/systemd/system/sysinit.target.wants/modprobe@dm_mod.service", "/x")
    root.write("etc/systemd/system/c.service.d/x.conf", "[Service]\nExecStartPre=modprobe ip_vs\n")
    expected = {"loop", "nbd", "fs-cifs", "fs-autofs", "autofs4", "dm_mod", "ip_vs"}
    assert root.requests("units") == expected


def test_a_container_runtime_needs_its_set(root: Root) -> None:
    assert root.requests("containers") == set()
    root.write("usr/bin/dockerd")
    assert {"overlay", "veth", "br_netfilter"} <= root.requests("containers")


def test_interfaces_that_are_up_are_a_floor(root: Root) -> None:
    device = "sys/devices/pci0000:00/0000:00:03.0"
    root.write(f"{device}/net/eth0/operstate", "up\n")
    root.write(f"{device}/modalias", "pci:v00001AF4d00001000\n")
    root.link("sys/class/net/eth0", "../../devices/pci0000:00/0000:00:03.0/net/eth0")
    root.write("sys/devices/virtual/net/wg0/operstate", "unknown\n")
    root.link("sys/class/net/wg0", "../../devices/virtual/net/wg0")
    root.write("sys/devices/virtual/net/br0/operstate", "down\n")
    root.link("sys/class/net/br0", "../../devices/virtual/net/br0")
    kinds = {"wg0": "wireguard", "br0": "bridge"}
    assert root.requests("network", floor=True, kinds=kinds) == {
        "pci:v00001AF4d00001000",
        "rtnl-link-wireguard",
        "wireguard",
    }
    assert root.requests("network", floor=False, kinds=kinds) == {"rtnl-link-bridge", "bridge"}


def test_what_cannot_be_read_says_so(root: Root) -> None:
    (root.path / "proc/1/mountinfo").unlink()
    assert root.read("mounts").fault == "cannot be read (no such file)"

    def refused() -> dict[str, str]:
        raise PermissionError(13, "Permission denied")

    readings = SystemNeeds(root.path, kinds=refused).read()
    assert {reading.source for reading in readings if reading.fault} == {"mounts", "network"}
    root.write("boot/initrd.img-6.1", "no image")
    assert SystemNeeds(root.path).initramfs("6.1").fault.startswith("cannot be read")
    assert SystemNeeds(root.path).initramfs("6.2") == Reading("initramfs")
