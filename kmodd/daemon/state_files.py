# SPDX-License-Identifier: LGPL-2.1-or-later
"""State kept across restarts of the daemon until the next boot, below the runtime directory, which a boot clears.

Includes the tables of the desired state that were applied since boot, and files at the paths of earlier versions.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmodd.kernel.atomic_file import read_file, replace_file, write_whole
from kmodd.model import Record
from kmodd.model.rules import ChangedMeanwhileError
from kmodd.names import is_module_name

FILES = ("failures.json", "wishes")
_RECORDS_MAX = 1 << 20
"""Bytes."""


def migrate_state(folder: Path) -> None:
    """Copy what lies in the folder above, as earlier versions had it, and not in this one yet.

    An upgrade is not a boot: without this state the daemon would unload modules that an administrator loaded since, and would
    not know which modules are stuck in the kernel.
    """
    for name in FILES:
        with suppress(OSError, ChangedMeanwhileError):
            kept = read_file(folder.parent / name)
            if kept is not None:
                # Only where there is nothing: what was written since counts.
                replace_file(folder / name, kept, expected=None, mode=0o600)


class StateFile:
    """A small file below the runtime directory; nowhere where there is none.

    It is a convenience: what cannot be read was not kept, and what cannot be written is known until the daemon ends. A boot
    clears the folder.
    """

    def __init__(self, path: Path | None, *, on_trouble: Callable[[OSError], None] = lambda error: None) -> None:
        """`on_trouble` hears of a file that cannot be written."""
        self._path = path
        self._on_trouble = on_trouble

    def read(self) -> bytes | None:
        """The content; None for nothing."""
        with suppress(OSError):
            return read_file(self._path) if self._path is not None else None
        return None

    def write(self, data: bytes) -> None:
        """Replace the content."""
        if self._path is not None:
            try:
                write_whole(self._path, data, 0o600)
            except OSError as error:
                self._on_trouble(error)


class SavedRecords:
    """Records that wait to be written, on a file."""

    def __init__(self, path: Path | None) -> None:
        self._file = StateFile(path)
        self._there = b"[]"

    def take(self) -> list[Record]:
        """What the daemon before left, once; nothing for what it did not write."""
        self._there = self._file.read() or b"[]"
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            kept = json.loads(self._there)
            return [
                Record(
                    **{**values, "kernel_log": tuple(values["kernel_log"]), "modules": tuple(values.get("modules", ()))}
                )
                for values in kept
            ]
        return []

    def write(self, records: Sequence[Record]) -> None:
        """Replace what is kept. When that fails, they are written all the same unless the daemon ends before."""
        text = json.dumps([asdict(record) for record in records]).encode()
        if text != self._there and len(text) <= _RECORDS_MAX:
            self._file.write(text)
            self._there = text


class DesiredCache:
    """`AppliedModules` (kmodd.core.desired.reconciler) on a file; in memory where there is no runtime directory."""

    def __init__(self, path: Path | None) -> None:
        self._file = StateFile(path)

    def read(self) -> frozenset[str] | None:
        """The names; None when this is the first start since boot."""
        data = self._file.read()
        return None if data is None else frozenset(filter(is_module_name, data.decode("ascii", "replace").split()))

    def write(self, names: Collection[str]) -> None:
        """Replace the file. When that fails, the next start applies the desired state again and finds most of it in place."""
        self._file.write("".join(f"{name}\n" for name in sorted(names)).encode())


class KeptLeases:
    """What leases are about, on a file; their descriptors are systemd's to keep."""

    def __init__(self, path: Path | None) -> None:
        self._file = StateFile(path)
        self._there = b""

    def read(self) -> Mapping[str, Any]:
        """What the daemon before wrote; nothing for what it did not write."""
        self._there = self._file.read() or b""
        with suppress(ValueError, RecursionError):
            kept = json.loads(self._there or b"{}")
            return kept if isinstance(kept, dict) else {}
        return {}

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace it. When that fails, leases end at the next restart of the daemon."""
        data = json.dumps(state).encode()
        if data != self._there:
            self._file.write(data)
            self._there = data
