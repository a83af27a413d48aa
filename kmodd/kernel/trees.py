# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module trees of other kernels, and modules that take the place of the running kernel's own."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.smallfile import listdir, read_bytes
from kmodd.model.boot import Trees
from kmodd.names import canonical

_OVER = ("updates", "extra", "weak-updates")
"""Folders that depmod ranks before the kernel's own by default (depmod.d(5)), or that distributions rank so."""
_FILES_MAX = 4096
_MODULE = re.compile(r"(.+)\.ko(?:\.gz|\.xz|\.zst)?")
_PART = re.compile(r"(\d+)")


class ModuleTrees:
    """What lies below /lib/modules of a root folder."""

    def __init__(self, root: Path, release: str) -> None:
        self._folder = root / "lib/modules"
        self._release = release
        self._order: tuple[object, frozenset[str]] = (None, frozenset())

    def look(self) -> Trees:
        """Some listings; the list of the kernel's own modules is read once."""
        newer = [
            release
            for release in listdir(self._folder)
            if _age(release) > _age(self._release) and (self._folder / release / "modules.dep.bin").is_file()
        ]
        return Trees(tuple(sorted(newer, key=_age)), tuple(self._replaced()))

    def _replaced(self) -> Iterator[tuple[str, str]]:
        tree = self._folder / self._release
        own: frozenset[str] | None = None
        for path in self._others(tree):
            found = _MODULE.fullmatch(path.name)
            if found is None:
                continue
            own = self._own(tree) if own is None else own
            name = canonical(found[1])
            if name in own:
                yield name, f"/{path.relative_to(self._folder.parent.parent)}"

    def _others(self, tree: Path) -> Iterator[Path]:
        count = 0
        for folder in _OVER:
            for place, _, names in os.walk(tree / folder):
                for name in sorted(names):
                    count += 1
                    if count > _FILES_MAX:
                        return
                    yield Path(place, name)

    def _own(self, tree: Path) -> frozenset[str]:
        """Names in modules.order, which the kernel's build makes and depmod does not touch."""
        path = tree / "modules.order"
        try:
            stamp: object = path.stat().st_mtime_ns
        except OSError:
            stamp = None
        if self._order[0] != stamp or stamp is None:
            text = (read_bytes(path, 4 << 20) or b"").decode("utf-8", "replace")
            names = (_MODULE.fullmatch(line.rpartition("/")[2]) for line in text.splitlines())
            self._order = stamp, frozenset(canonical(found[1]) for found in names if found is not None)
        return self._order[1]


def _age(release: str) -> tuple[tuple[int, int, str], ...]:
    """Order releases by their numbers: 6.1.0-18 before 6.1.0-20, and 6.1.0-rc1 before 6.1.0."""
    parts = (part for part in _PART.split(release) if part)
    return tuple(
        (2, int(part), "") if part.isdecimal() else (0 if part.startswith("-rc") else 1, 0, part) for part in parts
    )
