# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of configuration directories by priority: one in /etc masks those of the same name in /run, /usr/local/lib and /usr/lib."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodd.kernel.files import NOWHERE, status_if_there


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


def layered(directories: Sequence[Path], accepts: Callable[[bytes], bool], *, root: Path = Path("/")) -> list[Layered]:
    """Every file below `root`, by name and bytewise, the one in effect before those it masks.

    A link to /dev/null masks as well, and so does one that leads nowhere or where root may not look; a folder does not.
    OSError for a folder that is there and cannot be listed.
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
            if not name.startswith(b".") and accepts(name) and not _is_folder(path):
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
