# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the small files of /proc and /sys, and the files of configuration directories by priority."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from kmodd.fast_dataclass import dataclass

VALUE_MAX = 4096
"""Bytes of one value that are read; sysfs attributes are at most a page."""


MACHINE_FAULTS = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Answers that say nothing about what was to be read, and everything about the machine."""
FAULTS: ContextVar[set[str] | None] = ContextVar("FAULTS", default=None)
"""Where a search over many files notes that something was taken for empty which may not be so: names of errnos."""


def note(error: OSError) -> None:
    """What could not be read is passed over; where a search wants to know, note a fault of the machine."""
    faults = FAULTS.get()
    if faults is not None and error.errno in MACHINE_FAULTS:
        faults.add(errno.errorcode[error.errno])


def read_bytes(path: Path | str, limit: int = 1 << 20, *, dir_fd: int | None = None) -> bytes | None:
    """The file's content up to `limit` bytes; None when it cannot be read. The last link is not followed."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError as error:
        note(error)
        return None
    try:
        return read_all(file, limit)
    except OSError as error:
        note(error)
        return None
    finally:
        os.close(file)


NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors for a path that leads to no file, for any caller. Every other one is of a file that exists or may exist."""
_GONE = frozenset({*NOWHERE, errno.ENODEV, errno.ESRCH})
"""And what files of /proc and /sys answer whose object went while they were open."""


def read_if_there(path: Path | str, limit: int = 1 << 20) -> bytes | None:
    """The file's content up to `limit` bytes; None when there is no such file, OSError when it cannot be read.

    For what decides: as `read_bytes`, which takes what cannot be read for what is not there.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            # A value comes in one read, a table a page at a time.
            return os.read(file, limit) if limit <= VALUE_MAX else read_all(file, limit)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in _GONE:
            return None
        if error.filename is None:
            error.filename = str(path)
        raise


def value_if_there(path: Path | str) -> str | None:
    """One value, as `read_text`; None when there is no such file, OSError when it cannot be read."""
    content = read_if_there(path, VALUE_MAX)
    return None if content is None else content.decode(errors="replace").removesuffix("\n")


def status_if_there(path: Path | str | bytes) -> os.stat_result | None:
    """What stat(2) says; None when the path leads to nothing, OSError when that cannot be known."""
    try:
        return os.stat(path)  # noqa: PTH116 - plain texts, thousands of times
    except OSError as error:
        if error.errno in NOWHERE:
            return None
        raise


def is_folder(path: Path | str) -> bool:
    """Tell whether a folder is there; OSError when that cannot be known."""
    status = status_if_there(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def read_all(file: int, limit: int) -> bytes:
    """Read until the end or `limit` bytes. A seq_file gives a page at a time, so one read is never the whole."""
    parts: list[bytes] = []
    left = limit
    while left > 0 and (part := os.read(file, min(left, 1 << 16))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def read_text(path: Path | str, limit: int = VALUE_MAX, *, dir_fd: int | None = None) -> str | None:
    """One value: UTF-8 with what is invalid replaced, one trailing newline cut off; None when it cannot be read."""
    content = _read_value(path, dir_fd) if limit <= VALUE_MAX else read_bytes(path, limit, dir_fd=dir_fd)
    return None if content is None else content.decode(errors="replace").removesuffix("\n")


def _read_value(path: Path | str, dir_fd: int | None) -> bytes | None:
    """What sysfs, sysctl and the single records of /proc give: all they have, in one read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError as error:
        note(error)
        return None
    try:
        return os.read(file, VALUE_MAX)
    except OSError as error:
        note(error)
        return None
    finally:
        os.close(file)


def readlink(path: Path | str) -> str:
    """Where a link points; empty when it is none or may not be read."""
    try:
        return os.readlink(path)  # noqa: PTH115 - the plain text, thousands of times
    except OSError as error:
        note(error)
        return ""


def listdir(path: Path | str) -> list[str]:
    """Names in a folder, sorted; empty when it is none or may not be read."""
    try:
        return sorted(os.listdir(path))  # noqa: PTH208 - names, not paths
    except OSError as error:
        note(error)
        return []


@dataclass(frozen=True, slots=True)
class Layered:
    """One file of a configuration folder."""

    path: Path
    shadowed_by: str = ""
    """The file of the same name that is read in its place."""
    masks: tuple[str, ...] = ()
    """Files of the same name that are not read because of it."""
    public: bool = True
    """Everyone may read it."""


def layered(
    directories: Sequence[Path],
    accepts: Callable[[bytes], bool],
    *,
    root: Path = Path("/"),
    passes_over: Callable[[Path], bool] = lambda _: False,
) -> list[Layered]:
    """Every file below `root`, by name and bytewise, the one in effect before those it masks.

    A link to /dev/null masks as well, and so does one that leads nowhere or where root may not look; a folder does not.
    What `passes_over` is neither listed nor masks. OSError for a folder that is there and cannot be listed.
    """
    by_name: dict[bytes, list[Path]] = {}
    for directory in _distinct(directories):
        try:
            names = os.listdir(os.fsencode(directory))  # noqa: PTH208 - bytes, as they are sorted
        except OSError as error:
            if error.errno not in NOWHERE:
                raise
            continue  # most of these folders do not exist on most machines
        for name in names:
            path = directory / os.fsdecode(name)
            if not name.startswith(b".") and accepts(name) and not _is_folder(path) and not passes_over(path):
                by_name.setdefault(name, []).append(path)
    return [path for name in sorted(by_name) for path in _ranked(by_name[name], root)]


def _ranked(paths: list[Path], root: Path) -> Iterator[Layered]:
    first, *others = paths
    yield Layered(first, masks=tuple(map(str, others)), public=is_public(first, root))
    for other in others:
        yield Layered(other, shadowed_by=str(first), public=is_public(other, root))


def _distinct(directories: Sequence[Path]) -> Iterator[Path]:
    """Leave out a folder that is another one by another name: /lib is /usr/lib nearly everywhere."""
    names = set()
    for directory in directories:
        status = status_if_there(directory)
        if status is not None and (status.st_dev, status.st_ino) not in names:
            names.add((status.st_dev, status.st_ino))
            yield directory


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def is_public(path: Path, root: Path = Path("/")) -> bool:
    """Tell whether everyone may read it: its mode, and that of each folder on the way to it from `root`.

    So of what cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return True  # nothing is read of it
    return bool(mode & stat.S_IROTH) and is_reachable(path, root)


def is_reachable(path: Path, root: Path = Path("/")) -> bool:
    """Tell whether everyone may search each folder between `root` and the file, links followed.

    False where one cannot be looked at.
    """
    try:
        file, top = path.resolve(strict=True), root.resolve(strict=True)
        # A link may lead out of a root folder that is not the machine's own.
        folders = [folder for folder in file.parents if folder != top]
        if file.is_relative_to(top):
            folders = [folder for folder in folders if folder.is_relative_to(top)]
        return all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return False
