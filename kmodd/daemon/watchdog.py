# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notifies systemd's watchdog after a self-check of the daemon.

A mere timer proves nothing: the event loop may run while the connection to the bus is lost or no descriptor is left. So
each notification requires a successful self-check, and after a failed one systemd restarts the daemon.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

MAX_LAG_SECONDS = 5.0
"""How late the loop may run a timer before it counts as blocked."""
SPARE_DESCRIPTORS = 8
"""So many must be left to open: one operation needs the module's file, a worker's socket pair and its pidfd."""
ROUND_TRIP_SECONDS = 5.0


class SelfCheckFailed(Exception):
    """The daemon is not fit to serve; the text says in which respect."""


def check_descriptors(spare: int = SPARE_DESCRIPTORS) -> None:
    """Open a file and see that more could be opened; one that cannot is EMFILE, ENFILE or a broken mount."""
    opened: list[int] = []
    try:
        # /proc/self/stat is not /dev/null on purpose: it also notices a /proc that does not answer.
        opened.append(os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC))
        opened.extend(os.dup(opened[0]) for _ in range(spare))
    except OSError as error:
        raise SelfCheckFailed(f"cannot open files: {error.strerror}") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


class Watchdog:
    """Beats at half the interval systemd allows, as sd_watchdog_enabled(3) advises."""

    def __init__(
        self,
        interval_usec: int,
        *,
        feed: Callable[[], None],
        ping_bus: Callable[[], Awaitable[None]],
        report: Callable[[str], None],
    ) -> None:
        self._period = interval_usec / 2_000_000
        self._feed = feed
        self._ping_bus = ping_bus
        self._report = report

    async def run(self) -> None:
        """Notify until cancelled; returns immediately if systemd expects no notifications."""
        if self._period <= 0:
            return
        loop = asyncio.get_running_loop()
        lag = 0.0
        while True:
            try:
                await self.check(lag)
            except SelfCheckFailed as failure:
                # Not fed: systemd acts when the interval is over. A later good check may still save it.
                self._report(str(failure))
            else:
                self._feed()
            due = loop.time() + self._period
            await asyncio.sleep(self._period)
            lag = loop.time() - due

    async def check(self, lag: float = 0.0) -> None:
        """One self-check; raises SelfCheckFailed."""
        if lag > min(MAX_LAG_SECONDS, max(self._period, 0.1)):
            raise SelfCheckFailed(f"the event loop was blocked for {lag:.1f} s")
        check_descriptors()
        try:
            async with asyncio.timeout(ROUND_TRIP_SECONDS):
                await self._ping_bus()
        except TimeoutError as error:
            raise SelfCheckFailed("the bus does not answer") from error
        except OSError as error:
            raise SelfCheckFailed("the connection to the bus was lost") from error
