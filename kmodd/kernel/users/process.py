# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that have a device or a socket of a module open."""

import ctypes
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kmodd.kernel.files import note, read_text, readlink
from kmodd.kernel.users.devices import DeviceOwners
from kmodd.kernel.users.tasks import Budget, Tasks
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_TABLE_MAX = 1 << 16
_NETLINK_MAX = 1 << 20
_ATTRIBUTE = "system.sockprotoname"
_ALG, _ALG_TYPES = "ALG", "algif_"
_CONGESTION, _DIAG = "tcp_", "tcp_diag"


@dataclass(frozen=True, slots=True)
class SocketUse:
    """What a socket holds."""

    protocol: str
    modules: frozenset[str]
    certain: bool = True
    """It holds these; else one of them."""


class SocketModules:
    """Protocols by module, from /proc/net/protocols: its first column is the protocol, the eighth its module or `kernel`.

    And sockets that hold further modules: those of AF_ALG that of their type, those of netlink that of the protocol's kernel
    side, those of TCP that of their congestion control.
    """

    def __init__(
        self,
        root: Path,
        loaded: Mapping[str, int],
        resolve_alias: Callable[[str], tuple[str, ...]] = lambda _: (),
        controls: Callable[[], Iterable[tuple[int, str]]] = lambda: (),
        budget: Budget | None = None,
    ) -> None:
        """`loaded` are the canonical names of the modules that are looked for, with the references that no module holds.

        `controls` answers inode and congestion control of TCP sockets; OSError where the kernel does not.
        """
        self._root = root
        self._loaded = loaded
        self._resolve = resolve_alias
        self._controls = controls
        self._budget = budget

    def uses(self, link: Path | str, target: str) -> list[SocketUse]:
        """What the socket holds; empty when none is looked for. `link` is /proc/PID/fd/N, `target` what it reads."""
        inode = target.removeprefix("socket:[").removesuffix("]")
        if modules := self._netlink.get(inode):
            return [SocketUse("NETLINK", modules)]
        if name := self._congestion.get(inode):
            return [SocketUse(f"TCP with {name}", frozenset({canonical(f"tcp_{name}")}))]
        if not self._protocols and not self._types:
            return []
        try:
            # Each socket carries the name of its protocol (sockfs_xattr_get in net/socket.c); lsof reads it there too.
            protocol = os.getxattr(link, _ATTRIBUTE).rstrip(b"\0").decode(errors="replace")
        except OSError as error:
            note(error)
            return []
        modules = self._protocols.get(protocol)
        uses = [SocketUse(protocol, modules)] if modules else []
        if protocol == _ALG and self._types:
            # bind(2) takes the module of the type; accepted sockets keep the one that was bound (crypto/af_alg.c). Nothing
            # shows which type that was, so it is known where one type alone is in use.
            uses.append(SocketUse(protocol, self._types, certain=len(self._types) == 1))
        return uses

    @cached_property
    def _types(self) -> frozenset[str]:
        """Types of AF_ALG that something uses."""
        return frozenset(name for name, count in self._loaded.items() if name.startswith(_ALG_TYPES) and count > 0)

    @cached_property
    def _netlink(self) -> dict[str, frozenset[str]]:
        """Modules by the inode of a socket, from /proc/net/netlink of this network namespace."""
        modules: dict[str, frozenset[str]] = {}
        known: dict[str, frozenset[str]] = {}
        table = read_text(self._root / "proc/net/netlink", _NETLINK_MAX) or ""
        if len(table) >= _NETLINK_MAX - 1 and self._budget is not None:
            self._budget.met("there are more netlink sockets than are examined")
        for line in table.splitlines()[1:]:
            fields = line.split()
            if len(fields) < 10:
                continue
            number, inode = fields[1], fields[9]
            if number not in known:
                known[number] = self._of(self._resolve(f"net-pf-16-proto-{number}"))
            if known[number] and inode != "0":
                modules[inode] = known[number]
        return modules

    @cached_property
    def _congestion(self) -> dict[str, str]:
        """Congestion controls that are modules, by the inode of a socket."""
        modules = {name for name in self._loaded if name.startswith(_CONGESTION)}
        if _DIAG not in modules or len(modules) == 1:
            return {}
        controls: dict[str, str] = {}
        try:
            for inode, name in self._controls():
                if canonical(f"{_CONGESTION}{name}") in modules:
                    controls[str(inode)] = name
        except OSError:
            if self._budget is not None:
                self._budget.met("TCP sockets cannot be read")
        return controls

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
_STATX_TYPE = 1


class _Statx(ctypes.Structure):
    """struct statx of linux/stat.h, 256 bytes; only the fields that are read have names."""

    _fields_ = (
        ("head", ctypes.c_uint8 * 28),
        ("mode", ctypes.c_uint16),
        ("middle", ctypes.c_uint8 * 98),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("tail", ctypes.c_uint8 * 120),
    )


_LIBC = ctypes.CDLL(None)


def device(link: str) -> tuple[str, int, int] | None:
    """`char` or `block` with major and minor of what a link leads to; None when it is no device or is not to be had.

    statx(2) with AT_STATX_DONT_SYNC: what the kernel has in memory is enough, and no file server is contacted. The owner of one
    on FUSE could let the call hang forever.
    """
    answer = _Statx()
    if _LIBC.statx(_AT_FDCWD, os.fsencode(link), _AT_STATX_DONT_SYNC, _STATX_TYPE, ctypes.byref(answer)) != 0:
        return None
    kind = "char" if stat.S_ISCHR(answer.mode) else "block" if stat.S_ISBLK(answer.mode) else ""
    return (kind, answer.rdev_major, answer.rdev_minor) if kind else None


def processes(
    tasks: Tasks, owners: DeviceOwners, sockets: SocketModules, budget: Budget
) -> Iterator[tuple[frozenset[str], User]]:
    """Each process with each of its open paths: the executable as name, `pid 1234 /dev/uinput` as detail."""
    for task in tasks.all:
        if not budget.in_time():
            return
        folder = tasks.folder(task)
        executable, ending = "", None
        seen: set[tuple[str, frozenset[str]]] = set()
        for path, modules, certain in _opened(folder / "fd", task.user, owners, sockets, budget):
            if (path, modules) in seen:
                continue
            seen.add((path, modules))
            executable = executable or shown(_executable(folder))
            remedy, target, pids = ending = ending or tasks.ending(task)
            if not certain:
                remedy, target, pids = Remedy.NONE, "", ()
            yield (
                modules,
                User(
                    "process",
                    executable,
                    shown(f"pid {task.pid} {path}"),
                    pid=task.pid,
                    exe=executable,
                    owner=task.uid,
                    remedy=remedy,
                    target=target,
                    pids=pids,
                ),
            )


def _opened(
    folder: Path, uid: int, owners: DeviceOwners, sockets: SocketModules, budget: Budget
) -> Iterator[tuple[str, frozenset[str], bool]]:
    """What is open, as its link reads, with the modules behind it, and whether it holds them all or one of them."""
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries, 1):
                if not budget.take_descriptor(uid, count) or (count % 256 == 0 and not budget.in_time()):
                    return
                target = readlink(entry.path)
                if target.startswith("socket:"):
                    for use in sockets.uses(entry.path, target):
                        text = f"socket {use.protocol}"
                        yield text if use.certain else f"{text} of one of these types", use.modules, use.certain
                # Devices live in a folder `dev`, in containers and chroots as well; no other file is examined.
                elif "/dev/" in target and (number := device(entry.path)) and (modules := owners.modules(*number)):
                    yield target, modules, True
    except OSError as error:
        note(error)
        return


def _executable(folder: Path) -> str:
    """Path of the executable; the name in brackets for a kernel thread, as `ps` shows it."""
    return readlink(folder / "exe") or f"[{read_text(folder / 'comm') or 'unknown'}]"
