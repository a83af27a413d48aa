# SPDX-License-Identifier: LGPL-2.1-or-later
"""Block devices of a module that are in use: mounted, used as swap, or below another device (device-mapper, md, loop)."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kmodd.kernel.files import listdir, read_text, readlink
from kmodd.kernel.users.devices import DeviceOwners, device_number
from kmodd.kernel.users.mount import Mount, Mounts
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_SWAPS_MAX = 1 << 16
_LOOP = frozenset({"loop"})
_TOP = 1 << 8
"""What is on top of everything: a mount, swap space."""
_MAPPER, _TARGETS = "dm_mod", "dm_"
_BCACHE = "bcache"
_CHOSEN = re.compile(r"\[([a-z0-9_-]+)\]")
_Stacked = tuple[int, frozenset[str], User]
"""A user, and how many devices are below the one that it ends with."""


def block_users(
    root: Path,
    owners: DeviceOwners,
    mounts: Mounts,
    loaded: Mapping[str, int],
    resolve: Callable[[str], tuple[str, ...]] = lambda _: (),
) -> Iterator[tuple[frozenset[str], User]]:
    """What uses disks and partitions of a module, directly or through other block devices; the uppermost first.

    Modules are those of the device and of every one below it: what is mounted from a loop device on a RAM disk keeps the
    RAM disk's module busy as well. `loaded` are the modules that are looked for, with the references that no module holds,
    `resolve` answers the modules with an alias.
    """
    block = root / "sys/block"
    users = [
        *_users(root, owners, mounts),
        *_of_targets(block, loaded),
        *_of_compressors(block, loaded, resolve),
        *_of_caches(root, loaded),
    ]
    users.sort(key=lambda each: -each[0])
    for _, modules, user in users:
        yield modules, user


def _users(root: Path, owners: DeviceOwners, mounts: Mounts) -> Iterator[_Stacked]:
    block = root / "sys/block"
    swaps = _swaps(root)
    mounted: dict[str, list[Mount]] = {}
    for mount in mounts.all:
        for device in _devices_of(root, mount):
            mounted.setdefault(device, []).append(mount)
    journals = _journals(root)
    for disk in listdir(block):
        number = device_number(read_text(block / disk / "dev"))
        modules = owners.modules("block", *number) if number else frozenset()
        yield from _of_itself(block / disk, number, modules, owners)
        if not modules:
            continue
        parts = [part for part in listdir(block / disk) if (block / disk / part / "partition").exists()]
        for part, folder in ((disk, block / disk), *((part, block / disk / part) for part in parts)):
            depth = owners.depth(*(device_number(read_text(folder / "dev")) or (0, 0)))
            for mount in mounted.get(read_text(folder / "dev") or "", ()):
                detail = f"mounted at {mount.point}{mount.elsewhere}"
                yield _TOP, modules, mounts.user("block", f"/dev/{part}", detail, mount)
            for system in journals.get(part, ()):
                for mount in mounted.get(read_text(block / system / "dev") or "", ()):
                    detail = f"journal of what is mounted at {mount.point}{mount.elsewhere}"
                    yield _TOP, modules, mounts.user("block", f"/dev/{part}", detail, mount)
            if f"/dev/{part}" in swaps:
                device = f"/dev/{part}"
                yield _TOP, modules, User("block", shown(device), "swap", remedy=Remedy.SWAP_OFF, target=device)
            for holder in listdir(folder / "holders"):
                above = owners.depth(*(device_number(read_text(folder / "holders" / holder / "dev")) or (0, 0)))
                remedy, target, words = _taking_apart(block, holder)
                detail = shown(f"part of /dev/{holder}")
                user = User("block", shown(f"/dev/{part}"), detail, remedy=remedy, target=target, words=words)
                yield max(above, depth + 1), modules, user


def _of_itself(
    folder: Path, number: tuple[int, int] | None, modules: frozenset[str], owners: DeviceOwners
) -> Iterator[_Stacked]:
    """What a loop device, a mapping or an array holds by being set up.

    `mount -o loop` makes devices that the kernel takes down with their last user (`autoclear`): nothing need be done then.
    """
    device = f"/dev/{folder.name}"
    depth = owners.depth(*number) if number else 0
    # A device that is only below others is reported as `part of` them.
    own = modules - owners.below(*number) if number else modules
    backing = read_text(folder / "loop/backing_file") if folder.name.startswith("loop") else None
    if backing:
        itself = read_text(folder / "loop/autoclear") == "1"
        remedy = Remedy.NOT_NEEDED if itself else Remedy.DETACH_LOOP
        detail = shown(backing) + (", detaches itself" if itself else "")
        yield depth, modules | _LOOP, User("loop", shown(device), detail, remedy=remedy, target=device)
    elif own and (name := read_text(folder / "dm/name")):
        detail = shown(f"device-mapper device {name}")
        yield depth, own, User("block", shown(device), detail, remedy=Remedy.REMOVE_MAPPING, target=name)
    elif own and (level := read_text(folder / "md/level")):
        yield depth, own, User("array", shown(device), shown(level), remedy=Remedy.STOP_ARRAY, target=device)
    elif own and folder.name.startswith("nbd") and (pid := read_text(folder / "pid")):
        detail = shown(f"connected, pid {pid}")
        yield depth, own, User("block", shown(device), detail, remedy=Remedy.DISCONNECT_DISK, target=device)


def _of_targets(block: Path, loaded: Mapping[str, int]) -> Iterator[_Stacked]:
    """Targets of device-mapper in use, with the mappings that may have them.

    What a mapping consists of the kernel says to CAP_SYS_ADMIN alone, so it is known where there is one mapping alone. Of an
    encrypted one the uuid says it.
    """
    targets = frozenset(name for name, count in loaded.items() if name.startswith(_TARGETS) and count > 0) - {_MAPPER}
    mappings = (
        {disk: read_text(block / disk / "dm/name") for disk in listdir(block) if disk.startswith("dm-")}
        if targets
        else {}
    )
    plain = [disk for disk in mappings if not (read_text(block / disk / "dm/uuid") or "").startswith("CRYPT-")]
    for disk in plain:
        if name := mappings[disk]:
            certain = len(mappings) == 1
            detail = f"device-mapper device {name}" + ("" if certain else ", or another one (dmsetup table)")
            remedy, target = (Remedy.REMOVE_MAPPING, name) if certain else (Remedy.NONE, "")
            yield 1, targets, User("block", shown(f"/dev/{disk}"), shown(detail), remedy=remedy, target=target)


def _devices_of(root: Path, mount: Mount) -> Iterator[str]:
    """The numbers of the block devices of what is mounted.

    btrfs has another number than its devices, and shows one of them as the source; /sys/fs/btrfs lists them all.
    """
    yield mount.device
    if mount.type != "btrfs" or not mount.source.startswith("/dev/"):
        return
    source = readlink(root / mount.source.lstrip("/")).rpartition("/")[2] or mount.source.rpartition("/")[2]
    for system in listdir(root / "sys/fs/btrfs"):
        devices = listdir(root / "sys/fs/btrfs" / system / "devices")
        if source in devices:
            yield from filter(None, (read_text(root / "sys/class/block" / name / "dev") for name in devices))


def _journals(root: Path) -> dict[str, list[str]]:
    """Devices with the journal of ext4 file systems on other devices, by the name of their kernel thread, `jbd2/DEVICE`."""
    journals: dict[str, list[str]] = {}
    for system in listdir(root / "sys/fs/ext4"):
        pid = read_text(root / "sys/fs/ext4" / system / "journal_task") or ""
        name = read_text(root / "proc" / pid / "comm") or "" if pid.isdecimal() else ""
        device = name.removeprefix("jbd2/")
        # One on the file system's own device is `jbd2/DEVICE-INODE`.
        if name != device and device != system and not device.startswith(f"{system}-"):
            journals.setdefault(device, []).append(system)
    return journals


def _of_compressors(
    block: Path, loaded: Mapping[str, int], resolve: Callable[[str], tuple[str, ...]]
) -> Iterator[_Stacked]:
    """Compressors of zram, each held by every disk that is set up with it."""
    for disk in listdir(block):
        if not disk.startswith("zram") or (read_text(block / disk / "disksize") or "0") == "0":
            continue
        chosen = _CHOSEN.search(read_text(block / disk / "comp_algorithm") or "")
        if chosen is None:
            continue
        names = (canonical(chosen[1]), *resolve(f"crypto-{chosen[1]}"))
        if modules := frozenset(name for name in names if name in loaded):
            device = f"/dev/{disk}"
            detail = shown(f"compressor {chosen[1]}; a reset discards what it holds")
            yield 0, modules, User("block", shown(device), detail, remedy=Remedy.RESET_DISK, target=device)


def _of_caches(root: Path, loaded: Mapping[str, int]) -> Iterator[_Stacked]:
    """Devices and sets of bcache; each is stopped by a file (Documentation/admin-guide/bcache.rst)."""
    if _BCACHE not in loaded:
        return
    modules = frozenset({_BCACHE})
    for disk in listdir(root / "sys/block"):
        if disk.startswith(_BCACHE) and (root / "sys/block" / disk / "bcache/stop").exists():
            yield 1, modules, _stopped(f"/dev/{disk}", "cached device", f"/sys/block/{disk}/bcache/stop")
    for name in listdir(root / "sys/fs/bcache"):
        if (root / "sys/fs/bcache" / name / "stop").exists():
            yield 0, modules, _stopped(name, "set of caches", f"/sys/fs/bcache/{name}/stop")


def _stopped(name: str, detail: str, path: str) -> User:
    return User("block", shown(name), detail, remedy=Remedy.STOP_CACHE, words=(path,))


def _taking_apart(block: Path, holder: str) -> tuple[Remedy, str, tuple[str, ...]]:
    """What takes a device-mapper device, an array or a cached device apart; nothing is known for other holders."""
    if name := read_text(block / holder / "dm/name"):
        return Remedy.REMOVE_MAPPING, name, ()
    if (block / holder / "md").is_dir():
        return Remedy.STOP_ARRAY, f"/dev/{holder}", ()
    if (block / holder / "bcache/stop").exists():
        return Remedy.STOP_CACHE, "", (f"/sys/block/{holder}/bcache/stop",)
    return Remedy.NONE, "", ()


def _swaps(root: Path) -> set[str]:
    lines = (read_text(root / "proc/swaps", _SWAPS_MAX) or "").splitlines()[1:]
    return {line.split()[0] for line in lines if line.strip()}
