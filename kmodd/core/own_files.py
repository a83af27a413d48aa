# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text of the files kmodd writes: a header, a checksum that tells an edit, and one block for each module."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmodd.core.arguments import spell, split_options
from kmodd.model import Rule
from kmodd.model.configuration import OwnFile
from kmodd.names import ModuleName, is_module_name

Pairs = tuple[tuple[str, str], ...]

MARK = "# Written by kmodd, which replaces this file as a whole: do not edit it, kmodctl(1) config changes it.\n"
_ADVICE = "# Lines of your own belong into another file in this folder. After an edit kmodd leaves this one alone.\n"
_SUM = "# Checksum: sha256:"
_REASON = "# Reason: "

REFUSAL = "/bin/false"
"""What a hard blacklisting has modprobe run in place of loading, and the only thing an `install` line of ours ever runs.

modprobe.d has no other word for "not by name either". It is the spelling everybody knows, kmodd's own policy included.
"""
DIFFERENCE_MAX = 20
"""Lines of an edit that are shown."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one of our files says about one module."""

    parameters: Pairs = ()
    hard: bool = False
    reason: str = ""


Entries = Mapping[ModuleName, Entry]


def render(file: OwnFile, entries: Entries) -> bytes | None:
    """The whole text; None when nothing is left to say, and so no file."""
    if not entries:
        return None
    body = "".join(f"\n{_block(file, module, entry)}" for module, entry in entries.items()).encode()
    return f"{MARK}{_ADVICE}{_SUM}{_checksum(body)}\n".encode() + body


def is_ours(text: bytes) -> bool:
    """Tell whether kmodd wrote the file, edited or not."""
    return text.startswith(MARK.encode())


def is_intact(text: bytes) -> bool:
    """Tell whether the file is as kmodd wrote it."""
    head = f"{MARK}{_ADVICE}{_SUM}".encode()
    checksum, _, body = text[len(head) :].partition(b"\n")
    return text.startswith(head) and checksum == _checksum(body).encode()


def is_harmless(rules: Iterable[Rule]) -> bool:
    """Tell whether these are lines kmodd may write: no patterns, and no command but the refusal."""
    return all(
        is_module_name(rule.module)
        and (rule.kind in {"autoload", "blacklist", "options"} or (rule.kind == "install" and rule.value == REFUSAL))
        for rule in rules
    )


def parse(file: OwnFile, text: bytes, rules: Iterable[Rule]) -> dict[ModuleName, Entry]:
    """Read an intact file back; `rules` is the text as its readers understand it."""
    reasons = _reasons(text.decode("utf-8", "replace"))
    entries: dict[ModuleName, Entry] = {}
    for rule in rules:
        name = ModuleName(rule.module)
        reason = reasons.get(rule.line, "")
        if file is OwnFile.OPTIONS:
            entries[name] = Entry(split_options(rule.value), reason=reason)
        elif rule.kind == "install":
            entries[name] = Entry(hard=True, reason=entries[name].reason if name in entries else reason)
        else:
            entries[name] = Entry(reason=reason)
    return entries


def difference(written: bytes, edited: bytes) -> tuple[str, ...]:
    """What an edit changed, as the lines of a unified diff without its head; a bounded number of them."""
    # Imported here: hardly anybody edits these files.
    from difflib import unified_diff

    before, after = (text.decode("utf-8", "replace").expandtabs(1).splitlines() for text in (written, edited))
    lines = unified_diff(before, after, n=0, lineterm="")
    changed = [line for line in lines if line[:3] not in {"---", "+++"}]
    more = len(changed) - DIFFERENCE_MAX
    return (*changed[:DIFFERENCE_MAX], *((f"… and {more} lines more",) if more > 0 else ()))


def _block(file: OwnFile, module: ModuleName, entry: Entry) -> str:
    # A tab and not a space: for all readers it is the same, but Ansible's community.general.modprobe comments out every
    # `options NAME PARAMETER=VALUE` and every line with a module's name in all files of these folders when it is to forget
    # that module, and by its patterns only spaces stand there. Its own files decide for it, and ours for us.
    reason = f"{_REASON}{_escaped(entry.reason)}\n" if entry.reason else ""
    match file:
        case OwnFile.AUTOLOAD:
            return f"{reason}\t{module}\n"
        case OwnFile.OPTIONS:
            return f"{reason}options\t{module} {_escaped(spell(entry.parameters))}\n"
        case OwnFile.BLACKLIST:
            install = f"install {module} {REFUSAL}\n" if entry.hard else ""
            return f"{reason}blacklist {module}\n{install}"


def _escaped(text: str) -> str:
    # A backslash joins lines and vanishes anywhere else in modprobe.d, in comments too.
    return text.replace("\\", "\\\\")


def _reasons(text: str) -> dict[int, str]:
    """The reason above each line, by the line's number."""
    lines = text.split("\n")
    return {
        number + 1: line.removeprefix(_REASON).replace("\\\\", "\\")
        for number, line in enumerate(lines, 1)
        if line.startswith(_REASON)
    }


def _checksum(body: bytes) -> str:
    # Imported here: it costs a daemon that never writes a file a megabyte.
    from hashlib import sha256

    return sha256(body).hexdigest()
