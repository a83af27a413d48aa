# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateway's connection to the daemon, which reconnects automatically, and the daemon's signals."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kmodd.client import PUBLIC, Client, Signal
from kmodd.errors import KmoddError, Unavailable
from kmodd.gateway.dependencies import snake
from kmodd.names import unescape_label

Publish = Callable[[str, Mapping[str, object]], None]
"""Takes the kind of an event and its data."""

PAUSE = 0.25
PAUSE_MAX = 5.0
"""Seconds between two tries to connect: doubled from the first to the second."""
HEALTH_TIMEOUT = 2.0
"""Seconds within which the daemon has to say how it is; a load balancer does not wait longer."""
HEALTH_FRESH = 1.0
RULES = (
    "interface='org.kmodd1.Manager'",
    "member='PropertiesChanged',path_namespace='/org/kmodd1'",
    "member='InterfacesAdded',arg0path='/org/kmodd1/job/'",
)
"""The signals that `translate` converts. ModuleAdded already reports a new module object with all its properties."""
NOT_THERE = "the gateway has no connection to the system bus"


class DaemonConnection:
    """Connects, publishes signals, connects again."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Client]],
        publish: Publish,
        clock: Callable[[], float],
    ) -> None:
        """The clock counts seconds and never jumps."""
        self._connect = connect
        self._publish = publish
        self._clock = clock
        self._client: Client | None = None
        self._first = asyncio.Event()
        self._health: tuple[float, str] | None = None
        self._asking: asyncio.Task[str] | None = None
        self.generation = 0
        """Changes whenever something may have changed that an answer was made of."""

    @property
    def client(self) -> Client:
        """The connected client; Unavailable while there is none."""
        if self._client is None:
            raise Unavailable(NOT_THERE)
        return self._client

    @property
    def connected(self) -> bool:
        """There is a connection to the bus."""
        return self._client is not None

    def changed(self) -> None:
        """Something was changed through us: answers made before are old."""
        self.generation += 1

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        pause = PAUSE
        while True:
            try:
                async with await self._connect() as client, client.signals(*RULES) as signals:
                    self._client, pause = client.telling(PUBLIC), PAUSE
                    self._first.set()
                    self._forward("daemon", {"state": "connected"})
                    lost = 0
                    async for signal in signals:
                        if signals.lost > lost:
                            self._forward("missed", {"count": signals.lost - lost})
                            lost = signals.lost
                        self._on_signal(signal)
            except KmoddError:
                # Not an error of the gateway: requests get 503 until then, and /metrics reports it.
                pass
            finally:
                if self._client is not None:
                    self._client = None
                    self._forward("daemon", {"state": "disconnected"})
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_MAX)

    async def wait(self, seconds: float) -> None:
        """Return with the first connection, or after so many seconds: who was started by a request can answer it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._first.wait()

    async def health(self) -> str:
        """The daemon's status in a word, at most a second old, or Unavailable within two seconds."""
        if self._health is not None and self._clock() - self._health[0] < HEALTH_FRESH:
            return self._health[1]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_health())
        return await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Let go of what is under way."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError, KmoddError):
                await self._asking

    async def _ask_health(self) -> str:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                properties = await self.client.properties()
        except TimeoutError as error:
            raise Unavailable(f"kmodd did not answer within {HEALTH_TIMEOUT:g} seconds") from error
        status = str(properties.get("Health", "failing"))
        self._health = (self._clock(), status)
        return status

    def _forward(self, kind: str, data: Mapping[str, object]) -> None:
        self.generation += 1
        self._health = None
        self._publish(kind, data)

    def _on_signal(self, signal: Signal) -> None:
        event = translate(signal)
        if event is not None:
            self._forward(*event)


def translate(signal: Signal) -> tuple[str, dict[str, object]] | None:
    """A signal as an event; None for one that another signal already reports."""
    values: tuple[Any, ...] = signal.arguments
    match signal.member:
        case "NameOwnerChanged":
            return "daemon", {"state": "running" if values[2] else "gone"}
        case "ModuleAdded":
            return "module-added", {"module": values[0]}
        case "ModuleRemoved":
            return "module-removed", {"module": values[0]}
        case "JobFinished":
            job, action, module, result = values
            return "job-finished", {"job": _last(job), "action": action, "module": module, "result": result}
        case "HistoryChanged":
            return "history-changed", {}
        case "InterfacesAdded" if (job_properties := values[1].get("org.kmodd1.Job")) is not None:
            return "job-started", {"job": _last(values[0]), **snake(job_properties)}
        case "PropertiesChanged":
            return _changed(signal.path, *values)
    return None


def _changed(path: str, interface: str, values: Mapping[str, Any], gone: list[str]) -> tuple[str, dict[str, object]]:
    changed: dict[str, object] = {"changed": snake(values), "invalidated": [name.lower() for name in gone]}
    match interface.rpartition(".")[2]:
        case "Manager" if "Health" in values:
            return "health", {"status": values["Health"], **changed}
        case "Module":
            return "module-changed", {"module": unescape_label(_last(path)), **changed}
        case "Job":
            return "job-changed", {"job": _last(path), **changed}
        case other:
            return f"{other.lower()}-changed", changed


def _last(path: str) -> str:
    return path.rpartition("/")[2]
