# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that have a device or a socket of a module open."""

import ctypes
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import note, read_text, readlink
from kmodd.kernel.proc.crypto import Algorithms
from kmodd.kernel.proc.maps import from_child, mappings
from kmodd.kernel.users.devices import DeviceOwners, device_number
from kmodd.kernel.users.mount import Mounts
from kmodd.kernel.users.netlink import TcpUse
from kmodd.kernel.users.tasks import Budget, Sighting, Task, Tasks, faults_noted, references
from kmodd.kernel.users.tracing import Attachments
from kmodd.kernel.watcher.watcher import place
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_TABLE_MAX = 1 << 16
_NETLINK_MAX = 1 << 20
_GUESSES_MAX = 256
_CGROUP_MAX = 1 << 14
_ATTRIBUTE = "system.sockprotoname"
_ALG, _ALG_MODULE, _ALG_TYPES = "ALG", "af_alg", "algif_"
_ALG_REFERENCES = 2
"""What each socket of AF_ALG holds of its module: one as a socket, one as its protocol. One that is closed while accepted ones are open
keeps the latter.
"""
_CONGESTION, _DIAG, _UPPER = "tcp_", "tcp_diag", frozenset({"tls", "smc", "espintcp"})
"""Modules of congestion controls, the one that answers about them, and modules of upper layers of TCP."""
_NETFILTER, _BOUND = "12", ("nfnetlink_queue", "nfnetlink_log")
"""NETLINK_NETFILTER, and its parts that a process binds a socket to (instance_create in net/netfilter/nfnetlink_queue.c)."""
_ANONYMOUS = {
    "kvm-vm": ("kvm", "kvm_intel", "kvm_amd"),
    "kvm-vcpu:": ("kvm", "kvm_intel", "kvm_amd"),
    "[vfio-device]": ("vfio", "vfio_pci_core", "vfio_pci"),
}
"""Modules of files without a path (anon_inode_getfd in virt/kvm/kvm_main.c, drivers/vfio/vfio_main.c), as their links read but for a
number at the end."""
_DISCIPLINES = 31
"""NR_LDISCS of linux/tty.h."""
_ATTACHING: dict[str, tuple[str, ...]] = {
    "ldattach": ("",),
    "slattach": ("slip",),
    "inputattach": ("serport",),
    "pppd": ("ppp_async", "ppp_synctty"),
    "slcand": ("slcan",),
    "kissattach": ("mkiss", "6pack"),
    "btattach": ("hci_uart",),
    "hciattach": ("hci_uart",),
}
"""Programs that open a terminal to give it a line discipline and keep it open for that, with the beginnings of the modules' names."""
_FUSE = frozenset({"fuse"})
_DMA_BUFFER = "/dmabuf:"
_DEV = "/dev/"


@dataclass(frozen=True, slots=True)
class SocketUse:
    """What a socket holds."""

    protocol: str
    modules: frozenset[str]
    doubt: str = ""
    """What is not certain; empty where it holds these."""
    bindable: bool = False
    """It may be bound to a type and an algorithm of the crypto API: what it holds is known when all such sockets were seen."""


class SocketModules:
    """Protocols by module, from /proc/net/protocols: its first column is the protocol, the eighth its module or `kernel`.

    And sockets that hold further modules: those of AF_ALG that of their type, those of netlink that of the protocol's kernel
    side, those of TCP that of their congestion control and of their upper layer.
    """

    def __init__(
        self,
        root: Path,
        loaded: Mapping[str, int],
        resolve_alias: Callable[[str], tuple[str, ...]] = lambda _: (),
        tcp: Callable[[], Iterable[TcpUse]] = lambda: (),
        budget: Budget | None = None,
        namespaces: Iterable[Path] = (),
        algorithms: Algorithms | None = None,
    ) -> None:
        """`loaded` are the canonical names of the modules that are looked for, with the references that no module holds.

        `tcp` answers what TCP sockets use; OSError where the kernel does not. `namespaces` are the folders in /proc of a
        process of each other network namespace, `algorithms` those of the crypto API in use.
        """
        self._algorithms = algorithms
        self._root = root
        self._loaded = loaded
        self._resolve = resolve_alias
        self._tcp = tcp
        self._budget = budget
        self._namespaces = namespaces

    def uses(self, link: Path | str, target: str) -> list[SocketUse]:
        """What the socket holds; empty when none is looked for. `link` is /proc/PID/fd/N, `target` what it reads."""
        inode = target.removeprefix("socket:[").removesuffix("]")
        if modules := self._netlink.get(inode):
            return [SocketUse("NETLINK", modules)]
        if tcp := self._of_tcp.get(inode):
            return [SocketUse(f"TCP with {use.name}", self._of_layer(use)) for use in tcp]
        if not self._protocols and not self._types:
            return []
        try:
            # Each socket carries the name of its protocol (sockfs_xattr_get in net/socket.c); lsof reads it there too.
            protocol = os.getxattr(link, _ATTRIBUTE).rstrip(b"\0").decode(errors="replace")
        except OSError as error:
            note(error)
            return []
        modules = self._protocols.get(protocol) or frozenset()
        bindable = protocol == _ALG and bool(self._types)
        return [SocketUse(protocol, modules, bindable=bindable)] if modules or bindable else []

    def bound(self, holders: Mapping[str, frozenset[int]]) -> Iterator[SocketUse]:
        """What each of these sockets of AF_ALG holds besides, by its type and its algorithm; `holders` are the processes that have it open.

        bind(2) takes the module of the type, once; accepted sockets keep the one that was bound (crypto/af_alg.c). Nothing shows which
        sockets are bound, and to what. It is known where the same processes have all of them, or where as many are bound as there are;
        the references of AF_ALG itself tell whether these are all. They were counted before the sockets were looked at: where they are
        others by now, nothing is known.
        """
        bound = sum(self._loaded[type_] for type_ in self._types)
        others = self._loaded.get(_ALG_MODULE, 0) - len(holders) * _ALG_REFERENCES
        together = len(set(holders.values())) == 1 and 0 <= others < _ALG_REFERENCES
        certain = together or (others == 0 and bound == len(holders) and len(self._types) == 1)
        certain = certain and self._alg_references(references(self._root)) == self._alg_references(self._loaded)
        doubt = "" if certain else "which may be bound to it"
        yield SocketUse(_ALG, self._types, doubt)
        if self._algorithms is None:
            return
        held = self._algorithms.of_only_user(next(iter(self._types))) if bound == 1 else frozenset[str]()
        if held and certain:
            yield SocketUse(_ALG, held)
            return
        for type_ in self._types:
            if possible := self._algorithms.of_user(type_):
                yield SocketUse(_ALG, possible, "which may be bound to one of its algorithms")

    @staticmethod
    def _alg_references(loaded: Mapping[str, int]) -> dict[str, int]:
        """Those of AF_ALG and of its types, as far as something uses them."""
        names = (name for name in loaded if name == _ALG_MODULE or name.startswith(_ALG_TYPES))
        return {name: loaded[name] for name in names if loaded[name] > 0}

    def _of_layer(self, use: TcpUse) -> frozenset[str]:
        ciphers = self._algorithms.of_name(use.cipher) if use.cipher and self._algorithms else frozenset()
        return ciphers | {use.module}

    @cached_property
    def _types(self) -> frozenset[str]:
        """Types of AF_ALG that something uses."""
        return frozenset(name for name, count in self._loaded.items() if name.startswith(_ALG_TYPES) and count > 0)

    @cached_property
    def _netlink(self) -> dict[str, frozenset[str]]:
        """Modules by the inode of a socket, from /proc/net/netlink of every network namespace that a process is in."""
        modules: dict[str, frozenset[str]] = {}
        known: dict[str, frozenset[str]] = {}
        for folder in (self._root / "proc", *self._namespaces):
            table = read_text(folder / "net/netlink", _NETLINK_MAX) or ""
            if len(table) >= _NETLINK_MAX - 1 and self._budget is not None:
                self._budget.met("there are more netlink sockets than are examined")
            bindings = self._bindings(folder)
            for line in table.splitlines()[1:]:
                fields = line.split()
                if len(fields) < 10:
                    continue
                number, port, inode = fields[1], fields[2], fields[9]
                if number not in known:
                    known[number] = self._of(self._resolve(f"net-pf-16-proto-{number}"))
                bound = bindings.get(port, frozenset()) if number == _NETFILTER else frozenset()
                if (known[number] or bound) and inode != "0":
                    modules[inode] = known[number] | bound
        return modules

    def _bindings(self, folder: Path) -> dict[str, frozenset[str]]:
        """Queues and groups of nfnetlink_queue and nfnetlink_log, by the port of their socket: each holds its module."""
        modules: dict[str, frozenset[str]] = {}
        for module in _BOUND:
            table = (read_text(folder / "net/netfilter" / module, _NETLINK_MAX) or "") if module in self._loaded else ""
            for fields in map(str.split, table.splitlines()):
                if len(fields) > 1:
                    modules[fields[1]] = modules.get(fields[1], frozenset()) | {module}
        return modules

    @cached_property
    def _of_tcp(self) -> dict[str, tuple[TcpUse, ...]]:
        """What holds a module, by the inode of a socket."""
        modules = {name for name in self._loaded if name.startswith(_CONGESTION) or name in _UPPER} - {_DIAG}
        if _DIAG not in self._loaded or not modules:
            return {}
        uses: dict[str, tuple[TcpUse, ...]] = {}
        try:
            for use in self._tcp():
                if use.module in modules:
                    uses[str(use.inode)] = (*uses.get(str(use.inode), ()), use)
        except OSError:
            if self._budget is not None:
                self._budget.met("TCP sockets cannot be read")
        return uses

    def _of(self, names: Collection[str]) -> frozenset[str]:
        return frozenset(name for name in names if name in self._loaded)

    @cached_property
    def _protocols(self) -> dict[str, frozenset[str]]:
        table: dict[str, frozenset[str]] = {}
        for line in (read_text(self._root / "proc/net/protocols", _TABLE_MAX) or "").splitlines()[1:]:
            fields = line.split()
            # `press` is one word, and a name may have a space in it: count from the end, where 19 `y` or `n` stand.
            flags = next((n for n, word in enumerate(reversed(fields)) if word not in {"y", "n"}), len(fields))
            head = fields[: len(fields) - flags]
            if len(head) >= 8 and (module := canonical(head[-1])) in self._loaded:
                protocol = " ".join(head[:-7])
                table[protocol] = table.get(protocol, frozenset()) | {module}
        return table


_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE, _STATX_INO, _STATX_MNT_ID = 1, 0x100, 0x1000


class _Statx(ctypes.Structure):
    """struct statx of linux/stat.h, 256 bytes; only the fields that are read have names."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("head", ctypes.c_uint8 * 24),
        ("mode", ctypes.c_uint16),
        ("spare", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("middle", ctypes.c_uint8 * 88),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("mnt_id", ctypes.c_uint64),
        ("tail", ctypes.c_uint8 * 104),
    )


_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Inode:
    """What a link leads to."""

    kind: str
    """`char` or `block` for a device; empty for everything else."""
    number: tuple[int, int]
    """Major and minor of the device."""
    on: tuple[int, int]
    """The device that its file system is on; major 0 for a file system without one."""
    mount: int = -1
    """The number of its mount; -1 before Linux 5.8, which does not say."""
    ino: int = 0
    """Its number on its file system."""


def inode(link: str | Path) -> Inode | None:
    """What a link leads to; None when it is not to be had.

    statx(2) with AT_STATX_DONT_SYNC: what the kernel has in memory is enough, and no file server is contacted. The owner of one
    on FUSE could let the call hang forever.
    """
    answer = _Statx()
    wanted = _STATX_TYPE | _STATX_INO | _STATX_MNT_ID
    if _LIBC.statx(_AT_FDCWD, os.fsencode(link), _AT_STATX_DONT_SYNC, wanted, ctypes.byref(answer)) != 0:
        return None
    kind = "char" if stat.S_ISCHR(answer.mode) else "block" if stat.S_ISBLK(answer.mode) else ""
    number = answer.mnt_id if answer.mask & _STATX_MNT_ID else -1
    return Inode(kind, (answer.rdev_major, answer.rdev_minor), (answer.dev_major, answer.dev_minor), number, answer.ino)


def inode_below(folder: str, name: str) -> Inode | None:
    """What has this path in a folder and on the folder's own file system, and is reached by no link; None for everything else.

    The path may be another user's choice: in another file system nothing is looked up, whose server could take its time. (With
    RestrictSUIDSGID= there is no openat2(2), which could say so to the kernel.)
    """
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        return None
    at = -1
    try:
        at = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        first = reached = inode(f"/proc/self/fd/{at}")
        for part in parts:
            file = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = file
            reached = inode(f"/proc/self/fd/{at}")
            if first is None or reached is None or reached.on != first.on or stat.S_ISLNK(os.fstat(at).st_mode):
                return None
    except OSError:
        return None
    else:
        return reached
    finally:
        if at >= 0:
            os.close(at)


class Unmounted:
    """File systems on block devices that are mounted nowhere, although something of them is open (`umount --lazy`)."""

    def __init__(
        self,
        root: Path,
        mounts: Mounts,
        owners: DeviceOwners,
        modules_of: Callable[[str], frozenset[str]],
        budget: Budget,
    ) -> None:
        """`modules_of` answers the loaded modules behind a file system's type."""
        self._root = root
        self._mounts = mounts
        self._owners = owners
        self._modules_of = modules_of
        self._budget = budget
        self._known: dict[tuple[int, int], frozenset[str]] = {}

    def modules(self, number: tuple[int, int]) -> frozenset[str]:
        """Those of the file system on this device and of the device; empty for one that is mounted somewhere."""
        # What was left out of the mount tables may be mounted.
        if not number[0] or number in self._mounted or self._budget.partial:
            return frozenset()
        if number not in self._known:
            # udev has looked into the device (60-persistent-storage.rules).
            properties = read_text(self._root / f"run/udev/data/b{number[0]}:{number[1]}", _TABLE_MAX) or ""
            values = dict(line[2:].partition("=")[::2] for line in properties.splitlines() if line.startswith("E:"))
            type_ = values.get("ID_FS_TYPE", "")
            below = self._owners.modules("block", *number)
            self._known[number] = below | (self._modules_of(type_) if type_ else frozenset())
        return self._known[number]

    @cached_property
    def _mounted(self) -> frozenset[tuple[int, int] | None]:
        return frozenset(device_number(mount.device) for mount in self._mounts.all)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """Something that a process has open, and that holds modules."""

    name: str
    """As its link reads, with what it is."""
    modules: frozenset[str]
    certain: bool = True
    """It holds all of these; else one of them."""
    level: int = 0
    """As of `User`."""
    follows: bool = False
    """It ends with another user of the module."""
    guess: bool = False
    """It may hold one of these or none: worth a look where nothing else is known."""
    socket: str = ""
    """The inode of one that may be bound to a type of the crypto API."""


class OpenFiles:
    """What processes have open that holds a module."""

    def __init__(
        self,
        root: Path,
        owners: DeviceOwners,
        sockets: SocketModules,
        unmounted: Unmounted,
        mounts: Mounts,
        loaded: Mapping[str, int],
        resolve: Callable[[str], tuple[str, ...]],
        attachments: Attachments,
        budget: Budget,
    ) -> None:
        """`loaded` are the modules that are looked for, with the references that no module holds; `resolve` answers those with an
        alias. The users of `mounts` were listed before.
        """
        self._root = root
        self._resolve = resolve
        self._mounts = mounts
        self._owners = owners
        self._sockets = sockets
        self._unmounted = unmounted
        self._loaded = loaded
        self._attachments = attachments
        self._budget = budget

    def of(self, folder: Path, uid: int) -> Iterator[OpenFile]:
        """What is open, and what is used without a descriptor: of several files of a mount, the first."""
        levels: set[tuple[frozenset[str], int]] = set()
        for each in self._of(folder, uid):
            if each.level:
                if (each.modules, each.level) in levels:
                    continue
                levels.add((each.modules, each.level))
            yield each

    def _of(self, folder: Path, uid: int) -> Iterator[OpenFile]:
        for link in (f"{folder}/cwd", f"{folder}/root", f"{folder}/exe"):
            if place := inode(link):
                yield from self._of_place(place, link)
        try:
            with os.scandir(folder / "fd") as entries:
                for count, entry in enumerate(entries, 1):
                    if not self._budget.take_descriptor(uid, count) or (
                        count % 256 == 0 and not self._budget.in_time()
                    ):
                        return
                    target = readlink(entry.path)
                    if target.startswith("socket:"):
                        for use in self._sockets.uses(entry.path, target):
                            yield OpenFile(f"socket {use.protocol}", use.modules, socket=target if use.bindable else "")
                    elif target.startswith(("anon_inode:", _DMA_BUFFER)):
                        information = f"{folder}/fdinfo/{entry.name}"
                        if modules := self._without_path(information, target):
                            yield OpenFile(target, modules)
                        elif held := self._attachments.of(information, target):
                            yield OpenFile(held.name, held.modules, held.certain, guess=not held.certain)
                    elif target.startswith("/"):
                        yield from self._of_file(entry.path, target)
        except OSError as error:
            note(error)
            return

    def bound(self, sockets: Mapping[str, frozenset[int]]) -> Iterator[OpenFile]:
        """What each of these sockets of the crypto API holds besides, with the processes that have it open."""
        for use in self._sockets.bound(sockets):
            name = f"socket {use.protocol}"
            if use.doubt:
                yield OpenFile(f"{name}, {use.doubt}", use.modules, certain=False, guess=True)
            else:
                yield OpenFile(name, use.modules)

    def _of_file(self, link: str, target: str) -> Iterator[OpenFile]:
        file = inode(link)
        if file is None:
            return
        if file.kind and (modules := self._owners.modules(file.kind, *file.number)):
            # An umount ends the process that serves the file system.
            yield OpenFile(target, modules, follows=modules == _FUSE and self._mounts.has_type("fuse"))
        if file.kind == "char" and self._disciplines and self._owners.is_terminal(*file.number):
            yield from self._of_terminal(link, target)
        yield from self._of_place(file, link)

    def mapped(self, processes: Sequence[tuple[Path, int, bool]], *, nodes: bool) -> Iterator[tuple[int, OpenFile]]:
        """What is mapped into their memory: it stays in use when the descriptor is closed. Each file of a process once, with the
        process's number in the sequence.

        `processes` are their folders and users, and whether they are in the system's own mount namespace: of what is mounted the
        kernel shows the device, not which mount it is of. `nodes` says that devices can hold something. They are those of /dev itself,
        which are root's: another path could lead to a file server by now.
        """
        nodes_on = f"{self._nodes[0]:02x}:{self._nodes[1]:02x}".encode() if nodes and self._nodes else b""
        mounts = {f"{major:02x}:{minor:02x}".encode(): (major, minor) for major, minor in self._mounts.busy_devices}
        mounts.pop(nodes_on, None)

        def lines() -> Iterator[bytes]:
            with faults_noted(self._budget):
                for number, (folder, uid, sees_mounts) in enumerate(processes):
                    if not self._budget.in_time():
                        break
                    wanted = frozenset({nodes_on} - {b""} | (mounts.keys() if sees_mounts else set()))
                    rows = dict.fromkeys(mappings(folder, wanted, partial(self._budget.take_mapping_bytes, uid)))
                    yield b"".join(b"%d %s\n" % (number, row) for row in rows)
            yield "".join(f"met {bound}\n" for bound in self._budget.bounds).encode()

        rows, complete = from_child(lines, self._budget.seconds_for_mappings)
        if not complete:
            self._budget.met("the mappings of some processes could not be read in time")
        for row in rows:
            first, _, rest = row.partition(b" ")
            if first == b"met":
                self._budget.met(rest.decode())
                continue
            on, ino, path = os.fsdecode(rest).split(" ", 2)
            name = f"{path}, mapped"
            if device := mounts.get(on.encode()):
                for modules, level in self._mounts.held(-1, device):
                    yield int(first), OpenFile(name, modules, level=level)
            elif modules := self._of_node(path, int(ino)) if path.startswith("/") else self._without_path("", path):
                yield int(first), OpenFile(name, modules)

    def _of_node(self, path: str, ino: int) -> frozenset[str]:
        """Modules of a device node of /dev, where that is the one with this number: a process may see another one there."""
        folder = f"{self._root}/proc/1/root{_DEV}"
        node = inode_below(folder, path.removeprefix(_DEV)) if path.startswith(_DEV) else None
        if node is None or not node.kind or node.on != self._nodes or node.ino != ino:
            return frozenset()
        return self._owners.modules(node.kind, *node.number)

    @cached_property
    def _nodes(self) -> tuple[int, int] | None:
        """The device of the file system with the system's device nodes."""
        folder = inode(f"{self._root}/proc/1/root{_DEV}")
        return folder.on if folder is not None else None

    @property
    def are_mounts_held(self) -> bool:
        """An open file may keep something mounted."""
        return bool(self._mounts.busy_devices)

    def can_be_mapped(self, names: Iterable[str]) -> bool:
        """One of these modules may have devices, or files without a path, that can be mapped."""
        names = tuple(names)
        anonymous = {name for modules in _ANONYMOUS.values() for name in modules}
        return bool(names) and (not anonymous.isdisjoint(names) or bool(self._owners.with_nodes(names)))

    def _of_terminal(self, link: str, target: str) -> Iterator[OpenFile]:
        """A terminal to which a program gave a module's line discipline: which one, the kernel shows only to who opens it
        (TIOCGETD, ioctl_tty(2)).
        """
        program = readlink(Path(link).parents[1] / "exe").rpartition("/")[2]
        modules = frozenset(name for name in self._disciplines if name.startswith(_ATTACHING.get(program, ())))
        if modules:
            certain = len(modules) == 1
            name = f"{target} with its line discipline" if certain else f"{target}, whose line discipline may be it"
            yield OpenFile(name, modules, certain=certain)

    @cached_property
    def _disciplines(self) -> frozenset[str]:
        """Modules of line disciplines that something uses."""
        names = (name for number in range(_DISCIPLINES) for name in self._resolve(f"tty-ldisc-{number}"))
        return frozenset(name for name in names if self._loaded.get(name, 0) > 0)

    def _of_place(self, file: Inode, link: str) -> Iterator[OpenFile]:
        if modules := self._unmounted.modules(file.on):
            yield OpenFile(f"{readlink(link)} of a file system that is unmounted", modules)
        for modules, level in self._mounts.held(file.mount, file.on):
            yield OpenFile(readlink(link), modules, level=level)

    def _without_path(self, information: str, target: str) -> frozenset[str]:
        names: tuple[str, ...] = ()
        if target.startswith("anon_inode:"):
            names = _ANONYMOUS.get(target.removeprefix("anon_inode:").rstrip("0123456789"), ())
        elif target.startswith(_DMA_BUFFER):
            # dma_buf_show_fdinfo in drivers/dma-buf/dma-buf.c: the name is that of the module that exports it.
            lines = (read_text(information) or "").splitlines()
            names = tuple(canonical(line.partition(":")[2].strip()) for line in lines if line.startswith("exp_name:"))
        return frozenset(name for name in names if name in self._loaded)


class Processes:
    """Each process with each of its open paths: the executable as name, `pid 1234 /dev/uinput` as detail.

    Mappings are looked at for themselves, and only of what is not open as well.
    """

    def __init__(self, tasks: Tasks, files: OpenFiles, namespaces: Mapping[str, str], budget: Budget) -> None:
        """`namespaces` are the labels of other network namespaces, by what their links read."""
        self._tasks = tasks
        self._files = files
        self._namespaces = namespaces
        self._budget = budget
        self._users: dict[int, User] = {}
        self._held: set[tuple[int, frozenset[str], int]] = set()

    def open(self, guesses: list[Sighting] | None = None) -> Iterator[Sighting]:
        """By descriptors and links; `guesses` gets what may hold a module of which nothing else is known."""
        sockets: dict[str, dict[int, Task]] = {}
        for task in self._tasks.all:
            if not self._budget.in_time():
                break
            seen: set[tuple[str, frozenset[str]]] = set()
            for each in self._files.of(self._tasks.folder(task), task.user):
                if each.socket:
                    sockets.setdefault(each.socket, {})[task.pid] = task
                if (each.name, each.modules) not in seen and each.modules:
                    seen.add((each.name, each.modules))
                    yield from self._sighting(task, each, guesses)
        if sockets:
            holding = {pid: task for tasks in sockets.values() for pid, task in tasks.items()}
            for each in self._files.bound({socket: frozenset(tasks) for socket, tasks in sockets.items()}):
                for task in holding.values():
                    yield from self._sighting(task, each, guesses)

    def _sighting(self, task: Task, file: OpenFile, guesses: list[Sighting] | None) -> Iterator[Sighting]:
        modules, made = self._user(task, file)
        if not file.guess:
            yield modules, made
        elif guesses is not None and len(guesses) < _GUESSES_MAX:
            guesses.append((modules, replace(made, kind="candidate")))

    def mapped(self, unexplained: Callable[[], Iterable[str]]) -> Iterator[Sighting]:
        """By mappings; `unexplained` answers the modules with references of which no user is known yet.

        To have the kernel list them takes long: that is done where they can hold something.
        """
        nodes = self._files.can_be_mapped(unexplained())
        first = self._tasks.first_namespace
        tasks = [task for task in self._tasks.all if nodes or (task.namespace and task.namespace == first)]
        if not tasks or not (nodes or self._files.are_mounts_held) or not self._budget.in_time():
            return
        folders = [
            (self._tasks.folder(task), task.user, bool(task.namespace) and task.namespace == first) for task in tasks
        ]
        for number, each in self._files.mapped(folders, nodes=nodes):
            if (tasks[number].pid, each.modules, each.level) not in self._held:
                yield self._user(tasks[number], each)

    def _user(self, task: Task, file: OpenFile) -> Sighting:
        self._held.add((task.pid, file.modules, file.level))
        made = self._users.get(task.pid)
        if made is None:
            made = self._users[task.pid] = _process(self._tasks, task, self._namespaces)
        if not file.certain or file.follows:
            made = replace(made, remedy=Remedy.NOT_NEEDED if file.follows else Remedy.NONE, target="", pids=())
        return file.modules, replace(made, detail=shown(f"pid {task.pid} {file.name}"), level=file.level)


def _process(tasks: Tasks, task: Task, namespaces: Mapping[str, str]) -> User:
    folder = tasks.folder(task)
    executable = shown(_executable(folder))
    unit, container = map(shown, place(read_text(folder / "cgroup", _CGROUP_MAX) or ""))
    remedy, target, pids = tasks.ending(task)
    return User(
        "process",
        executable,
        "",
        pid=task.pid,
        exe=executable,
        unit=unit,
        container=container,
        netns=namespaces.get(readlink(folder / "ns/net"), ""),
        owner=task.uid,
        remedy=remedy,
        target=target,
        pids=pids,
    )


def _executable(folder: Path) -> str:
    """Path of the executable; the name in brackets for a kernel thread, as `ps` shows it."""
    return readlink(folder / "exe") or f"[{read_text(folder / 'comm') or 'unknown'}]"
