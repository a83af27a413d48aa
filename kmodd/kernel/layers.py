# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of configuration folders in ranks: one in /etc masks those of the same name in /run, /usr/local/lib and /usr/lib."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


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


def layered(directories: Sequence[Path], accepts: Callable[[bytes], bool]) -> list[Layered]:
    """Every file, by name and bytewise, the one in force before those it masks.

    A link to /dev/null masks as well, and so does one that leads nowhere or where root may not look; a folder does not.
    """
    found: dict[bytes, list[Path]] = {}
    for directory in _distinct(directories):
        try:
            names = os.listdir(os.fsencode(directory))  # noqa: PTH208 - bytes, as they are sorted
        except OSError:
            continue  # most of these folders do not exist on most machines
        for name in names:
            path = directory / os.fsdecode(name)
            if not name.startswith(b".") and accepts(name) and not _is_folder(path):
                found.setdefault(name, []).append(path)
    return [one for name in sorted(found) for one in _ranked(found[name])]


def _ranked(paths: list[Path]) -> Iterator[Layered]:
    first, *others = paths
    yield Layered(first, masks=tuple(map(str, others)), public=is_public(first))
    for other in others:
        yield Layered(other, shadowed_by=str(first), public=is_public(other))


def _distinct(directories: Sequence[Path]) -> Iterator[Path]:
    """Leave out a folder that is another one by another name: /lib is /usr/lib nearly everywhere."""
    seen = set()
    for directory in directories:
        try:
            status = directory.stat()
        except OSError:
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield directory


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def is_public(path: Path) -> bool:
    """Tell whether everyone may read it; so of what cannot be looked at."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return True  # nothing is read of it
