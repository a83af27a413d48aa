# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of kmodd-notifier (org.kmodd1.Notifier), for kmodctl and the gateway.

    async with await NotifierClient.connect() as notifier:
        status = await notifier.status()

Replies are plain values, keys as on D-Bus. Errors are classes of `kmodd.errors`; `Unavailable` when it is not running.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from kmodd.client.connection import BUS, Transport, message_body, unavailable
from kmodd.dbus.interface_xml import installed
from kmodd.model import Metric

NAME = "org.kmodd1.Notifier"
PATH = "/org/kmodd1/Notifier"
SERVICE = "kmodd-notifier"
TIMEOUT = 25.0
PROMPT_TIMEOUT = 150.0


class NotifierClient:
    """The notifier, for one caller, over its own connection or that of another client."""

    def __init__(self, transport: Transport, *, interactive: bool = False) -> None:
        self.interactive = interactive
        """Calls may ask a person for a password."""
        self._transport = transport

    @classmethod
    async def connect(cls, address: str | None = None, *, session: bool = False, interactive: bool = False) -> Self:
        """Connect to the system bus, to the session's, or to the one at a D-Bus address."""
        return cls(await Transport.connect(NAME, address=address, session=session), interactive=interactive)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    async def status(self) -> dict[str, Any]:
        """How it and every endpoint are."""
        (status,) = await self._call("GetStatus")
        return dict(status)

    async def metrics(self) -> tuple[Metric, ...]:
        """Every sample, in Prometheus naming. Looking at it does not start it: `Unavailable` while it is not running."""
        (owned,) = await self._transport.call(
            BUS[1], BUS[2], "NameHasOwner", "s", [NAME], timeout=TIMEOUT, destination=BUS[0]
        )
        if not owned:
            raise unavailable("kmodd-notifier is not running", SERVICE)
        (rows,) = await self._call("GetMetrics")
        return tuple(Metric(name, kind, tuple(sorted(labels.items())), value) for name, kind, labels, value in rows)

    async def test(self, name: str, options: Mapping[str, object] | None = None) -> str:
        """Queue a test for one endpoint; the id it will have."""
        (number,) = await self._call("Test", name, options=options)
        return str(number)

    async def add_webhook(self, name: str, url: str, options: Mapping[str, object] | None = None) -> str:
        """Add a webhook; its signing key, which is not shown again."""
        (key,) = await self._call("AddWebhook", name, url, options=options)
        return str(key)

    async def add_email(self, name: str, to: Sequence[str], options: Mapping[str, object] | None = None) -> None:
        """Add recipients of mail."""
        await self._call("AddEmail", name, list(to), options=options)

    async def remove(self, name: str, options: Mapping[str, object] | None = None) -> None:
        """Remove an endpoint that was added, with what waits for it."""
        await self._call("Remove", name, options=options)

    async def set_enabled(self, name: str, *, enabled: bool, options: Mapping[str, object] | None = None) -> None:
        """Send to an endpoint again, or no more."""
        await self._call("SetEnabled", name, enabled, options=options)

    async def reload(self, options: Mapping[str, object] | None = None) -> None:
        """Reload the configuration."""
        await self._call("Reload", options=options)

    async def _call(
        self, member: str, *arguments: object, options: Mapping[str, object] | None = None
    ) -> tuple[Any, ...]:
        row = installed(NAME).method(NAME, member)
        interactive = self.interactive and not row.public
        return await self._transport.call(
            PATH,
            NAME,
            member,
            row.takes,
            message_body(row, arguments, options),
            timeout=PROMPT_TIMEOUT if interactive else TIMEOUT,
            interactive=interactive,
            destination=NAME,
            service=SERVICE,
        )
