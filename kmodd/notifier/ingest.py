# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns records of the daemon's history and changes of conditions into queued notices, each once.

Limits notices about refused requests per user: refusals need no authorization, so any user can cause any number of them.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kmodd.journal.writer import Logger
from kmodd.notifier.configuration import Rule, route
from kmodd.notifier.notice import Notice, from_record, identifier, record_key
from kmodd.notifier.outbox import Outbox

PERIOD = 60_000_000
"""Microseconds over which refusals of one user are counted, by the time of their records."""
TOLD_MAX = 30
"""Refusals per user and period that are sent."""
USERS_MAX = 256
_REFUSALS = frozenset({"authorization.denied", "module.refused", "operation.failed"})

Complain = Callable[[int | None, int], None]
"""Called with (user, 0) when refusals begin to be left out, and with (user, how many) once the period is over."""
Counted = tuple[dict[int | None, tuple[int, int]], int]


class RefusalLimiter:
    """Counts."""

    def __init__(self, complain: Complain) -> None:
        self._complain = complain
        self._counts: dict[int | None, tuple[int, int]] = {}
        """(beginning of the period, refusals in it) by user."""
        self.left_out = 0
        """Refusals that were not sent, since the start."""

    @property
    def counted(self) -> Counted:
        """What was counted so far, to go back to."""
        return dict(self._counts), self.left_out

    @counted.setter
    def counted(self, before: Counted) -> None:
        self._counts, self.left_out = dict(before[0]), before[1]

    def admits(self, notice: Notice) -> bool:
        """Whether to send this one. Those of root and of jobs are always sent."""
        if notice.uid == 0 or notice.job or notice.event not in _REFUSALS:
            return True
        begun, count = self._counts.get(notice.uid, (notice.time, 0))
        if not begun <= notice.time < begun + PERIOD:
            self._end(notice.uid, count)
            begun, count = notice.time, 0
        if notice.uid not in self._counts and len(self._counts) >= USERS_MAX:
            for uid, (since, before) in list(self._counts.items()):
                if not since <= notice.time < since + PERIOD:
                    self._end(uid, before)
                    del self._counts[uid]
        self._counts[notice.uid] = (begun, count + 1)
        if count < TOLD_MAX:
            return True
        self.left_out += 1
        if count == TOLD_MAX:
            self._complain(notice.uid, 0)
        return False

    def _end(self, uid: int | None, count: int) -> None:
        if count > TOLD_MAX:
            self._complain(uid, count - TOLD_MAX)


OVERLAP = 3_000_000
"""Microseconds that are read once more each time: the clock may have been set back a little."""
OVERLAP_START = 600_000_000
"""The same for the first time in a process, as it may have been set back while the notifier was not running."""
UNSIGNED = "unsigned"


_UNSIGNED_CHANGES = {UNSIGNED: True, "unload": False}
"""What a record says about a module without a valid signature: it is there now, or no more."""


class Ingest:
    """Between the watcher and the queue."""

    def __init__(
        self, outbox: Outbox, logger: Logger, *, clock: Callable[[], int], queued: Callable[[Sequence[str]], None]
    ) -> None:
        self._outbox = outbox
        self._logger = logger
        self._clock = clock
        self._queued = queued
        self._flood = RefusalLimiter(self._left_out)
        self._overlap = OVERLAP_START
        self._begun = 0
        """Older records are not sent; 0 except at the very first start."""
        self.rules: tuple[Rule, ...] = ()
        self.rows = 10_000
        self.bytes = 16 << 20

    @property
    def left_out(self) -> int:
        """Refusals that were not sent because one user caused too many."""
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
        for record_id, key in ids.items():
            if record_id not in unseen:
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
        new = [identifier for identifier in ids if identifier in unseen]
        try:
            self._outbox.take(new, int(rows[-1].get("time", 0)), routed, self._clock(), changed)
        except sqlite3.Error:
            self._flood.counted = counted  # they are read, and counted, once more
            raise
        self._overlap = OVERLAP
        self._told(routed)
        return len(unseen)

    def conditions(self, kind: str, event: str, there: Mapping[str, tuple[str, str]]) -> None:
        """Ingest the present conditions of a kind: name to (module, sentence). New are those absent at the last read."""
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
        what = f"{count} notifications suppressed" if count else "further notifications suppressed this minute"
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
