# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits audit records per user and minute, over all kinds, so that no user can bury the records of others or their own.

Up to the limit, records are written individually. Above it, the first record of each distinct (event, action, modules) is
still written, up to a bound, and one more record counts those left out. Requests that fail before authorization, denials
and operations have separate limits, so that invented names cannot use up the room for denials or operations.

Lost records are counted for metrics and health. The program of a caller is added to its records by an inspector process
(`ports.Inspection`), which takes longer than most calls: these records and all that follow wait for it in order, in a file
that the next start of the daemon reads.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from kmodd.core.events import Audit, Clock, Events, HistoryChanged
from kmodd.model import HealthCheck, HealthStatus, Metric, Record

PERIOD: Final = 60_000_000
"""Microseconds over which the records of one user are counted."""
RECORDS_MAX: Final = 100
"""Refusals of one user that are recorded individually in that time. These requests need no authorization."""
DEEDS_MAX: Final = 1000
"""Other records of one user in that time: authorizations, and what came of them."""
FIRSTS_MAX: Final = 256
"""Records of each sort that are written above that because they are the first of their event, action and modules."""
USERS_MAX: Final = 256
"""Users who are counted singly; further ones share a ration."""
SETTLE: Final = 0.25
"""Seconds in which any number of records become one event; by then the journal has them."""
_UNANNOUNCED = frozenset({"authorization.granted"})
"""What was granted is followed by what came of it. Reading the history is granted, too: a client that reads after each event must
not cause the next one."""


class _RecordClass(Enum):
    DENIED = "requests of this user were refused"
    """polkit was called."""
    FUTILE = "requests of this user failed before authorization"
    DEED = "records of this user"


_SORTS: Final = {
    "authorization.denied": _RecordClass.DENIED,
    "operation.failed": _RecordClass.FUTILE,
    "notifier.refused": _RecordClass.FUTILE,
}

SPOKEN_FOR_MAX: Final = 64
"""Names of whom a gateway speaks for that are counted singly for its user; further ones share its own ration."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls back after so many seconds, as a loop's call_later does."""
Key = tuple[int | None, str, _RecordClass]
"""(user, whom a gateway speaks for, sort)."""


@dataclass(slots=True, eq=False)
class _RateCounter:
    begun: int
    written: int = 0
    left_out: int = 0
    firsts: set[int] = field(default_factory=set)
    """Hashes of (event, action, modules): what was written at least once. A caller chooses names of any length."""

    def covers(self, now: int) -> bool:
        return self.begun <= now < self.begun + PERIOD

    def admits(self, record: Record, most: int) -> bool:
        """Count a record, and tell whether it is to be written."""
        kind = hash((record.event, record.action, record.names))
        first = kind not in self.firsts and len(self.firsts) < FIRSTS_MAX
        if first:
            self.firsts.add(kind)
        if self.written >= most and not first:
            self.left_out += 1
            return False
        self.written += 1
        return True


class RateLimitedAudit:
    """An audit in front of another; implements core.api.Audit. What root and the daemon itself did is always recorded."""

    def __init__(self, audit: Audit, clock: Clock, later: Later) -> None:
        self._audit = audit
        self._clock = clock
        self._later = later
        self._counts: dict[Key, _RateCounter] = {}
        self.left_out = 0
        """Records that were not written singly, since the start."""

    def record(self, record: Record) -> None:
        """Write it, unless its user has used up the ration; never raises, never waits."""
        sort = _RecordClass.DEED if record.job else _SORTS.get(record.event, _RecordClass.DEED)
        own = record.uid is None and not record.sender and sort is _RecordClass.DEED
        if record.uid == 0 or own:
            self._audit.record(record)
            return
        now = self._clock()
        key = self._counted_as((record.uid, record.on_behalf_of, sort), now)
        count = self._counts.setdefault(key, _RateCounter(now))
        if count.admits(record, DEEDS_MAX if sort is _RecordClass.DEED else RECORDS_MAX):
            self._audit.record(record)
            return
        self.left_out += 1
        if count.left_out == 1:
            self._later((count.begun + PERIOD - now) / 1e6, lambda: self._end(key, count))

    def flush(self) -> None:
        """Write how many were left out so far: nothing more is recorded."""
        for key, count in list(self._counts.items()):
            self._end(key, count)

    def _counted_as(self, key: Key, now: int) -> Key:
        count = self._counts.get(key)
        if count is not None and not count.covers(now):
            self._end(key, count)
        if key in self._counts:
            return key
        uid, on_behalf_of, sort = key
        if on_behalf_of and sum(other[0] == uid for other in self._counts) >= SPOKEN_FOR_MAX:
            return self._counted_as((uid, "", sort), now)
        if len(self._counts) >= len(_RecordClass) * USERS_MAX:
            for other, its in list(self._counts.items()):
                if not its.covers(now):
                    self._end(other, its)
            if len(self._counts) >= len(_RecordClass) * USERS_MAX:
                return None, "", sort
        return key

    def _end(self, key: Key, count: _RateCounter) -> None:
        if self._counts.get(key) is not count:
            return
        del self._counts[key]
        if count.left_out:
            self._audit.record(_collapsed(key, count.left_out))


def _collapsed(key: Key, left_out: int) -> Record:
    uid, on_behalf_of, sort = key
    refused = sort is not _RecordClass.DEED
    return Record(
        event="refusals.collapsed" if refused else "records.collapsed",
        message=f"{left_out} more {sort.value} within a minute, which are not recorded individually",
        result="denied" if refused else "",
        uid=uid,
        on_behalf_of=on_behalf_of,
        priority=4,
        extra={"UNWRITTEN": str(left_out)},
    )


Count = Callable[[], int]
"""Answers how many since the daemon's start."""


class AuditWatch:
    """Counts of records that are missing in the journal."""

    def __init__(self, *, lost: Count, collapsed: Count) -> None:
        """`lost` were not taken by the journal; `collapsed` are counted in a summary record instead (`core.ration`)."""
        self._lost = lost
        self._collapsed = collapsed

    def metrics(self) -> Iterator[Metric]:
        """Both counts."""
        yield Metric("kmodd_audit_records_lost_total", "counter", (), float(self._lost()))
        yield Metric("kmodd_audit_records_collapsed_total", "counter", (), float(self._collapsed()))

    def health(self) -> Iterator[HealthCheck]:
        """Degraded from the first lost record until the daemon is started again: the history has a gap."""
        lost = self._lost()
        if lost:
            yield HealthCheck(
                "audit",
                HealthStatus.DEGRADED,
                f"{lost} audit record{'s were' if lost > 1 else ' was'} lost: the journal did not accept "
                f"{'them' if lost > 1 else 'it'}.",
                "",
                "systemctl status systemd-journald",
            )


PROGRAMS_MAX = 1024
"""Callers whose program is remembered: an operation may be recorded long after its caller has left."""
WAITING_MAX = 512
"""Records that wait; more are written as they are."""


class OriginAudit:
    """An audit in front of another; implements core.api.Audit."""

    def __init__(self, audit: Audit, keep: Callable[[Sequence[Record]], None] = lambda records: None) -> None:
        """`keep` is given the records that wait, whenever they change, to outlive the daemon."""
        self._audit = audit
        self._keep = keep
        self._expected: set[str] = set()
        self._programs: dict[str, str] = {}
        self._waiting: deque[Record] = deque()
        self._settled: list[asyncio.Future[None]] = []

    def expect(self, sender: str) -> Callable[[str], None]:
        """Have records of this connection wait until the answer is called with its program; empty for one that stays unknown."""
        self._expected.add(sender)

        def known(program: str) -> None:
            self._expected.discard(sender)
            while len(self._programs) >= PROGRAMS_MAX:
                del self._programs[next(iter(self._programs))]
            self._programs[sender] = program
            self._write()

        return known

    def record(self, record: Record) -> None:
        """Write it, or keep it until those before it can be written; never raises, never waits."""
        if self._waiting or self._is_incomplete(record):
            self._waiting.append(record)
            if len(self._waiting) > WAITING_MAX:
                self.flush()
            else:
                self._keep(tuple(self._waiting))
        else:
            self._audit.record(self._completed(record))

    def flush(self) -> None:
        """Write everything that waits, complete or not: nothing more becomes known."""
        self._expected.clear()
        self._write()

    async def settled(self) -> None:
        """Return when all that was recorded so far has been written."""
        if self._waiting:
            settled = asyncio.get_running_loop().create_future()
            self._settled.append(settled)
            await settled

    def _write(self) -> None:
        if not self._waiting:
            return
        before = len(self._waiting)
        while self._waiting and not self._is_incomplete(self._waiting[0]):
            self._audit.record(self._completed(self._waiting.popleft()))
        if len(self._waiting) != before:
            self._keep(tuple(self._waiting))
        if not self._waiting:
            waiting, self._settled = self._settled, []
            for settled in waiting:
                if not settled.done():
                    settled.set_result(None)

    def _is_incomplete(self, record: Record) -> bool:
        return not record.exe and record.sender in self._expected

    def _completed(self, record: Record) -> Record:
        program = self._programs.get(record.sender, "") if record.sender and not record.exe else ""
        return replace(record, exe=program) if program else record


class NotifyingAudit:
    """An audit in front of another, which publishes that there are new records."""

    def __init__(self, audit: Audit, events: Events, later: Later) -> None:
        self._audit = audit
        self._events = events
        self._later = later
        self._armed = False

    def record(self, record: Record) -> None:
        """Write it, and tell of it a moment later; never raises, never waits."""
        self._audit.record(record)
        if not self._armed and record.event not in _UNANNOUNCED:
            self._armed = True
            self._later(SETTLE, self._tell)

    def _tell(self) -> None:
        self._armed = False
        self._events.publish(HistoryChanged())
