# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reply of `GetHistory`, and the event that tells clients of new records so that they need not poll."""

from collections.abc import Awaitable, Callable

from kmodd.core.events import Audit, Events, HistoryChanged, HistoryReader
from kmodd.core.fair_share import FairSlots
from kmodd.errors import Evidence, InvalidArgs, NotPermitted, errno_name, scarce
from kmodd.model import Caller, HistoryEntry, HistoryQuery, Record

LIMIT_MAX = 1000
READS = 2
"""Concurrent readings, not counting root's; each walks through journal files in a thread, and its reply may have 16 MiB."""


class History:
    """Reads records back without holding up the daemon."""

    def __init__(
        self,
        reader: HistoryReader,
        *,
        limit_max: Callable[[], int] = lambda: LIMIT_MAX,
        settled: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`limit_max` answers how many records one reading may ask for; `settled` returns when all that was recorded is written."""
        self._reader = reader
        self._settled = settled
        self._limit_max = limit_max
        self._slots = FairSlots(READS, root=1)

    async def read(self, query: HistoryQuery, caller: Caller) -> list[HistoryEntry]:
        """Newest last; InvalidArgs for an impossible query, LimitsExceeded when too many of this user wait.

        NotPermitted when the journal cannot be read: it is not taken for empty.
        """
        if not 1 <= query.limit <= self._limit_max():
            raise InvalidArgs(f"limit must be 1 to {self._limit_max()}", argument="limit")
        if query.since < 0:
            raise InvalidArgs("since must be a time in microseconds since 1970", argument="since")
        if self._settled is not None:
            await self._settled()
        try:
            return await self._slots.in_thread(caller.uid, self._reader.read, query)
        except OSError as error:
            raise scarce(error, "") or NotPermitted(
                f"the journal cannot be read ({errno_name(error.errno or 0)})",
                evidence=Evidence(errno=error.errno, hint="journalctl --verify"),
            ) from error


SETTLE = 0.25
"""Seconds in which any number of records become one event; by then the journal has them."""
_UNTOLD = frozenset({"authorization.granted"})
"""What was granted is followed by what came of it. Reading the history is granted, too: a client that reads after each event must
not cause the next one."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls back after so many seconds, as a loop's call_later does."""


class NotifyingAudit:
    """An audit in front of another; implements core.api.Audit."""

    def __init__(self, audit: Audit, events: Events, later: Later) -> None:
        self._audit = audit
        self._events = events
        self._later = later
        self._armed = False

    def record(self, record: Record) -> None:
        """Write it, and tell of it a moment later; never raises, never waits."""
        self._audit.record(record)
        if not self._armed and record.event not in _UNTOLD:
            self._armed = True
            self._later(SETTLE, self._tell)

    def _tell(self) -> None:
        self._armed = False
        self._events.publish(HistoryChanged())
