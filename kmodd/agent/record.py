# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the agent keeps on disk: which modules it loaded in this boot, what must not be tried again in it, and the last specification.

All of it is read as foreign input. What cannot be read counts as nothing: then no module is the agent's, and none is unloaded.
"""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Any

from kmodd.errors import InvalidArgs
from kmodd.fast_dataclass import dataclass
from kmodd.fleet.resources import (
    LOG_LINE_MAX,
    LOG_LINES_MAX,
    MESSAGE_MAX,
    REASONS,
    NodeModules,
    as_json,
    parse_node_modules,
)
from kmodd.names import is_module_name

RECORD, SPECIFICATION = "record.json", "specification.json"
MODE = 0o600
SIZE_MAX = 4 << 20
"""Bytes of a file that is read: an object in etcd has at most 1.5 MB."""
OWNED_MAX = 4096


@dataclass(frozen=True, slots=True)
class Owned:
    """A module that the agent loaded."""

    requested: bool
    """False for a dependency that came with one."""
    loaded_at: int = 0
    """`LoadedAt` of kmodd, microseconds since the epoch; 0 where it did not know."""
    replaced: int = 0
    """That of the instance which a reload of the agent replaces: kmodd may show it for a moment still."""


@dataclass(frozen=True, slots=True)
class Barred:
    """Why a module is not tried again in this boot."""

    reason: str
    message: str
    hint: str = ""
    kernel_log: tuple[str, ...] = ()


@dataclass(slots=True)
class Record:
    """What happened in one boot."""

    boot_id: str
    owned: dict[str, Owned] = field(default_factory=dict)
    """In the order in which they were loaded."""
    loading: str = ""
    """The module whose load was under way when this was written."""
    barred: dict[str, Barred] = field(default_factory=dict)


class StateFolder:
    """The agent's own folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, boot_id: str) -> Record:
        """What was done in this boot; empty for another boot, and where nothing can be read."""
        empty = Record(boot_id)
        data = self._read(RECORD)
        if not isinstance(data, dict) or data.get("bootID") != boot_id:
            return empty
        rows, barred, loading = data.get("owned"), data.get("barred"), data.get("loading")
        if not isinstance(rows, list) or not isinstance(barred, dict) or not isinstance(loading, str):
            return empty
        for row in rows[:OWNED_MAX]:
            if isinstance(row, dict) and _is_module(row.get("name")) and isinstance(row.get("loadedAt"), int):
                replaced = row.get("replaced")
                empty.owned[row["name"]] = Owned(
                    row.get("requested") is True, row["loadedAt"], replaced if isinstance(replaced, int) else 0
                )
        for name, row in list(barred.items())[:OWNED_MAX]:
            if _is_module(name) and isinstance(row, dict) and row.get("reason") in REASONS:
                empty.barred[name] = Barred(
                    row["reason"], _text(row.get("message")), _text(row.get("hint")), _lines(row.get("kernelLog"))
                )
        empty.loading = loading if _is_module(loading) else ""
        return empty

    def write(self, record: Record) -> None:
        """Keep it; OSError."""
        data = {
            "bootID": record.boot_id,
            "loading": record.loading,
            "owned": [
                {
                    "name": name,
                    "requested": owned.requested,
                    "loadedAt": owned.loaded_at,
                    **({"replaced": owned.replaced} if owned.replaced else {}),
                }
                for name, owned in record.owned.items()
            ],
            "barred": {
                name: {
                    "reason": row.reason,
                    "message": row.message,
                    "hint": row.hint,
                    "kernelLog": list(row.kernel_log),
                }
                for name, row in record.barred.items()
            },
        }
        self._write(RECORD, data)

    def read_specification(self, node: str) -> NodeModules | None:
        """The last specification of this node; None where there is none that is good."""
        data = self._read(SPECIFICATION)
        if not isinstance(data, dict):
            return None
        try:
            found = parse_node_modules(data)
        except InvalidArgs:
            return None
        return found if found.metadata.name == node else None

    def write_specification(self, modules: NodeModules | None) -> None:
        """Keep it, or forget it; OSError."""
        if modules is None:
            with suppress(FileNotFoundError):
                (self._folder / SPECIFICATION).unlink()
            return
        meta = modules.metadata
        metadata = {"name": meta.name, "uid": meta.uid, "generation": meta.generation}
        self._write(SPECIFICATION, {"metadata": metadata, "spec": as_json(modules.spec)})

    def _read(self, name: str) -> Any:
        try:
            handle = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                data = file.read(SIZE_MAX + 1) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
            return json.loads(data) if len(data) <= SIZE_MAX else None
        except (OSError, ValueError, RecursionError):
            return None

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        """Whole or not at all, also where the machine stops meanwhile."""
        path, temporary = self._folder / name, self._folder / f".{name}.new"
        text = json.dumps(data, indent=1).encode() + b"\n"
        temporary.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, MODE), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_module(value: object) -> bool:
    return isinstance(value, str) and is_module_name(value)


def _text(value: object) -> str:
    return value[:MESSAGE_MAX] if isinstance(value, str) else ""


def _lines(value: object) -> tuple[str, ...]:
    rows = value if isinstance(value, list) else []
    return tuple(row[:LOG_LINE_MAX] for row in rows[:LOG_LINES_MAX] if isinstance(row, str))
