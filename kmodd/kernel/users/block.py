# SPDX-License-Identifier: LGPL-2.1-or-later
"""Block devices of a module that are in use: mounted, used as swap, or below another device (device-mapper, md, loop)."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kmodd.kernel.files import listdir, read_bytes, read_text, readlink
from kmodd.kernel.proc.crypto import Algorithms
from kmodd.kernel.users.devices import DeviceOwners, device_number, is_linear, target_module
from kmodd.kernel.users.mount import Mount, Mounts, unescaped
from kmodd.kernel.users.process import inode
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_SWAPS_MAX = 1 << 16
_EXPORTS_MAX = 1 << 18
_EXPORTED = "var/lib/nfs/etab"
"""What exportfs(8) has exported: what it can take back."""
_LOOP = frozenset({"loop"})
_TOP = 1 << 8
"""What is on top of everything: a mount, swap space."""
_MAPPER, _TARGETS = "dm_mod", "dm_"
_BCACHE = "bcache"
_SERVED = ("fuse", "nfs", "cifs", "smb3", "9p", "ceph", "afs", "virtiofs")
"""File systems whose paths a server looks up, which may be a user's."""
_DEVICES = "/dev/"
_FILES_MAX = 8
"""Loop devices on files on loop devices that are followed."""
_CHOSEN = re.compile(r"\[([a-z0-9_-]+)\]")
_Stacked = tuple[int, frozenset[str], User]
"""A user, and how many devices are below the one that it ends with."""


def block_users(
    root: Path,
    owners: DeviceOwners,
    mounts: Mounts,
    loaded: Mapping[str, int],
    resolve: Callable[[str], tuple[str, ...]] = lambda _: (),
    algorithms: Algorithms | None = None,
) -> Iterator[tuple[frozenset[str], User]]:
    """What uses disks and partitions of a module, directly or through other block devices; the uppermost first.

    Modules are those of the device and of every one below it: what is mounted from a loop device on a RAM disk keeps the
    RAM disk's module busy as well. `loaded` are the modules that are looked for, with the references that no module holds,
    `resolve` answers the modules with an alias, `algorithms` are those of the crypto API in use.
    """
    block = root / "sys/block"
    users = [
        *_users(root, owners, mounts),
        *_of_targets(block, loaded),
        *_of_compressors(block, loaded, resolve),
        *_of_caches(root, loaded),
        *_of_exports(root, mounts, owners),
        *(_of_checksums(root, mounts, algorithms) if algorithms is not None else ()),
    ]
    users.sort(key=lambda each: -each[0])
    for _, modules, user in users:
        yield modules, user


def root_devices(root: Path, mounts: Mounts) -> set[tuple[int, int]]:
    """The numbers of the block devices that the root file system is on."""
    roots = (mount for mount in mounts.all if mount.point == "/" and mount.task.pid == 1)
    numbers = (device_number(device) for mount in roots for device in _devices_of(root, mount))
    return {number for number in numbers if number is not None}


def _users(root: Path, owners: DeviceOwners, mounts: Mounts) -> Iterator[_Stacked]:
    block = root / "sys/block"
    swaps = _swaps(root)
    files = OpenedFiles(root, owners, mounts)
    yield from _of_swap_files(swaps, files)
    mounted: dict[str, list[Mount]] = {}
    for mount in mounts.all:
        for device in _devices_of(root, mount):
            mounted.setdefault(device, []).append(mount)
    journals = _journals(root)
    for disk in listdir(block):
        number = device_number(read_text(block / disk / "dev"))
        modules = owners.modules("block", *number) if number else frozenset()
        further, level = files.below(block / disk)
        yield from _of_itself(block / disk, number, modules, owners, files)
        modules |= further
        if not modules:
            continue
        level += bool(level)  # What is mounted stands on the device.
        names = (name for name in listdir(block / disk) if name.startswith(disk))
        parts = [part for part in names if (block / disk / part / "partition").exists()]
        for part, folder in ((disk, block / disk), *((part, block / disk / part) for part in parts)):
            depth = owners.depth(*(device_number(read_text(folder / "dev")) or (0, 0)))
            for mount in mounted.get(read_text(folder / "dev") or "", ()):
                detail = f"mounted at {mount.point}{mount.elsewhere}"
                yield _TOP, modules, mounts.user("block", f"/dev/{part}", detail, mount, modules, level)
            for system in journals.get(part, ()):
                for mount in mounted.get(read_text(block / system / "dev") or "", ()):
                    detail = f"journal of what is mounted at {mount.point}{mount.elsewhere}"
                    yield _TOP, modules, mounts.user("block", f"/dev/{part}", detail, mount, modules, level)
            if f"/dev/{part}" in swaps:
                device = f"/dev/{part}"
                user = User("block", shown(device), "swap", remedy=Remedy.SWAP_OFF, target=device, level=level)
                yield _TOP, modules, user
            for holder in listdir(folder / "holders"):
                above = owners.depth(*(device_number(read_text(folder / "holders" / holder / "dev")) or (0, 0)))
                remedy, target, words = _taking_apart(block, holder)
                detail = shown(f"part of /dev/{holder}")
                user = User(
                    "block", shown(f"/dev/{part}"), detail, remedy=remedy, target=target, words=words, level=level
                )
                yield max(above, depth + 1), modules, user


def _of_itself(
    folder: Path, number: tuple[int, int] | None, modules: frozenset[str], owners: DeviceOwners, files: "OpenedFiles"
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
        further, level = files.below(folder)
        user = User("loop", shown(device), detail, remedy=remedy, target=device, level=level)
        yield depth, modules | further | _LOOP, user
    elif own and (name := read_text(folder / "dm/name")):
        detail = shown(f"device-mapper device {name}")
        yield depth, own, User("block", shown(device), detail, remedy=Remedy.REMOVE_MAPPING, target=name)
    elif own and (kind := read_text(folder / "md/level")):
        yield depth, own, User("array", shown(device), shown(kind), remedy=Remedy.STOP_ARRAY, target=device)
    elif own and folder.name.startswith("nbd") and (pid := read_text(folder / "pid")):
        detail = shown(f"connected, pid {pid}")
        yield depth, own, User("block", shown(device), detail, remedy=Remedy.DISCONNECT_DISK, target=device)


class OpenedFiles:
    """Files that the kernel keeps open on what is mounted: of loop devices and targets, and swap files."""

    def __init__(self, root: Path, owners: DeviceOwners, mounts: Mounts) -> None:
        self._root = root
        self._owners = owners
        self._mounts = mounts

    def kept(self, path: str) -> tuple[frozenset[str], int]:
        """Modules that this file or device holds while it is open, and of how many mounts those are."""
        if not path.startswith(_DEVICES):
            return self._of_file(path)
        node = inode(f"{self._root}/proc/1/root{path}")
        if node is None or node.kind != "block":
            return frozenset(), 0
        further, level = self._of_device("{}:{}".format(*node.number))
        return self._owners.modules("block", *node.number) | further, level + 1

    def below(self, disk: Path, depth: int = 0) -> tuple[frozenset[str], int]:
        """Modules of the mount that a loop device's file is on, and of what that one stands on; and how many those are."""
        backing = read_text(disk / "loop/backing_file") or ""
        return self._of_file(backing, depth) if backing and depth < _FILES_MAX else (frozenset(), 0)

    def _of_file(self, path: str, depth: int = 0) -> tuple[frozenset[str], int]:
        holding = self.holding(path)
        if holding is None:
            return frozenset(), 0
        modules, mount = holding
        further, level = self._of_device(mount.device, depth + 1)
        return modules | further, level + 1 + bool(level)

    def _of_device(self, number: str, depth: int = 0) -> tuple[frozenset[str], int]:
        lower = self._root / "sys/dev/block" / number
        return self.below(lower.parent if (lower / "partition").exists() else lower, depth)

    def holding(self, path: str) -> tuple[frozenset[str], Mount] | None:
        """The mount with this file, and the modules behind it; None where that is the root or not known."""
        mount = self._mounts.of_path(path)
        if mount is not None and mount.type.startswith(_SERVED):
            return self._mounts.modules(mount), mount  # The search may not wait for a server.
        file = inode(f"{self._root}/proc/1/root{path}") if mount is not None else None
        device = device_number(mount.device) if mount is not None else None
        if mount is None or file is None or (file.mount != mount.number and file.on != device):
            return None
        below = self._owners.modules("block", *device) if device else frozenset()
        return self._mounts.modules(mount) | below, mount


def _of_swap_files(swaps: set[str], files: OpenedFiles) -> Iterator[_Stacked]:
    for path in swaps:
        if not path.startswith("/dev/") and (holding := files.holding(path)) and holding[0]:
            user = User("file", shown(path), "swap space", remedy=Remedy.SWAP_OFF, target=path, level=1)
            yield _TOP, holding[0], user


def _of_exports(root: Path, mounts: Mounts, owners: DeviceOwners) -> Iterator[_Stacked]:
    """Folders that the NFS server keeps open for its clients (e_show in fs/nfsd/export.c): an umount fails while one is exported.

    The kernel lists what rpc.mountd answered, which exportfs knows by that name if it is in its own table: not a mount below an
    export with `crossmnt`, nor what version 4 has on the way to the exports (`v4root`).
    """
    listed = _exports(root / "proc/fs/nfs/exports", mounts.budget)
    if not listed:
        return
    files = OpenedFiles(root, owners, mounts)
    table = {(client, path): flags for path, client, flags in _exports(root / _EXPORTED, mounts.budget)}
    ended: list[tuple[frozenset[str], tuple[str, ...]]] = []
    # What is on the way to the others comes after them.
    for path, client, flags in sorted(listed, key=lambda each: "v4root" in each[2]):
        # With a slash at its end the folder may be the mount itself.
        modules = holding[0] if (holding := files.holding(f"{path}/")) else frozenset[str]()
        if not modules:
            continue
        remedy, words = Remedy.NONE, tuple[str, ...]()
        detail = "exported by the NFS server, whose clients may have files open there"
        if "v4root" in flags:
            detail = "on the way to exports of the NFS server"
            below = {each for each in table if each[1].startswith(f"{path.rstrip('/')}/")}
            if below and below <= {each for of, each in ended if of >= modules}:
                remedy = Remedy.NOT_NEEDED  # Each exportfs -u makes the kernel forget all that it lists.
        elif (client, path) in table:
            remedy, words = Remedy.UNEXPORT, (client, path)
        elif len(over := _crossing(client, path, table)) == 1:
            remedy, words = Remedy.UNEXPORT, (client, over[0])
            detail += f", as a part of {over[0]}"
        if words:
            ended.append((modules, words))
        user = User(
            *("export", shown(f"{client}:{path}"), shown(detail)),
            remedy=remedy,
            words=words,
            level=1,
        )
        yield _TOP, modules, user


def _exports(path: Path, budget: Budget) -> list[tuple[str, str, frozenset[str]]]:
    """Folder, client and flags of each line of the kernel's table or of that of exportfs: `/srv<tab>CLIENT(ro,…)`."""
    content = read_bytes(path, _EXPORTS_MAX) or b""
    lines = content.decode(errors="replace").split("\n")
    if len(content) >= _EXPORTS_MAX:
        budget.met("there are more exports than are examined")
        lines.pop()  # Cut off, it may name another client.
    rows: list[tuple[str, str, frozenset[str]]] = []
    for line in lines:
        folder, separator, rest = line.partition("\t")
        client, bracket, flags = rest.partition("(")
        if separator and bracket and not line.startswith("#"):
            rows.append((unescaped(folder), unescaped(client), frozenset(flags.partition(")")[0].split(","))))
    return rows


def _crossing(client: str, path: str, table: Mapping[tuple[str, str], frozenset[str]]) -> list[str]:
    """The folders that are exported to this client with all that is mounted below, the path among it."""
    return [
        folder
        for (each, folder), flags in table.items()
        if each == client and "crossmnt" in flags and path.startswith(f"{folder.rstrip('/')}/")
    ]


def _of_targets(block: Path, loaded: Mapping[str, int]) -> Iterator[_Stacked]:
    """Targets of device-mapper in use, with the mappings that may have them.

    Of LVM's and its like the uuid says what they consist of. Of others it is known where there is one alone.
    """
    targets = frozenset(name for name, count in loaded.items() if name.startswith(_TARGETS) and count > 0) - {_MAPPER}
    disks = [disk for disk in listdir(block) if disk.startswith("dm-")] if targets else []
    targets -= {target_module(block / disk) for disk in disks}
    plain = (
        [disk for disk in disks if not target_module(block / disk) and not is_linear(block / disk)] if targets else []
    )
    for disk in plain:
        if name := read_text(block / disk / "dm/name"):
            certain = len(plain) == 1
            detail = f"device-mapper device {name}" + ("" if certain else ", or another one (dmsetup table)")
            remedy, target = (Remedy.REMOVE_MAPPING, name) if certain else (Remedy.NONE, "")
            yield 1, targets, User("block", shown(f"/dev/{disk}"), shown(detail), remedy=remedy, target=target)


def _devices_of(root: Path, mount: Mount) -> Iterator[str]:
    """The numbers of the block devices of what is mounted.

    btrfs has another number than its devices, and shows one of them as the source; /sys/fs/btrfs lists them all.
    """
    yield mount.device
    for system in _systems(root, mount):
        devices = listdir(root / "sys/fs/btrfs" / system / "devices")
        yield from filter(None, (read_text(root / "sys/class/block" / name / "dev") for name in devices))


def _systems(root: Path, mount: Mount) -> Iterator[str]:
    """The file system of btrfs that is mounted, by its folder in /sys/fs/btrfs."""
    if mount.type != "btrfs" or not mount.source.startswith("/dev/"):
        return
    source = readlink(root / mount.source.lstrip("/")).rpartition("/")[2] or mount.source.rpartition("/")[2]
    for system in listdir(root / "sys/fs/btrfs"):
        if source in listdir(root / "sys/fs/btrfs" / system / "devices"):
            yield system


def _of_checksums(root: Path, mounts: Mounts, algorithms: Algorithms) -> Iterator[_Stacked]:
    """Checksums of btrfs, each the driver of an algorithm: `xxhash64 (xxhash64-generic)`."""
    for mount in mounts.all:
        for system in _systems(root, mount):
            checksum = read_text(root / "sys/fs/btrfs" / system / "checksum") or ""
            if modules := algorithms.of_driver(checksum.partition("(")[2].rstrip(")")):
                detail = f"type btrfs, source {mount.source}, checksum {checksum}{mount.elsewhere}"
                yield _TOP, modules, mounts.user("mount", mount.point, detail, mount, modules)


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
    return {unescaped(line.split()[0]) for line in lines if line.strip()}
