# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML files with the line of every key, and which of them are in effect.

tomllib reads the values and reports where text is not TOML. It does not keep the line of a key, which errors need:
`_Scanner` finds the keys again, in text that tomllib has accepted.
"""

import os
import re
import shlex
import stat
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kmodd.config.section import ConfigurationError, fault
from kmodd.errors import Conflict
from kmodd.kernel.files import NOWHERE, is_reachable, read_all
from kmodd.model.settings import Document
from kmodd.text import shown

FILE_MAX = 1 << 18
"""Bytes of one file."""
FILES_MAX = 1024
FOLDERS = ("etc/kmodd", "run/kmodd", "usr/local/lib/kmodd", "usr/lib/kmodd")
"""Below the root, in order of rank: a file masks those of the same name in the folders after its own, as for systemd."""

_SPACE = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_INLINE_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}(?!")' + r"|'''.*?'{3,5}(?!')" + r'|"(?:\\.|[^"\\\n])*"' + r"|'[^'\n]*'", re.DOTALL
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\[\]{}#\n]+")
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)$")

_Keys = tuple[str | int, ...]
_Stamp = tuple[str, int, int, int, int]


RELOAD = "kmodctl config reload"
"""The command that makes the daemon read its files again."""


def parse_document(text: str, file: str, *, reload: str = RELOAD) -> Document:
    """Parse the text of one file; ConfigurationError names file and line. `reload` is the command that has it read again."""
    # Imported here: most machines have no settings file, and the parser costs memory.
    from tomllib import TOMLDecodeError, loads

    text = text.replace("\r\n", "\n")
    try:
        values = loads(text)
        lines = _Scanner(text).scan()
    except TOMLDecodeError as error:
        where = _AT_LINE.search(str(error))
        line = int(where[1]) if where else text.count("\n") + 1
        sentence = f"invalid TOML ({shown(str(error).partition(' (at')[0], 120)})"
        raise fault(file, line, sentence, hint=_hint(reload)) from None
    except (RecursionError, ValueError) as error:
        # Nested deeper than Python's stack; a number of thousands of digits, a date that does not exist.
        sentence = "invalid TOML (nested too deep, or an impossible value)"
        raise fault(file, 1, sentence, hint=_hint(reload)) from error
    return Document(file, values, lines, reload=reload)


def _hint(reload: str) -> str:
    return f"fix the file, then: {reload}"


def read_document(path: Path, root: Path = Path("/"), *, reload: str = RELOAD) -> Document | None:
    """Read one file below `root`; None for one that is empty, which masks.

    ConfigurationError when it cannot be read, others than root can write it, or it is not TOML. OSError never.
    """

    def refuse(sentence: str, line: int = 1) -> ConfigurationError:
        return fault(str(path), line, sentence, hint=_hint(reload))

    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise refuse(f"the file cannot be read ({error.strerror})") from error
    try:
        status = os.fstat(handle)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3):
            return None  # a link to /dev/null masks
        if not stat.S_ISREG(status.st_mode):
            raise refuse("not a regular file")
        if others := other_writers(status):
            # Who can write the file may have chosen its name as well, and this is run by root.
            name = shlex.quote(shown(str(path)))
            hint = f"chown root {name}; chmod o-w {name}"
            raise fault(
                str(path), 1, f"file is writable by {others}; it must be owned and writable by root only", hint=hint
            )
        data = read_all(handle, FILE_MAX + 1)
    except OSError as error:
        raise refuse(f"the file cannot be read ({error.strerror})") from error
    finally:
        os.close(handle)
    if len(data) > FILE_MAX:
        raise refuse(f"the file is larger than {FILE_MAX} bytes")
    if not data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse("not valid UTF-8", data[: error.start].count(b"\n") + 1) from error
    public = bool(status.st_mode & stat.S_IROTH) and is_reachable(path, root)
    return replace(parse_document(text, str(path), reload=reload), public=public)


def other_writers(status: os.stat_result) -> str:
    """The users besides root (and this process's own) who can write a file; empty for none. A group is root's choice."""
    if status.st_mode & stat.S_IWOTH:
        return "everybody"
    return "" if status.st_uid in (0, os.geteuid()) else f"uid {status.st_uid}"


class DropIns:
    """A settings file with its drop-ins, or a folder of files, found in several places as systemd finds its own."""

    def __init__(
        self, root: Path, folder: str, *, main: str = "", places: Sequence[str] = FOLDERS, reload: str = RELOAD
    ) -> None:
        """`folder` holds the drop-ins, such as `kmodd.toml.d`; `main` is the file before them, or empty for none.

        `reload` is the command that has them read again.
        """
        self._reload = reload
        self._root = root
        self._places = [root / place for place in places]
        self._folder = folder
        self._main = main
        self._stamps: list[_Stamp] | None = None

    def files(self) -> list[Path]:
        """The files in effect in reading order: the main file, then the drop-ins by name, whatever directory they are in.

        Conflict when a folder cannot be read: any file may stand there.
        """
        by_name: dict[str, Path] = {}
        for place in self._places:
            for name in self._names(place / self._folder):
                if name.endswith(".toml") and not name.startswith("."):
                    by_name.setdefault(name, place / self._folder / name)
        main = next(
            (place / self._main for place in self._places if self._main and self._is_there(place / self._main)), None
        )
        return [*([main] if main is not None else []), *(by_name[name] for name in sorted(by_name))]

    def changed(self) -> bool:
        """A file was added, removed or written since `read`: a few listings and one stat for each file."""
        try:
            return self._stamps != [_stamp(path) for path in self.files()]
        except Conflict as error:
            return self._stamps != _stamps_of(error)

    def read(self) -> tuple[Document, ...]:
        """Every document in effect; Conflict for the first invalid one. Invalid files count as read: `changed` is about news."""
        try:
            files = self.files()
        except Conflict as error:
            self._stamps = _stamps_of(error)
            raise
        # Taken before anything is read: what changes meanwhile is seen the next time.
        self._stamps = [_stamp(path) for path in files]
        if len(files) > FILES_MAX:
            raise fault(str(files[0].parent), 1, f"there are more than {FILES_MAX} files", hint=_hint(self._reload))
        documents = (read_document(path, self._root, reload=self._reload) for path in files)
        return tuple(document for document in documents if document is not None)

    def _names(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)  # noqa: PTH208 - names, not paths
        except OSError as error:
            if error.errno in NOWHERE:
                return []
            sentence = f"the folder cannot be read ({error.strerror})"
            raise fault(str(folder), 1, sentence, hint=_hint(self._reload)) from error

    def _is_there(self, path: Path) -> bool:
        """There is a file, or a link that leads nowhere."""
        try:
            path.lstat()
        except OSError as error:
            if error.errno in NOWHERE:
                return False
            sentence = f"the file cannot be read ({error.strerror})"
            raise fault(str(path), 1, sentence, hint=_hint(self._reload)) from error
        return True


def _stamps_of(error: Conflict) -> list[_Stamp]:
    """What stands for files that could not be listed: the same fault is no news."""
    return [(error.message, 0, 0, 0, 0)]


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return (str(path), 0, 0, 0, 0)
    return (str(path), status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)


class _Scanner:
    """Walks over valid TOML and notes the line of every key."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[_Keys, int] = {}
        self._last: dict[_Keys, int] = {}
        """Of each array of tables, the index of the table that was opened last."""

    def scan(self) -> dict[_Keys, int]:
        """All keys by their paths; the index of a table in an array is a part of the path."""
        table: _Keys = ()
        self._skip(_SPACE)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                is_array = self._text.startswith("[[", self._at)
                self._at += 2 if is_array else 1
                table = self._key((), opens=is_array)
                self._at = self._text.index("]", self._at)
                while self._text.startswith("]", self._at):
                    self._at += 1
            else:
                self._pair(table)
            self._skip(_SPACE)
        return self._lines

    def _pair(self, table: _Keys) -> None:
        path = self._key(table)
        self._at = self._text.index("=", self._at) + 1
        self._skip(_INLINE_SPACE)
        self._value(path)

    def _key(self, table: _Keys, *, opens: bool = False) -> _Keys:
        """Read a key inside a table; `opens` for one that opens the next table of an array."""
        path = table
        while True:
            self._skip(_INLINE_SPACE)
            line = bisect_right(self._starts, self._at)
            path = (*path, self._name())
            self._lines.setdefault(path, line)
            self._skip(_INLINE_SPACE)
            is_last = not self._text.startswith(".", self._at)
            if is_last and opens:
                self._last[path] = self._last.get(path, -1) + 1
            if path in self._last:
                path = (*path, self._last[path])
                self._lines.setdefault(path, line)
            if is_last:
                return path
            self._at += 1

    def _name(self) -> str:
        bare = _BARE_KEY.match(self._text, self._at)
        if bare is not None:
            self._at = bare.end()
            return bare[0]
        quoted = self._take(_STRING)
        if quoted[0] == "'":
            return quoted[1:-1]
        from tomllib import loads

        return str(loads(f"name = {quoted}")["name"])

    def _value(self, path: _Keys) -> None:
        opening = self._text[self._at]
        if opening in "\"'":
            self._take(_STRING)
        elif opening == "[":
            self._at += 1
            self._skip(_SPACE)
            index = 0
            while self._text[self._at] != "]":
                if self._text[self._at] == "{":
                    self._lines.setdefault((*path, index), bisect_right(self._starts, self._at))
                self._value((*path, index))
                self._separator()
                index += 1
            self._at += 1
        elif opening == "{":
            self._at += 1
            self._skip(_SPACE)
            while self._text[self._at] != "}":
                self._pair(path)
                self._separator()
            self._at += 1
        else:
            self._take(_BARE_VALUE)

    def _separator(self) -> None:
        self._skip(_SPACE)
        if self._text[self._at] == ",":
            self._at += 1
            self._skip(_SPACE)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError("the scanner is out of step")
        self._at = match.end()
        return match[0]
