# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is loaded: /proc/modules and /sys/module.

A line of /proc/modules is `name size references holders state address taint` (m_show in kernel/module/procfs.c):
holders end in commas and may include `[permanent]`; `-` stands for no holders, and for no count where the kernel cannot
unload; taint is left out when there is none, as in `(OE)`, and carries `+` while coming and `-` while going.
"""

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from kmodd.kernel.smallfile import listdir, read_bytes, read_text
from kmodd.model import LoadedModule, ParameterValue, State
from kmodd.names import ModuleName, canonical, is_module_name

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
        """The text of /proc/modules; empty on a kernel without modules."""
        return read_bytes(self._proc, _PROC_MODULES_MAX) or b""

    def snapshot(self) -> Mapping[ModuleName, LoadedModule]:
        """Everything loaded, coming or going, in /proc/modules order: the newest first."""
        modules = map(_parse, self.raw().decode(errors="replace").splitlines())
        return {module.name: module for module in modules if module is not None}

    def read(self, name: ModuleName) -> LoadedModule | None:
        """One module now; None when it is not loaded."""
        # Of all the text only its own line is taken apart. /sys/module would be more reads, and lacks `[permanent]`.
        text = b"\n" + self.raw()
        start = text.find(b"\n%s " % name.encode())
        if start < 0:
            return None
        return _parse(text[start + 1 :].split(b"\n", 1)[0].decode(errors="replace"))

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
        return os.path.isdir(folder) and not os.path.exists(f"{folder}/initstate")  # noqa: PTH110, PTH112 - see above

    def parameters(self, name: ModuleName, *, private: bool = False) -> tuple[ParameterValue, ...]:
        """Live parameters in order of their names; each value at most 4 KiB, without its newline.

        Values only root may read are None unless `private`; values nobody may read, or whose reading fails, always.
        """
        try:
            folder = os.open(f"{self._sys}/{name}/parameters", _STEP)
        except OSError:
            return ()
        try:
            names = listdir(f"{self._sys}/{name}/parameters")
            values = (_read_parameter(folder, parameter, private=private) for parameter in names)
            return tuple(value for value in values if value is not None)
        finally:
            os.close(folder)

    def write_parameter(self, name: ModuleName, parameter: str, value: str) -> None:
        """Write one parameter in one write; OSError carries the kernel's errno.

        FileNotFoundError where the module or the parameter is not there, PermissionError where it is read-only. Every
        step of the path is opened by itself and no link is followed. No newline is added: numbers and switches do not
        need one, and a `charp` would keep it (param_set_charp in kernel/params.c).
        """
        if not is_module_name(name) or "/" in parameter or parameter in {"", ".", ".."}:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        steps = [os.open(self._sys, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        try:
            for folder in (name, "parameters"):
                steps.append(os.open(folder, _STEP, dir_fd=steps[-1]))
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            steps.append(os.open(parameter, flags, dir_fd=steps[-1]))
            if not stat.S_ISREG(os.fstat(steps[-1]).st_mode):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            # sysfs drops a write of no bytes before the module sees it (sysfs_kf_write in fs/sysfs/file.c); the text
            # ends at its first NUL, so one NUL is how to write the empty string.
            content = value.encode() or b"\0"
            if os.write(steps[-1], content) != len(content):
                raise OSError(errno.EIO, "the kernel took only a part of the value")
        finally:
            for step in steps:
                os.close(step)

    def attributes(self, name: ModuleName) -> Mapping[str, str]:
        """`version`, `srcversion`, `taint`, `coresize`, `initsize` where /sys/module/NAME has them."""
        texts = ((key, read_text(f"{self._sys}/{name}/{key}")) for key in _ATTRIBUTES)
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


def _read_parameter(folder: int, name: str, *, private: bool) -> ParameterValue | None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None  # The module is going.
    if not stat.S_ISREG(found.st_mode):
        return None
    mode = stat.S_IMODE(found.st_mode)
    readable = mode & 0o004 or (private and mode & 0o444)
    # Reading runs the module's code, which may refuse: None then as well.
    return ParameterValue(name, read_text(name, dir_fd=folder) if readable else None, mode)
