# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads modprobe.d with file and line of every rule, looks up rules by module, and reads changed files before every plan.

libkmod reads the same files but forgets file and line. This reader follows kmod_config_parse, conf_files_list and
freadline_wrapped of libkmod 30 byte for byte. Later versions differ in three corner cases: since 33 files named *.alias are not
read, and in 34 a dangling link does not mask, and a backslash at the end of a file is dropped. The first two are followed
where the library is `newer`.
"""

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kmodd.errors import errno_name
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import NOWHERE, is_reachable, readlink
from kmodd.model import Rule
from kmodd.names import ModuleName
from kmodd.patterns import is_pattern, matches
from kmodd.text import shown

DIRECTORIES = ("etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
"""Below the root, in order of rank: a file masks the files of the same name in the folders after its own."""

DEPMOD_SOFTDEPS = "modules.softdep"
"""Soft dependencies the modules declare themselves; depmod writes it, libkmod reads it among the files of modprobe.d."""

FILE_MAX = 1 << 20
"""Bytes of one file; hundreds of times the largest that is known."""
HIDDEN = ("/tmp", "/var/tmp")  # noqa: S108 - looked at as text only
"""Private directories of kmodd (PrivateTmp= in its unit): files of the system's ones are not visible, and may exist."""
LINE_MAX = 4096
"""Characters kept of a line that is no rule."""
_NULL = os.makedev(1, 3)
"""/dev/null (Documentation/admin-guide/devices.txt of Linux): a link to it masks a file of the same name."""
_SPACE = b"\t "
# What isspace(3) calls so in the C locale.
_C_SPACE = " \t\n\v\f\r"
_C_WORD = re.compile(r"[^ \t\n\v\f\r]+")
_LOGICAL_LINE = re.compile(rb"(?:[^\\\n]|\\(?:.|\Z))*", re.DOTALL)
_BACKSLASH = re.compile(rb"\\(.|\Z)", re.DOTALL)


def is_configuration_name(name: bytes) -> bool:
    """Tell whether libkmod before 33 reads a file of this name."""
    return not name.startswith(b".") and len(name) >= 6 and name.endswith((b".conf", b".alias"))


def is_newer_configuration_name(name: bytes) -> bool:
    """Tell whether libkmod 33 or newer reads a file of this name (conf_files_filter_out in libkmod/libkmod-config.c)."""
    return not name.startswith(b".") and len(name) >= 6 and name.endswith(b".conf")


def is_dangling(path: str | Path | bytes) -> bool:
    """A link that leads nowhere, for modprobe neither."""
    try:
        os.stat(path)  # noqa: PTH116 - called for each file at every change
    except FileNotFoundError:
        return not _leads_out_of_sight(os.fsdecode(path))
    except OSError:
        return False
    return False


def obstacle(path: str | Path) -> str:
    """Why a file of a configuration folder is not read, as a clause; empty for what is, and for what leads nowhere.

    libkmod opens whatever it finds and reads it to its end, so it is given the files without an obstacle only: a FIFO would
    stop the daemon as it stops modprobe.
    """
    return _obstacle(path)[0]


def why_unread(path: str | Path, error: OSError) -> str:
    """Why a file cannot be read, as a clause; empty for one that is not there, for modprobe neither."""
    if error.errno in NOWHERE:
        return "" if not _leads_out_of_sight(path) else f"leads to {_target(path)}, which kmodd cannot see"
    target = _target(path)
    return f"{f'leads to {target}, which ' if target else ''}cannot be read ({errno_name(error.errno or 0)})"


def _target(path: str | Path) -> str:
    return shown(readlink(path))


def _leads_out_of_sight(path: str | Path) -> bool:
    if not _target(path):
        return False
    hidden = tuple(f"{folder}/" for folder in HIDDEN)
    # A directory of rules that is itself one of these is visible, and so are its files.
    return os.path.realpath(path).startswith(hidden) and not os.fspath(path).startswith(hidden)


def _obstacle(path: str | Path) -> tuple[str, bool]:
    """The clause, and whether there may be rules in the file all the same."""
    try:
        status = os.stat(path)  # noqa: PTH116 - for each file at every change
    except OSError as error:
        return why_unread(path, error), True
    if stat.S_ISREG(status.st_mode):
        return (f"is larger than {FILE_MAX >> 20} MiB", True) if status.st_size > FILE_MAX else ("", False)
    if status.st_rdev == _NULL and stat.S_ISCHR(status.st_mode):
        return "", False
    if stat.S_ISFIFO(status.st_mode):
        return "is a FIFO, and modprobe blocks until something writes to it", False
    return "is not a regular file", False


@dataclass(frozen=True, slots=True)
class RuleText:
    """What was read of one file."""

    data: bytes = b""
    public: bool = True
    """Everyone may read this very text; so of one that was not read."""
    obstacle: str = ""
    """Why it was not read, as a clause."""
    unknown: bool = False
    """It was not read, and rules may stand there that modprobe obeys."""


def read_text(path: str | Path, root: Path = Path("/")) -> RuleText:
    """Read one file below `root`. One that is not there, and for modprobe neither, is empty."""
    try:
        # O_NONBLOCK: what became a FIFO meanwhile must not stop the daemon.
        clause, unknown = _obstacle(path)
        if clause:
            return RuleText(obstacle=clause, unknown=unknown)
        with open(path, "rb", opener=_open_at_once) as opened:
            public = bool(os.fstat(opened.fileno()).st_mode & stat.S_IROTH)
            data = opened.read(FILE_MAX + 1)
        if len(data) > FILE_MAX:
            return RuleText(obstacle=f"is larger than {FILE_MAX >> 20} MiB", unknown=True)
        return RuleText(data, public and is_reachable(Path(path), root))
    except OSError as error:
        clause = why_unread(path, error)
        return RuleText(obstacle=clause, unknown=bool(clause))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


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

    They are no rules: the kind is `finding`, and the text is the line, unsafe to show. A comment that takes in a rule by its
    backslash is one of them, with the text of all its lines. `weakdep` is none: libkmod knows it since kmod 33, and where it
    does not, nothing that would be loaded is left out.
    """
    rules = []
    for number, line, raw in _joined_lines(data):
        word = _word(line)[0]
        if not line.strip() or word == b"weakdep":
            continue
        if word.startswith(b"#"):
            if not any(_parse_line(each, file, number) for each in raw.split(b"\\\n")[1:]):
                continue
        elif _parse_line(line, file, number):
            continue
        text = raw if word.startswith(b"#") else line
        rules.append(Rule("finding", "", "", file, number, text.decode("utf-8", "replace")[:LINE_MAX]))
    return rules


def logical_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Join lines as freadline_wrapped does; yields the number of each logical line's first line, from 1.

    A backslash joins when it ends a line, and is swallowed anywhere else. C ends the text of a line at a NUL.
    """
    for number, line, _raw in _joined_lines(data):
        yield number, line


def _joined_lines(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Logical lines, each with the lines of the file that it is made of."""
    number, position = 1, 0
    while position < len(data):
        raw = _LOGICAL_LINE.match(data, position)[0]  # type: ignore[index] # it also matches nothing
        line = _BACKSLASH.sub(_unescape, raw)
        position += len(raw) + 1
        if line or position <= len(data):
            yield number, line.partition(b"\0")[0], raw
        number += raw.count(b"\n") + 1


def _unescape(match: re.Match[bytes]) -> bytes:
    # At the end of the file getc() answers EOF, which libkmod stores as a character.
    return b"" if match[1] == b"\n" else match[1] or b"\xff"


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
            # Passed to the kernel byte by byte, which splits it by its own rules (kmodd.model.arguments).
            value = rest.decode("utf-8", "surrogateescape").replace("\t", " ") or None
        case b"install" | b"remove" | b"softdep":
            value = rest.decode("utf-8", "replace") or None
        case _:
            return None
    if value is None:
        return None
    if kind == b"softdep":
        value = value.rstrip(_C_SPACE)
    elif kind in (b"install", b"remove"):
        value = value.strip(_C_SPACE)
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

    Nothing is cut at a dot: libkmod does that to requested names, not to names in files, so `blacklist loop.ko`
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


_PATTERN_KINDS = frozenset({"install", "remove", "softdep"})
"""Kinds whose module is a pattern for libkmod (fnmatch); blacklist and options are compared letter by letter."""


class ModprobeRules:
    """Rules in reading order: files by name, the kernel's command line last."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.all = tuple(rules)
        self._exact: dict[str, list[int]] = {}
        self._patterns: list[int] = []
        self._answers: dict[ModuleName, tuple[Rule, ...]] = {}
        self._aliases: list[Rule] = []
        self._commands: dict[str, Rule] = {}
        for position, rule in enumerate(self.all):
            if rule.kind == "alias":
                self._aliases.append(rule)
                continue
            if rule.kind in ("install", "remove"):
                self._commands.setdefault(rule.module, rule)
            if rule.kind in _PATTERN_KINDS and is_pattern(rule.module):
                self._patterns.append(position)
            else:
                self._exact.setdefault(rule.module, []).append(position)

    def about(self, name: ModuleName) -> tuple[Rule, ...]:
        """Rules that concern a module, aliases left out. Of several install (or remove, softdep) lines the first acts."""
        rules = self._answers.get(name)
        if rules is None:
            exact = self._exact.get(name, [])
            wild = [position for position in self._patterns if matches(self.all[position].module, name)]
            rules = tuple(self.all[position] for position in (sorted(exact + wild) if wild else exact))
            if rules:  # callers may ask for any name: only those with rules are worth remembering
                self._answers[name] = rules
        return rules

    def aliases(self, name: str) -> tuple[Rule, ...]:
        """Alias lines whose pattern matches the name."""
        return tuple(rule for rule in self._aliases if matches(rule.module, name))

    def has_command(self, name: str) -> bool:
        """Tell whether an `install` or `remove` line has this very name: modprobe then takes it for a module's."""
        return name in self._commands

    def softdeps(self, name: ModuleName) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(pre, post) of the first line about it: kmod_module_get_softdeps stops there and ignores further lines."""
        for rule in self.about(name):
            if rule.kind == "softdep":
                return softdep_names(rule.value)
        return (), ()


_SETTLED_NS = 2_000_000_000
"""Nanoseconds; more than the time stamps of any file system are coarse."""


class ModprobeFolders:
    """Folders of modprobe.d files, each listed again only when it changed.

    Plain texts all through: a Path costs more than the call into the kernel.
    """

    def __init__(self, tree: Path, directories: Sequence[Path], *, newer: bool = False) -> None:
        """`directories` in order of rank, the first masking the next; `tree` holds depmod's soft dependencies.

        `newer` if libkmod is 33 or newer.
        """
        self._newer = newer
        self._accepts = is_newer_configuration_name if newer else is_configuration_name
        self._softdeps = os.fsencode(tree / DEPMOD_SOFTDEPS)
        self._folders = [os.fsencode(directory) for directory in directories]
        self._listed: dict[bytes, tuple[tuple[int, int, int], list[bytes]]] = {}
        self.unreadable: Mapping[str, str] = {}
        """Folders that `files` last could not list, and why as a clause: what stands in them is not known."""

    def files(self) -> list[str]:
        """List the files in effect in the order they are read: by file name, bytewise, whatever directory they are in.

        A dangling link masks as well as a link to /dev/null does, but for a newer libkmod; a folder does not.
        """
        self.unreadable = {}
        files = {DEPMOD_SOFTDEPS.encode(): self._softdeps}
        for folder in self._folders:
            for name in self._names(folder):
                path = folder + b"/" + name
                if name not in files and _is_no_folder(path) and not (self._newer and is_dangling(path)):
                    files[name] = path
        return [os.fsdecode(files[name]) for name in sorted(files)]

    def _names(self, folder: bytes) -> list[bytes]:
        try:
            status = os.stat(folder)  # noqa: PTH116 - see above
            stamp = (status.st_dev, status.st_ino, status.st_ctime_ns)
            listed = self._listed.get(folder)
            if listed is not None and listed[0] == stamp:
                return listed[1]
            now = time.time_ns()
            names = [name for name in os.listdir(folder) if self._accepts(name)]  # noqa: PTH208 - see above
        except OSError as error:
            if error.errno not in NOWHERE:
                self.unreadable = {**self.unreadable, os.fsdecode(folder): why_unread(os.fsdecode(folder), error)}
            return []  # libkmod continues as well: most of these directories do not exist on most systems
        # Two changes within one tick of the file system's clock leave one time stamp, so a listing is kept only if it was
        # made long after the last change. The stamp is set by the kernel and cannot be changed.
        if status.st_ctime_ns < now - _SETTLED_NS:
            self._listed[folder] = stamp, names
        return names


def _is_no_folder(path: bytes) -> bool:
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - see above
    except OSError:
        return True
