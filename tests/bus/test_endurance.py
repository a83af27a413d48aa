# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real program on a private bus, for a long time in a short one: afterwards it is as big as before."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from dbus_next import Message

from kmodd.core.events import ModuleAdded
from tests.bench.pipeline import Pipeline
from tests.bus.bench import Bench, bench
from tests.bus.buses import MANAGER, NAME, PATH, ROOT, PrivateBus
from tests.bus.odd_messages import RawClient, odd_call

ODD = 100_000
CALLS = 10_000


@dataclass(frozen=True)
class Program:
    """`kmodd --simulate` in a process of its own."""

    bus: str
    """Path of the bus's socket."""
    pid: int

    def size(self) -> tuple[int, int]:
        """(descriptors, threads)."""
        folder = Path(f"/proc/{self.pid}")
        return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))

    def megabytes(self) -> float:
        """Resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("endurance")
    bus = PrivateBus(folder)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kmodd.daemon.daemon", "--simulate", "--address", bus.address],
            cwd=ROOT,
            stderr=output,
        )
    client = RawClient(str(folder / "bus"))
    deadline = time.monotonic() + 30
    while client.call(NAME, PATH, "org.freedesktop.DBus.Peer", "Ping") != 2:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    client.close()
    yield Program(str(folder / "bus"), process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    bus.close()
    assert "Traceback" not in log.read_text()


def same_size(program: Program, before: tuple[int, int]) -> None:
    """What a caller leaves behind is gone a moment later."""
    for _ in range(100):
        if program.size() == before:
            return
        time.sleep(0.05)
    assert program.size() == before


def many(calls: Sequence[bytes], count: int) -> list[bytes]:
    """These calls over and over, each with a serial of its own."""
    made = []
    for number in range(count):
        data = calls[number % len(calls)]
        made.append(data[:8] + (number + 100).to_bytes(4, "little") + data[12:])
    return made


def test_ten_thousand_calls_leave_nothing(program: Program) -> None:
    pipeline = Pipeline(program.bus)

    def call(member: str, signature: str, *body: object) -> bytes:
        return pipeline.marshalled(Message(NAME, PATH, MANAGER, member, signature=signature, body=list(body)))

    calls = [
        call("ListModules", "a{sv}", {}),
        call("Explain", "sa{sv}", "loop", {}),
        call("Describe", "s", "dummy"),
        call("Load", "sa{ss}a{sv}", "dummy", {}, {}),
        call("Plan", "a(ssa{ss})a{sv}", [["load", "bonding", {}]], {}),
        call("GetHealth", ""),
        call("GetMetrics", ""),
        call("Unload", "sa{sv}", "dummy", {}),
    ]
    # The first ones fill what is kept: the history of a simulation, and answers that do not change.
    pipeline.run(many(calls, 1000), 8)
    before, memory = program.size(), program.megabytes()
    pipeline.run(many(calls, CALLS), 8)
    assert program.megabytes() - memory < 3
    same_size(program, before)
    pipeline.close()


def flood(client: RawClient, numbers: range) -> None:
    """Send odd messages, a few hundred with each write."""
    for start in range(numbers.start, numbers.stop, 500):
        client.send(b"".join(map(odd_call, range(start, min(start + 500, numbers.stop)))))
    # Refused while too many of its own wait, and then answered as ever.
    while client.call(NAME, PATH, "org.freedesktop.DBus.Peer", "Ping") != 2:
        time.sleep(0.05)


def test_a_hundred_thousand_odd_messages_leave_nothing(program: Program) -> None:
    client = RawClient(program.bus)
    flood(client, range(2000))
    before, memory = program.size(), program.megabytes()
    flood(client, range(2000, 2000 + ODD))
    assert program.megabytes() - memory < 3
    same_size(program, before)
    client.close()


# --- one burst ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


async def test_three_hundred_signals_at_once_with_32_calls_in_flight(service: Bench) -> None:
    async with service.client(0) as root, service.client(1000) as other:
        await root.listen()
        await other.listen()
        (name, *_) = service.registry.names()
        calls = [
            asyncio.ensure_future(
                root.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager", timeout=60)
            )
            for _ in range(32)
        ]
        await asyncio.sleep(0)
        for _ in range(300):
            service.hub.publish(ModuleAdded(name))
        answers = await asyncio.gather(*calls)
        assert len({len(answer) for answer in answers}) == 1
        for client in (root, other):
            await client.get("Version")  # behind everything that was sent before
            assert len(client.heard("ModuleAdded")) == 300
            assert len(client.heard("InterfacesAdded")) == 300
        assert service.transport.connected
        await service.settled()
