# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which line of which modprobe.d file is in force.

libkmod reads the same files but forgets where a line stood. This reader follows kmod_config_parse, conf_files_list and
freadline_wrapped of libkmod 30 byte for byte, so that each rule can be answered for by file and line. After version 34
libkmod differs in three corners: files named *.alias are not read, a dangling link does not mask, and a backslash that
ends a file vanishes.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.smallfile import shown
from kmodd.model import Rule

DIRECTORIES = ("etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
"""Below the root, in order of rank: a file masks the files of the same name in the folders after its own."""

DEPMOD_SOFTDEPS = "modules.softdep"
"""Soft dependencies the modules declare themselves; depmod writes it, libkmod reads it among the files of modprobe.d."""

_SPACE = b"\t "
# What isspace(3) calls so in the C locale.
_C_SPACE = " \t\n\v\f\r"
_C_WORD = re.compile(r"[^ \t\n\v\f\r]+")
_LOGICAL_LINE = re.compile(rb"(?:[^\\\n]|\\(?:.|\Z))*", re.DOTALL)
_BACKSLASH = re.compile(rb"\\(.|\Z)", re.DOTALL)


def is_configuration_name(name: bytes) -> bool:
    """Tell whether libkmod reads a file of this name."""
    return not name.startswith(b".") and len(name) >= 6 and name.endswith((b".conf", b".alias"))


def read_rules(file: str | Path) -> list[Rule]:
    """Read the rules of one file; none when it cannot be read, as for libkmod."""
    data, public = read_text(Path(file))
    return parse_rules(data, str(file), public=public)


def read_text(path: Path) -> tuple[bytes, bool]:
    """The text of one file, empty when it cannot be read, and whether everyone may read that very text."""
    try:
        # Only regular files and /dev/null end by themselves: a FIFO would stop the daemon.
        if not (path.is_file() or path.samefile(os.devnull)):
            return b"", True
        with path.open("rb") as opened:
            return opened.read(), bool(os.fstat(opened.fileno()).st_mode & stat.S_IROTH)
    except OSError:
        return b"", True


def parse_rules(data: bytes, file: str, *, public: bool = True) -> list[Rule]:
    """Parse the text of one file; lines libkmod ignores as bad give no rule."""
    rules = []
    for number, line in logical_lines(data):
        rule = _parse_line(line, file, number, public=public)
        if rule is not None:
            rules.append(rule)
    return rules


def ignored_lines(data: bytes, file: str) -> list[Rule]:
    """Find the lines libkmod reads over: an unknown word, or a known one without what belongs behind it.

    They are no rules: the kind is `finding`, and the text is the first word, safe to show. `weakdep` is none of them: libkmod
    knows it since kmod 33, and where it does not, nothing that would be loaded is left out.
    """
    found = []
    for number, line in logical_lines(data):
        word = _word(line)[0]
        if not line.strip() or word.startswith(b"#") or word == b"weakdep" or _parse_line(line, file, number):
            continue
        found.append(Rule("finding", "", "", file, number, shown(word.decode("utf-8", "replace"), 40)))
    return found


def logical_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Join lines as freadline_wrapped does; yields the number of each logical line's first line, from 1.

    A backslash joins when it ends a line, and is swallowed anywhere else. C ends the text of a line at a NUL.
    """
    number, position = 1, 0
    while position < len(data):
        raw = _LOGICAL_LINE.match(data, position)[0]  # type: ignore[index] # it also matches nothing
        line = _BACKSLASH.sub(_unescape, raw)
        position += len(raw) + 1
        if line or position <= len(data):
            yield number, line.partition(b"\0")[0]
        number += raw.count(b"\n") + 1


def _unescape(found: re.Match[bytes]) -> bytes:
    # At the end of the file getc() answers EOF, which libkmod stores as a character.
    return b"" if found[1] == b"\n" else found[1] or b"\xff"


def _parse_line(line: bytes, file: str, number: int, *, public: bool = True) -> Rule | None:
    if line.startswith(b"#"):
        return None
    kind, rest = _word(line)
    name, rest = _word(rest)
    module = normalise(name.decode("utf-8", "replace"))
    if not name or module is None:
        return None
    match kind:
        case b"blacklist":
            value: str | None = ""
        case b"alias":
            target, _ = _word(rest)
            value = normalise(target.decode("utf-8", "replace")) or None
        case b"options":
            value = rest.decode("utf-8", "replace").replace("\t", " ") or None
        case b"install" | b"remove" | b"softdep":
            value = rest.decode("utf-8", "replace") or None
        case _:
            return None
    if value is None:
        return None
    value = value.rstrip(_C_SPACE) if kind == b"softdep" else value.strip(_C_SPACE)
    return Rule(kind.decode(), module, value, file, number, line.decode("utf-8", "replace").strip(), public)


def _word(text: bytes) -> tuple[bytes, bytes]:
    """Take a word off as strtok_r does; the rest starts after the one separator that ended it."""
    text = text.lstrip(_SPACE)
    for position, byte in enumerate(text):
        if byte in _SPACE:
            return text[:position], text[position + 1 :]
    return text, b""


def normalise(name: str) -> str | None:
    """Spell `-` as `_` except inside `[…]`; None for brackets that do not pair, as underscores() of libkmod.

    Nothing is cut at a dot: libkmod does that to names it is asked for, not to names in files, so `blacklist loop.ko`
    concerns no module.
    """
    if "[" not in name and "]" not in name:
        return name.replace("-", "_")
    out, rest = [], name
    while rest:
        plain, bracket, rest = rest.partition("[")
        if "]" in plain:
            return None
        out.append(plain.replace("-", "_"))
        if bracket:
            inside, closing, rest = rest.partition("]")
            if not closing:
                return None
            out.append(f"[{inside}]")
    return "".join(out)


def softdep_names(value: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split `pre: a b post: c` into (pre, post); words before the first of the two count for nothing."""
    pre: list[str] = []
    post: list[str] = []
    into: list[str] | None = None
    words = _C_WORD.findall(value)
    if words and value.find(words[0]) == 1:
        words[0] = value[0] + words[0]  # libkmod keeps one single leading space as part of the first word
    for word in words:
        if word == "pre:":
            into = pre
        elif word == "post:":
            into = post
        elif into is not None:
            into.append(word)
    return tuple(pre), tuple(post)
