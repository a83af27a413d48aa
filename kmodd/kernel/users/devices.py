# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules by device number, devices bound to a module's drivers, and running watchdogs."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from kmodd.kernel.files import listdir, read_text, readlink, status_if_there
from kmodd.kernel.proc.crypto import Algorithms
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

MISC_MAJOR = 10
_TABLE_MAX = 1 << 16
# Names in /proc/devices that are neither the module's name nor in an alias of it (register_blkdev in the driver's source).
_BLOCK_NAMES = {
    "device-mapper": "dm_mod",
    "md": "md_mod",
    "mdp": "md_mod",
    "sd": "sd_mod",
    "sr": "sr_mod",
    "virtblk": "virtio_blk",
}
_CHAR_NAMES = {"hidraw": "hid", "ipmidev": "ipmi_devintf"}
"""Likewise of character devices."""
_INPUT, _INPUT_NODES = "input", {"event": "evdev", "mouse": "mousedev", "mice": "mousedev", "js": "joydev"}
_TERMINALS = re.compile(
    r"(?P<name>\S+)\s+(?:/dev/)?\S+\s+(?P<major>[0-9]+)\s+(?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?\s+\S.*"
)
_NO_LINES = {(5, 0), (5, 1), (5, 2)}
"""/dev/tty, /dev/console and /dev/ptmx, which stand for others."""
_BLOCK_NAME_MAX = 15
"""Letters that /proc/devices keeps of a block driver's name (struct blk_major_name in block/genhd.c)."""
_WATCHDOG = "watchdog"
_WATCHDOGS = {"Software Watchdog": "softdog"}
"""Drivers without a device, by the identity in sysfs."""
_DISKS_MAX = 8
"""Disks of a session of iSCSI that are named."""
_OFFERING = (
    ("target_core_iblock", "target/core", "iblock_"),
    ("target_core_pscsi", "target/core", "pscsi_"),
    ("nvmet", "nvmet/subsystems", ""),
)
"""Modules that offer disks to other machines, with the folder of configfs and the beginning of the items' names."""
_UNSEEN = ("bcache", "bcachefs", "zfs")
"""Modules that have disks open without the kernel's saying which."""
_FILE_OF_DEVICE = "File: /dev/"
"""As the file of a target shows that it is a device (fd_show_configfs_dev_params in drivers/target/target_core_file.c)."""
_DEPTH_MAX = 16
"""Block devices on top of each other that are followed."""
_BACKING = re.compile(r"/dev/([A-Za-z0-9_!-]{1,64})")
_MD_LEVEL = re.compile(r"[a-z0-9]+")


class DeviceOwners:
    """Answers from /sys/dev, /proc/devices, /proc/misc and the aliases; each number is looked up once."""

    def __init__(
        self,
        root: Path,
        resolve_alias: Callable[[str], tuple[str, ...]],
        loaded: Collection[str],
        algorithms: Algorithms | None = None,
    ) -> None:
        """`loaded` are the canonical names of the modules that are looked for; `algorithms` are those of the crypto API in use."""
        self._algorithms = algorithms
        self._root = root
        self._resolve = resolve_alias
        self._loaded = loaded
        self._known: dict[tuple[str, int, int], frozenset[str]] = {}
        self._lower: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}

    def modules(self, kind: str, major: int, minor: int) -> frozenset[str]:
        """Canonical names of loaded modules an open device of that number may hold; `kind` is `char` or `block`.

        Of a block device on top of others (device-mapper, md, loop) theirs as well.
        """
        own = self._own(kind, major, minor)
        return own | self.below(major, minor) if kind == "block" else own

    def with_nodes(self, names: Iterable[str]) -> frozenset[str]:
        """Those of these modules that may have a device node."""
        drivers: set[str] = {canonical(name) for name in self._misc.values()}
        for kind, table in self._majors.items():
            different = _BLOCK_NAMES if kind == "block" else _CHAR_NAMES
            for major, name in table.items():
                drivers |= {
                    canonical(different.get(name, name.rpartition("/")[2])),
                    *self._resolve(f"{kind}-major-{major}-0"),
                }
        return frozenset(
            name for name in names if name in drivers or listdir(self._root / "sys/module" / name / "drivers")
        )

    def below(self, major: int, minor: int) -> frozenset[str]:
        """Modules of the block devices below this one."""
        return frozenset[str]().union(*(self._own("block", *number) for number in self.numbers_below(major, minor)))

    def numbers_below(self, major: int, minor: int) -> frozenset[tuple[int, int]]:
        """Those of the block devices below this one."""
        return frozenset(number for number, _ in self._stack(major, minor))

    def depth(self, major: int, minor: int) -> int:
        """How many block devices lie between this one and the lowest below it, that one included."""
        return max((depth for _, depth in self._stack(major, minor)), default=0)

    def _stack(self, major: int, minor: int) -> Iterator[tuple[tuple[int, int], int]]:
        """The devices below this one with their distance, each as far down as it is met."""
        level, depth = {(major, minor)}, 0
        while level and depth < _DEPTH_MAX:
            level, depth = {lower for number in level for lower in self._below(*number)}, depth + 1
            yield from ((number, depth) for number in level)

    def _below(self, major: int, minor: int) -> tuple[tuple[int, int], ...]:
        key = (major, minor)
        if key not in self._lower:
            folder = self._disk(major, minor)
            texts = [read_text(f"{folder}/slaves/{name}/dev") for name in listdir(f"{folder}/slaves")]
            if backing := _BACKING.fullmatch(read_text(f"{folder}/loop/backing_file") or ""):
                texts.append(read_text(f"{self._root}/sys/class/block/{backing[1]}/dev"))
            self._lower[key] = tuple(number for text in texts if (number := device_number(text)) is not None)
        return self._lower[key]

    def _disk(self, major: int, minor: int) -> str:
        """The folder of a block device in /sys; of a partition, that of its disk."""
        folder = f"{self._root}/sys/dev/block/{major}:{minor}"
        return f"{folder}/.." if status_if_there(f"{folder}/partition") is not None else folder

    def _own(self, kind: str, major: int, minor: int) -> frozenset[str]:
        key = (kind, major, minor)
        if key not in self._known:
            find = self._of_char if kind == "char" else self._of_block
            self._known[key] = frozenset(map(canonical, find(major, minor))).intersection(self._loaded)
        return self._known[key]

    def _of_char(self, major: int, minor: int) -> Iterator[str]:
        folder = f"{self._root}/sys/dev/char/{major}:{minor}"
        subsystem = readlink(f"{folder}/subsystem").rpartition("/")[2]
        if subsystem == _INPUT:
            # It holds what hands its events out, and not the driver that has them (evdev_open in drivers/input/evdev.c).
            yield from _input_handlers(_property(folder, "DEVNAME"))
        else:
            yield from _drivers(folder)
        if major == MISC_MAJOR:
            # All of misc's devices share one driver; only /proc/misc knows them apart.
            if name := self._misc.get(minor):
                yield name
            if name == _WATCHDOG:  # The old name of the first one, as /dev/watchdog.
                yield from watchdog_drivers(self._root / "sys/class/watchdog/watchdog0")
        elif name := self._terminals(major, minor):
            yield name
        elif major not in self._terminal_majors and (name := self._majors["char"].get(major)):
            # As `cpu/msr` in /proc/devices.
            yield _CHAR_NAMES.get(name, name.rpartition("/")[2])
        if subsystem:
            yield subsystem
            if subsystem == _WATCHDOG:
                yield from watchdog_drivers(folder)
        yield from self._resolve(f"char-major-{major}-{minor}")
        if node := _property(folder, "DEVNAME"):
            yield from self._resolve(f"devname:{node}")

    def _of_block(self, major: int, minor: int) -> Iterator[str]:
        disk = self._disk(major, minor)
        yield from _drivers(disk)
        yield from self._of_host(disk)
        if name := self._majors["block"].get(major):
            yield _BLOCK_NAMES.get(name, name)
            if len(name) == _BLOCK_NAME_MAX:
                yield from (module for module in self._loaded if module.startswith(canonical(name)))
        yield from self._resolve(f"block-major-{major}-{minor}")
        # Behind device-mapper and md stands the target's or the level's module as well.
        if target := target_module(disk):
            yield target
            if self._algorithms is not None and self._targets[target] == 1:
                yield from self._algorithms.of_only_user(target)
        level = read_text(f"{disk}/md/level") or ""
        if _MD_LEVEL.fullmatch(level):
            yield level
            yield from self._resolve(f"md-{level}")

    def _of_host(self, disk: str) -> Iterator[str]:
        """The host adapter of a SCSI disk, which an open disk holds as well (scsi_device_get in drivers/scsi/scsi.c)."""
        if readlink(f"{disk}/device/subsystem").rpartition("/")[2] != "scsi":
            return
        place = Path(disk, "device").resolve().parent
        while place.name and place != self._root:
            if place.name.startswith("host") and place.name[4:].isdecimal():
                name = read_text(place / "scsi_host" / place.name / "proc_name") or ""
                if name and name != "<NULL>":  # As it is shown where the driver set none (show_proc_name).
                    yield name
            if driver := readlink(place / "driver/module"):
                yield driver.rpartition("/")[2]
                return
            place = place.parent

    @cached_property
    def _targets(self) -> Counter[str]:
        """How many mappings have a target of each module: the algorithm of which of several is not known."""
        disks = (disk for disk in listdir(self._root / "sys/block") if disk.startswith("dm-"))
        return Counter(target_module(self._root / "sys/block" / disk) for disk in disks)

    @cached_property
    def _majors(self) -> dict[str, dict[int, str]]:
        """Driver names by major number, as registered: `char` and `block` of /proc/devices."""
        tables: dict[str, dict[int, str]] = {"char": {}, "block": {}}
        table = tables["char"]
        for line in (read_text(self._root / "proc/devices", _TABLE_MAX) or "").splitlines():
            if line.startswith("Block"):
                table = tables["block"]
            number, _, name = line.strip().partition(" ")
            if number.isdecimal():
                table[int(number)] = name.strip()
        return tables

    def is_terminal(self, major: int, minor: int) -> bool:
        """A line that has a line discipline: a serial one, or the inner end of a pseudoterminal."""
        return bool(self._terminals(major, minor)) and (major, minor) not in _NO_LINES

    def _terminals(self, major: int, minor: int) -> str:
        """The driver of a terminal, of which several share a major number."""
        return next(
            (
                name
                for name, number, first, last in self._drivers_of_terminals
                if number == major and first <= minor <= last
            ),
            "",
        )

    @cached_property
    def _terminal_majors(self) -> frozenset[int]:
        return frozenset(major for _, major, _, _ in self._drivers_of_terminals)

    @cached_property
    def _drivers_of_terminals(self) -> tuple[tuple[str, int, int, int], ...]:
        """Name, major and minor numbers of each, from /proc/tty/drivers: `serial /dev/ttyS 4 64-95 serial`."""
        lines = (read_text(self._root / "proc/tty/drivers", _TABLE_MAX) or "").splitlines()
        rows = filter(None, map(_TERMINALS.fullmatch, map(str.strip, lines)))
        return tuple(
            (row["name"], int(row["major"]), int(row["first"]), int(row["last"] or row["first"])) for row in rows
        )

    @cached_property
    def _misc(self) -> dict[int, str]:
        """Names of misc devices by minor number."""
        lines = (read_text(self._root / "proc/misc", _TABLE_MAX) or "").splitlines()
        pairs = (line.strip().partition(" ") for line in lines)
        return {int(minor): name.strip() for minor, _, name in pairs if minor.isdecimal()}


def watchdog_drivers(folder: Path | str) -> Iterator[str]:
    """The module of a watchdog, by its device or, where it has none, by what it calls itself."""
    yield from _drivers(folder)
    if module := _WATCHDOGS.get(read_text(f"{folder}/identity") or ""):
        yield module


_MAPPINGS = (
    ("CRYPT-VERITY-", "dm_verity"),
    ("CRYPT-INTEGRITY-", "dm_integrity"),
    ("CRYPT-", "dm_crypt"),
    ("mpath-", "dm_multipath"),
)
"""Modules by the beginning of the uuid of a mapping (cryptsetup, multipath-tools)."""
_LVM = "LVM-"
_LAYERS = (
    ("-tpool", "dm_thin_pool"),
    ("-tmeta", "dm_thin_pool"),
    ("-tdata", "dm_thin_pool"),
    ("-cow", "dm_snapshot"),
    ("-cdata", "dm_cache"),
    ("-cmeta", "dm_cache"),
    ("-cpool", "dm_cache"),
    ("-real", "dm_snapshot"),
)
"""Modules of a mapping of LVM by the end of the uuid of one below it (build_dm_uuid in lib/misc/lvm-string.c). The origin of a cache is
`-real` too, as that of a snapshot.
"""
_IMAGES = (("_rimage_", "dm_raid"), ("_mimage_", "dm_mirror"))
"""Likewise by the name of one below it."""


def target_module(disk: Path | str) -> str:
    """The module of a mapping's target, by what LVM, cryptsetup and multipath-tools call it; empty for others.

    What a mapping consists of the kernel says to CAP_SYS_ADMIN alone (check_version_permission in drivers/md/dm-ioctl.c).
    """
    uuid = read_text(f"{disk}/dm/uuid") or ""
    if not uuid.startswith(_LVM):
        return next((module for start, module in _MAPPINGS if uuid.startswith(start)), "")
    below = _mappings_below(disk)
    by_uuid = (module for end, module in _LAYERS if any(lower.endswith(end) for _, lower in below))
    by_name = (module for part, module in _IMAGES if any(part in name for name, _ in below))
    return next(by_uuid, "") or next(by_name, "")


def is_linear(disk: Path | str) -> bool:
    """A mapping of LVM whose target is of device-mapper itself (linear, striped): below it is no part of another kind of volume."""
    parts = any(lower.startswith(_LVM) and "-" in lower.removeprefix(_LVM) for _, lower in _mappings_below(disk))
    return (read_text(f"{disk}/dm/uuid") or "").startswith(_LVM) and not parts and not target_module(disk)


def _mappings_below(disk: Path | str) -> list[tuple[str, str]]:
    """Name and uuid of each mapping that one consists of."""
    folders = [f"{disk}/slaves/{below}/dm" for below in listdir(f"{disk}/slaves")]
    return [(read_text(f"{folder}/name") or "", read_text(f"{folder}/uuid") or "") for folder in folders]


def device_number(text: str | None) -> tuple[int, int] | None:
    """Major and minor of `MAJOR:MINOR`, as a file `dev` has them."""
    major, _, minor = (text or "").partition(":")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None


def _input_handlers(node: str) -> Iterator[str]:
    yield from (module for begin, module in _INPUT_NODES.items() if node.startswith(f"input/{begin}"))


def _drivers(folder: Path | str) -> Iterator[str]:
    # A sound card or a disk of NVMe stands between its nodes and the device.
    for link in ("device/driver/module", "driver/module", "device/device/driver/module"):
        if target := readlink(f"{folder}/{link}"):
            yield target.rpartition("/")[2]


def _property(folder: str, key: str) -> str:
    for line in (read_text(f"{folder}/uevent") or "").splitlines():
        name, _, value = line.partition("=")
        if name == key:
            return value
    return ""


def bound_devices(root: Path, loaded: Iterable[str]) -> Iterator[tuple[frozenset[str], User]]:
    """Devices in the folders of the modules' drivers: the device as name, driver and bus as detail.

    A bound device holds no reference by itself: removing the module unbinds it. It is listed because it says what
    the module does and what would stop working.
    """
    for name in loaded:
        drivers = root / "sys/module" / name / "drivers"
        for entry in listdir(drivers):
            bus, _, driver = entry.partition(":")
            for device in listdir(drivers / entry):
                # Links to devices stand beside `module` and the attributes bind, unbind, uevent.
                if device != "module" and readlink(drivers / entry / device):
                    detail = shown(f"driver {driver}, bus {bus}")
                    yield frozenset({name}), User("device", shown(device), detail, remedy=Remedy.NOT_NEEDED)


def watchdogs(root: Path, loaded: Container[str]) -> Iterator[tuple[frozenset[str], User]]:
    """Watchdogs that run: each holds its module, also when the process that has started it is gone.

    Who closes the device without having written `V` to it leaves it running, and the machine reboots in the end
    (Documentation/watchdog/watchdog-api.rst); with `nowayout` nothing stops it.
    """
    folder = root / "sys/class/watchdog"
    for name in listdir(folder):
        modules = frozenset(module for module in map(canonical, watchdog_drivers(folder / name)) if module in loaded)
        if modules and read_text(folder / name / "state") == "active":
            left = read_text(folder / name / "timeleft") or read_text(folder / name / "timeout") or "?"
            forever = read_text(folder / name / "nowayout") == "1"
            yield (
                modules,
                User(
                    "watchdog",
                    shown(f"/dev/{name}"),
                    shown(f"cannot be stopped, {left} s left" if forever else f"{left} s left"),
                    remedy=Remedy.NONE if forever else Remedy.STOP_WATCHDOG,
                    words=() if forever else (f"/dev/{name}",),
                ),
            )


def iscsi_sessions(
    root: Path, loaded: Mapping[str, int], base: Iterable[tuple[int, int]], owners: DeviceOwners
) -> Iterator[tuple[frozenset[str], User]]:
    """Sessions of the iSCSI initiator, each of which holds its transport's module (iscsi_session_setup in drivers/scsi/libiscsi.c).

    A logout takes the disks of the session away, also those in use: what is not written is lost. No command ends one with a
    disk of the root file system, of which `base` are the devices, nor any while something has disks in use of which it is not
    known which. `loaded` are the modules that are looked for, with their references.
    """
    sessions = root / "sys/class/iscsi_session"
    below = {lower for number in base for lower in (number, *owners.numbers_below(*number))}
    for name in listdir(sessions):
        # …/hostN/sessionM/iscsi_session/sessionM
        folder = Path(sessions, name).resolve().parents[1]
        module = canonical(read_text(folder.parent / "scsi_host" / folder.parent.name / "proc_name") or "")
        if module not in loaded:
            continue
        target = read_text(sessions / name / "targetname") or ""
        connections = (each for each in listdir(folder) if each.startswith("connection"))
        portal = next((_portal(folder / each / "iscsi_connection" / each) for each in connections), "")
        disks = sorted(folder.glob("target*/*/block/*"))
        detail = f"iSCSI, portal {portal}"
        if disks:
            names = ", ".join(disk.name for disk in disks[:_DISKS_MAX]) + (" and others" if disks[_DISKS_MAX:] else "")
            detail += f"; a logout takes away {names}, also while in use"
        remedy, words = Remedy.LOG_OUT, tuple[str, ...]((target, portal))
        parts = {device_number(read_text(part)) for disk in disks for part in (disk / "dev", *disk.glob("*/dev"))}
        if parts & below:
            remedy, words, detail = Remedy.NONE, (), f"{detail}; the root file system is on them"
        elif disks and (using := _of_unknown_disks(root, loaded)):
            remedy, words, detail = Remedy.NONE, (), f"{detail}; {using} may have them in use"
        yield frozenset({module}), User("session", shown(target), shown(detail), remedy=remedy, words=words)


def _of_unknown_disks(root: Path, loaded: Mapping[str, int]) -> str:
    """A module that has disks in use, but not which; empty for none."""
    if unseen := next((module for module in _UNSEEN if module in loaded), ""):
        return unseen
    items = root / "sys/kernel/config"
    for module, folder, begin in _OFFERING:
        # Built into the kernel, it is known by what is set up; that it is held by, where configfs is not mounted.
        if loaded.get(module, 0) > 0 or any(name.startswith(begin) for name in listdir(items / folder)):
            return module
    adapters = [items / "target/core" / name for name in listdir(items / "target/core") if name.startswith("fileio_")]
    files = (adapter / name / "info" for adapter in adapters for name in listdir(adapter) if (adapter / name).is_dir())
    return "target_core_file" if any(_FILE_OF_DEVICE in (read_text(file) or _FILE_OF_DEVICE) for file in files) else ""


def _portal(connection: Path) -> str:
    address, port = (read_text(connection / f"persistent_{what}") or "" for what in ("address", "port"))
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
