# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns what the daemon tells into queued notices, each once: records of its history, and conditions that come and go."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kmodd.log import Logger
from kmodd.notifier.notice import Notice, from_record, identifier, record_key
from kmodd.notifier.outbox import Outbox
from kmodd.notifier.rules import Rule, route

OVERLAP = 10_000_000
"""Microseconds that are read once more each time: records may reach the journal a little out of order."""


class Intake:
    """Between the watcher and the queue."""

    def __init__(
        self, outbox: Outbox, logger: Logger, *, clock: Callable[[], int], queued: Callable[[Sequence[str]], None]
    ) -> None:
        self._outbox = outbox
        self._logger = logger
        self._clock = clock
        self._queued = queued
        self.rules: tuple[Rule, ...] = ()
        self.rows = 10_000
        self.bytes = 16 << 20

    def since(self) -> int:
        """From when on to read the history. Never later than now: a clock that was set back hides nothing."""
        cursor = self._outbox.cursor
        if cursor is None:
            # The first start of all: what was before is nobody's news.
            cursor = self._clock()
            self._outbox.take([], cursor, [], cursor)
            return cursor
        return max(0, min(cursor, self._clock()) - OVERLAP)

    def records(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Take an answer of GetHistory, oldest first; how many records were new."""
        keys: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            nth = 0
            while (key := record_key(row, nth)) in keys:
                nth += 1
            keys[key] = row
        ids = {identifier(key): key for key in keys}
        unseen = self._outbox.unseen(ids)
        if not unseen:
            return 0
        routed = []
        for one, key in ids.items():
            if one in unseen and (notice := from_record(keys[key], key)) is not None:
                routed.append((notice, route(self.rules, notice)))
        new = [one for one in ids if one in unseen]
        self._outbox.take(new, int(rows[-1].get("time", 0)), routed, self._clock())
        self._told(routed)
        return len(unseen)

    def conditions(self, kind: str, there: Mapping[str, tuple[str, str]]) -> None:
        """Take what is there now of a kind: name to (module, sentence). News is what was not there at the last look."""
        before = self._outbox.conditions(kind)
        if before is not None and before == there.keys():
            return
        now = self._clock()
        routed = []
        for key in sorted(there.keys() - (there.keys() if before is None else before)):
            module, sentence = there[key]
            notice = Notice(
                id=identifier(f"{kind}:{key}:{now}"),
                time=now,
                kind=kind,
                severity="warning",
                event=f"{kind}.found",
                message=sentence,
                module=module,
            )
            routed.append((notice, route(self.rules, notice)))
        self._outbox.change_conditions(kind, set(there), routed, now)
        self._told(routed)

    def test(self, endpoint: str, host: str) -> str:
        """Queue a notice for one endpoint by hand; its id."""
        now = self._clock()
        notice = Notice(
            id=identifier(f"test:{endpoint}:{now}"),
            time=now,
            kind="test",
            severity="info",
            event="notification.test",
            message=f"this is a test of kmodd's notifications on {host}",
        )
        self._outbox.take([], None, [(notice, [endpoint])], now)
        self._told([(notice, [endpoint])])
        return notice.id

    def _told(self, routed: Sequence[tuple[Notice, Sequence[str]]]) -> None:
        endpoints = {name for _, names in routed for name in names}
        if not endpoints:
            return
        for name, count in self._outbox.shrink(self.rows, self.bytes).items():
            self._logger.error(
                "notifier.dropped", message=f"{name}: the queue is full, the oldest {count} were dropped"
            )
        self._queued(sorted(endpoints))
