# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mounts, in every mount namespace there is."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kmodd.kernel.smallfile import listdir, read_bytes, readlink, shown
from kmodd.model import User
from kmodd.names import ModuleName, canonical

_MOUNTINFO_MAX = 4 << 20
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
    pid: int
    """The first process found that sees it."""

    @property
    def elsewhere(self) -> str:
        """Where to look for it, when the system's own mount namespace does not have it; empty otherwise."""
        return "" if self.pid == 1 else f", in the mount namespace of pid {self.pid}"


class Mounts:
    """Every mount, read once: from process 1, then from one process of each other namespace."""

    def __init__(self, root: Path) -> None:
        self._proc = root / "proc"

    @cached_property
    def all(self) -> tuple[Mount, ...]:
        """Mounts that look the same in several namespaces (each sandboxed service copies the table) are told once.

        So are folders bound onto themselves, as `ReadWritePaths=` and its like do: what they show was there before.
        """
        found: dict[tuple[str, str, str, str], Mount] = {}
        at_first: dict[str, list[Mount]] = {}
        seen: set[str] = set()
        for pid in sorted(int(entry) for entry in listdir(self._proc) if entry.isdecimal()):
            namespace = readlink(self._proc / str(pid) / "ns/mnt")
            # Without the right to see the link (CAP_SYS_PTRACE for other users' processes) every table is read.
            if namespace and namespace in seen:
                continue
            seen.add(namespace)
            content = read_bytes(self._proc / str(pid) / "mountinfo", _MOUNTINFO_MAX) or b""
            for line in content.decode(errors="replace").splitlines():
                mount = _parse(line, pid)
                if mount is None or any(_shows(other, mount) for other in at_first.get(mount.device, ())):
                    continue
                found.setdefault((mount.device, mount.point, mount.type, mount.source), mount)
            if not at_first:
                for mount in found.values():
                    at_first.setdefault(mount.device, []).append(mount)
        return tuple(found.values())

    def users(self, name: ModuleName, resolve_alias: Callable[[str], tuple[str, ...]]) -> Iterator[User]:
        """Mounts of the module's file systems: the type is its name, or an `fs-TYPE` alias of it."""
        owned: dict[str, bool] = {}
        for mount in self.all:
            # `fuse.sshfs` is type `fuse` with a word of its own behind the dot.
            base = mount.type.partition(".")[0]
            if base not in owned:
                owned[base] = canonical(base) == name or name in resolve_alias(f"fs-{base}")
            if owned[base]:
                detail = f"type {mount.type}, source {mount.source}{mount.elsewhere}"
                yield User("mount", shown(mount.point), shown(detail))


def _parse(line: str, pid: int) -> Mount | None:
    before, separator, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if not separator or len(fields) < 6 or len(rest) < 2:
        return None
    return Mount(fields[2], _unescaped(fields[3]), _unescaped(fields[4]), rest[0], _unescaped(rest[1]), pid)


def _shows(mount: Mount, other: Mount) -> bool:
    """`other` is a folder below `mount`, at the very path where `mount` shows it."""
    below = _relative(mount.root, other.root)
    return below is not None and below == _relative(mount.point, other.point)


def _relative(folder: str, path: str) -> str | None:
    """The path below the folder without a slash in front, "" for the folder itself, None when it is not below."""
    folder = folder.rstrip("/")
    return path[len(folder) :].strip("/") if path == folder or path.startswith(f"{folder}/") else None


def _unescaped(text: str) -> str:
    r"""Undo `\040` and its like, which the kernel writes for space, tab, newline, `#` and backslash."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
