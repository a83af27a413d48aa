# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which modprobe.d files are in force, looked for before every plan."""

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from kmodd.kernel.modprobe_d import DEPMOD_SOFTDEPS, is_configuration_name

_SETTLED_NS = 2_000_000_000
"""Nanoseconds; more than the time stamps of any file system are coarse."""


class ConfigurationFolders:
    """Folders of modprobe.d files, each listed again only when it changed.

    Plain texts all through: a Path costs more than the call into the kernel.
    """

    def __init__(self, tree: Path, directories: Sequence[Path]) -> None:
        """`directories` in order of rank, the first masking the next; `tree` holds depmod's soft dependencies."""
        self._softdeps = os.fsencode(tree / DEPMOD_SOFTDEPS)
        self._folders = [os.fsencode(directory) for directory in directories]
        self._listed: dict[bytes, tuple[tuple[int, int, int], list[bytes]]] = {}

    def files(self) -> list[str]:
        """List the files in force in the order they are read: by file name, bytewise, whatever folder they stand in.

        A dangling link masks as well as a link to /dev/null does; a folder does not.
        """
        found = {DEPMOD_SOFTDEPS.encode(): self._softdeps}
        for folder in self._folders:
            for name in self._names(folder):
                if name not in found and _is_no_folder(path := folder + b"/" + name):
                    found[name] = path
        return [os.fsdecode(found[name]) for name in sorted(found)]

    def _names(self, folder: bytes) -> list[bytes]:
        try:
            status = os.stat(folder)  # noqa: PTH116 - see above
            stamp = (status.st_dev, status.st_ino, status.st_ctime_ns)
            known = self._listed.get(folder)
            if known is not None and known[0] == stamp:
                return known[1]
            now = time.time_ns()
            names = [name for name in os.listdir(folder) if is_configuration_name(name)]  # noqa: PTH208 - see above
        except OSError:
            return []  # libkmod goes on as well: most of these folders do not exist on most machines
        # Two changes within one tick of the file system's clock leave one time stamp, so a listing is kept only if it was
        # made long after the last change. The stamp is the kernel's own: nobody can set it.
        if status.st_ctime_ns < now - _SETTLED_NS:
            self._listed[folder] = stamp, names
        return names


def _is_no_folder(path: bytes) -> bool:
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - see above
    except OSError:
        return True
