# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that have a device or a socket of the module open."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.deviceowners import DeviceOwners
from kmodd.kernel.smallfile import listdir, read_text, readlink, shown
from kmodd.kernel.usage_socket import SocketModules
from kmodd.model import User
from kmodd.names import ModuleName


def processes(root: Path, name: ModuleName, owners: DeviceOwners, sockets: SocketModules) -> Iterator[User]:
    """Each process with each of its open paths: the executable as name, `pid 1234 /dev/uinput` as detail."""
    proc = root / "proc"
    for pid in sorted(int(entry) for entry in listdir(proc) if entry.isdecimal()):
        folder = proc / str(pid)
        opened = dict.fromkeys(_opened(folder / "fd", name, owners, sockets))
        if opened:
            executable = shown(_executable(folder))
            for path in opened:
                yield User("process", executable, shown(f"pid {pid} {path}"))


def _opened(folder: Path, name: ModuleName, owners: DeviceOwners, sockets: SocketModules) -> Iterator[str]:
    for number in listdir(folder):
        link = folder / number
        target = readlink(link)
        if target.startswith("socket:"):
            protocol = sockets.protocol(link, name)
            if protocol:
                yield f"socket {protocol}"
        # Asking for the status of a file on a dead network file system would hang; devices live in a folder `dev`, in
        # containers and chroots as well.
        elif "/dev/" in target and name in _modules(link, owners):
            yield target


def _modules(link: Path, owners: DeviceOwners) -> frozenset[str]:
    try:
        found = os.stat(link)  # noqa: PTH116 - thousands of times
    except OSError:
        return frozenset()
    kind = "char" if stat.S_ISCHR(found.st_mode) else "block" if stat.S_ISBLK(found.st_mode) else ""
    return owners.modules(kind, os.major(found.st_rdev), os.minor(found.st_rdev)) if kind else frozenset()


def _executable(folder: Path) -> str:
    """Path of the executable; the name in brackets for a kernel thread, as `ps` shows it."""
    return readlink(folder / "exe") or f"[{read_text(folder / 'comm') or 'unknown'}]"
