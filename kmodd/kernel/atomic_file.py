# SPDX-License-Identifier: LGPL-2.1-or-later
"""Replacing a small file as a whole: whoever reads it sees the old text or the new one, also after a crash.

Faults are OSError with the system's errno. Everything is done below one open folder, so that nobody can move the folder
away in between, and no link in the file's place is ever followed.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from kmodd.kernel.ports import ChangedMeanwhileError
from kmodd.kernel.smallfile import read_all

SIZE_MAX = 1 << 20
"""Bytes of a file that is read whole."""
MODE = 0o644


def read_file(path: Path) -> bytes | None:
    """The whole file, None when there is none; OSError for a link (ELOOP), for what is no file (EISDIR) and when too big (EFBIG)."""
    try:
        return _read(os.fspath(path), None)[0]
    except FileNotFoundError:
        return None


def replace_file(path: Path, data: bytes, *, expected: bytes | None, mode: int = MODE) -> None:
    """Write `data` in the place of `expected` (None: of nothing); ChangedMeanwhileError when something else is there.

    The folder must exist. A file that is there keeps its permissions, a new one gets `mode`. When this raises, the old
    file is untouched, unless it was the last step that failed, telling the disk of the new name: then it is the new one.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # Always the same name: what a crash left behind is cleared away by the next write. No reader of configuration folders
    # takes a name that starts with a dot.
    name, temporary = path.name, f".{path.name}.new"
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            try:
                _write(file, data)
                # Only now: what others might do while it was written shows here.
                there, kept = _seen(name, folder)
                if there != expected:
                    raise ChangedMeanwhileError(path.name)
                os.fchmod(file, mode if kept is None else kept)
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_file(path: Path, *, expected: bytes) -> None:
    """Remove the file when it is still `expected`; ChangedMeanwhileError otherwise."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _seen(path.name, folder)[0] != expected:
            raise ChangedMeanwhileError(path.name)
        os.unlink(path.name, dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def _seen(name: str, folder: int) -> tuple[bytes | None, int | None]:
    """(content, permissions) of what is there; (None, None) for nothing."""
    try:
        return _read(name, folder)
    except FileNotFoundError:
        return None, None


def _read(name: str, folder: int | None) -> tuple[bytes, int]:
    # O_NONBLOCK: a FIFO would wait for a writer.
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a regular file")
        data = read_all(file, SIZE_MAX + 1)
        if len(data) > SIZE_MAX:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return data, stat.S_IMODE(status.st_mode)
    finally:
        os.close(file)


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
