# SPDX-License-Identifier: LGPL-2.1-or-later
"""The search for what goes with modules, in a made-up /proc and /sys."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from kmodd.kernel.modules.alias_text import AliasText
from kmodd.kernel.users import rtnetlink
from kmodd.kernel.users.consequences import Consequences
from kmodd.kernel.users.rtnetlink import Link
from kmodd.kernel.users.tasks import Budget, Limits
from kmodd.model import Consequence, ConsequenceKind
from tests.kernel.usage_root import FakeRoot

OWN, OTHER, HIS = "net:[1]", "net:[2]", "net:[3]"
INTERFACE, DISK, DEVICE = ConsequenceKind.INTERFACE, ConsequenceKind.DISK, ConsequenceKind.DEVICE


class FakeNetlink(rtnetlink.Rtnetlink):
    """Answers what the test says, by namespace: that of a descriptor is known by the file's content."""

    def __init__(
        self,
        links: Mapping[str, tuple[Link, ...]],
        addresses: Mapping[int, tuple[str, ...]] = {},
        routes: frozenset[int] = frozenset(),
    ) -> None:
        self._links = links
        self._addresses = dict(addresses)
        self._routes = routes
        self._names = list(links)

    def close(self) -> None:
        pass

    def namespace_id(self, namespace: int) -> int:
        return self._names.index(os.read(namespace, 100).decode())

    def links(self, namespace: int | None = None) -> tuple[Link, ...]:
        found = self._links[self._names[namespace or 0]]
        if found == (REFUSED,):
            raise PermissionError(errno.EACCES, "Permission denied")
        return found

    def addresses(self) -> dict[int, tuple[str, ...]]:
        return self._addresses

    def default_routes(self) -> frozenset[int]:
        return self._routes


REFUSED = Link(0, "refused")


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    made = FakeRoot(tmp_path)
    made.put("proc/modules", "")
    made.link("proc/self/ns/net", OWN)
    made.process(1, "/sbin/init", ns="mnt:[1]")
    made.link("proc/1/ns/net", OWN)
    release = os.uname().release
    made.put(
        f"lib/modules/{release}/modules.alias",
        "alias rtnl-link-bond bonding\nalias rtnl-link-dummy dummy\nalias rtnl-link-ipip ipip\nalias block-major-1-* brd\n",
    )
    return made


def loaded(root: FakeRoot, *names: str) -> None:
    for name in names:
        root.put(f"sys/module/{name}/initstate", "live\n")


def search(
    root: FakeRoot, *modules: str, netlink: FakeNetlink | OSError | None = None, budget: Budget | None = None
) -> list[Consequence]:
    def make() -> FakeNetlink:
        if isinstance(netlink, OSError):
            raise netlink
        return netlink or FakeNetlink({OWN: ()})

    aliases = AliasText(root.path, os.uname().release)
    found = Consequences(root.path, modules, aliases, budget or Budget(), netlink=make)
    return [row for _, row in found.search()]


def namespace(root: FakeRoot, link: str, *, mounted: str = "", pid: int = 0) -> None:
    """A network namespace that is mounted, or that a process is in; what is opened holds its name."""
    if mounted:
        text = root.path / "proc/1/mountinfo"
        text.write_text(text.read_text() + f"30 20 0:4 {link} {mounted} rw shared:1 - nsfs nsfs rw\n")
        root.put(f"proc/1/root{mounted}", link)
    if pid:
        root.process(pid, "/usr/bin/sleep", ns=f"mnt:[{pid}]")
        # The link reads as the namespace, and leads to a file that names it.
        root.link(f"proc/{pid}/ns/net", link)
        root.put(f"proc/{pid}/ns/{link}", link)


# --- interfaces -----------------------------------------------------------------------------------------------------------------


def test_interfaces_of_a_kind(root: FakeRoot) -> None:
    loaded(root, "dummy", "bonding")
    links = (Link(1, "lo"), Link(2, "dummy0", "dummy", up=True), Link(3, "bond0", "bond"))
    netlink = FakeNetlink({OWN: links}, {2: ("192.0.2.1/24", "fe80::1/64")})
    assert search(root, "dummy", netlink=netlink) == [
        Consequence(INTERFACE, "dummy0", up=True, addresses=("192.0.2.1/24",))
    ]
    assert search(root, "bonding", netlink=netlink) == [Consequence(INTERFACE, "bond0")]


def test_what_is_stacked_on_it(root: FakeRoot) -> None:
    loaded(root, "dummy")
    links = (
        Link(2, "dummy0", "dummy", master=4),
        Link(3, "dummy0.7", "vlan", lower=2, master=0),
        Link(4, "br0", "bridge", up=True),
        Link(5, "br0.9", "vlan", lower=4),
    )
    netlink = FakeNetlink({OWN: links}, {5: ("10.0.0.1/8",)}, frozenset({5}))
    (row,) = search(root, "dummy", netlink=netlink)
    assert row.carries == ("br0", "dummy0.7", "br0.9")
    assert row.addresses == ("10.0.0.1/8",)
    assert row.default_route


def test_ports_of_a_bridge(root: FakeRoot) -> None:
    loaded(root, "bridge")
    links = (Link(2, "br0", "bridge"), Link(3, "eth0", master=2))
    (row,) = search(root, "bridge", netlink=FakeNetlink({OWN: links}))
    assert row.ports == ("eth0",)
    assert row.live


def test_a_ring_of_interfaces_ends(root: FakeRoot) -> None:
    loaded(root, "dummy")
    links = (Link(2, "a", "dummy", lower=3, master=3), Link(3, "b", "dummy", lower=2, master=2))
    assert len(search(root, "dummy", netlink=FakeNetlink({OWN: links}))) == 2


def test_interfaces_of_named_namespaces_and_of_processes(root: FakeRoot) -> None:
    loaded(root, "dummy")
    namespace(root, OTHER, mounted="/run/netns/blue")
    netlink = FakeNetlink({OWN: (), OTHER: (Link(2, "d0", "dummy"), Link(3, "v0", "veth"))})
    assert search(root, "dummy", netlink=netlink) == [Consequence(INTERFACE, "d0", netns="blue", owner=0)]


def test_processes_are_not_looked_through_for_a_module_without_interfaces(root: FakeRoot) -> None:
    loaded(root, "vfat", "dummy")
    namespace(root, OTHER, pid=7)
    (root.path / f"proc/7/ns/{OTHER}").unlink()
    netlink = FakeNetlink({OWN: ()})
    assert search(root, "vfat", netlink=netlink) == []
    (root.path / "proc/7/ns/net").unlink()
    (root.path / "proc/7/ns/net").mkdir()  # no link: it cannot be told
    assert search(root, "vfat", netlink=netlink) == []
    assert [row.kind for row in search(root, "dummy", netlink=netlink)] == [ConsequenceKind.UNKNOWN]
    (root.path / f"lib/modules/{os.uname().release}/modules.alias").unlink()
    assert [row.kind for row in search(root, "vfat", "tun", netlink=netlink)] == [ConsequenceKind.UNKNOWN]


def test_the_kernels_own_tunnels_of_every_namespace_are_not_live(root: FakeRoot) -> None:
    loaded(root, "ipip")
    namespace(root, OTHER, mounted="/run/netns/blue")
    netlink = FakeNetlink({OWN: (), OTHER: (Link(2, "tunl0", "ipip"), Link(3, "mine", "ipip"))})
    assert [(row.name, row.live) for row in search(root, "ipip", netlink=netlink)] == [("tunl0", False), ("mine", True)]


def test_a_namespace_that_cannot_be_listed_is_said_of_modules_of_interfaces(root: FakeRoot) -> None:
    loaded(root, "dummy", "loop")
    namespace(root, OTHER, mounted="/run/netns/blue")
    netlink = FakeNetlink({OWN: (), OTHER: (REFUSED,)})
    (row,) = search(root, "dummy", netlink=netlink)
    assert (row.kind, row.live) == (ConsequenceKind.UNKNOWN, True)
    assert row.detail == "the interfaces of 1 network namespace cannot be listed"
    assert search(root, "loop", netlink=netlink) == []


@pytest.mark.parametrize("netlink", [OSError(errno.EPERM, "Operation not permitted"), FakeNetlink({OWN: (REFUSED,)})])
def test_no_answer_is_not_taken_for_no_interface(root: FakeRoot, netlink: FakeNetlink | OSError) -> None:
    loaded(root, "dummy")
    assert [row.kind for row in search(root, "dummy", netlink=netlink)] == [ConsequenceKind.UNKNOWN]


def test_a_search_that_was_ended_is_not_taken_for_whole(root: FakeRoot) -> None:
    loaded(root, "dummy")
    namespace(root, OTHER, mounted="/run/netns/blue")
    netlink = FakeNetlink({OWN: (), OTHER: ()})
    rows = search(root, "dummy", netlink=netlink, budget=Budget(Limits(seconds=0.0)))
    assert [row.kind for row in rows] == [ConsequenceKind.UNKNOWN]


# --- what hangs on a driver -------------------------------------------------------------------------------------------------------


def bind(root: FakeRoot, module: str, device: str, driver: str = "pci:drv") -> str:
    """A device that is bound to a driver of the module; answers its folder."""
    folder = f"sys/devices/pci0000:00/{device}"
    root.put(f"{folder}/uevent")
    root.link(f"sys/module/{module}/drivers/{driver}/{Path(device).name}", f"{root.path}/{folder}")
    root.link(f"sys/module/{module}/drivers/{driver}/module", "../../../../module")
    loaded(root, module)
    return folder


def of_class(root: FakeRoot, folder: str, subsystem: str, **files: str) -> None:
    root.link(f"{folder}/subsystem", f"../../../class/{subsystem}")
    for name, text in files.items():
        root.put(f"{folder}/{name.replace('__', '/')}", f"{text}\n")


def test_a_device_of_which_nothing_is_known_is_live(root: FakeRoot) -> None:
    bind(root, "virtio_rng", "0000:00:05.0")
    assert search(root, "virtio_rng") == [Consequence(DEVICE, "0000:00:05.0", detail="drv")]
    assert search(root, "other") == []


def test_a_network_card_goes_with_its_own_driver_and_with_those_above_it(root: FakeRoot) -> None:
    card = bind(root, "virtio_net", "0000:00:03.0/virtio1", "virtio:virtio_net")
    bind(root, "virtio_pci", "0000:00:03.0", "pci:virtio-pci")
    root.link("sys/bus/virtio/devices/virtio1", f"{root.path}/{card}")
    root.link("sys/class/net/eth0/device", f"{root.path}/{card}")
    for up in (False, True):
        netlink = FakeNetlink({OWN: (Link(2, "eth0", up=up, bus="virtio", device="virtio1"),)})
        for module in ("virtio_net", "virtio_pci"):
            assert search(root, module, netlink=netlink) == [Consequence(INTERFACE, "eth0", up=up)]
    # Moved into another namespace: this one's /sys shows it no more.
    namespace(root, OTHER, mounted="/run/netns/blue")
    (root.path / "sys/class/net/eth0/device").unlink()
    netlink = FakeNetlink({OWN: (), OTHER: (Link(2, "eth0", bus="virtio", device="virtio1"),)})
    assert search(root, "virtio_net", netlink=netlink) == [
        Consequence(INTERFACE, "eth0", netns="blue", owner=0),
        Consequence(DEVICE, "virtio1", detail="virtio_net"),
    ]


@pytest.mark.parametrize(
    ("udev", "uses"),
    [
        ("S:disk\nE:ID_MODEL=x\n", ()),
        ("E:ID_FS_TYPE=ext4\n", ("holds ext4",)),
        ("E:ID_PART_TABLE_TYPE=gpt\n", ("holds gpt",)),
        (None, ("may hold data",)),
    ],
)
def test_a_disk_that_nothing_uses(root: FakeRoot, udev: str | None, uses: tuple[str, ...]) -> None:
    disk = bind(root, "scsi", "0000:00:06.0") + "/host0/target/block/sda"
    of_class(root, disk, "block", dev="8:0", size="2048")
    if udev is not None:
        root.put("run/udev/data/b8:0", udev)
    assert search(root, "scsi") == [Consequence(DISK, "/dev/sda", uses=uses)]


def test_a_disk_in_use(root: FakeRoot) -> None:
    disk = bind(root, "scsi", "0000:00:06.0") + "/host0/target/block/sda"
    of_class(root, disk, "block", dev="8:0", size="2048")
    of_class(root, f"{disk}/sda1", "block", dev="8:1", partition="1")
    of_class(root, f"{disk}/sda2", "block", dev="8:2", partition="2")
    root.put(f"{disk}/sda2/holders/dm-0/dev", "253:0\n")
    root.put("run/udev/data/b8:0", "")
    root.put("proc/1/mountinfo", "20 1 8:1 / /mnt rw - ext4 /dev/sda1 rw\n")
    assert search(root, "scsi") == [Consequence(DISK, "/dev/sda", uses=("is mounted at /mnt", "is part of /dev/dm-0"))]


def test_a_disk_with_partitions_is_not_empty(root: FakeRoot) -> None:
    disk = bind(root, "scsi", "0000:00:06.0") + "/block/sda"
    of_class(root, disk, "block", dev="8:0", size="2048")
    of_class(root, f"{disk}/sda1", "block", dev="8:1", partition="1")
    root.put("run/udev/data/b8:0", "")
    root.put("run/udev/data/b8:1", "")
    assert search(root, "scsi") == [Consequence(DISK, "/dev/sda", uses=("has partitions",))]


@pytest.mark.parametrize(
    ("stat", "iostats", "pages", "uses"),
    [
        ("1 0 8 0 0 0 0 0", "1", None, ()),
        ("1 0 8 0 3 0 8 0", "1", None, ("holds data in memory",)),
        ("0 0 0 0 0 0 0 0", "0", None, ("may hold data in memory",)),
        ("0 0 0 0 0 0 0 0", "0", "0", ()),
        ("0 0 0 0 0 0 0 0", "0", "12", ("holds data in memory",)),
        ("0 0 0 0 0 0 0 0", None, None, ("may hold data in memory",)),
    ],
)
def test_a_disk_in_memory(
    root: FakeRoot, stat: str, iostats: str | None, pages: str | None, uses: tuple[str, ...]
) -> None:
    of_class(root, "sys/devices/virtual/block/ram0", "block", dev="1:0", size="8192", stat=stat)
    if iostats is not None:
        root.put("sys/devices/virtual/block/ram0/queue/iostats", iostats)
    if pages is not None:
        root.put("sys/kernel/debug/ramdisk_pages/ram0", pages)
    root.link("sys/block/ram0", f"{root.path}/sys/devices/virtual/block/ram0")
    loaded(root, "brd")
    assert search(root, "brd") == [Consequence(DISK, "/dev/ram0", uses=uses)]


@pytest.mark.parametrize(
    ("subsystem", "name", "files", "kind", "live"),
    [
        ("input", "input3", {"name": "Keyboard", "capabilities__ev": "120013"}, ConsequenceKind.INPUT, True),
        ("input", "input4", {"name": "PC Speaker", "capabilities__ev": "40001"}, ConsequenceKind.INPUT, False),
        ("input", "input5", {"name": "broken"}, ConsequenceKind.INPUT, True),
        ("drm", "card0-VGA-1", {"enabled": "enabled", "status": "connected"}, ConsequenceKind.SCREEN, True),
        ("drm", "card0-VGA-1", {"enabled": "disabled", "status": "connected"}, ConsequenceKind.SCREEN, False),
        ("watchdog", "watchdog0", {"state": "active"}, ConsequenceKind.WATCHDOG, True),
        ("watchdog", "watchdog0", {"state": "inactive"}, ConsequenceKind.WATCHDOG, False),
        ("watchdog", "watchdog0", {}, ConsequenceKind.WATCHDOG, True),
        ("sound", "card0", {"id": "Intel"}, ConsequenceKind.SOUND, False),
        ("tty", "ttyUSB0", {"dev": "188:0"}, ConsequenceKind.SERIAL, False),
        ("tty", "ttyAMA0", {"dev": "204:64"}, ConsequenceKind.CONSOLE, True),
        ("graphics", "fb0", {}, ConsequenceKind.SCREEN, True),
    ],
)
def test_other_devices(
    root: FakeRoot, subsystem: str, name: str, files: dict[str, str], kind: ConsequenceKind, live: bool
) -> None:
    root.put("proc/consoles", "ttyAMA0              -W- (EC p a)  204:64\n")
    root.put("sys/class/vtconsole/vtcon1/name", "(M) frame buffer device\n")
    root.put("sys/class/vtconsole/vtcon1/bind", "1\n")
    root.put("sys/class/graphics/fb0/dev", "29:0\n")
    device = bind(root, "driver", "0000:00:07.0")
    of_class(root, f"{device}/{subsystem}/{name}", subsystem, **files)
    of_class(root, f"{device}/hwmon/hwmon0", "hwmon")
    (row,) = search(root, "driver")
    assert (row.kind, row.live) == (kind, live)


def test_a_driver_that_says_not_whose_it_is(root: FakeRoot) -> None:
    root.put("sys/devices/LNXPWRBN:00/uevent")
    of_class(root, "sys/devices/LNXPWRBN:00/input/input0", "input", name="Power Button", capabilities__ev="3")
    root.link("sys/bus/acpi/drivers/button/LNXPWRBN:00", f"{root.path}/sys/devices/LNXPWRBN:00")
    root.put("sys/bus/acpi/drivers/button/unbind")
    (row,) = search(root, "button")
    assert (row.kind, row.name, row.live) == (ConsequenceKind.INPUT, "input0", True)
    root.link("sys/bus/acpi/drivers/button/module", "../../../../module/other")
    assert search(root, "button") == []


def test_netconsole_is_a_console(root: FakeRoot) -> None:
    root.put("proc/consoles", "netcon0              -W- (E    )\n")
    loaded(root, "netconsole")
    (row,) = search(root, "netconsole")
    assert (row.kind, row.live) == (ConsequenceKind.CONSOLE, True)


def test_names_are_made_safe_to_show(root: FakeRoot) -> None:
    loaded(root, "dummy")
    namespace(root, OTHER, mounted="/run/netns/a\\033[2J")
    netlink = FakeNetlink({OWN: (), OTHER: (Link(2, "\x1b[2J\u202e", "dummy"),)})
    root.put("proc/1/root/run/netns/a\x1b[2J", OTHER)
    (row,) = search(root, "dummy", netlink=netlink)
    assert row.name.isprintable()
    assert row.netns.isprintable()


def test_this_machine_is_looked_at_without_a_fault() -> None:
    modules = (
        [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]
        if Path("/proc/modules").exists()
        else []
    )
    budget = Budget()
    list(Consequences(Path("/"), [*modules, "dummy", "veth"], AliasText(Path("/"), "none"), budget).search())
