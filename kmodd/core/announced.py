# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells the others that the history has something new: who may read it need not ask again and again."""

from collections.abc import Callable

from kmodd.core.api import Audit, Events, HistoryChanged
from kmodd.model import Record

SETTLE = 0.25
"""Seconds in which any number of records become one event; by then the journal has them."""
_UNTOLD = frozenset({"authorization.granted"})
"""What was granted is followed by what came of it. Reading the history is granted, too: whoever reads after each event must
not cause the next one."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls back after so many seconds, as a loop's call_later does."""


class AnnouncedAudit:
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
