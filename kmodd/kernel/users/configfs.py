# SPDX-License-Identifier: LGPL-2.1-or-later
"""Items in configfs (Documentation/filesystems/configfs.rst), by the modules that they hold."""

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import read_text
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

MOUNTED = "/sys/kernel/config"
_ENTRIES_MAX, _DEPTH_MAX = 4096, 12
_MODULES = {
    "nullb": "null_blk",
    "target": "target_core_mod",
    "usb_gadget": "libcomposite",
    "iio": "industrialio_configfs",
    "stp-policy": "stm_core",
    "cluster": "ocfs2_nodemanager",
    "pci_ep": "pci_ep_cfs",
}
"""Subsystems whose module has another name."""
_FABRICS = {
    "iscsi": "iscsi_target_mod",
    "loopback": "tcm_loop",
    "vhost": "vhost_scsi",
    "qla2xxx": "tcm_qla2xxx",
    "fc": "tcm_fc",
    "srpt": "ib_srpt",
    "sbp": "sbp_target",
    "usb_gadget": "usb_f_tcm",
    "xen-pvscsi": "xen_scsiback",
}
_BACKENDS = {"fileio": "target_core_file", "iblock": "target_core_iblock", "pscsi": "target_core_pscsi"}
_BACKENDS["user"] = "target_core_user"
_TRANSPORTS = {"tcp": "nvmet_tcp", "rdma": "nvmet_rdma", "fc": "nvmet_fc", "loop": "nvme_loop"}
# What mkdir(2) makes, by subsystem. All other folders are groups that come and go with the one above them.
_ITEMS = {
    "nvmet": (
        "hosts/*",
        "ports/*",
        "ports/*/referrals/*",
        "ports/*/ana_groups/*",
        "subsystems/*",
        "subsystems/*/namespaces/*",
    ),
    "target": (
        "*",
        "core/*_*",
        "core/*_*/*",
        "core/*_*/*/alua/*",
        "core/alua/lu_gps/*",
        "*/*",
        "*/*/tpg*",
        "*/*/tpg*/lun/lun_*",
        "*/*/tpg*/np/*",
        "*/*/tpg*/acls/*",
        "*/*/tpg*/acls/*/lun_*",
    ),
    "usb_gadget": (
        "*",
        "*/functions/*",
        "*/configs/*",
        "*/strings/*",
        "*/configs/*/strings/*",
        "*/functions/*/lun.*",
    ),
}
_GROUPS = {
    "nvmet": ("ports/*/ana_groups/1",),
    "target": (
        "core",
        "core/alua",
        "core/alua/*",
        "*/discovery_auth",
        "core/*_*/*/alua/default_tg_pt_gp",
        "core/alua/lu_gps/default_lu_gp",
    ),
    "usb_gadget": ("*/functions/*/lun.0",),
}
"""Those among them that the kernel makes by itself."""


_FILE_OF_TARGET = re.compile(r" File: (/.*)  Size: [0-9]+  Mode: ")
_DEVICE_OF_TARGET = re.compile(r"\bMajor: ([0-9]+) Minor: ([0-9]+)\b")
"""In `info` of a target's backend (fd_show_configfs_dev_params, iblock_show_configfs_dev_params)."""
Kept = tuple[frozenset[str], int]
"""Modules that an open file holds, and the level of that use (`User`)."""


@dataclass(frozen=True, slots=True)
class _Entry:
    parts: tuple[str, ...]
    """Names from the subsystem on."""
    target: tuple[str, ...] | None
    """Where a link leads to, in the same way; None for a folder."""
    public: bool
    """Everybody may list the folder that it is in."""


def configfs_users(
    root: Path, loaded: Collection[str], budget: Budget, kept: Callable[[str], Kept] = lambda _: (frozenset(), 0)
) -> Iterator[tuple[frozenset[str], User]]:
    """Links, then items, each sort deepest first: what is below another goes before it.

    `loaded` are the modules that are looked for; `kept` answers which of them an open file, or a device, of this path holds.
    """
    top = root / MOUNTED.lstrip("/")
    entries = list(_walk(str(top), budget))
    offered = {
        each.parts: (path, each.public, *kept(path))
        for each in entries
        if each.target is None and _is_item(each.parts) and (path := _offered(top, each.parts))
    }
    entries.sort(key=lambda each: (each.target is None, -len(each.parts)))
    for each in entries:
        if each.target is None and not _is_item(each.parts):
            continue
        modules = _modules(top, each.parts)
        if each.target is not None:
            modules |= _modules(top, each.target)
        known = frozenset(name for name in modules if name in loaded)
        path = "/".join((MOUNTED, *each.parts))
        detail = f"link to {'/'.join(each.target)}" if each.target is not None else "item"
        user = User(
            *("configfs", shown(path), shown(detail)),
            owner=None if each.public else 0,
            remedy=Remedy.REMOVE_FOLDER if each.target is None else Remedy.UNLINK,
            words=(path,),
        )
        if known:
            yield known, user
        file, public, held, level = offered.get(_backend(each, offered), ("", True, frozenset[str](), 0))
        if below := held - known:
            # A link to a backend can be public, and the backend's folder not.
            owner = user.owner if public else 0
            yield below, replace(user, detail=shown(f"{detail}, offers {file}"), owner=owner, level=level)


def _offered(top: Path, parts: tuple[str, ...]) -> str:
    """The file or device that a backend of LIO or a namespace of nvmet has open, which it is from when it is enabled; empty for none."""
    folder = top.joinpath(*parts)
    if (parts[0], len(parts)) not in (("target", 4), ("nvmet", 5)) or read_text(folder / "enable") != "1":
        return ""
    if parts[0] == "target":
        information = read_text(folder / "info") or ""
        if file := _FILE_OF_TARGET.search(information):
            return file[1]
        device = _DEVICE_OF_TARGET.search(information)
        return f"/dev/block/{device[1]}:{device[2]}" if device else ""
    path = read_text(folder / "device_path") or ""
    return path if path.startswith("/") else ""


def _backend(entry: _Entry, offered: Mapping[tuple[str, ...], object]) -> tuple[str, ...]:
    """The one that this entry is, is below, or leads to."""
    ways = (entry.parts[:length] for length in range(len(entry.parts), 1, -1))
    if entry.target is not None and entry.target in offered:
        return entry.target
    return next((way for way in ways if way in offered), ())


def _walk(top: str, budget: Budget) -> Iterator[_Entry]:
    """Folders and links; nothing is read of what they hold, and no link is followed."""
    queue: list[tuple[tuple[str, ...], bool]] = [((), True)]
    count = 0
    while queue:
        parts, public = queue.pop()
        folder = "/".join((top, *parts))
        try:
            mode = os.stat(folder).st_mode  # noqa: PTH116 - plain texts
            with os.scandir(folder) as listed:
                names = [(entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False)) for entry in listed]
        except OSError:
            continue  # it went away, or there is no configfs
        public = public and mode & (stat.S_IROTH | stat.S_IXOTH) == stat.S_IROTH | stat.S_IXOTH
        for name, link, directory in names:
            if not link and not directory:
                continue
            count += 1
            if count > _ENTRIES_MAX or not budget.in_time():
                budget.met(f"configfs has more than {_ENTRIES_MAX} items")
                return
            here = (*parts, name)
            if link:
                yield _Entry(here, _target(top, folder, name), public)
            else:
                if parts:
                    yield _Entry(here, None, public)
                if len(here) < _DEPTH_MAX:
                    queue.append((here, public))


def _target(top: str, folder: str, name: str) -> tuple[str, ...]:
    try:
        path = os.path.normpath(f"{folder}/{os.readlink(f'{folder}/{name}')}")  # noqa: PTH115
    except OSError:
        return ()
    return tuple(path.removeprefix(f"{top}/").split("/")) if path.startswith(f"{top}/") else ()


def _is_item(parts: tuple[str, ...]) -> bool:
    subsystem, inside = parts[0], parts[1:]
    if any(_matches(pattern, inside) for pattern in _GROUPS.get(subsystem, ())):
        return False
    return any(_matches(pattern, inside) for pattern in _ITEMS.get(subsystem, ("*",)))


def _matches(pattern: str, parts: tuple[str, ...]) -> bool:
    wanted = pattern.split("/")
    return len(wanted) == len(parts) and all(map(fnmatchcase, parts, wanted))


def _modules(top: Path, parts: tuple[str, ...]) -> frozenset[str]:
    """Modules that may be behind it: the subsystem's, and that of its part."""
    if not parts:
        return frozenset()
    subsystem, inside = parts[0], parts[1:]
    modules = {_MODULES.get(subsystem, canonical(subsystem))}
    if subsystem == "target" and inside:
        if inside[0] != "core":
            modules.add(_FABRICS.get(inside[0], canonical(inside[0])))
        elif len(inside) > 1:
            modules.add(_BACKENDS.get(inside[1].rpartition("_")[0], ""))
    elif subsystem == "nvmet" and inside[0] == "ports" and len(inside) == 4 and inside[2] == "subsystems":
        modules.add(_TRANSPORTS.get(read_text(top / "nvmet/ports" / inside[1] / "addr_trtype") or "", ""))
    elif subsystem == "usb_gadget" and len(inside) > 2 and inside[1] == "functions":
        modules.add(f"usb_f_{canonical(inside[2].partition('.')[0])}")
    return frozenset(modules)
