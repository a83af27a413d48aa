# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of any size that are there as a whole or not at all, and what they hash to."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_CHUNK = 1 << 20


def digest(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal; OSError. The last link is not followed."""
    from hashlib import sha256  # brings libcrypto into memory; most daemons never keep a module

    total = sha256()
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        while data := os.read(file, _CHUNK):
            total.update(data)
    finally:
        os.close(file)
    return total.hexdigest()


def write_whole(path: Path, data: bytes, mode: int) -> None:
    """Write a file in the place of what is there, atomically and to the disk; OSError leaves the old one."""
    _replace(path, mode, lambda target: _write(target, data))


def copy_whole(source: Path, path: Path, mode: int) -> None:
    """Copy a file in the place of what is there, atomically and to the disk; OSError leaves the old one."""

    def fill(target: int) -> None:
        file = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            while data := os.read(file, _CHUNK):
                _write(target, data)
        finally:
            os.close(file)

    _replace(path, mode, fill)


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


def _replace(path: Path, mode: int, fill: Callable[[int], None]) -> None:
    # Always the same name: what a crash left behind is replaced by the next write. depmod takes no name that ends so.
    temporary = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fill(file)
            os.fchmod(file, mode)
            os.fsync(file)
        finally:
            os.close(file)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
