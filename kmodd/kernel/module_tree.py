# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels' module trees below lib/modules, and our own folder `updates/kmodd` in them.

depmod's built-in order is "updates before everything else" (depmod.d(5)), so a file there goes before the kernel's own of the
same name, for modprobe, udev and the initramfs alike, whether kmodd runs or not.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from kmodd.kernel.file_copy import copy_whole, remove_durably, sync_folder
from kmodd.kernel.smallfile import read_bytes
from kmodd.names import ModuleName, canonical, is_release

FOLDER = "updates/kmodd"
_DEP_MAX = 64 << 20
_SUFFIX = re.compile(r"\.ko(\.(gz|xz|zst))?$")


class ModuleTree:
    """All trees below one root. Methods block on the disk; OSError is the disk's."""

    def __init__(self, root: Path) -> None:
        self._modules = root / "lib/modules"

    def kernels(self) -> tuple[str, ...]:
        """Releases that have a tree with an index and modules of their own, sorted."""
        with suppress(OSError):
            return tuple(
                sorted(
                    path.name
                    for path in self._modules.iterdir()
                    if is_release(path.name) and (path / "modules.dep").is_file() and (path / "kernel").is_dir()
                )
            )
        return ()

    def folder(self, kernel: str) -> Path:
        """The tree of a kernel."""
        return self._modules / kernel

    def path(self, name: ModuleName, kernel: str) -> Path:
        """Where our file of this name belongs."""
        return self._modules / kernel / FOLDER / f"{name}.ko"

    def put(self, name: ModuleName, kernel: str, source: Path) -> None:
        """Put a copy of the file in its place."""
        path = self.path(name, kernel)
        for folder in (path.parent.parent, path.parent):
            if not folder.is_dir():
                folder.mkdir()
                folder.chmod(0o755)  # whatever the umask: everybody may look a module up
                sync_folder(folder.parent)
        copy_whole(source, path, 0o644)

    def take_away(self, name: ModuleName, kernel: str) -> None:
        """Remove our file of this name."""
        path = self.path(name, kernel)
        remove_durably(path)
        for folder in (path.parent, path.parent.parent):
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()

    def indexed(self, name: ModuleName, kernel: str) -> str:
        """The file that modprobe would take, as the index names it; empty for none."""
        for line in (read_bytes(self._modules / kernel / "modules.dep", _DEP_MAX) or b"").splitlines():
            path = os.fsdecode(line.partition(b":")[0])
            if _module_of(path) == name:
                return path
        return ""

    def is_ours(self, path: str) -> bool:
        """An indexed file is one of ours."""
        return path.startswith(FOLDER + "/")

    def another(self, name: ModuleName, kernel: str) -> str:
        """A module of this name that is not ours: its path in the tree, `built-in`, or empty."""
        path = self.indexed(name, kernel)
        if path and not self.is_ours(path):
            return path
        for line in (read_bytes(self._modules / kernel / "modules.order", _DEP_MAX) or b"").splitlines():
            if _module_of(os.fsdecode(line)) == name and path:
                return os.fsdecode(line)  # ours goes before it now
        for line in (read_bytes(self._modules / kernel / "modules.builtin", _DEP_MAX) or b"").splitlines():
            if _module_of(os.fsdecode(line)) == name:
                return "built-in"
        return ""


def _module_of(path: str) -> ModuleName:
    return canonical(_SUFFIX.sub("", path.rpartition("/")[2]))
