# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often somebody may ask: a bucket for each, refilled at a steady rate."""

from collections import OrderedDict
from collections.abc import Callable

BUCKETS_MAX = 4096
"""Buckets remembered; the one unused for longest is forgotten, and is full when it comes back."""


class Rate:
    """Buckets by name."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        """No limit when `per_second` is 0. The clock counts seconds."""
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Take one; 0 when there was one, else the seconds until there is."""
        if not self._per_second:
            return 0.0
        now = self._clock()
        level, then = self._buckets.pop(name, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._per_second)
        short = 1.0 - level
        self._buckets[name] = (level if short > 0 else level - 1.0, now)
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return short / self._per_second if short > 0 else 0.0
