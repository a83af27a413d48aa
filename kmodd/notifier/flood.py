# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps one user's refusals from filling the queue: nobody had to authorise them, so anybody can make any number of them."""

from collections.abc import Callable

from kmodd.notifier.notice import Notice

PERIOD = 60_000_000
"""Microseconds over which refusals of one user are counted, by the time of their records."""
TOLD_MAX = 30
"""Of them so many are told."""
USERS_MAX = 256
_REFUSALS = frozenset({"authorization.denied", "operation.failed"})

Complain = Callable[[int | None, int], None]
"""Is told of (user, 0) when refusals begin to be left out, and of (user, how many) once the period is over."""
Counted = tuple[dict[int | None, tuple[int, int]], int]


class Flood:
    """Counts."""

    def __init__(self, complain: Complain) -> None:
        self._complain = complain
        self._counts: dict[int | None, tuple[int, int]] = {}
        """(beginning of the period, refusals in it) by user."""
        self.left_out = 0
        """Refusals that were not told, since the start."""

    @property
    def counted(self) -> Counted:
        """What was counted so far, to go back to."""
        return dict(self._counts), self.left_out

    @counted.setter
    def counted(self, before: Counted) -> None:
        self._counts, self.left_out = dict(before[0]), before[1]

    def admits(self, notice: Notice) -> bool:
        """Tell whether this one is to be told. What root did, and what came to a job, always is."""
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
