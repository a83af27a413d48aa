# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mounts in all mount namespaces."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import note
from kmodd.kernel.users.devices import device_number
from kmodd.kernel.users.propagation import MountTable, Originals
from kmodd.kernel.users.tasks import Budget, Task, Tasks, is_of_socket
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_CHUNK = 1 << 16
_LINE_MAX = 1 << 15
"""Bytes of one line: two paths of at most a page each, escaped, and the options."""
_CHARSETS = frozenset(
    {"vfat", "msdos", "iso9660", "udf", "hfs", "hfsplus", "ntfs", "ntfs3", "exfat", "jfs", "cifs", "smb3", "befs"}
)
"""Types that take a table of characters (load_nls in fs/nls/nls_base.c), shown as the option `iocharset`, `nls` or `codepage`."""
_QUOTAS = {"jqfmt=vfsold": "quota_v1", "jqfmt=vfsv0": "quota_v2", "jqfmt=vfsv1": "quota_v2"}
_OPTIONS_MAX = 4096
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (Documentation/filesystems/proc.rst, 3.5)."""

    device: str
    """`major:minor`."""
    root: str
    """The folder of the file system that is seen there."""
    point: str
    type: str
    source: str
    options: str
    """Of the file system itself (`super options`), of the types alone whose options name modules."""
    task: Task
    """The first process that sees it."""
    number: int = 0
    """Its number (`stx_mnt_id` of statx(2))."""
    below: bool = False
    """Others are mounted on it."""
    copied: bool = False
    """Its file system is mounted in the system's own mount namespace too: an umount there leaves this mount."""
    covered: bool = False
    """Another mount hides it."""
    loaded: bool = False
    """It, or another such copy of its namespace, has mounts on top."""

    @property
    def elsewhere(self) -> str:
        """Where to look for it, when the system's own mount namespace does not have it; empty otherwise."""
        copy = "a copy " if self.copied else ""
        return "" if self.task.pid == 1 else f", {copy}in the mount namespace of pid {self.task.pid}"


class Mounts:
    """Every mount that may concern a module, read once: from process 1, then from one process of each other namespace."""

    def __init__(
        self,
        tasks: Tasks,
        modules_of: Callable[[str], frozenset[str]],
        budget: Budget,
        charset: Callable[[str], frozenset[str]] = lambda _: frozenset(),
    ) -> None:
        """`modules_of` answers the loaded modules behind a file system's type, `charset` those of a table of characters."""
        self._tasks = tasks
        self._modules_of = modules_of
        self._charset = charset
        self.budget = budget
        self._types: dict[bytes, frozenset[str]] = {}
        self._base: set[str] = set()
        """The device of the root file system."""
        self._held: dict[int | str, dict[int, frozenset[str]]] = {}
        """Modules and level of what is unmounted, by the number of the mount and by its device."""
        self._unlisted: frozenset[str] = frozenset()
        """Where file systems are mounted in the system's own mount namespace that cannot concern a module."""

    @cached_property
    def all(self) -> tuple[Mount, ...]:
        """Those of the system's own mount namespace, and of the others what an umount of these leaves.

        Each sandboxed service copies the table; what goes with the original is the same mount and not listed. Nor is what
        shows the root file system, which is not unmounted. Of a file system without a device only mounts of a module's type are
        kept.
        """
        mounts: dict[bytes, Mount] = {}
        originals = Originals()
        devices: set[str] = set()
        base = self._base
        for task, lines in self._tables():
            table, listed = MountTable(), dict[bytes, Mount]()
            for line in lines:
                number = table.add(line)
                mount = self._mount(line, task) if self._may_concern_a_module(line) else None
                if mount is None or number in mounts or mount.device in base:
                    continue
                if len(mounts) + len(listed) >= self.budget.limits.mounts:
                    self.budget.met(f"there are more than {len(mounts) + len(listed)} mounts")
                    break
                listed[number] = mount
            if task.pid == 1:
                others = [number for number in table.numbers if number not in listed and not table.is_covered(number)]
                self._unlisted = frozenset(unescaped(os.fsdecode(table.point(number))) for number in others)
                listed = {
                    each: replace(mount, below=bool(table.on_top(each)), covered=table.is_covered(each))
                    for each, mount in listed.items()
                }
                devices = {mount.device for mount in listed.values()}
                base |= {mount.device for mount in listed.values() if mount.point == "/"}
                originals.add(table)
            elif listed:
                listed = self._staying(table, listed, originals, devices)
                if listed and self._tasks.is_roots(task):
                    originals.add(table)
            mounts |= listed
        return tuple(mounts.values())

    def of_type(self, type_: str) -> Iterator[Mount]:
        """Every mount of one type, each copy of it included: which of them an umount leaves takes long to find out."""
        mark, found = f" - {type_} ".encode(), 0
        for task, lines in self._tables():
            for line in lines:
                if mark not in line or (mount := self._mount(line, task)) is None or mount.type != type_:
                    continue
                if found == self.budget.limits.mounts:
                    self.budget.met(f"there are more than {found} mounts of type {type_}")
                    return
                found += 1
                yield mount

    def _tables(self) -> Iterator[tuple[Task, Iterator[bytes]]]:
        """The table of each mount namespace by a process that sees it, the system's own first."""
        tables = 0
        namespaces: set[str] = set()
        for task in self._tasks.all:
            # Without the right to see the link (CAP_SYS_PTRACE for other users' processes) every table is read.
            if task.namespace in namespaces:
                continue
            if task.namespace:
                namespaces.add(task.namespace)
            if tables > self.budget.limits.namespaces:
                self.budget.met(f"there are more than {self.budget.limits.namespaces} mount namespaces")
                return
            tables += 1
            yield task, self._lines(task)
            if not self.budget.in_time_for_mounts():
                return

    @staticmethod
    def _staying(
        table: MountTable, listed: dict[bytes, Mount], originals: Originals, devices: set[str]
    ) -> dict[bytes, Mount]:
        """Those that no umount of an original reaches, the uppermost first."""
        staying = originals.staying(table, list(listed))
        loaded = any(table.on_top(number) for number in staying)
        return {
            number: replace(
                listed[number],
                copied=listed[number].device in devices,
                covered=table.is_covered(number),
                loaded=loaded,
            )
            for number in staying
        }

    def users(self) -> Iterator[tuple[frozenset[str], User]]:
        """Mounts of a module's file system."""
        for mount in self.all:
            if modules := self._modules(os.fsencode(mount.type)):
                detail = f"type {mount.type}, source {mount.source}{mount.elsewhere}"
                yield modules, self.user("mount", mount.point, detail, mount, modules)
            for option in mount.options.split(",") if mount.options else ():
                if modules := self._of_option(mount.type, option):
                    detail = f"type {mount.type}, source {mount.source}, {option}{mount.elsewhere}"
                    yield modules, self.user("mount", mount.point, detail, mount, modules)

    def modules(self, mount: Mount) -> frozenset[str]:
        """The loaded modules behind its type and its options."""
        modules = self._modules(os.fsencode(mount.type))
        return modules.union(*(self._of_option(mount.type, each) for each in mount.options.split(",") if mount.options))

    def user(self, kind: str, name: str, detail: str, mount: Mount, modules: frozenset[str], level: int = 0) -> User:
        """The use of these modules by this mount, with what ends it; `level` as in `User`."""
        task = mount.task
        if task.pid == 1:
            remedy = Remedy.NONE if mount.point == "/" else Remedy.UNMOUNT
            if remedy and mount.below:
                remedy, detail = Remedy.UNMOUNT_TREE, f"{detail}, with other mounts on it"
            if remedy:
                self._hold(mount, modules, level)
            return User(kind, shown(name), shown(detail), remedy=remedy, target=mount.point, level=level)
        pids: tuple[int, ...] = ()
        members = self._tasks.members.get(task.namespace, ())
        if mount.copied and (unit := self._tasks.service(task, members)):
            # A service that starts again copies what is mounted then; a mount on top of the copy may need the original.
            remedy = Remedy.STOP_UNIT if mount.loaded or is_of_socket(unit) else Remedy.RESTART_UNIT
            target = unit
        elif self._tasks.is_roots(task) and not mount.covered:
            remedy, target = Remedy.UNMOUNT, mount.point
        else:
            remedy, target, pids = self._tasks.ending(task, members)
        return User(
            kind,
            shown(name),
            shown(detail),
            pid=task.pid,
            mountns=f"pid {task.pid}",
            owner=task.uid,
            remedy=remedy,
            target=target,
            pids=pids,
        )

    def _hold(self, mount: Mount, modules: frozenset[str], level: int) -> None:
        # What else shows the root file system is on its device as every process is.
        keys: list[int | str] = [mount.number, *([] if mount.device in self._base else [mount.device])]
        for key in keys:
            levels = self._held.setdefault(key, {})
            levels[level] = levels.get(level, frozenset()) | modules

    def held(self, number: int, device: tuple[int, int]) -> Iterator[tuple[frozenset[str], int]]:
        """Modules that are busy as long as a file of this mount is open, with the level of that use.

        Of the users that were found so far; an umount fails while there is such a file. One of a copy in another mount
        namespace, such as a container's, does not keep the original: the device counts where the kernel does not say the mount (-1).
        """
        levels = self._held.get(number if number >= 0 else f"{device[0]}:{device[1]}", {})
        yield from ((modules, level + 1) for level, modules in levels.items())

    @property
    def busy_devices(self) -> tuple[tuple[int, int], ...]:
        """Those of the file systems whose open files `held` knows."""
        return tuple(number for key in self._held if isinstance(key, str) and (number := device_number(key)))

    @property
    def base(self) -> tuple[tuple[int, int], ...]:
        """The devices of the root file system."""
        return tuple(number for text in self._base if (number := device_number(text)))

    def has_type(self, type_: str) -> bool:
        """Something of this type is mounted that an umount ends."""
        return any(mount.type.partition(".")[0] == type_ for mount in self.all)

    def of_path(self, path: str) -> Mount | None:
        """The mount of the system's own namespace that has this path; None where that is the root or none of those that are kept.

        With a slash at its end the path may be the mount itself.
        """
        mounts = self._by_point
        itself = [path.rstrip("/")] if path.endswith("/") else []
        for folder in (*itself, *map(str, PurePosixPath(path).parents)):
            if folder in mounts or folder in self._unlisted:
                return mounts.get(folder)
        return None

    @cached_property
    def _by_point(self) -> dict[str, Mount]:
        """Those of the system's own namespace that their paths lead to, but for the root."""
        mounts = (mount for mount in self.all if mount.task.pid == 1 and not mount.covered)
        return {mount.point: mount for mount in mounts if mount.point != "/"}

    def _lines(self, task: Task) -> Iterator[bytes]:
        """The table of a process, a piece at a time: its size is whatever the owner of the namespace wants."""
        try:
            file = os.open(self._tasks.folder(task) / "mountinfo", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            note(error)
            return
        try:
            rest = b""
            while piece := os.read(file, _CHUNK):
                if not self.budget.take_mount_bytes(task.user, len(piece)):
                    return
                # The system's own table is read in any case: what stands there is root's.
                if task.pid != 1 and not self.budget.in_time_for_mounts():
                    return
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
                if len(rest) > _LINE_MAX:
                    return
            yield rest
        except OSError as error:
            note(error)
            return
        finally:
            os.close(file)

    def _of_option(self, type_: str, option: str) -> frozenset[str]:
        name, _, value = option.partition("=")
        if name in {"iocharset", "nls", "codepage"} and value:
            # vfat shows the code page as a number, hfs as the table's name.
            return self._charset(f"cp{value}" if value.isdecimal() else value)
        if type_.startswith("nfs") and name == "vers":
            return self._modules_of(f"nfsv{value.partition('.')[0]}")
        return self._modules_of(_QUOTAS[option]) if option in _QUOTAS else frozenset()

    def _modules(self, type_: bytes) -> frozenset[str]:
        # `fuse.sshfs` is type `fuse` with another word after the dot.
        base = type_.partition(b".")[0]
        if base not in self._types:
            self._types[base] = self._modules_of(base.decode(errors="replace"))
        return self._types[base]

    def _may_concern_a_module(self, line: bytes) -> bool:
        """It has a device, as btrfs has though its number is not of one, or its type is a module's."""
        fields = line.split(b" ", 3)
        if len(fields) < 4 or not fields[2].startswith(b"0:"):
            return True
        type_ = line.partition(b" - ")[2].partition(b" ")[0]
        return type_ == b"btrfs" or bool(self._modules(type_))

    @staticmethod
    def _mount(line: bytes, task: Task) -> Mount | None:
        """None for what is no line of mountinfo."""
        before, separator, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 2:
            return None
        device, root, point, type_, source = (
            part.decode(errors="replace") for part in (fields[2], fields[3], fields[4], rest[0], rest[1])
        )
        options = ""
        # What stands in the options of others, such as the folders of overlay, their users have chosen.
        if len(rest) > 2 and (type_ in _CHARSETS or type_.startswith(("nfs", "ext"))):
            options = rest[2].decode(errors="replace")[:_OPTIONS_MAX]
        number = int(fields[0]) if fields[0].isdigit() else 0
        return Mount(device, unescaped(root), unescaped(point), type_, unescaped(source), options, task, number)


def modules_of_type(type_: str, resolve_alias: Callable[[str], tuple[str, ...]]) -> Iterator[str]:
    """The type's own name as a module's, and the modules with an alias `fs-TYPE`."""
    yield canonical(type_)
    yield from resolve_alias(f"fs-{type_}")


def modules_of_charset(name: str, resolve_alias: Callable[[str], tuple[str, ...]]) -> Iterator[str]:
    """The module of a table of characters by its own name (`nls_ascii`), and those with this as an alias."""
    yield canonical(f"nls_{name}")
    yield from resolve_alias(f"nls_{name}")


def unescaped(text: str) -> str:
    r"""Undo `\040` and its like, which the kernel writes for space, tab, newline, `#` and backslash."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
