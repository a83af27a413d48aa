# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a change makes of the entries of kmodd's own files."""

from dataclasses import dataclass, replace

from kmodd.core.own_files import Entries, Entry
from kmodd.model.configuration import OwnFile, RuleAction, RuleChange
from kmodd.names import ModuleName


@dataclass(frozen=True, slots=True)
class Amendment:
    """One file's text before and after; None where there is no file."""

    file: OwnFile
    old: bytes | None
    new: bytes | None


def files_of(change: RuleChange) -> tuple[OwnFile, ...]:
    """The files a change concerns, in the order they are written."""
    match change.action:
        case RuleAction.ENABLE_AUTOLOAD if change.parameters:
            # Options first: were it the other way round, a crash in between would load it without them.
            return OwnFile.OPTIONS, OwnFile.AUTOLOAD
        case RuleAction.ENABLE_AUTOLOAD | RuleAction.DISABLE_AUTOLOAD:
            return (OwnFile.AUTOLOAD,)
        case RuleAction.SET_OPTIONS:
            return (OwnFile.OPTIONS,)
        case RuleAction.BLACKLIST | RuleAction.BLACKLIST_HARD | RuleAction.UNBLACKLIST:
            return (OwnFile.BLACKLIST,)


def amend(file: OwnFile, entries: Entries, change: RuleChange) -> dict[ModuleName, Entry]:
    """The entries as the change wants them; what is so already keeps the reason it was given."""
    known = entries.get(change.module)
    wanted = _wanted(file, known, change)
    others = {name: entry for name, entry in entries.items() if name != change.module}
    if wanted is None:
        return others
    if known is not None and not change.reason and replace(known, reason="") == wanted:
        return dict(entries)
    if known is None:
        return {**others, change.module: wanted}
    return {name: wanted if name == change.module else entry for name, entry in entries.items()}


def _wanted(file: OwnFile, known: Entry | None, change: RuleChange) -> Entry | None:
    match change.action:
        case RuleAction.DISABLE_AUTOLOAD | RuleAction.UNBLACKLIST:
            return None
        case RuleAction.SET_OPTIONS:
            return Entry(change.parameters, reason=change.reason) if change.parameters else None
        case RuleAction.BLACKLIST | RuleAction.BLACKLIST_HARD:
            return Entry(hard=change.action is RuleAction.BLACKLIST_HARD, reason=change.reason)
        case RuleAction.ENABLE_AUTOLOAD if file is OwnFile.OPTIONS:
            set_already = dict(known.parameters) if known is not None else {}
            return Entry(tuple({**set_already, **dict(change.parameters)}.items()), reason=change.reason)
        case RuleAction.ENABLE_AUTOLOAD:
            return Entry(reason=change.reason)
