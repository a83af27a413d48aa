# SPDX-License-Identifier: LGPL-2.1-or-later
"""Block devices of the module that are in use: mounted, swapped to, or part of another device."""

from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.deviceowners import DeviceOwners
from kmodd.kernel.smallfile import listdir, read_text, shown
from kmodd.kernel.usage_mount import Mounts
from kmodd.model import User
from kmodd.names import ModuleName

_SWAPS_MAX = 1 << 16


def block_users(root: Path, name: ModuleName, owners: DeviceOwners, mounts: Mounts) -> Iterator[User]:
    """Disks and partitions whose driver is the module and that something uses; the detail says what does."""
    block = root / "sys/block"
    swaps = _swaps(root)
    for disk in listdir(block):
        number = read_text(block / disk / "dev") or ""
        major, _, minor = number.partition(":")
        if not (major.isdecimal() and minor.isdecimal()) or name not in owners.modules("block", int(major), int(minor)):
            continue
        parts = [part for part in listdir(block / disk) if (block / disk / part / "partition").exists()]
        for part, folder in ((disk, block / disk), *((part, block / disk / part) for part in parts)):
            number = read_text(folder / "dev") or ""
            for mount in mounts.all:
                if number and mount.device == number:
                    yield User("block", shown(f"/dev/{part}"), shown(f"mounted at {mount.point}{mount.elsewhere}"))
            if f"/dev/{part}" in swaps:
                yield User("block", shown(f"/dev/{part}"), "swap")
            for holder in listdir(folder / "holders"):
                yield User("block", shown(f"/dev/{part}"), shown(f"part of /dev/{holder}"))


def _swaps(root: Path) -> set[str]:
    lines = (read_text(root / "proc/swaps", _SWAPS_MAX) or "").splitlines()[1:]
    return {line.split()[0] for line in lines if line.strip()}
