# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns what the daemon tells into queued notices, each once: records of its history, and conditions that come and go."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kmodd.log import Logger
from kmodd.notifier.flood import Flood
from kmodd.notifier.notice import Notice, from_record, identifier, record_key
from kmodd.notifier.outbox import Outbox
from kmodd.notifier.rules import Rule, route

OVERLAP = 3_000_000
"""Microseconds that are read once more each time: the clock may have been set back a little."""
OVERLAP_START = 600_000_000
"""The same for the first time in a process, for it may have been set back while nobody was here to see it."""
UNSIGNED = "unsigned"


_UNSIGNED_CHANGES = {UNSIGNED: True, "unload": False}
"""What a record says about a module without a valid signature: it is there now, or no more."""


class Intake:
    """Between the watcher and the queue."""

    def __init__(
        self, outbox: Outbox, logger: Logger, *, clock: Callable[[], int], queued: Callable[[Sequence[str]], None]
    ) -> None:
        self._outbox = outbox
        self._logger = logger
        self._clock = clock
        self._queued = queued
        self._flood = Flood(self._left_out)
        self._overlap = OVERLAP_START
        self._begun = 0
        """What is older is nobody's news; 0 but for the first start of all."""
        self.rules: tuple[Rule, ...] = ()
        self.rows = 10_000
        self.bytes = 16 << 20

    @property
    def left_out(self) -> int:
        """Refusals that were not told because one user made too many."""
        return self._flood.left_out

    @property
    def fresh(self) -> bool:
        """Nothing was ever read: what is there now is as it always was."""
        return self._outbox.cursor is None

    def since(self) -> int:
        """From when on to read the history. Never later than now: a clock that was set back hides nothing."""
        now, cursor = self._clock(), self._outbox.cursor
        if self._overlap == OVERLAP:  # answered once, so all that is older was seen
            self._begun = 0
        if cursor is None:
            self._begun = cursor = now
            self._outbox.take([], cursor, [], now)
        return max(0, min(cursor, now) - self._overlap)

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
            self._overlap = OVERLAP
            return 0
        counted = self._flood.counted
        routed, changed = [], dict[tuple[str, str], bool]()
        for one, key in ids.items():
            if one not in unseen:
                continue
            notice = from_record(keys[key], key)
            if notice is None or notice.time < self._begun:
                continue
            for module in notice.modules:
                if notice.kind in _UNSIGNED_CHANGES:
                    changed[UNSIGNED, module] = _UNSIGNED_CHANGES[notice.kind]
            names = route(self.rules, notice)
            if names and self._flood.admits(notice):
                routed.append((notice, names))
        new = [one for one in ids if one in unseen]
        try:
            self._outbox.take(new, int(rows[-1].get("time", 0)), routed, self._clock(), changed)
        except sqlite3.Error:
            self._flood.counted = counted  # they are read, and counted, once more
            raise
        self._overlap = OVERLAP
        self._told(routed)
        return len(unseen)

    def conditions(self, kind: str, event: str, there: Mapping[str, tuple[str, str]]) -> None:
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
                event=event,
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

    def _left_out(self, uid: int | None, count: int) -> None:
        what = f"{count} more were not told" if count else "the others of this minute are not told"
        self._logger.warning("notifier.dropped", message=f"many requests were refused: {what}", uid=uid)

    def _told(self, routed: Sequence[tuple[Notice, Sequence[str]]]) -> None:
        endpoints = {name for _, names in routed for name in names}
        if not endpoints:
            return
        for name, count in self._outbox.shrink(self.rows, self.bytes).items():
            self._logger.error(
                "notifier.dropped", message=f"{name}: the queue is full, the oldest {count} were dropped"
            )
        self._queued(sorted(endpoints))
