# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file of a `.d` directory that a task writes or removes, and puts back when kmodd refuses it."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Awaitable, Callable, Mapping

MODE = 0o644
"""Of a new file; one that is there keeps its own."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class DropIn:
    """One file, as it was when the task began."""

    def __init__(self, folder: str, name: str) -> None:
        from kmodd.errors import InvalidArgs

        if not _NAME.fullmatch(name) or name.endswith(".toml"):
            raise InvalidArgs("name is a file name without .toml: letters, digits, '.', '_' and '-'", argument="name")
        self.path = Path(folder) / f"{name}.toml"
        self._mode, self._group = MODE, 0
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                self.before: str | None = file.read().decode()
            self._mode, self._group = stat.S_IMODE(status.st_mode), status.st_gid
        except FileNotFoundError:
            self.before = None
        except (OSError, UnicodeDecodeError) as error:
            raise _refused(self.path, "read", error) from error

    def put(self, text: str | None) -> None:
        """Replace the file atomically; None removes it."""
        try:
            if text is None:
                self.path.unlink(missing_ok=True)
                return
            data = text.encode()
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._write(data)
        except (OSError, UnicodeError) as error:
            raise _refused(self.path, "written", error) from error

    def _write(self, data: bytes) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                if os.geteuid() == 0:
                    os.fchown(handle, 0, self._group)
                os.fchmod(handle, self._mode)
                os.fsync(handle)
            Path(temporary).replace(self.path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    async def replace(self, text: str | None, have_read: Callable[[], Awaitable[Any]]) -> None:
        """Replace the file and have kmodd read it; what kmodd refuses is put back as it was."""
        from kmodd.errors import KmoddError

        self.put(text)
        try:
            await have_read()
        except KmoddError:
            self.put(self.before)
            with suppress(KmoddError):  # another file may be invalid as well; the first error is the one to return
                await have_read()
            raise

    def diff(self, desired: str | None) -> dict[str, Any]:
        """The change, as Ansible shows it."""
        return {
            "before_header": str(self.path),
            "after_header": str(self.path),
            "before": self.before or "",
            "after": desired or "",
        }


def _refused(path: Path, action: str, error: Exception) -> Exception:
    from kmodd.errors import Evidence, NotPermitted

    number = error.errno if isinstance(error, OSError) else None
    reason = error.strerror if isinstance(error, OSError) else "not valid UTF-8"
    hint = f"ls -ld {path.parent} {path}" if isinstance(error, OSError) else "write the text in UTF-8"
    evidence = Evidence(errno=number, file=str(path), hint=hint)
    return NotPermitted(f"{path} cannot be {action} ({reason})", evidence=evidence)


# --- writing TOML ---------------------------------------------------------------------------------------------------


def toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    """Write a table of tables as TOML: one header for each of them, and what is below on one line for each key."""
    blocks = []
    for name, table in tables.items():
        lines = [f"{_key(key)} = {_value(value)}\n" for key, value in table.items() if value is not None]
        blocks.append(f"[{prefix}{_key(name)}]\n{''.join(lines)}")
    return "\n".join(blocks)


def _key(name: object) -> str:
    if name is None:
        raise _null("a key")
    text = str(name)
    return text if _BARE_KEY.fullmatch(text) else _string(text)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }" if value else "{}"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if value is None:
        raise _null("a value")
    return _string(str(value))


def _null(what: str) -> Exception:
    from kmodd.errors import InvalidArgs

    return InvalidArgs(f"{what} in modules is null, which TOML does not have", argument="modules")


def _string(text: str) -> str:
    """A basic string of TOML: control characters, quotes and backslashes are escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char >= " " and char != "\x7f" else f"\\u{ord(char):04x}" for char in escaped) + '"'
