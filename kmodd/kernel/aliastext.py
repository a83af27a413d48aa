# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which module stands behind a file system, a device number or a link kind: the text form of the alias index.

libkmod's context belongs to one thread, and the search for users runs in another. So the few hundred aliases that name
things of user space are read from modules.alias (kept by depmod beside the binary index) and looked up here.
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from kmodd.names import canonical

_PREFIXES = (b"fs-", b"char-major-", b"block-major-", b"devname:", b"rtnl-link-", b"md-")
_STARTS = tuple(b"alias " + prefix for prefix in _PREFIXES)


class AliasText:
    """Resolves aliases of user space's things from /lib/modules/RELEASE/modules.alias; safe to call from any thread."""

    def __init__(self, root: Path, release: str) -> None:
        self._path = root / "lib/modules" / release / "modules.alias"
        self._read: tuple[tuple[int, int, int], _Aliases] | None = None

    def __call__(self, alias: str) -> tuple[str, ...]:
        """Canonical names of the modules with this alias; empty when there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return ()
        version = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._read is None or self._read[0] != version:
            self._read = (
                version,
                _load(self._path),
            )  # One assignment: two threads would read the same twice, no worse.
        return self._read[1].resolve(alias)


class _Aliases:
    def __init__(self) -> None:
        self.plain: dict[str, list[str]] = {}
        self.patterns: list[tuple[str, str]] = []

    def resolve(self, alias: str) -> tuple[str, ...]:
        matched = (module for pattern, module in self.patterns if fnmatchcase(alias, pattern))
        return tuple(dict.fromkeys((*self.plain.get(alias, ()), *matched)))


def _load(path: Path) -> _Aliases:
    aliases = _Aliases()
    try:
        # Line by line: the file has some megabytes, of which a few kilobytes are kept.
        with path.open("rb") as lines:
            for line in lines:
                if line.startswith(_STARTS):
                    _, alias, module = os.fsdecode(line).rsplit(maxsplit=2)
                    if any(mark in alias for mark in "*?["):
                        aliases.patterns.append((alias, canonical(module)))
                    else:
                        aliases.plain.setdefault(alias, []).append(canonical(module))
    except (OSError, ValueError):
        pass  # Gone, or being written by depmod: what was read is used until the file changes again.
    return aliases
