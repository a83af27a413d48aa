# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules on trial: a file in /run, which a reboot removes, and which this process removes when its time is over."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from kmodd.core.events import Clock
from kmodd.core.rules.managed_files import SURFACE_MARK, body_of, framed, is_intact
from kmodd.core.surface.rule_file import is_surface_file
from kmodd.errors import InvalidArgs, KmoddError
from kmodd.model.rules import ManagedFile

FILE = ManagedFile.SURFACE_TRIAL
SECONDS_MIN, SECONDS_MAX = 10, 86_400
RETRY = 10.0
"""Seconds until another attempt to end a trial, where the file cannot be removed."""
_UNTIL = re.compile(r"# On trial until [^\n(]{1,40} \((\d{1,18})\)\n")
_SECOND = 1_000_000


def check_seconds(seconds: int) -> int:
    """The time of a trial; InvalidArgs."""
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise InvalidArgs(f"a trial takes from {SECONDS_MIN} to {SECONDS_MAX} seconds", argument="options")
    return seconds


def on_trial(text: bytes, until: int) -> bytes:
    """The rules of a text of kmodd's own, with the moment at which they end, in microseconds since the epoch."""
    return framed(f"# On trial until {as_text(until)} ({until})\n{body_of(text).decode()}", SURFACE_MARK)


def settled(text: bytes) -> bytes:
    """The rules without an end, as they would have been written without a trial."""
    return framed(_UNTIL.sub("", body_of(text).decode(), count=1), SURFACE_MARK)


def end_of(text: bytes) -> int:
    """When it ends; 0, which is past, for a text that is not as kmodd wrote it."""
    if not is_surface_file(text) or not is_intact(text):
        return 0
    stamp = _UNTIL.match(body_of(text).decode("utf-8", "replace"))
    return int(stamp.group(1)) if stamp else 0


def as_text(until: int) -> str:
    """A moment as messages have it, in UTC."""
    return f"{datetime.fromtimestamp(until / _SECOND, UTC):%Y-%m-%d %H:%M:%S} UTC"


class Deadline:
    """Ends a trial when its time is over. It is kept by the monotonic clock; over a restart, by the system's."""

    def __init__(self, clock: Clock, end: Callable[[], Awaitable[object]]) -> None:
        """`end` takes the rules back; KmoddError where that cannot be done."""
        self._clock = clock
        self._end = end
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def set(self, until: int) -> None:
        """At that moment, or immediately where it has passed."""
        self._after(min(max(0, until - self._clock()) / _SECOND, SECONDS_MAX))

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
            self._after(RETRY)
