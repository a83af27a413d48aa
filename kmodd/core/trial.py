# SPDX-License-Identifier: LGPL-2.1-or-later
"""A change on trial is taken back when its time is over, unless it is confirmed before."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from kmodd.core.events import Clock
from kmodd.errors import InvalidArgs, KmoddError

TRIAL_MIN, TRIAL_MAX = 10, 86_400
TRIAL_RETRY = 10.0
"""Seconds until another attempt to end a trial, where the first fails."""
UNCONFIRMED, STOPPED = "the trial was not confirmed in time", "kmodd was stopped"
_SECOND = 1_000_000


def check_trial(seconds: int) -> int:
    """The time of a trial; InvalidArgs."""
    if not TRIAL_MIN <= seconds <= TRIAL_MAX:
        raise InvalidArgs(f"a trial takes from {TRIAL_MIN} to {TRIAL_MAX} seconds", argument="options")
    return seconds


def in_utc(until: int) -> str:
    """A moment as messages have it, in UTC."""
    return f"{datetime.fromtimestamp(until / _SECOND, UTC):%Y-%m-%d %H:%M:%S} UTC"


class TrialDeadline:
    """Ends a trial when its time is over. It is kept by the monotonic clock; over a restart, by the system's."""

    def __init__(self, clock: Clock, end: Callable[[], Awaitable[object]]) -> None:
        """`end` takes the rules back; KmoddError where that cannot be done."""
        self._clock = clock
        self._end = end
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def set(self, until: int) -> None:
        """At that moment, or immediately where it has passed."""
        self._after(min(max(0, until - self._clock()) / _SECOND, TRIAL_MAX))

    def cancel(self) -> None:
        """There is no trial any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self) -> None:
        """Wait for an end that is under way."""
        self.cancel()
        if self._task is not None:
            await asyncio.wait({self._task})

    def _after(self, seconds: float) -> None:
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._due)

    def _due(self) -> None:
        self._timer = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._end()
        except (KmoddError, OSError, RuntimeError):
            # An error of kmodd's is in the journal; the others are of a system without descriptors or threads. The rules may not
            # stay for that.
            self._after(TRIAL_RETRY)
