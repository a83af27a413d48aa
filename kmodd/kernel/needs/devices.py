# SPDX-License-Identifier: LGPL-2.1-or-later
"""The drivers and buses below one device, and the stack of block devices below a file system or swap area."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.files import listdir, read_text, readlink
from kmodd.model.surface_policy import Want

_DIGITS = re.compile(r"[0-9p]+$")
_DEPTH_MAX = 32
"""Devices below each other, and stacked on each other."""
_VIRTUAL = {"dm-": "dm_mod", "md": "md_mod"}
"""Block devices without a driver, whose module is not called as they are."""
_CRYPT = "CRYPT-"
_ATTRIBUTES = 4096


def below(device: Path, sys: Path, evidence: str) -> Iterator[Want]:
    """The drivers of a device and of all that it hangs on, by name and by what would load them in another kernel."""
    path = Path(os.path.realpath(device))
    for _ in range(_DEPTH_MAX):
        if path == sys or sys not in path.parents:
            return
        driver = readlink(path / "driver/module")
        if driver:
            yield Want(driver.rpartition("/")[2], evidence, floor=True)
        alias = read_text(path / "modalias", _ATTRIBUTES)
        if alias:
            yield Want(alias, evidence, floor=True)
        path = path.parent


class BlockDevices:
    """Names and stacks of block devices below a root folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sys = Path(os.path.realpath(root / "sys"))
        self._block = root / "sys/class/block"

    def name_of(self, number: str, source: str) -> str:
        """The device of a mount by its number `MAJOR:MINOR`, or by its path where the file system has a separate number."""
        link = readlink(self._root / "sys/dev/block" / number)
        if link:
            return link.rpartition("/")[2]
        name = source.rpartition("/")[2] if source.startswith("/dev/") else ""
        if name and (self._block / name).exists():
            return name
        # /dev/mapper/NAME: the daemon's own /dev does not have it.
        mapped = (dm for dm in listdir(self._block) if dm.startswith("dm-"))
        return next((dm for dm in mapped if name and read_text(self._block / dm / "dm/name") == name), "")

    def stack(self, name: str, evidence: str) -> Iterator[Want]:
        """What the device and those below it need."""
        left, seen = [name], set[str]()
        while left and len(seen) < _DEPTH_MAX:
            current = left.pop()
            if current in seen:
                continue
            seen.add(current)
            folder = self._block / current
            yield from self._layer(folder, current, evidence)
            yield from below(folder, self._sys, evidence)
            left += listdir(folder / "slaves")
            # A partition has the slaves of its disk.
            disk = Path(os.path.realpath(folder)).parent
            left += [disk.name] if (disk / "slaves").is_dir() else []

    def _layer(self, folder: Path, name: str, evidence: str) -> Iterator[Want]:
        if "/virtual/" in os.path.realpath(folder):
            kind = next((module for start, module in _VIRTUAL.items() if name.startswith(start)), "")
            yield Want(kind or _DIGITS.sub("", name), evidence, floor=True)
        level = read_text(folder / "md/level")
        if level:
            yield Want(f"md-{level}", evidence, floor=True)
        uuid = read_text(folder / "dm/uuid") or ""
        if not uuid and not name.startswith("dm-"):
            return
        # Which targets a table has needs the right to ask device-mapper: all that are there count.
        for module in listdir(self._root / "sys/module"):
            if module.startswith("dm_") and (self._root / "sys/module" / module / "initstate").exists():
                yield Want(module, evidence, floor=True)
        if uuid.startswith(_CRYPT):
            yield Want("dm_crypt", evidence, floor=True)
            for algorithm in _algorithms(self._root):
                yield Want(algorithm, evidence, floor=True)


def _algorithms(root: Path) -> Iterator[str]:
    """Modules of the algorithms that the kernel has now: which of them a volume uses only root can read."""
    text = read_text(root / "proc/crypto", 1 << 20) or ""
    modules = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("module"))
    yield from dict.fromkeys(module for module in modules if module != "kernel")
