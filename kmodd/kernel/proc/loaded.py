# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loaded modules, from /proc/modules and /sys/module.

A line of /proc/modules is `name size references holders state address taint` (m_show in kernel/module/procfs.c): holders end
in commas and may include `[permanent]`; `-` stands for no holders, and for no count where the kernel cannot unload; taint is
omitted if empty, as in `(OE)`, and has `+` while coming and `-` while going.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from kmodd.kernel.files import NOWHERE, is_folder, read_if_there, status_if_there, value_if_there
from kmodd.model import LoadedModule, ParameterValue, State
from kmodd.names import ModuleName, canonical

_STATES = {"Live": State.LIVE, "Loading": State.COMING, "Unloading": State.GOING}
_ATTRIBUTES = ("version", "srcversion", "taint", "coresize", "initsize")
_PERMANENT = "[permanent]"
_PROC_MODULES_MAX = 4 << 20
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ProcModules:
    """`ports.LoadedModules` on the files below `root`."""

    def __init__(self, root: Path) -> None:
        # Plain texts: these paths are made and read for every plan, and a Path costs more than the call into the kernel.
        self._proc = str(root / "proc/modules")
        self._sys = str(root / "sys/module")

    def raw(self) -> bytes:
        """The text of /proc/modules; empty on a kernel without modules. OSError where it cannot be read: nothing is known then."""
        return read_if_there(self._proc, _PROC_MODULES_MAX) or b""

    def snapshot(self) -> Mapping[ModuleName, LoadedModule]:
        """Everything loaded, coming or going, in /proc/modules order: the newest first."""
        modules = map(_parse, self.raw().decode(errors="replace").splitlines())
        return {module.name: module for module in modules if module is not None}

    def read(self, name: ModuleName) -> LoadedModule | None:
        """One module now; None when it is not loaded."""
        return self.find(self.raw(), name)

    @staticmethod
    def find(text: bytes, name: ModuleName) -> LoadedModule | None:
        """One module of the text of /proc/modules; None when it was not loaded."""
        # Of all the text only its own line is taken apart. /sys/module would be more reads, and lacks `[permanent]`.
        start_of_line = name.encode() + b" "
        start = 0 if text.startswith(start_of_line) else text.find(b"\n" + start_of_line) + 1
        if start == 0 and not text.startswith(start_of_line):
            return None
        end = text.find(b"\n", start)
        return _parse(text[start : end if end >= 0 else None].decode(errors="replace"))

    def is_builtin(self, name: ModuleName) -> bool:
        """/sys/module/NAME exists without initstate: built in, with parameters or a version."""
        folder = f"{self._sys}/{name}"
        if not self._is_without_state(folder):
            return False
        # The kernel makes the folder of a module before the file in it, and takes the file away before the folder (mod_sysfs_setup,
        # mod_sysfs_teardown): that one is in /proc/modules at the time, or gone by now.
        return self.read(name) is None and self._is_without_state(folder)

    @staticmethod
    def _is_without_state(folder: str) -> bool:
        return is_folder(folder) and status_if_there(f"{folder}/initstate") is None

    def instance(self, name: ModuleName) -> int:
        """The inode of /sys/module/NAME, which sysfs allocates at each load (kernfs_new_node); 0 where there is none. OSError."""
        status = status_if_there(f"{self._sys}/{name}")
        return status.st_ino if status is not None else 0

    def parameter_files(self, name: ModuleName) -> tuple[ParameterValue, ...]:
        """Live parameters in order of their names, without values: those are what code of the module answers. OSError."""
        try:
            folder = os.open(f"{self._sys}/{name}/parameters", _STEP)
        except OSError as error:
            if error.errno in NOWHERE:
                return ()
            raise
        try:
            names = sorted(os.listdir(f"{self._sys}/{name}/parameters"))  # noqa: PTH208 - names, not paths
            files = (_parameter_file(folder, parameter) for parameter in names)
            return tuple(file for file in files if file is not None)
        except OSError as error:
            if error.errno in NOWHERE:
                return ()
            raise
        finally:
            os.close(folder)

    def attributes(self, name: ModuleName) -> Mapping[str, str]:
        """`version`, `srcversion`, `taint`, `coresize`, `initsize` where /sys/module/NAME has them; OSError."""
        texts = ((key, value_if_there(f"{self._sys}/{name}/{key}")) for key in _ATTRIBUTES)
        return {key: text for key, text in texts if text is not None}


def _parse(line: str) -> LoadedModule | None:
    """Take a line apart; None for what is no such line."""
    fields = line.split()
    if len(fields) < 5 or not fields[1].isdecimal():
        return None
    name, size, references, holders, state, *rest = fields
    users = [user for user in holders.split(",") if user not in {"", "-"}]
    taint = rest[-1].strip("()+-") if rest and rest[-1].startswith("(") else ""
    return LoadedModule(
        name=canonical(name),
        size=int(size),
        references=int(references) if references.removeprefix("-").isdecimal() else -1,
        holders=tuple(canonical(user) for user in users if user != _PERMANENT),
        state=_STATES.get(state, State.COMING),
        taint=taint,
        permanent=_PERMANENT in users,
    )


def _parameter_file(folder: int, name: str) -> ParameterValue | None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in NOWHERE:
            return None  # The module is going.
        raise
    return ParameterValue(name, None, stat.S_IMODE(status.st_mode)) if stat.S_ISREG(status.st_mode) else None
