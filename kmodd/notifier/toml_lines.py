# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where in a TOML file each key stands. tomllib reads the values; it does not keep the lines, and a complaint needs them."""

import re
from collections.abc import Iterator, Mapping
from tomllib import loads
from typing import Any

Path = tuple[str | int, ...]
"""Names of tables and keys; the index of one of an array of tables follows its name."""

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|'
    r"'''.*?'{3,5}|"
    r'"(?:\\.|[^"\\\n])*"|'
    r"'[^'\n]*'|"
    r"#[^\n]*|\n|[\[\]{}=]|[^\s\"'#\[\]{}=]+|[ \t\r]+",
    re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """The line of each table and key of valid TOML. Keys within inline tables have none of their own."""
    lines: dict[Path, int] = {}
    table: Path = ()
    counts: dict[Path, int] = {}
    for line, statement in _statements(text):
        if statement.startswith("["):
            path = _path(loads(statement))
            if statement.startswith("[["):
                counts[path] = counts.get(path, -1) + 1
                path = (*path, counts[path])
            table = path
        else:
            path = (*table, *_path(loads(f"{_key(statement)}= 0")))
        lines.setdefault(path, line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each table header and each key with its value, and the line it starts on."""
    line = start = 1
    depth = 0
    parts: list[str] = []
    for match in _TOKEN.finditer(text + "\n"):
        piece = match[0]
        if piece in "[{":
            depth += 1
        elif piece in "]}":
            depth -= 1
        if piece == "\n" and depth <= 0:
            if statement := "".join(parts).strip():
                yield start, statement
            parts, depth = [], 0
        elif not piece.startswith("#"):
            if not parts and not piece.isspace():
                start = line
            if parts or not piece.isspace():
                parts.append(piece)
        line += piece.count("\n")


def _key(statement: str) -> str:
    parts = []
    for match in _TOKEN.finditer(statement):
        if match[0] == "=":
            break
        parts.append(match[0])
    return "".join(parts)


def _path(value: Mapping[str, Any]) -> Path:
    """The one path that leads to the bottom of nested tables with a single key each."""
    path: list[str] = []
    found: Any = value
    while isinstance(found, Mapping) and found:
        ((name, found),) = found.items()
        path.append(name)
    return tuple(path)
