# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text of kmodd's own files: header, checksum against manual edits, one block per module; and errors of writing them."""

import errno as codes
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath

from kmodd.core.planning.parameters import read_options
from kmodd.errors import Conflict, Evidence, KmoddError, NotPermitted, errno_name
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Configuration
from kmodd.model import Rule
from kmodd.model.arguments import Arguments, spell
from kmodd.model.rules import ChangedMeanwhileError, ManagedFile, RuleAction, RuleChange
from kmodd.names import ModuleName, is_module_name

_MARK = "# Written by kmodd, which rewrites the whole file: do not edit it, use kmodctl(1) "
MARK = f"{_MARK}config.\n"
SURFACE_MARK = f"{_MARK}surface.\n"
_ADVICE = "# Put other lines into another file in this directory. After an edit kmodd no longer changes this file.\n"
_SUM = "# Checksum: sha256:"
REASON = "# Reason: "

REFUSAL = "/bin/false"
"""What a hard blacklisting has modprobe run in place of loading, and the only thing an `install` line of ours ever runs.

modprobe.d has no other word for "not by name either". It is the spelling everybody knows, kmodd's own policy included.
"""
NO_SOFTDEPS = "pre:"
"""An empty list of soft dependencies. libkmod drops the `install` line of a module that has any (kmod issue 446), and takes the
first `softdep` line it reads: this one, for the file sorts before depmod's modules.softdep.
"""
DIFFERENCE_MAX = 20
"""Lines of an edit that are shown."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one of our files says about one module."""

    parameters: Arguments = ()
    hard: bool = False
    reason: str = ""


Entries = Mapping[ModuleName, Entry]


def render(file: ManagedFile, entries: Entries) -> bytes | None:
    """The whole text; None when nothing is left to say, and so no file."""
    if not entries:
        return None
    return framed("".join(f"\n{_block(file, module, entry)}" for module, entry in entries.items()), MARK)


def framed(text: str, mark: str) -> bytes:
    """A body below the header of a file of ours."""
    body = text.encode()
    return f"{mark}{_ADVICE}{_SUM}{_checksum(body)}\n".encode() + body


def is_ours(text: bytes) -> bool:
    """Tell whether kmodd wrote the file, edited or not."""
    return text.startswith((MARK.encode(), SURFACE_MARK.encode()))


def is_intact(text: bytes) -> bool:
    """Tell whether the file is as kmodd wrote it."""
    mark, _, rest = text.partition(b"\n")
    head = f"{_ADVICE}{_SUM}".encode()
    checksum, _, body = rest[len(head) :].partition(b"\n")
    return is_ours(mark + b"\n") and rest.startswith(head) and checksum == _checksum(body).encode()


def is_harmless(rules: Iterable[Rule]) -> bool:
    """Tell whether these are lines kmodd may write: no patterns, and no command but the refusal."""
    return all(
        is_module_name(rule.module)
        and (
            rule.kind in {"autoload", "blacklist", "options"}
            or (rule.kind, rule.value) in {("install", REFUSAL), ("softdep", NO_SOFTDEPS)}
        )
        for rule in rules
    )


def body_of(text: bytes) -> bytes:
    """An intact file without its header."""
    return text.split(b"\n", 3)[3]


def parse(file: ManagedFile, text: bytes, rules: Iterable[Rule]) -> dict[ModuleName, Entry]:
    """Read an intact file back; `rules` is the text as its readers understand it."""
    reasons = _reasons(text.decode("utf-8", "replace"))
    entries: dict[ModuleName, Entry] = {}
    rules = tuple(rules)
    # A file of before has no such lines, and does not hold for modules with soft dependencies.
    without_softdeps = {rule.module for rule in rules if rule.kind == "softdep"}
    for rule in rules:
        name = ModuleName(rule.module)
        reason = reasons.get(rule.line, "")
        if file is ManagedFile.OPTIONS:
            entries[name] = Entry(read_options([rule]).pairs, reason=reason)
        elif rule.kind == "softdep":
            continue
        elif rule.kind == "install":
            hard = rule.module in without_softdeps
            entries[name] = Entry(hard=hard, reason=entries[name].reason if name in entries else reason)
        else:
            entries[name] = Entry(reason=reason)
    return entries


def difference(written: bytes, edited: bytes) -> tuple[str, ...]:
    """What an edit changed, as the lines of a unified diff without its head; a bounded number of them."""
    # Imported here: these files are hardly ever edited.
    from difflib import unified_diff

    before, after = (text.decode("utf-8", "replace").expandtabs(1).splitlines() for text in (written, edited))
    lines = unified_diff(before, after, n=0, lineterm="")
    changed = [line for line in lines if line[:3] not in {"---", "+++"}]
    more = len(changed) - DIFFERENCE_MAX
    return (*changed[:DIFFERENCE_MAX], *((f"… and {more} more lines",) if more > 0 else ()))


def _block(file: ManagedFile, module: ModuleName, entry: Entry) -> str:
    # A tab and not a space: for all readers it is the same, but Ansible's community.general.modprobe comments out every
    # `options NAME PARAMETER=VALUE` and every line with a module's name in all files of these folders when it is to forget
    # that module, and by its patterns only spaces stand there. Its own files decide for it, and ours for us.
    reason = f"{REASON}{escaped(entry.reason)}\n" if entry.reason else ""
    match file:
        case ManagedFile.AUTOLOAD:
            return f"{reason}\t{module}\n"
        case ManagedFile.OPTIONS:
            return f"{reason}options\t{module} {escaped(spell(entry.parameters))}\n"
        case ManagedFile.BLACKLIST | ManagedFile.SURFACE | ManagedFile.SURFACE_TRIAL:
            hard = f"softdep {module} {NO_SOFTDEPS}\ninstall {module} {REFUSAL}\n" if entry.hard else ""
            return f"{reason}blacklist {module}\n{hard}"


def escaped(text: str) -> str:
    # A backslash joins lines and vanishes anywhere else in modprobe.d, in comments too.
    return text.replace("\\", "\\\\")


def _reasons(text: str) -> dict[int, str]:
    """The reason above each line, by the line's number."""
    lines = text.split("\n")
    return {
        number + 1: line.removeprefix(REASON).replace("\\\\", "\\")
        for number, line in enumerate(lines, 1)
        if line.startswith(REASON)
    }


def _checksum(body: bytes) -> str:
    # Imported here: it costs a daemon that never writes a file a megabyte.
    from hashlib import sha256

    return sha256(body).hexdigest()


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file's text before and after; None where there is no file."""

    file: ManagedFile
    old: bytes | None
    new: bytes | None


def files_of(change: RuleChange) -> tuple[ManagedFile, ...]:
    """The files a change concerns, in the order they are written."""
    match change.action:
        case RuleAction.ENABLE_AUTOLOAD if change.parameters:
            # Options first: were it the other way round, a crash in between would load it without them.
            return ManagedFile.OPTIONS, ManagedFile.AUTOLOAD
        case RuleAction.ENABLE_AUTOLOAD | RuleAction.DISABLE_AUTOLOAD:
            return (ManagedFile.AUTOLOAD,)
        case RuleAction.SET_OPTIONS:
            return (ManagedFile.OPTIONS,)
        case RuleAction.BLACKLIST | RuleAction.BLACKLIST_HARD | RuleAction.UNBLACKLIST:
            return (ManagedFile.BLACKLIST,)


def amend(file: ManagedFile, entries: Entries, change: RuleChange) -> dict[ModuleName, Entry]:
    """The entries as the change wants them; what is so already keeps the reason it was given."""
    present = entries.get(change.module)
    wanted = _wanted(file, present, change)
    others = {name: entry for name, entry in entries.items() if name != change.module}
    if wanted is None:
        return others
    if present is not None and not change.reason and replace(present, reason="") == wanted:
        return dict(entries)
    if present is None:
        return {**others, change.module: wanted}
    return {name: wanted if name == change.module else entry for name, entry in entries.items()}


def _wanted(file: ManagedFile, entry: Entry | None, change: RuleChange) -> Entry | None:
    match change.action:
        case RuleAction.DISABLE_AUTOLOAD | RuleAction.UNBLACKLIST:
            return None
        case RuleAction.SET_OPTIONS:
            return Entry(change.parameters, reason=change.reason) if change.parameters else None
        case RuleAction.BLACKLIST | RuleAction.BLACKLIST_HARD:
            return Entry(hard=change.action is RuleAction.BLACKLIST_HARD, reason=change.reason)
        case RuleAction.ENABLE_AUTOLOAD if file is ManagedFile.OPTIONS:
            set_already = dict(entry.parameters) if entry is not None else {}
            return Entry(tuple({**set_already, **dict(change.parameters)}.items()), reason=change.reason)
        case RuleAction.ENABLE_AUTOLOAD:
            return Entry(reason=change.reason)


_FULL = frozenset({codes.ENOSPC, codes.EDQUOT})
_DENIED = frozenset({codes.EACCES, codes.EPERM})
_NO_FILE = frozenset({codes.EISDIR, codes.ENOTDIR, codes.ENXIO, codes.EFBIG})


def refusal(file: ManagedFile, error: OSError) -> KmoddError:
    """Make the error for what the system answered."""
    number = error.errno or 0
    folder = PurePosixPath(file).parent
    if number == codes.ELOOP:
        return _conflict(file, number, f"{file} is a symbolic link, which kmodd neither follows nor replaces")
    if number in _NO_FILE:
        return _conflict(file, number, f"{file} is not a file that kmodd wrote")
    hint = "journalctl -k"
    if number == codes.EROFS:
        # The daemon's mount namespace keeps everything read-only but the folders of ReadWritePaths= as they were at its start:
        # one that takes the place of such a folder is read there, and not written.
        sentence = f"{folder} is on a read-only file system"
        hint = f"findmnt -T {folder}; if it is mounted rw the directory was replaced: systemctl restart kmodd"
    elif number in _FULL:
        sentence, hint = f"no space left to write {file}", f"df -h {folder}; df -i {folder}"
    elif number in _DENIED:
        sentence, hint = f"{file} may not be written", f"lsattr -d {folder}; systemctl show kmodd -p ReadWritePaths"
    elif number == codes.ENOENT:
        sentence, hint = f"no such directory: {folder}", f"mkdir -m 0755 {folder}, then systemctl restart kmodd"
    else:
        sentence = f"{file} cannot be written ({errno_name(number)})"
    return NotPermitted(sentence, evidence=Evidence(errno=number or None, file=file, hint=hint))


def foreign(file: ManagedFile) -> Conflict:
    """Make the error for a file of this name that another program wrote."""
    return Conflict(
        f"{file} was not written by kmodd, and is not changed",
        evidence=Evidence(file=file, hint=f"give {file} another name in the same folder"),
    )


def edited(file: ManagedFile, difference: Sequence[str]) -> Conflict:
    """Make the error for a file of ours that was edited by hand; what was edited stands in the hint."""
    shown = f": {' | '.join(difference)}" if difference else ""
    return Conflict(
        f"{file} was edited since kmodd wrote it",
        evidence=Evidence(
            file=file,
            hint=f"move the lines that were added to another file in the same folder, and remove {file} or undo the "
            f"edit{shown}",
        ),
    )


def _conflict(file: ManagedFile, number: int, sentence: str) -> Conflict:
    return Conflict(sentence, evidence=Evidence(errno=number, file=file, hint=f"ls -l {file}"))


def edit_of(folders: Configuration, file: ManagedFile, text: bytes) -> tuple[str, ...]:
    """How the file differs from what kmodd wrote, as far as everyone may read it."""
    written = folders.remembered(file)
    # Checked after the read: of a file that was made private first and edited then, nothing may be shown.
    return () if written is None or not folders.is_public(file) else difference(written, text)


def replace_file(folders: Configuration, file: ManagedFile, new: bytes | None, old: bytes | None) -> None:
    """Write the file where it still has the old text; Conflict where it has not, else `refusal`."""
    try:
        folders.write(file, new, expected=old)
    except ChangedMeanwhileError as error:
        raise Conflict(
            f"{file} was changed by another program at the same time",
            evidence=Evidence(file=file, hint="check the file, then try again"),
        ) from error
    except OSError as error:
        raise refusal(file, error) from error
    # The copy only serves to show an edit: the change stands without it.
    with suppress(OSError):
        folders.remember(file, new)
