# SPDX-License-Identifier: LGPL-2.1-or-later
"""Replacing a file as a whole: a reader sees the old content or the new one, also after a crash.

Faults are OSError with the system's errno. Everything is done below one open folder, so that it cannot be exchanged in
between, and no link in the file's place is followed.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from kmodd.kernel.files import read_all
from kmodd.model.rules import ChangedMeanwhileError

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

    def finish(file: int, folder: int) -> None:
        # Only now: what others might do while it was written shows here.
        there, kept = _seen(path.name, folder)
        if there != expected:
            raise ChangedMeanwhileError(path.name)
        os.fchmod(file, mode if kept is None else kept)

    _replace(path, lambda file: _write(file, data), finish)


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


_CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def digest(source: Path | int) -> str:
    """SHA-256 of a regular file, by its path or descriptor, in hexadecimal; OSError. The last link is not followed."""
    from hashlib import sha256  # brings libcrypto into memory; most daemons never keep a module

    total = sha256()
    for data in _pieces(source):
        total.update(data)
    return total.hexdigest()


def write_whole(path: Path, data: bytes, mode: int, *, group: int | None = None) -> None:
    """Write a file in the place of what is there, atomically and to the disk; OSError leaves the old one.

    `group` is its group where that is not the process's.
    """

    def finish(file: int, _folder: int) -> None:
        if group is not None:
            os.fchown(file, -1, group)
        os.fchmod(file, mode)

    _replace(path, lambda file: _write(file, data), finish)


def copy_whole(source: Path | int, path: Path, mode: int) -> None:
    """Copy a file, by its path or descriptor, in the place of what is there, atomically and to the disk; OSError leaves the old one."""

    def fill(file: int) -> None:
        for data in _pieces(source):
            _write(file, data)

    _replace(path, fill, lambda file, _folder: os.fchmod(file, mode))


def remove_durably(path: Path) -> None:
    """Remove a file, nothing is no error, and tell the disk."""
    with suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Tell the disk of names that came and went."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def clear_folder(folder: Path) -> None:
    """Remove a folder with everything in it; links are removed, not followed. (shutil would bring in every compressor.)"""
    for where, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            path = Path(where, name)
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            else:
                path.rmdir()
    if folder.is_dir():
        folder.rmdir()


def _replace(path: Path, fill: Callable[[int], None], finish: Callable[[int, int], None]) -> None:
    """Have a new file filled and finished (its descriptor, the folder's), and put it in the place of what is there."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # Always the same name: what a crash left behind is cleared away by the next write. No reader of configuration folders
    # takes a name that starts with a dot, and depmod none that ends so.
    name, temporary = path.name, f".{path.name}.new"
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            try:
                fill(file)
                finish(file, folder)
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


def _pieces(source: Path | int) -> Iterator[bytes]:
    """The content from the start, whatever the position of the descriptor."""
    file = source if isinstance(source, int) else os.open(source, _READ)
    try:
        offset = 0
        while data := os.pread(file, _CHUNK, offset):
            yield data
            offset += len(data)
    finally:
        if file is not source:
            os.close(file)
