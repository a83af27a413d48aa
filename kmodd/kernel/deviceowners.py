# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which modules stand behind a device number."""

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from kmodd.kernel.smallfile import read_text, readlink
from kmodd.names import canonical

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
_BLOCK_NAME_MAX = 15
"""Letters that /proc/devices keeps of a block driver's name (struct blk_major_name in block/genhd.c)."""
_MODULES_MAX = 1 << 20
_MD_LEVEL = re.compile(r"[a-z0-9]+")


class DeviceOwners:
    """Answers from /sys/dev, /proc/devices, /proc/misc and the aliases; each number is looked up once."""

    def __init__(self, root: Path, resolve_alias: Callable[[str], tuple[str, ...]]) -> None:
        self._root = root
        self._resolve = resolve_alias
        self._known: dict[tuple[str, int, int], frozenset[str]] = {}

    def modules(self, kind: str, major: int, minor: int) -> frozenset[str]:
        """Canonical names of modules an open device of that number may hold; `kind` is `char` or `block`."""
        key = (kind, major, minor)
        if key not in self._known:
            find = self._of_char if kind == "char" else self._of_block
            self._known[key] = frozenset(map(canonical, find(major, minor)))
        return self._known[key]

    def _of_char(self, major: int, minor: int) -> Iterator[str]:
        folder = self._root / "sys/dev/char" / f"{major}:{minor}"
        yield from _drivers(folder)
        if major == MISC_MAJOR:
            # All of misc's devices share one driver; only /proc/misc knows them apart.
            if name := self._misc.get(minor):
                yield name
        elif name := self._majors["char"].get(major):
            yield name
        if subsystem := readlink(folder / "subsystem").rpartition("/")[2]:
            yield subsystem
        yield from self._resolve(f"char-major-{major}-{minor}")
        if node := _property(folder, "DEVNAME"):
            yield from self._resolve(f"devname:{node}")

    def _of_block(self, major: int, minor: int) -> Iterator[str]:
        folder = self._root / "sys/dev/block" / f"{major}:{minor}"
        disk = folder / ".." if (folder / "partition").exists() else folder
        yield from _drivers(disk)
        yield from self._of_host(disk)
        if name := self._majors["block"].get(major):
            yield _BLOCK_NAMES.get(name, name)
            if len(name) == _BLOCK_NAME_MAX:
                yield from (module for module in self._loaded if module.startswith(canonical(name)))
        yield from self._resolve(f"block-major-{major}-{minor}")
        # Behind device-mapper and md stands the target's or the level's module as well.
        uuid = read_text(disk / "dm/uuid") or ""
        if uuid.startswith("CRYPT-"):
            yield "dm_crypt"
        elif uuid.startswith("mpath-"):
            yield "dm_multipath"
        level = read_text(disk / "md/level") or ""
        if _MD_LEVEL.fullmatch(level):
            yield level
            yield from self._resolve(f"md-{level}")

    def _of_host(self, disk: Path) -> Iterator[str]:
        """The host adapter of a SCSI disk, which an open disk holds as well (scsi_device_get in drivers/scsi/scsi.c)."""
        if readlink(disk / "device/subsystem").rpartition("/")[2] != "scsi":
            return
        place = (disk / "device").resolve().parent
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

    @cached_property
    def _loaded(self) -> tuple[str, ...]:
        """Names of the loaded modules."""
        lines = (read_text(self._root / "proc/modules", _MODULES_MAX) or "").splitlines()
        return tuple(line.partition(" ")[0] for line in lines)

    @cached_property
    def _misc(self) -> dict[int, str]:
        """Names of misc devices by minor number."""
        lines = (read_text(self._root / "proc/misc", _TABLE_MAX) or "").splitlines()
        pairs = (line.strip().partition(" ") for line in lines)
        return {int(minor): name.strip() for minor, _, name in pairs if minor.isdecimal()}


def _drivers(folder: Path) -> Iterator[str]:
    for link in ("device/driver/module", "driver/module"):
        if target := readlink(folder / link):
            yield target.rpartition("/")[2]


def _property(folder: Path, key: str) -> str:
    for line in (read_text(folder / "uevent") or "").splitlines():
        name, _, value = line.partition("=")
        if name == key:
            return value
    return ""
