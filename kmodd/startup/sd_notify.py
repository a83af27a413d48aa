# SPDX-License-Identifier: LGPL-2.1-or-later
"""sd_notify(3) for a service of Type=notify, and systemd's watchdog, which is notified after a self-check of the daemon.

A mere timer proves nothing: the event loop may run while the connection to the bus is lost or no descriptor is left. So
each notification requires a successful self-check, and after a failed one systemd restarts the daemon.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping

_FIRST = 3
"""SD_LISTEN_FDS_START in sd_listen_fds(3)."""
MAX_LAG_SECONDS = 5.0
"""How late the loop may run a timer before it counts as blocked."""
SPARE_DESCRIPTORS = 8
"""So many must be left to open: one operation needs the module's file, a worker's socket pair and its pidfd."""
ROUND_TRIP_SECONDS = 5.0


class SdNotify:
    """Reports the state of this process to systemd by sd_notify(3); does nothing if systemd did not start it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._enabled = bool(environment.get("NOTIFY_SOCKET"))

    def notify(self, *lines: str) -> None:
        """Send assignments such as `READY=1`."""
        if self._enabled:
            # Imported here: a simulation runs without systemd.
            from systemd.daemon import notify

            notify("\n".join(lines))

    def keep(self, name: str, file: int) -> None:
        """Have systemd keep a copy of a descriptor over a restart (FileDescriptorStoreMax= in systemd.service(5))."""
        if self._enabled:
            from systemd.daemon import notify

            notify(f"FDSTORE=1\nFDNAME={name}", fds=[file])

    def drop(self, name: str) -> None:
        """Have systemd close its copy."""
        self.notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def stored_descriptors(environment: Mapping[str, str], pid: int) -> dict[str, int]:
    """The descriptors that systemd kept for this process, by name; children do not inherit them."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(pid) or not (count.isascii() and count.isdecimal()):
        return {}
    files = range(_FIRST, _FIRST + int(count))
    for file in files:
        os.set_inheritable(file, False)
    return dict(zip(environment.get("LISTEN_FDNAMES", "").split(":"), files, strict=False))


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
