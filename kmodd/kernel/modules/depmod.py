# SPDX-License-Identifier: LGPL-2.1-or-later
"""Refreshes a kernel's module index with depmod(8) so that a failure keeps the old index, and runs system programs.

depmod writes its files one by one into the tree it reads. So it gets a tree of links in a directory of kmodd, and its
output is moved into place file by file, each atomically, only after it succeeded. Programs run without a shell, and without
asyncio's child watcher.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kmodd.kernel.atomic_file import clear_folder, copy_whole
from kmodd.model.store import IndexNotMadeError

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


async def run(program: Sequence[str], *, timeout: float) -> int:
    """Run it and answer its exit status, as a shell counts them; OSError when it cannot be started.

    What it says goes to our stderr, that is to the journal. After `timeout` seconds, and when the caller is cancelled, it is
    killed.
    """
    loop = asyncio.get_running_loop()
    pid = _start(program)
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        _kill(pid)
        _reap(pid)
        raise
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(handle, end)
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), timeout)
    finally:
        loop.remove_reader(handle)
        os.close(handle)
        if not ended.done():
            _kill(pid)
        status = _reap(pid)
    return status


def _start(program: Sequence[str]) -> int:
    return os.posix_spawn(
        program[0],
        list(program),
        _ENVIRONMENT,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ],
        setpgroup=0,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD],
    )


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own


def _reap(pid: int) -> int:
    # It has ended, or has just been killed and waits for nothing: this does not block.
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


TIMEOUT = 120.0
_PROGRAMS = ("/usr/sbin/depmod", "/sbin/depmod", "/usr/bin/depmod")
# What the kernel's own build wrote, which depmod reads and never writes.
_INPUTS = frozenset({"modules.order", "modules.builtin", "modules.builtin.modinfo"})
_TRIES = 3


class Depmod:
    """Makes indexes; one at a time."""

    def __init__(
        self, folder: Path, *, program: str = "", configuration: Path | None = None, timeout: float = TIMEOUT
    ) -> None:
        """`folder` is ours alone, and what is in it is thrown away. `configuration` is read in place of the machine's depmod.d."""
        self._folder = folder
        self._configuration = () if configuration is None else ("-C", str(configuration))
        self._program = program
        self._timeout = timeout
        self._lock = asyncio.Lock()

    async def refresh(self, tree: Path) -> None:
        """Rebuild the index of the tree `…/lib/modules/RELEASE`; IndexNotMadeError, OSError from putting it in place."""
        async with self._lock:
            for _ in range(_TRIES):
                before = _stamp(tree)
                made = await asyncio.to_thread(self._mirror, tree)
                await self._run(tree.name)
                # A package manager ran its own depmod meanwhile: ours has not seen all of what that one saw.
                if _stamp(tree) == before:
                    break
            else:
                raise IndexNotMadeError("other programs keep changing the module index")
            await asyncio.to_thread(self._install, made, tree)

    async def _run(self, release: str) -> None:
        program = self._program or next((path for path in _PROGRAMS if os.access(path, os.X_OK)), "")
        if not program:
            raise IndexNotMadeError("depmod is not installed")
        try:
            status = await run((program, "-b", str(self._folder), *self._configuration, release), timeout=self._timeout)
        except OSError as error:
            raise IndexNotMadeError("cannot run depmod") from error
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
            made_by_depmod = path.name.startswith("modules.") and path.name not in _INPUTS
            if not made_by_depmod and path.name not in {"build", "source"}:
                (made / path.name).symlink_to(path)
        return made

    def _install(self, made: Path, tree: Path) -> None:
        files = sorted(path for path in made.glob("modules.*") if not path.is_symlink())
        if not (made / "modules.dep.bin").is_file():
            raise IndexNotMadeError("depmod wrote no index")
        for path in files:
            copy_whole(path, tree / path.name, 0o644)
        clear_folder(self._folder)


def _stamp(tree: Path) -> tuple[int, int] | None:
    try:
        status = (tree / "modules.dep").stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
