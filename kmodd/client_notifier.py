# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of kmodd-notifier (org.kmodd1.Notifier), for kmodctl and the gateway.

    async with await NotifierClient.connect() as notifier:
        status = await notifier.status()

Answers are plain values, keys as on the bus. Errors are classes of `kmodd.errors`; `Unavailable` when it is not running.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from kmodd.client_transport import BUS, Transport, unavailable, variant
from kmodd.errors import Unavailable
from kmodd.model import Metric

NAME = "org.kmodd1.Notifier"
PATH = "/org/kmodd1/Notifier"
TIMEOUT = 25.0
PROMPT_TIMEOUT = 150.0

OPTIONS: Mapping[str, str] = {
    "events": "as",
    "errors": "as",
    "modules": "as",
    "uids": "au",
    "severity": "s",
    "format": "s",
    "timeout": "u",
    "key": "s",
    "digest": "u",
    "per-hour": "u",
}
"""Every option of AddWebhook and AddEmail with its type."""


class NotifierClient:
    """The notifier, for one caller, over a connection of its own or another client's."""

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
        (found,) = await self._call("GetStatus")
        return dict(found)

    async def metrics(self) -> tuple[Metric, ...]:
        """Every sample, in Prometheus naming. Looking at it does not start it: `Unavailable` while it is not running."""
        (owned,) = await self._transport.call(
            BUS[1], BUS[2], "NameHasOwner", "s", [NAME], timeout=TIMEOUT, destination=BUS[0]
        )
        if not owned:
            raise unavailable("kmodd-notifier is not running")
        (rows,) = await self._call("GetMetrics")
        return tuple(Metric(name, kind, tuple(sorted(labels.items())), value) for name, kind, labels, value in rows)

    async def test(self, name: str) -> str:
        """Queue a test for one endpoint; the id it will have."""
        (found,) = await self._call("Test", "s", name)
        return str(found)

    async def add_webhook(self, name: str, url: str, options: Mapping[str, object] | None = None) -> str:
        """Add a webhook; its signing key, which is never told again."""
        (key,) = await self._call("AddWebhook", "ssa{sv}", name, url, _options(options))
        return str(key)

    async def add_email(self, name: str, to: Sequence[str], options: Mapping[str, object] | None = None) -> None:
        """Add recipients of mail."""
        await self._call("AddEmail", "sasa{sv}", name, list(to), _options(options))

    async def remove(self, name: str) -> None:
        """Remove an endpoint that was added, with what waits for it."""
        await self._call("Remove", "s", name)

    async def set_enabled(self, name: str, *, enabled: bool) -> None:
        """Send to an endpoint again, or no more."""
        await self._call("SetEnabled", "sb", name, enabled)

    async def reload(self) -> None:
        """Read the configuration again."""
        await self._call("Reload")

    async def _call(self, member: str, signature: str = "", *body: object) -> tuple[Any, ...]:
        reads = member in ("GetStatus", "GetMetrics")
        try:
            return await self._transport.call(
                PATH,
                NAME,
                member,
                signature,
                body,
                timeout=PROMPT_TIMEOUT if self.interactive and not reads else TIMEOUT,
                interactive=self.interactive and not reads,
                destination=NAME,
            )
        except Unavailable as error:
            sentence = error.message.replace("kmodd", "kmodd-notifier")
            raised = unavailable(sentence)
            raised.evidence = type(raised.evidence)(hint="to start it: systemctl enable --now kmodd-notifier")
            raise raised from error


def _options(given: Mapping[str, object] | None) -> dict[str, object]:
    return {name: variant(OPTIONS[name], value) for name, value in (given or {}).items()}
