# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sentences about what goes with a module when it is removed, and the refusal to remove it. Pure functions of typed facts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from kmodd.errors import Evidence, InUse, KmoddError
from kmodd.model import Consequence, ConsequenceKind, Operation, Verb
from kmodd.names import ModuleName

_NAMED = 4
"""Things that one error names; the others are counted."""
_NOUNS = {
    ConsequenceKind.INTERFACE: ("network interface", "network interfaces"),
    ConsequenceKind.DISK: ("disk", "disks"),
    ConsequenceKind.INPUT: ("input device", "input devices"),
    ConsequenceKind.SCREEN: ("screen", "screens"),
    ConsequenceKind.CONSOLE: ("console", "consoles"),
    ConsequenceKind.SERIAL: ("terminal device", "terminal devices"),
    ConsequenceKind.SOUND: ("sound card", "sound cards"),
    ConsequenceKind.WATCHDOG: ("watchdog", "watchdogs"),
    ConsequenceKind.DEVICE: ("device", "devices"),
    ConsequenceKind.UNKNOWN: ("item that cannot be examined", "items that cannot be examined"),
}


def sentence(row: Consequence) -> str:
    """What goes, and what is known of its use, as `Plan` and `Explain` say it."""
    if row.kind is ConsequenceKind.UNKNOWN:
        return f"More may go with it: {row.detail}."
    if row.kind is ConsequenceKind.DEVICE and not row.count:
        return f"Device {row.name} loses its driver {row.detail}."
    state = _state(row)
    noun = _noun(row)
    return f"{noun[0].upper()}{noun[1:]} {'go' if row.count > 1 else 'goes'} with it{f': it {state}' if state else ''}."


def phrase(row: Consequence) -> str:
    """The same as a part of a sentence: `network interface wg9, which is up`."""
    if row.kind is ConsequenceKind.UNKNOWN:
        return f"items that cannot be examined ({row.detail})"
    state = _state(row)
    return f"{_noun(row)}{f', which {state}' if state else ''}"


def public(rows: Iterable[Consequence], uid: int | None) -> tuple[Consequence, ...]:
    """The rows as this user could see them without kmodd; None is everybody, 0 sees all.

    Of what is hidden, such as interfaces in another user's network namespace, one row for each kind says how many there are.
    """
    rows = tuple(rows)
    hidden = [row for row in rows if is_hidden(row, uid)]
    counts = Counter(row.kind for row in hidden)
    summaries = (
        Consequence(
            kind,
            "",
            netns="hidden",
            automatic=not any(row.live for row in hidden if row.kind is kind),
            count=number,
        )
        for kind, number in counts.items()
    )
    return (*(row for row in rows if row not in hidden), *summaries)


def is_hidden(row: Consequence, uid: int | None) -> bool:
    """Only another user's own view of the machine shows it."""
    return row.owner is not None and uid not in (0, row.owner)


def disconnecting(name: ModuleName, rows: Sequence[Consequence], operation: Operation) -> InUse:
    """The refusal to remove a module because of what is live among `rows`; its message is fit for everybody."""
    return InUse(
        _message(name, public(rows, None)),
        module=name,
        evidence=Evidence(hint=_command(operation), consequences=tuple(rows)),
    )


def told_to(error: KmoddError, uid: int | None) -> KmoddError:
    """The error with the names that this caller may know in its message."""
    rows = error.evidence.consequences
    if not rows or not any(is_hidden(row, None) and not is_hidden(row, uid) for row in rows):
        return error
    plain = replace(error, message=_message(ModuleName(error.module), public(rows, uid)), aftermath=(), cause="")
    return plain.after(error.aftermath)


def _message(name: ModuleName, rows: Sequence[Consequence]) -> str:
    live = [phrase(row) for row in rows if row.live]
    more = [f"{len(live) - _NAMED} more"] if len(live) > _NAMED else []
    return f"unloading {name} takes away {' and '.join([*live[:_NAMED], *more])}"


def _command(operation: Operation) -> str:
    words = [f"kmodctl {operation.verb} {operation.module}"]
    # Values may be private, and a hint is written to the journal.
    words += ["NAME=VALUE"] if operation.parameters else []
    words += ["--dependents"] if operation.dependents and operation.verb is Verb.UNLOAD else []
    words += ["--unused-dependencies"] if operation.unused_dependencies else []
    return " ".join([*words, "--disconnect"])


def _noun(row: Consequence) -> str:
    singular, many = _NOUNS[row.kind]
    if row.count:
        counted = f"1 {singular}" if row.count == 1 else f"{row.count} {many}"
        return f"{counted} of other network namespaces" if row.kind is ConsequenceKind.INTERFACE else counted
    label = f" ({row.detail})" if row.detail else ""
    if not row.netns:
        return f"{singular} {row.name}{label}"
    if row.netns.startswith("pid "):
        return f"{singular} {row.name} in the network namespace of {row.netns}"
    return f"{singular} {row.name} in network namespace {row.netns}"


def _state(row: Consequence) -> str:
    """What is known of its use, as the rest of a clause that begins with `it` or `which`."""
    if row.count:
        return ""
    if row.kind is not ConsequenceKind.INTERFACE:
        return " and ".join(row.uses) if row.uses else "is not in use"
    parts = [f"has {', '.join(row.addresses)}"] if row.addresses else []
    parts += [f"carries {', '.join(row.carries)}"] if row.carries else []
    parts += [f"has the port{'s' if len(row.ports) > 1 else ''} {', '.join(row.ports)}"] if row.ports else []
    parts += ["carries the default route"] if row.default_route else []
    if row.up:
        return " and ".join(["is up", *parts])
    if row.netns:
        return ""
    return " and ".join(["is down", *parts]) if parts else "is down and has no address"
