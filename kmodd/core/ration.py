# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many records one user can cause without anybody's leave: so many a minute, then one that says how many there were more."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kmodd.core.api import Audit, Clock
from kmodd.model import Record

PERIOD: Final = 60_000_000
"""Microseconds over which the refusals of one user are counted."""
RECORDS_MAX: Final = 100
"""Refusals of one user that are recorded singly in that time. Nobody had to authorise these requests, and journald drops
everything of a service that writes too much: nobody may be able to have the records of others dropped."""
USERS_MAX: Final = 256
"""Users who are counted singly; further ones share a ration."""
_REFUSALS: Final = frozenset({"authorization.denied", "operation.failed"})

Later = Callable[[float, Callable[[], None]], object]
"""Calls back after so many seconds, as a loop's call_later does."""


@dataclass(slots=True, eq=False)
class _Count:
    begun: int
    refusals: int = 0

    def covers(self, now: int) -> bool:
        return self.begun <= now < self.begun + PERIOD

    @property
    def left_out(self) -> int:
        return max(0, self.refusals - RECORDS_MAX)


class RationedAudit:
    """An audit in front of another; implements core.api.Audit. What root did, and what came to a job, is always recorded."""

    def __init__(self, audit: Audit, clock: Clock, later: Later) -> None:
        self._audit = audit
        self._clock = clock
        self._later = later
        self._counts: dict[int | None, _Count] = {}

    def record(self, record: Record) -> None:
        """Write it, unless its user has used up the ration; never raises, never waits."""
        if record.uid == 0 or record.job or record.event not in _REFUSALS:
            self._audit.record(record)
            return
        now = self._clock()
        uid = self._counted_as(record.uid, now)
        count = self._counts.setdefault(uid, _Count(now))
        count.refusals += 1
        if not count.left_out:
            self._audit.record(record)
        elif count.left_out == 1:
            self._later((count.begun + PERIOD - now) / 1e6, lambda: self._end(uid, count))

    def flush(self) -> None:
        """Write how many were left out so far: nothing more is recorded."""
        for uid, count in list(self._counts.items()):
            self._end(uid, count)

    def _counted_as(self, uid: int | None, now: int) -> int | None:
        count = self._counts.get(uid)
        if count is not None and not count.covers(now):
            self._end(uid, count)
        if uid not in self._counts and len(self._counts) >= USERS_MAX:
            for one, other in list(self._counts.items()):
                if not other.covers(now):
                    self._end(one, other)
            if len(self._counts) >= USERS_MAX:
                return None
        return uid

    def _end(self, uid: int | None, count: _Count) -> None:
        if self._counts.get(uid) is not count:
            return
        del self._counts[uid]
        if count.left_out:
            self._audit.record(_collapsed(uid, count.left_out))


def _collapsed(uid: int | None, left_out: int) -> Record:
    return Record(
        event="refusals.collapsed",
        message=f"{left_out} more requests of this user were refused within a minute and are not recorded singly",
        result="denied",
        uid=uid,
        priority=4,
        extra={"UNWRITTEN": str(left_out)},
    )
