# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which wishes were acted on since the machine booted: a file below the runtime directory, which a boot clears."""

import os
from collections.abc import Collection
from pathlib import Path

from kmodd.names import is_module_name

FILE_MAX = 1 << 17


class KnownWishes:
    """`core.reconcile.Known` on a file; in memory where there is no runtime directory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> frozenset[str] | None:
        """The names; None when this is the first start since boot."""
        if self._path is None:
            return None
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(handle, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - a descriptor, not a path
                return frozenset(filter(is_module_name, file.read(FILE_MAX).split()))
        except OSError:
            return None

    def write(self, names: Collection[str]) -> None:
        """Replace the file. When that fails, the next start acts on the wishes anew: it finds most of them fulfilled."""
        if self._path is None:
            return
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(handle, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor, not a path
                file.write("".join(f"{name}\n" for name in sorted(names)))
            temporary.replace(self._path)
        except OSError:
            return
