# SPDX-License-Identifier: LGPL-2.1-or-later
"""Refreshes a kernel's module index with the system's depmod(8), so that a failure leaves the old index whole.

depmod writes its files one after the other into the tree it reads. So it is shown a tree of links in a folder of ours, and
what it made there is put in place file by file, each atomically, only after it came to a good end.
"""

import asyncio
import os
from pathlib import Path

from kmodd.kernel.child import run
from kmodd.kernel.file_copy import clear_folder, copy_whole
from kmodd.model.store import IndexNotMadeError

TIMEOUT = 120.0
_PROGRAMS = ("/usr/sbin/depmod", "/sbin/depmod", "/usr/bin/depmod")
# What the kernel's own build wrote, which depmod reads and never writes.
_INPUTS = frozenset({"modules.order", "modules.builtin", "modules.builtin.modinfo"})
_TRIES = 3


class Depmod:
    """Makes indexes; one at a time."""

    def __init__(self, folder: Path, *, program: str = "", timeout: float = TIMEOUT) -> None:
        """`folder` is ours alone, and what is in it is thrown away."""
        self._folder = folder
        self._program = program
        self._timeout = timeout
        self._lock = asyncio.Lock()

    async def refresh(self, tree: Path) -> None:
        """Make the index of the tree `…/lib/modules/RELEASE` anew; IndexNotMadeError, OSError from putting it in place."""
        async with self._lock:
            for _ in range(_TRIES):
                before = _stamp(tree)
                made = await asyncio.to_thread(self._mirror, tree)
                await self._run(tree.name)
                # A package manager ran its own depmod meanwhile: ours has not seen all of what that one saw.
                if _stamp(tree) == before:
                    break
            else:
                raise IndexNotMadeError("the module index is being changed by other programs all the time")
            await asyncio.to_thread(self._install, made, tree)

    async def _run(self, release: str) -> None:
        program = self._program or next((path for path in _PROGRAMS if os.access(path, os.X_OK)), "")
        if not program:
            raise IndexNotMadeError("depmod is not installed")
        try:
            status = await run((program, "-b", str(self._folder), release), timeout=self._timeout)
        except OSError as error:
            raise IndexNotMadeError("depmod cannot be run") from error
        if status != 0:
            raise IndexNotMadeError(f"depmod failed with status {status}")

    def _mirror(self, tree: Path) -> Path:
        """A tree that looks the same to depmod and has no index."""
        clear_folder(self._folder)
        made = self._folder / "lib/modules" / tree.name
        made.mkdir(parents=True, mode=0o700)
        (self._folder / "usr").mkdir()
        (self._folder / "usr/lib").symlink_to("../lib")  # where depmod was built to look there
        for path in tree.iterdir():
            if path.name in _INPUTS or (path.is_dir() and path.name not in {"build", "source"}):
                (made / path.name).symlink_to(path)
        return made

    def _install(self, made: Path, tree: Path) -> None:
        files = sorted(path for path in made.glob("modules.*") if not path.is_symlink())
        if not (made / "modules.dep.bin").is_file():
            raise IndexNotMadeError("depmod made no index")
        for path in files:
            copy_whole(path, tree / path.name, 0o644)
        clear_folder(self._folder)


def _stamp(tree: Path) -> tuple[int, int] | None:
    try:
        status = (tree / "modules.dep").stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
