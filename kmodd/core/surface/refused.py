# SPDX-License-Identifier: LGPL-2.1-or-later
"""Attempts to have a module loaded that a rule refused, from the records of them: alike ones counted together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmodd.core.module_requests import REFUSED
from kmodd.model import HistoryEntry, HistoryQuery, Record
from kmodd.model.responses import Response
from kmodd.model.rules import ManagedFile, way_out

EVENTS = (REFUSED,)


@dataclass(slots=True)
class RefusedAttempts:
    """Attempts that are alike: the same request of the same program, user, and unit or container, and the same rule."""

    alias: str
    modules: tuple[str, ...]
    uid: int | None
    exe: str
    name: str
    """What the process called itself, where its program is not known."""
    unit: str
    container: str
    file: str
    """Of the rule."""
    line: int
    rule: str
    count: int
    first: int
    last: int
    response: str = ""
    """The response whose rule it is."""
    allow: str = ""
    """The command, or the imperative, that allows it."""


def query(since: int, limit: int) -> HistoryQuery:
    """What to read for `aggregate`: the newest records."""
    return HistoryQuery(events=EVENTS, since=since, limit=limit)


def aggregate(entries: Iterable[HistoryEntry], responses: Iterable[Response]) -> list[RefusedAttempts]:
    """The attempts, those that came last first."""
    owners: dict[str, str] = {rule.module: response.id for response in responses for rule in response.rules}
    alike: dict[tuple[object, ...], RefusedAttempts] = {}
    for entry in entries:
        attempts = _attempts(entry)
        key = (
            attempts.alias,
            attempts.modules,
            attempts.uid,
            attempts.exe or attempts.name,
            attempts.unit,
            attempts.container,
            attempts.file,
            attempts.line,
        )
        same = alike.setdefault(key, attempts)
        if same is not attempts:
            same.count += attempts.count
            same.first, same.last = min(same.first, attempts.first), max(same.last, attempts.last)
    for each in alike.values():
        each.response = _response(each, owners)
        each.allow = _allow(each)
    return sorted(alike.values(), key=lambda each: -each.last)


def _attempts(entry: HistoryEntry) -> RefusedAttempts:
    record, extra = entry.record, entry.record.extra
    return RefusedAttempts(
        extra.get("ALIAS", ""),
        record.names,
        record.uid,
        record.exe,
        extra.get("COMM", ""),
        extra.get("UNIT", ""),
        extra.get("CONTAINER", ""),
        extra.get("FILE", ""),
        int(line) if (line := extra.get("LINE", "")).isdecimal() else 0,
        extra.get("RULE", ""),
        _count(record),
        entry.time,
        entry.time,
    )


def _count(record: Record) -> int:
    """A record of a period counts those that came after the first, which has another record."""
    text = record.extra.get("COUNT", "")
    return int(text) if text.isdecimal() and int(text) else 1


def _response(attempts: RefusedAttempts, owners: Mapping[str, str]) -> str:
    if attempts.file != ManagedFile.BLACKLIST:
        return ""
    return next((owners[name] for name in attempts.modules if name in owners), "")


def _allow(attempts: RefusedAttempts) -> str:
    if attempts.response:
        return f"kmodctl respond end {attempts.response}"
    if attempts.file == ManagedFile.BLACKLIST and attempts.modules:
        return f"kmodctl config blacklist --off {attempts.modules[0]}"
    return way_out(attempts.file) if attempts.file else ""
