# SPDX-License-Identifier: LGPL-2.1-or-later
"""Choices in /sys and /proc/sys that hold a module: I/O schedulers, CPU frequency governors, live patches, binary formats, NFS."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from kmodd.kernel.files import listdir, read_text, readlink
from kmodd.kernel.users.mount import Mounts
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_CHOSEN = re.compile(r"\[([a-z0-9_-]+)\]")
_FORMATS = "/proc/sys/fs/binfmt_misc"
_CONTROLS = frozenset({"register", "status"})
_FORMATS_MAX = 256
_GOVERNORS = ("schedutil", "performance", "powersave")
"""What replaces a governor, the first that there is: parts of the kernel in most builds."""
_BINFMT = "binfmt_misc"
_NFSD, _CONTROL, _THREADS = "nfsd", "/proc/fs/nfsd", "/proc/fs/nfsd/threads"
_THREADS_OF_FIRST = "proc/1/root/proc/fs/nfsd/threads"
_THREADS_LINE = re.compile(r"^th ([1-9][0-9]*) ", re.MULTILINE)


def setting_users(
    root: Path,
    loaded: Collection[str],
    resolve: Callable[[str], tuple[str, ...]],
    mounts: Mounts,
    labels: Callable[[], Mapping[str, str]],
    budget: Budget,
) -> Iterator[tuple[frozenset[str], User]]:
    """Each choice that holds a module.

    `loaded` are the modules that are looked for, `resolve` answers those with an alias, `labels` what other network namespaces are
    called, by what their links read.
    """

    def known(*names: str) -> frozenset[str]:
        every = (each for name in names for each in (canonical(name), *resolve(name)))
        return frozenset(each for each in every if each in loaded)

    yield from _schedulers(root, known)
    yield from _governors(root, known)
    for name in listdir(root / "sys/kernel/livepatch"):
        path = f"/sys/kernel/livepatch/{name}/enabled"
        if (modules := known(name)) and read_text(root / path.lstrip("/")) == "1":
            yield (
                modules,
                User("patch", shown(name), "live patch, enabled", remedy=Remedy.WRITE_SETTING, words=(path, "0")),
            )
    if _NFSD in loaded:
        yield from _servers(root, mounts, labels)
    if _BINFMT in loaded:
        yield from _formats(root, mounts, budget)


def _servers(
    root: Path, mounts: Mounts, labels: Callable[[], Mapping[str, str]]
) -> Iterator[tuple[frozenset[str], User]]:
    """Servers of NFS: each network namespace has one, and a file system that controls it.

    The last umount of that, and not one of a copy, stops it (nfsd_umount in fs/nfsd/nfsctl.c). Before Linux 6.9
    /proc/net/rpc/nfsd counts the threads of all of them together; the file system has those of one namespace (nfsd_nrthreads).
    """
    modules = frozenset({_NFSD})
    controls = [mount for mount in mounts.all if mount.type == _NFSD and not mount.copied]
    doubt = ", if it runs," if len({each.device for each in controls}) > 1 else ""
    counted = _THREADS_LINE.search(read_text(root / "proc/net/rpc/nfsd") or "")
    is_here = any(mount.task.pid == 1 and mount.point == _CONTROL for mount in controls)
    own = (read_text(root / _THREADS_OF_FIRST) or "").strip() if doubt and is_here else ""
    if counted is not None and own != "0" and (is_here or not controls):
        threads = f"{own or counted[1]} threads" if own or not doubt else f"up to {counted[1]} threads, if it runs"
        detail = f"{threads}; its clients wait until it runs again"
        remedy, words = (Remedy.WRITE_SETTING, (_THREADS, "0")) if is_here else (Remedy.NONE, ())
        yield modules, User("service", _NFSD, detail, remedy=remedy, words=words)
    for mount in controls:
        pid = mount.task.pid
        if pid == 1 or not _THREADS_LINE.search(read_text(root / f"proc/{pid}/net/rpc/nfsd") or ""):
            continue
        label = labels().get(readlink(root / f"proc/{pid}/ns/net"), "")
        where = f" of network namespace {label}" if label else ""
        if label.startswith("pid "):
            where = f" of the network namespace of {label}"
        detail = (
            f"the server{where}{doubt} stops with the umount of {mount.point}; its clients wait until it runs again"
        )
        user = User("service", _NFSD, shown(detail), pid=pid, mountns=f"pid {pid}", owner=mount.task.uid)
        yield modules, replace(user, netns=label, remedy=Remedy.NOT_NEEDED)


def _schedulers(root: Path, known: Callable[..., frozenset[str]]) -> Iterator[tuple[frozenset[str], User]]:
    for disk in listdir(root / "sys/block"):
        path = f"sys/block/{disk}/queue/scheduler"
        offered = read_text(root / path) or ""
        chosen = _CHOSEN.search(offered)
        if chosen is None or not (modules := known(f"{chosen[1]}-iosched", chosen[1])):
            continue
        yield (
            modules,
            User(
                "scheduler",
                shown(f"/dev/{disk.replace('!', '/')}"),
                f"I/O scheduler {chosen[1]}",
                remedy=Remedy.WRITE_SETTING if "none" in offered.split() else Remedy.NONE,
                words=(f"/{path}", "none"),
            ),
        )


def _governors(root: Path, known: Callable[..., frozenset[str]]) -> Iterator[tuple[frozenset[str], User]]:
    folder = "sys/devices/system/cpu/cpufreq"
    for policy in listdir(root / folder):
        path = f"{folder}/{policy}/scaling_governor"
        chosen = read_text(root / path) or ""
        if not chosen or not (modules := known(f"cpufreq_{chosen}")):
            continue
        offered = (read_text(root / folder / policy / "scaling_available_governors") or "").split()
        other = next((name for name in _GOVERNORS if name in offered and name != chosen), "")
        yield (
            modules,
            User(
                "governor",
                shown(policy),
                shown(f"CPU frequency governor {chosen}"),
                remedy=Remedy.WRITE_SETTING if other else Remedy.NONE,
                words=(f"/{path}", other),
            ),
        )


def _formats(root: Path, mounts: Mounts, budget: Budget) -> Iterator[tuple[frozenset[str], User]]:
    """Formats that are registered: each keeps the file system pinned, mounted or not (bm_register_write in fs/binfmt_misc.c).

    The folder is looked at where it is mounted only: systemd's automount would mount it, and load the module. It is that of the
    first process: ProtectKernelTunables= covers /proc/sys with one that sees no later mounts.
    """
    if not any(mount.type == _BINFMT and mount.point == _FORMATS for mount in mounts.all):
        budget.met(f"{_FORMATS} is not mounted")
        return
    names = [name for name in listdir(root / "proc/1/root" / _FORMATS.lstrip("/")) if name not in _CONTROLS]
    if len(names) > _FORMATS_MAX:
        budget.met(f"there are more than {_FORMATS_MAX} binary formats")
    for name in names[:_FORMATS_MAX]:
        path = f"{_FORMATS}/{name}"
        yield (
            frozenset({_BINFMT}),
            User("format", shown(name), "binary format", remedy=Remedy.WRITE_SETTING, words=(path, "-1")),
        )
