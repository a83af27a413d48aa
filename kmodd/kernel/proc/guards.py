# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings of the system that close routes to modules, and the device nodes that open some.

What cannot be read counts as open, and says so. The nodes are looked at, never opened.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from kmodd.errors import errno_name
from kmodd.kernel.files import NOWHERE, read_bytes, read_if_there, value_if_there
from kmodd.model.surface import DeviceNode, Gate, Guard
from kmodd.names import canonical

MODPROBES = frozenset({"/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe", "/usr/bin/modprobe"})
_REFUSALS = frozenset(f"{folder}/{name}" for folder in ("/bin", "/usr/bin") for name in ("true", "false"))
_HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 - looked at as text only
"""Directories that the unit hides or replaces: what seems to be missing there may exist."""
_TABLE_MAX = 1 << 20
_NAMESPACES = "no user can make a namespace of this kind"
_COUNTED: tuple[tuple[Gate, str], ...] = (
    (Gate.USER_NAMESPACES, _NAMESPACES),
    (Gate.NET_NAMESPACES, _NAMESPACES),
    (Gate.MOUNT_NAMESPACES, _NAMESPACES),
)


def read_guards(root: Path) -> tuple[Guard, ...]:
    """Each setting as it is now."""
    return (
        _switch(root, Gate.MODULES_DISABLED, "1", "the kernel loads no module until reboot"),
        _modprobe(root),
        _switch(root, Gate.USERNS_CLONE, "0", "only root can make a user namespace"),
        *(_limit(root, gate, says) for gate, says in _COUNTED),
        _switch(root, Gate.APPARMOR_USERNS, "1", "AppArmor grants capabilities in a user namespace by profile"),
        _switch(root, Gate.LDISC_AUTOLOAD, "0", "line disciplines are loaded for root only"),
    )  # fmt: skip


def _path(root: Path, gate: Gate) -> Path:
    return root / "proc/sys" / gate.value.replace(".", "/")


def _read(root: Path, gate: Gate) -> str | Guard | None:
    """The value, None where this kernel has no such setting, or the guard that says that it cannot be read."""
    try:
        return value_if_there(_path(root, gate))
    except OSError as error:
        says = f"cannot be read ({errno_name(error.errno or 0)}), and counts as open"
        return Guard(gate, "", closes=False, says=says, unread=True)


def _switch(root: Path, gate: Gate, closed: str, says: str) -> Guard:
    value = _read(root, gate)
    if isinstance(value, Guard):
        return value
    if value is None:
        return Guard(gate, "", closes=False, says="this kernel does not have it")
    closes = value.strip() == closed
    return Guard(gate, value, closes, says if closes else "does not restrict")


def _limit(root: Path, gate: Gate, says: str) -> Guard:
    """A limit on namespaces; without the setting the kernel has no user namespaces at all."""
    value = _read(root, gate)
    if isinstance(value, Guard):
        return value
    if value is None:
        return Guard(gate, "", closes=True, says="this kernel has no namespaces of this kind for users")
    closes = value.strip() == "0"
    return Guard(gate, value, closes, says if closes else "does not restrict")


def _modprobe(root: Path) -> Guard:
    """The program that the kernel runs for a request. Empty is -ENOENT, in __request_module() of kernel/module/kmod.c."""
    gate = Gate.MODPROBE
    value = _read(root, gate)
    if isinstance(value, Guard):
        return value
    if value is None:
        return Guard(gate, "", closes=True, says="this kernel requests no modules")
    if value == "":
        return Guard(gate, value, closes=True, says="the kernel runs no program for a request")
    if value in _REFUSALS:
        return Guard(gate, value, closes=True, says="the kernel runs a program that loads nothing")
    if value.startswith(_HIDDEN):
        says = "a program where kmodd cannot see it, which counts as modprobe"
        return Guard(gate, value, closes=False, says=says, unusual=True)
    try:
        mode = os.stat(root / value.removeprefix("/")).st_mode  # noqa: PTH116 - links lead where the kernel would go
    except OSError as error:
        if error.errno in NOWHERE:
            return Guard(gate, value, closes=True, says="there is no such program, so requests fail")
        says = f"its program cannot be looked at ({errno_name(error.errno or 0)}), and counts as modprobe"
        return Guard(gate, value, closes=False, says=says, unread=True)
    if not mode & 0o111 or not stat.S_ISREG(mode):
        return Guard(gate, value, closes=True, says="it is not a program, so requests fail")
    unusual = value not in MODPROBES
    says = "another program than modprobe, which counts as modprobe" if unusual else "does not restrict"
    return Guard(gate, value, closes=False, says=says, unusual=unusual)


def device_nodes(root: Path, release: str, devices: Path | None) -> tuple[DeviceNode, ...]:
    """The nodes of modules.devname with their modes below `devices`; None for a system whose /dev cannot be seen."""
    text = read_if_there(root / "lib/modules" / release / "modules.devname", _TABLE_MAX) or b""
    return tuple(_nodes(text.decode("utf-8", "replace"), devices, _groups(root)))


def _groups(root: Path) -> dict[int, str]:
    """Groups of /etc/group by number: a name service may wait for a network."""
    lines = (read_bytes(root / "etc/group") or b"").decode("utf-8", "replace").splitlines()
    fields = [line.split(":") for line in lines]
    return {int(field[2]): field[0] for field in fields if len(field) > 2 and field[2].isdecimal()}


def _nodes(text: str, devices: Path | None, groups: Mapping[int, str]) -> Iterator[DeviceNode]:
    for line in text.splitlines():
        words = line.split()
        if line.startswith("#") or len(words) != 3 or words[2][:1] not in ("c", "b"):
            continue
        module, path, device = words
        major, _, minor = device[1:].partition(":")
        if not (major.isdecimal() and minor.isdecimal()) or ".." in path:
            continue
        kind = "char" if device[0] == "c" else "block"
        mode, gid, mode_known = _mode(devices, path, os.makedev(int(major), int(minor)))
        group = groups.get(gid, str(gid))
        yield DeviceNode(path, canonical(module), f"{kind}-major-{major}-{minor}", mode, group, mode_known)


def _mode(devices: Path | None, path: str, device: int) -> tuple[int | None, int, bool]:
    """(permissions, number of the group, whether that is known); no permissions where there is no such node."""
    if devices is None:
        return None, 0, False
    try:
        status = os.stat(devices / path, follow_symlinks=False)  # noqa: PTH116 - see above
    except OSError as error:
        return None, 0, error.errno in NOWHERE
    if status.st_rdev != device:
        return None, 0, True
    return stat.S_IMODE(status.st_mode), status.st_gid, True
