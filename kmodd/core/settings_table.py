# SPDX-License-Identifier: LGPL-2.1-or-later
"""Typed reading of a settings file's tables: what is not known, or of another type, is an error with file and line."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from kmodd.core.near import near
from kmodd.errors import Conflict, Evidence, InvalidArgs
from kmodd.model.document import Document

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Table:
    """One table of a document."""

    def __init__(self, document: Document, path: tuple[str, ...] = ()) -> None:
        """The table at `path`, which is one."""
        self._document = document
        self._path = path
        values: Any = document.values
        for key in path:
            values = values[key]
        self._values: Mapping[str, Any] = values

    @property
    def file(self) -> str:
        """The file it stands in."""
        return self._document.file

    @property
    def public(self) -> bool:
        """Everyone may read that file."""
        return self._document.public

    def line(self, key: str = "") -> int:
        """Where a key of it, or the table itself, stands."""
        return self._document.line(*self._path, *([key] if key else []))

    @property
    def names(self) -> tuple[str, ...]:
        """Its keys as written."""
        return tuple(self._values)

    def tables(self) -> "Iterator[tuple[str, Table]]":
        """What is in it, by name; refuses what is no table."""
        for key in self._values:
            table = self.table(key)
            assert table is not None  # noqa: S101 - it is one of the keys
            yield key, table

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def only(self, known: Iterable[str]) -> None:
        """Refuse the first key that is not known, and name the nearest one that is."""
        known = tuple(known)
        for key in self._values:
            if key not in known:
                close = near(key, known)
                there = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
                where = f" in [{'.'.join(map(printable, self._path))}]" if self._path else ""
                self.refuse(key, f"there is no setting {printable(key)}{where}; {there}")

    def refuse(self, key: str, sentence: str) -> NoReturn:
        """Raise the error for a key."""
        file, line = printable(self._document.file, 256), self.line(key)
        raise Conflict(
            f"{file}, line {line}: {sentence}",
            argument=file,
            evidence=Evidence(file=file, line=line, hint="mend the file, then: kmodctl config reload"),
        )

    def text(self, key: str, default: str = "") -> str:
        """A text."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            self.refuse(key, f"{key} is a text")
        return value

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """One of some words."""
        choices = tuple(choices)
        value = self.text(key, default)
        if key in self._values and value not in choices:
            self.refuse(key, f"{key} is one of {', '.join(choices)}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, f"{key} is true or false")
        return value

    def whole(self, key: str, default: int, lowest: int, highest: int) -> int:
        """A whole number between two others."""
        value = self._values.get(key, default)
        # bool is an int for Python, not for TOML.
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            self.refuse(key, f"{key} is a whole number from {lowest} to {highest}")
        return value

    def size(self, key: str, default: int, lowest: int, highest: int) -> int:
        """Bytes: a number, or a text such as `64M` (K, M and G are powers of 1024)."""
        value = self._values.get(key, default)
        if isinstance(value, str) and value[:-1].isdecimal() and value[-1:] in _UNITS and len(value) < 10:
            value = int(value[:-1]) * _UNITS[value[-1]]
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            self.refuse(key, f"{key} is a size such as 64M, from {lowest} to {highest} bytes")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self.refuse(key, f'{key} is a list of texts, such as ["a", "b"]')
        return tuple(value)

    def table(self, key: str) -> "Table | None":
        """A table in it; None when there is none."""
        if key not in self._values:
            return None
        if not isinstance(self._values[key], dict):
            self.refuse(key, f"{printable(key)} is a table")
        return Table(self._document, (*self._path, key))

    def value(self, key: str) -> Any:
        """As it stands."""
        return self._values[key]

    def parsed(self, key: str, parse: Callable[[], Any]) -> Any:
        """What a parser of `kmodd.names` makes of it; its refusal becomes one with file and line."""
        try:
            return parse()
        except InvalidArgs as error:
            self.refuse(key, error.message)


def printable(text: str, limit: int = 64) -> str:
    """Text of a file as one safe line."""
    safe = text if text.isprintable() else ascii(text)[1:-1]
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"
