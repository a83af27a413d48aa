# SPDX-License-Identifier: LGPL-2.1-or-later
"""One table of a configuration file, read key by key: a wrong type or an unknown key is an error with its line."""

from collections.abc import Iterator, Mapping
from typing import Any

from kmodd.notifier.toml_lines import Path

LIST_MAX = 64
TEXT_MAX = 4096


class ConfigurationError(Exception):
    """The configuration cannot be used; the text is one sentence with file and line."""


class Section:
    """A table with the place it came from. Keys that nobody asked for are found by `finish`."""

    def __init__(self, values: Mapping[str, Any], file: str, lines: Mapping[Path, int], path: Path = ()) -> None:
        self.file = file
        self._values = values
        self._lines = lines
        self._path = path
        self._asked: list[str] = []

    def error(self, sentence: str, key: str = "") -> ConfigurationError:
        """The error to raise about this table or one of its keys."""
        path = (*self._path, key) if key else self._path
        line = self._line(path)
        about = f"{'.'.join(str(part) for part in (*self._path, key) if isinstance(part, str) and part)}: "
        return ConfigurationError(f"{self.file}, line {line}: {about if len(about) > 2 else ''}{sentence}")

    def _line(self, path: Path) -> int:
        """Of the key, of the first thing inside it, or of what it is inside of."""
        while path:
            inside = [line for each, line in self._lines.items() if each[: len(path)] == path]
            if inside:
                return min(inside)
            path = path[:-1]
        return 1

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, default: str | None = None, *, one_of: tuple[str, ...] = ()) -> str:
        """A text without control characters; it must be there when there is no default."""
        value = self._get(key, str, "a text", default)
        self._check_text(key, value)
        if one_of and value not in one_of:
            raise self.error(f"expected one of {', '.join(one_of)}{_near(value, one_of)}", key)
        return str(value)

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts."""
        values = self._get(key, list, "a list of texts", None if default is None else list(default))
        if len(values) > LIST_MAX:
            raise self.error(f"at most {LIST_MAX} of them", key)
        for value in values:
            if not isinstance(value, str):
                raise self.error("expected a list of texts", key)
            self._check_text(key, value)
        return tuple(values)

    def integer(self, key: str, default: int | None, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self._get(key, int, "a number", default)
        if isinstance(value, bool) or not low <= value <= high:
            raise self.error(f"expected a number from {low} to {high}", key)
        return int(value)

    def integers(self, key: str, high: int) -> tuple[int, ...]:
        """A list of numbers from 0 on."""
        values = self._get(key, list, "a list of numbers", [])
        if len(values) > LIST_MAX or not all(type(value) is int and 0 <= value <= high for value in values):
            raise self.error(f"expected a list of at most {LIST_MAX} numbers from 0 to {high}", key)
        return tuple(values)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return bool(self._get(key, bool, "true or false", default))

    def table(self, key: str) -> "Section | None":
        """A table inside; None when there is none."""
        if key not in self._values:
            self._asked.append(key)
            return None
        return Section(self._get(key, dict, "a table", None), self.file, self._lines, (*self._path, key))

    def tables_by_name(self, key: str) -> Iterator[tuple[str, "Section"]]:
        """Tables inside that carry names: `[key.NAME]`."""
        section = self.table(key)
        if section is not None:
            for name in section._values:
                if (inner := section.table(name)) is not None:
                    yield name, inner

    def tables(self, key: str) -> Iterator["Section"]:
        """An array of tables: `[[key]]`."""
        for index, value in enumerate(self._get(key, list, "tables, written [[…]]", [])):
            if not isinstance(value, dict):
                raise self.error("expected tables, written [[…]]", key)
            yield Section(value, self.file, self._lines, (*self._path, key, index))

    def finish(self) -> None:
        """Every key has been asked for, or the first that was not is an error."""
        for key in self._values:
            if key not in self._asked:
                raise self.error(f"there is no such setting{_near(key, tuple(self._asked))}", key)

    def _get(self, key: str, kind: type, named: str, default: Any) -> Any:
        self._asked.append(key)
        if key not in self._values:
            if default is None:
                raise self.error(f"{key} is missing")
            return default
        value = self._values[key]
        if not isinstance(value, kind):
            raise self.error(f"expected {named}", key)
        return value

    def _check_text(self, key: str, value: str) -> None:
        if not value.isprintable() or len(value) > TEXT_MAX:
            raise self.error(f"expected at most {TEXT_MAX} characters on one line, without control characters", key)


def _near(word: str, known: tuple[str, ...]) -> str:
    # Imported here: only for what was mistyped.
    from difflib import get_close_matches

    close = get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""
