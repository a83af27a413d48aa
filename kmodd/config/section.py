# SPDX-License-Identifier: LGPL-2.1-or-later
"""One table of a configuration file, read key by key: a wrong type or an unknown key is an error with file and line."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from kmodd.errors import Conflict, Evidence, InvalidArgs
from kmodd.model.settings import Document
from kmodd.names import ARRAY_MAX
from kmodd.suggestions import near
from kmodd.text import shown

TEXT_MAX = 4096
"""Characters of one text."""
_NAME_MAX = 64
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_T = TypeVar("_T")


@dataclass(eq=False)
class ConfigurationError(Conflict):
    """A configuration file that cannot be used; file and line are in the evidence. For callers it is a Conflict."""

    sentence: str = ""
    """The message without file and line."""

    @classmethod
    def name(cls) -> str:
        """As of a Conflict."""
        return Conflict.name()

    @classmethod
    def bus_name(cls) -> str:
        """As of a Conflict."""
        return Conflict.bus_name()


def fault(file: str, line: int, sentence: str, *, hint: str = "") -> ConfigurationError:
    """The error for this line of a file."""
    file = shown(file)
    return ConfigurationError(
        f"{file}, line {line}: {sentence}",
        argument=file,
        evidence=Evidence(file=file, line=line, hint=hint),
        sentence=sentence,
    )


class Section:
    """A table with the place it came from. Lengths are limited, texts are one line without control characters."""

    def __init__(self, document: Document, path: tuple[str | int, ...] = ()) -> None:
        """The table at `path`, which is one."""
        self._document = document
        self._path = path
        values: Any = document.values
        for key in path:
            values = values[key]
        self._values: Mapping[str, Any] = values
        self._read: list[str] = []

    @property
    def file(self) -> str:
        """The file that contains it."""
        return self._document.file

    @property
    def public(self) -> bool:
        """Everyone may read that file."""
        return self._document.public

    @property
    def names(self) -> tuple[str, ...]:
        """Its keys as written."""
        return tuple(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def line(self, key: str = "") -> int:
        """The line, from 1, of one of its keys, or of the table itself."""
        return self._document.line(*self._path, *([key] if key else []))

    def only(self, keys: Iterable[str]) -> None:
        """Refuse the first key that is not known, and name the nearest one that is."""
        keys = tuple(keys)
        for key in self._values:
            if key not in keys:
                close = near(key, keys)
                there = f"did you mean {close[0]}?" if close else f"expected: {', '.join(keys)}"
                self.refuse(key, f"unknown setting {self._name(key)}; {there}")

    def finish(self) -> None:
        """Refuse the first key that has not been read."""
        self.only(dict.fromkeys(self._read))

    def error(self, sentence: str, key: str = "") -> ConfigurationError:
        """The error about this table or one of its keys, which it names before the sentence."""
        name = self._name(key)
        return self._fault(key, f"{name}: {sentence}" if name else sentence)

    def refuse(self, key: str, sentence: str) -> NoReturn:
        """Raise the error for a key, with a sentence that names it."""
        raise self._fault(key, sentence)

    def text(self, key: str, default: str | None = None, *, one_of: Iterable[str] = ()) -> str:
        """A text, one of some words where `one_of` has any; without a default it must be there."""
        value = str(self._get(key, str, "a string", default))
        choices = tuple(one_of)
        if key in self._values:
            self._check_text(key, value)
            if choices and value not in choices:
                close = near(value, choices)
                meant = f"; did you mean {close[0]}?" if close else ""
                self.refuse(key, f"{self._name(key)} must be one of {', '.join(choices)}{meant}")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None, *, longest: int = ARRAY_MAX) -> tuple[str, ...]:
        """A list of at most `longest` texts; without a default it must be there."""
        values = self._get(key, list, "a list of strings", default)
        if not all(isinstance(value, str) for value in values):
            self.refuse(key, f'{self._name(key)} must be a list of strings, such as ["a", "b"]')
        if len(values) > longest:
            self.refuse(key, f"{self._name(key)} must be a list of at most {longest} strings")
        for value in values:
            self._check_text(key, value)
        return tuple(values)

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        return bool(self._get(key, bool, "true or false", default))

    def integer(self, key: str, default: int, lowest: int, highest: int) -> int:
        """A whole number between two others."""
        value = self._plain(key, default)
        # bool is an int for Python, not for TOML.
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            self.refuse(key, f"{self._name(key)} must be an integer from {lowest} to {highest}")
        return value

    def number(self, key: str, default: float, lowest: float, highest: float) -> float:
        """A number between two others; neither infinite nor NaN, which TOML has."""
        value = self._plain(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
            self.refuse(key, f"{self._name(key)} must be a number from {lowest:g} to {highest:g}")
        return float(value)

    def integers(self, key: str, highest: int) -> tuple[int, ...]:
        """A list of whole numbers from 0 on; empty where there is none."""
        values = self._get(key, list, "a list of integers", ())
        if len(values) > ARRAY_MAX or not all(type(value) is int and 0 <= value <= highest for value in values):
            self.refuse(key, f"{self._name(key)} must be a list of at most {ARRAY_MAX} integers from 0 to {highest}")
        return tuple(values)

    def size(self, key: str, default: int, lowest: int, highest: int) -> int:
        """Bytes: a number, or a text such as `64M` (K, M and G are powers of 1024)."""
        value = self._plain(key, default)
        if isinstance(value, str) and value[:-1].isdecimal() and value[-1:] in _UNITS and len(value) < 10:
            value = int(value[:-1]) * _UNITS[value[-1]]
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            self.refuse(key, f"{self._name(key)} must be a size such as 64M, from {lowest} to {highest} bytes")
        return value

    def table(self, key: str) -> "Section | None":
        """A table in it; None when there is none."""
        if self._plain(key, None) is None:
            return None
        self._get(key, dict, "a table", None)
        return Section(self._document, (*self._path, key))

    def tables(self) -> "Iterator[tuple[str, Section]]":
        """What is in it, by name; refuses what is no table."""
        for key in self._values:
            if (table := self.table(key)) is not None:
                yield key, table

    def array(self, key: str) -> "Iterator[Section]":
        """An array of tables, `[[key]]`; empty where there is none."""
        kind = f"an array of tables, each written [[{key}]]"
        values = self._get(key, list, kind, ())
        if not all(isinstance(value, dict) for value in values):
            self.refuse(key, f"{self._name(key)} must be {kind}")
        for index in range(len(values)):
            yield Section(self._document, (*self._path, key, index))

    def value(self, key: str) -> Any:
        """As it stands."""
        return self._values[key]

    def parsed(self, key: str, parse: Callable[[], _T]) -> _T:
        """What a parser of `kmodd.names` makes of it; its refusal becomes one with file and line."""
        try:
            return parse()
        except InvalidArgs as error:
            self.refuse(key, error.message)

    def _fault(self, key: str, sentence: str) -> ConfigurationError:
        hint = f"fix the file, then: {self._document.reload}" if self._document.reload else ""
        return fault(self.file, self.line(key), sentence, hint=hint)

    def _name(self, key: str) -> str:
        """The key with the tables around it, as the file may spell it: `queue.rows`."""
        names = [shown(part, _NAME_MAX) for part in (*self._path, key) if isinstance(part, str) and part]
        return ".".join(names)

    def _plain(self, key: str, default: Any) -> Any:
        self._read.append(key)
        return self._values.get(key, default)

    def _get(self, key: str, kind: type, named: str, default: Any) -> Any:
        value = self._plain(key, default)
        if key not in self._values:
            if default is None:
                raise self.error(f"{key} is missing")
        elif not isinstance(value, kind):
            self.refuse(key, f"{self._name(key)} must be {named}")
        return value

    def _check_text(self, key: str, text: str) -> None:
        if not text.isprintable() or len(text) > TEXT_MAX:
            self.refuse(
                key, f"{self._name(key)} must be one line of at most {TEXT_MAX} characters, without control characters"
            )
