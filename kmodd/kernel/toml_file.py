# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML files with the line of every key, and which of them are in force.

tomllib reads the values and says where text is no TOML; what it does not keep is where a key stood, and without that a
wrong setting cannot be pointed at. `_Scanner` finds the keys again, in text that tomllib has found to be right.
"""

import os
import re
import stat
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kmodd.errors import Conflict, Evidence
from kmodd.kernel.smallfile import listdir, read_all, shown
from kmodd.model.document import Document

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

_Keys = tuple[str, ...]
_Stamp = tuple[str, int, int, int, int]


def fault(file: str, line: int, sentence: str, *, hint: str = "") -> Conflict:
    """The error for a settings file that cannot be used: a conflict between it and what kmodd understands."""
    return Conflict(
        f"{shown(file)}, line {line}: {sentence}",
        argument=shown(file),
        evidence=Evidence(file=shown(file), line=line, hint=hint or "mend the file, then: kmodctl config reload"),
    )


def parse_document(text: str, file: str) -> Document:
    """Parse the text of one file; Conflict names file and line."""
    # Imported here: most machines have no settings file, and the parser costs memory.
    from tomllib import TOMLDecodeError, loads

    text = text.replace("\r\n", "\n")
    try:
        values = loads(text)
        lines = _Scanner(text).scan()
    except TOMLDecodeError as error:
        where = _AT_LINE.search(str(error))
        line = int(where[1]) if where else text.count("\n") + 1
        raise fault(file, line, f"this is no TOML ({shown(str(error).partition(' (at')[0], 120)})") from None
    except (RecursionError, ValueError) as error:
        # Nested deeper than Python's stack; a number of thousands of digits, a date that does not exist.
        raise fault(file, 1, "this is no TOML that kmodd reads (nested too deep, or an impossible value)") from error
    return Document(file, values, lines)


def read_document(path: Path) -> Document | None:
    """Read one file; None for one that is empty, which masks. Conflict when it cannot be read or is no TOML."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise fault(str(path), 1, f"the file cannot be read ({error.strerror})") from error
    try:
        found = os.fstat(handle)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3):
            return None  # a link to /dev/null masks
        if not stat.S_ISREG(found.st_mode):
            raise fault(str(path), 1, "this is no regular file")
        if others := other_writers(found):
            hint = f"chown root {shown(str(path))}; chmod o-w {shown(str(path))}"
            raise fault(str(path), 1, f"{others} can write this file, so it is not root's word", hint=hint)
        data = read_all(handle, FILE_MAX + 1)
    except OSError as error:
        raise fault(str(path), 1, f"the file cannot be read ({error.strerror})") from error
    finally:
        os.close(handle)
    if len(data) > FILE_MAX:
        raise fault(str(path), 1, f"the file is larger than {FILE_MAX} bytes")
    if not data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise fault(str(path), data[: error.start].count(b"\n") + 1, "this is no UTF-8") from error
    return replace(parse_document(text, str(path)), public=bool(found.st_mode & stat.S_IROTH))


def other_writers(found: os.stat_result) -> str:
    """Who besides root (and who runs this) can write a file; empty for nobody. A group is of root's choosing."""
    if found.st_mode & stat.S_IWOTH:
        return "everybody"
    return "" if found.st_uid in (0, os.geteuid()) else f"uid {found.st_uid}"


class DropIns:
    """A settings file with its drop-ins, or a folder of files, found in several places as systemd finds its own."""

    def __init__(self, root: Path, folder: str, *, main: str = "", places: Sequence[str] = FOLDERS) -> None:
        """`folder` holds the drop-ins, such as `kmodd.toml.d`; `main` is the file before them, or empty for none."""
        self._places = [root / place for place in places]
        self._folder = folder
        self._main = main
        self._stamps: list[_Stamp] | None = None

    def files(self) -> list[Path]:
        """The files in force in reading order: the main file, then the drop-ins by name whatever folder they stand in."""
        found: dict[str, Path] = {}
        for place in self._places:
            for name in listdir(place / self._folder):
                if name.endswith(".toml") and not name.startswith("."):
                    found.setdefault(name, place / self._folder / name)
        main = next((place / self._main for place in self._places if os.path.lexists(place / self._main)), None)
        first = [main] if self._main and main is not None else []
        return [*first, *(found[name] for name in sorted(found))]

    def changed(self) -> bool:
        """A file was added, removed or written since `read`: a few listings and one stat for each file."""
        return self._stamps != [_stamp(path) for path in self.files()]

    def read(self) -> tuple[Document, ...]:
        """Every document in force; Conflict for the first that is bad. Bad files count as read: `changed` is about news."""
        files = self.files()
        # Taken before anything is read: what changes meanwhile is seen the next time.
        self._stamps = [_stamp(path) for path in files]
        if len(files) > FILES_MAX:
            raise fault(str(files[0].parent), 1, f"there are more than {FILES_MAX} files")
        documents = (read_document(path) for path in files)
        return tuple(document for document in documents if document is not None)


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return (str(path), 0, 0, 0, 0)
    return (str(path), found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)


class _Scanner:
    """Walks over valid TOML and notes the line of every key."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[_Keys, int] = {}

    def scan(self) -> dict[_Keys, int]:
        """All keys by their paths. Tables of an array share one path, the first one's lines count."""
        table: _Keys = ()
        self._skip(_SPACE)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                self._at += 2 if self._text.startswith("[[", self._at) else 1
                table = self._key(())
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

    def _key(self, table: _Keys) -> _Keys:
        path = table
        while True:
            self._skip(_INLINE_SPACE)
            line = bisect_right(self._starts, self._at)
            path = (*path, self._name())
            self._lines.setdefault(path, line)
            self._skip(_INLINE_SPACE)
            if not self._text.startswith(".", self._at):
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
            while self._text[self._at] != "]":
                self._value(path)
                self._separator()
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
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError("the scanner lost its way")
        self._at = found.end()
        return found[0]
