# SPDX-License-Identifier: LGPL-2.1-or-later
"""Desktop notifications for a logged-in user, from the system bus's signals to the session's notification service.

It runs as that user and sees what every user may see: that an operation failed, that the health changed, that a module
without a valid signature was loaded. Who did it and why is in the history, which requires authorization.
"""

import asyncio
import signal
import sys
from collections.abc import Callable

from kmodd.client import Client, Signal
from kmodd.client.connection import Transport, variant
from kmodd.errors import ERRORS, KmoddError
from kmodd.fast_dataclass import dataclass
from kmodd.names import is_module_name

NOTIFICATIONS = "org.freedesktop.Notifications"
PATH = "/org/freedesktop/Notifications"
COLLECT = 0.5
"""Seconds in which a burst becomes one notification."""
SHOWN_MAX = 5
LOW, NORMAL, CRITICAL = 0, 1, 2
_TITLES = {error.name(): error.title for error in ERRORS.values()}
_GRAVE = frozenset({"Crashed", "Stuck", "TimedOut"})


@dataclass(frozen=True, slots=True)
class DesktopNotification:
    """One line to show."""

    text: str
    urgency: int = NORMAL


class Desktop:
    """Collects what is worth showing and shows it."""

    def __init__(self, client: Client, session: Transport) -> None:
        self._client = client
        self._session = session
        self._waiting: list[DesktopNotification] = []
        self._arrived = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled; Unavailable when a bus is lost."""
        async with self._client.signals() as stream:
            showing = asyncio.ensure_future(self._show_all())
            try:
                async for each in stream:
                    if showing.done():
                        showing.result()
                    shown = await self._judge(each)
                    if shown is not None:
                        self._waiting.append(shown)
                        self._arrived.set()
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)

    async def _judge(self, each: Signal) -> DesktopNotification | None:
        match each:
            case Signal(member="JobFinished", arguments=(_, action, module, result)) if result in _TITLES:
                urgency = CRITICAL if result in _GRAVE else NORMAL
                return DesktopNotification(f"{action} {module}: {_TITLES[result]}", urgency)
            case Signal(member="PropertiesChanged", path="/org/kmodd1", arguments=(_, {"Health": status}, _)):
                return DesktopNotification(
                    f"Kernel module health is {status}", CRITICAL if status == "failing" else LOW
                )
            case Signal(member="ModuleAdded", arguments=(name,)) if is_module_name(name):
                return await self._unsigned(name)
        return None

    async def _unsigned(self, name: str) -> DesktopNotification | None:
        try:
            taint = (await self._client.module_properties(name)).get("Taint", "")
        except KmoddError:  # gone again
            return None
        return DesktopNotification(f"{name} was loaded without a valid signature") if "E" in str(taint) else None

    async def _show_all(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(COLLECT)
            self._arrived.clear()
            notices, self._waiting = self._waiting, []
            await self._show(notices)

    async def _show(self, notices: list[DesktopNotification]) -> None:
        lines = [escape(notice.text) for notice in notices[:SHOWN_MAX]]
        lines += [f"and {len(notices) - SHOWN_MAX} more"] if len(notices) > SHOWN_MAX else []
        hints = {
            "urgency": variant("y", max(notice.urgency for notice in notices)),
            "category": variant("s", "device"),
            "desktop-entry": variant("s", "kmodd"),
        }
        body = ["kmodd", 0, "preferences-system", "Kernel modules", "\n".join(lines), [], hints, -1]
        try:
            await self._session.call(PATH, NOTIFICATIONS, "Notify", "susssasa{sv}i", body, timeout=10.0)
        except KmoddError as error:
            # No notification service in this session, or a slow one: the next notification tries again.
            sys.stderr.write(f"kmodd-notifier: cannot notify: {error.message}\n")


def escape(text: str) -> str:
    """As the markup of a notification's body (Desktop Notifications Specification 1.2) wants it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


async def run(address: str, on_ready: Callable[[], None] = lambda: None) -> int:
    """Follow the system bus (or the one at the address) and notify on the session's."""
    try:
        session = await Transport.connect(NOTIFICATIONS, session=True)
        try:
            async with await Client.connect(address or None) as client:
                following = asyncio.ensure_future(Desktop(client, session).run())
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, following.cancel)
                on_ready()
                await following
        finally:
            await session.close()
    except asyncio.CancelledError:
        return 0
    except KmoddError as error:
        sys.stderr.write(f"kmodd-notifier: {error.message}\n")
        return 1
    return 0


def main(address: str) -> int:
    """Run until stopped."""
    return asyncio.run(run(address))
