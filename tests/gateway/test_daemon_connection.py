# SPDX-License-Identifier: LGPL-2.1-or-later
"""What becomes of the daemon's signals, and of those that there was no room for."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from kmodd.client.connection import SIGNALS_MAX, Signal, SignalStream
from kmodd.gateway.daemon_connection import DaemonConnection, translate

ROOT = "/org/kmodd1"
MANAGER = "org.kmodd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECTS = "org.freedesktop.DBus.ObjectManager"


@pytest.mark.parametrize(
    ("signal", "event"),
    [
        (Signal(ROOT, MANAGER, "ModuleAdded", ("loop",)), ("module-added", {"module": "loop"})),
        (Signal(ROOT, MANAGER, "ModuleRemoved", ("loop",)), ("module-removed", {"module": "loop"})),
        (
            Signal(ROOT, MANAGER, "JobFinished", (f"{ROOT}/job/7", "load", "loop", "done")),
            ("job-finished", {"job": "7", "action": "load", "module": "loop", "result": "done"}),
        ),
        (
            Signal(ROOT, OBJECTS, "InterfacesAdded", (f"{ROOT}/job/7", {"org.kmodd1.Job": {"Action": "load"}})),
            ("job-started", {"job": "7", "action": "load"}),
        ),
        (Signal(ROOT, OBJECTS, "InterfacesAdded", (f"{ROOT}/module/loop", {"org.kmodd1.Module": {}})), None),
        (
            Signal(f"{ROOT}/module/snd_5fpcm", PROPERTIES, "PropertiesChanged", ("org.kmodd1.Module", {"Size": 1}, [])),
            ("module-changed", {"module": "snd_pcm", "changed": {"size": 1}, "invalidated": []}),
        ),
        (
            Signal(ROOT, PROPERTIES, "PropertiesChanged", (MANAGER, {"Health": "failing"}, [])),
            ("health", {"status": "failing", "changed": {"health": "failing"}, "invalidated": []}),
        ),
        (
            Signal("", "org.freedesktop.DBus", "NameOwnerChanged", ("org.kmodd1", ":1.1", "")),
            ("daemon", {"state": "gone"}),
        ),
        (Signal(ROOT, MANAGER, "HistoryChanged", ()), ("history-changed", {})),
        (Signal(ROOT, MANAGER, "SomethingNew", ()), None),
    ],
)
def test_a_signal_is_an_event(signal: Signal, event: tuple[str, dict[str, object]] | None) -> None:
    assert translate(signal) == event


class _Client:
    """A connection on which only signals come."""

    def __init__(self) -> None:
        self.stream = SignalStream()

    async def __aenter__(self) -> "_Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def telling(self, _: str) -> "_Client":
        return self

    @asynccontextmanager
    async def signals(self, *_: str) -> AsyncIterator[SignalStream]:
        yield self.stream


async def test_followers_are_notified_when_signals_were_lost() -> None:
    client = _Client()
    told: list[tuple[str, Mapping[str, object]]] = []

    async def connect() -> Any:
        return client

    link = DaemonConnection(connect, lambda kind, data: told.append((kind, data)), lambda: 0.0)
    running = asyncio.create_task(link.run())
    await link.wait(1)
    for number in range(SIGNALS_MAX + 3):
        client.stream.put(Signal(ROOT, MANAGER, "ModuleAdded", (f"m{number}",)))
    for _ in range(1000):
        if len(told) > SIGNALS_MAX:
            break
        await asyncio.sleep(0.01)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert told[:3] == [
        ("daemon", {"state": "connected"}),
        ("missed", {"count": 3}),
        ("module-added", {"module": "m3"}),
    ]
    assert [kind for kind, _ in told].count("missed") == 1
