# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a call of `Load` or `Unload` costs the daemon's processor, as a multiple of an echo of the same message: outside emulation.

`python3 -m tests.bench.load_native [CALLS]`. The daemon runs on the simulated kernel, as root, on a private bus; nothing of what
the kernel takes is in it. Calls are made back to back. The processor time is that of the whole process (schedstat in proc(5),
nanoseconds), so records and signals, which follow the answer, are in it. The echo is tests/bench/echo.py on the same bus. A machine
that others use adds noise: the smallest of several rounds counts.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dbus_next import Message, MessageType
from dbus_next.aio import MessageBus

from tests.cli.private_bus import private_bus
from tests.gateway.processes import daemon

MODULE = "dummy"
ROUNDS = 7
AIM = 12.0
"""Echoes."""


def processor(pid: int) -> float:
    """Seconds of processor time so far, of all threads."""
    return (
        sum(int(task.joinpath("schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())
        / 1e9
    )


async def _call(bus: MessageBus, destination: str, path: str, member: str, signature: str, *body: Any) -> None:
    interface = "org.kmodd1.Manager" if destination == "org.kmodd1" else destination
    reply = await bus.call(Message(destination, path, interface, member, signature=signature, body=list(body)))
    if reply is None or reply.message_type is MessageType.ERROR:
        raise RuntimeError(f"{member}: {reply and reply.body}")


async def _measure(address: str, kmodd: int, echo: int, calls: int) -> dict[str, float]:
    bus = await MessageBus(address).connect()
    load: tuple[Any, ...] = ("sa{ss}a{sv}", MODULE, {}, {})
    unload: tuple[Any, ...] = ("sa{sv}", MODULE, {})
    times: dict[str, list[float]] = {"echo": [], "Load and Unload": []}
    for _ in range(ROUNDS):
        before = processor(kmodd)
        for _ in range(calls):
            await _call(bus, "org.kmodd1", "/org/kmodd1", "Load", *load)
            await _call(bus, "org.kmodd1", "/org/kmodd1", "Unload", *unload)
        times["Load and Unload"].append((processor(kmodd) - before) / calls / 2)
        before = processor(echo)
        for _ in range(calls):
            await _call(bus, "org.kmodd1.bench", "/echo", "Echo", *load)
            await _call(bus, "org.kmodd1.bench", "/echo", "Echo", *unload)
        times["echo"].append((processor(echo) - before) / calls / 2)
    bus.disconnect()
    return {name: min(each) for name, each in times.items()}


def main(calls: int = 40) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as place, private_bus(Path(place)) as address, daemon(address) as kmodd:
        environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address}
        program = [sys.executable, str(Path(__file__).with_name("echo.py"))]
        with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as echo:
            assert echo.stdout is not None
            assert echo.stdout.readline() == "ready\n"
            times = asyncio.run(_measure(address, kmodd.pid, echo.pid, calls))
            echo.kill()
    print("The daemon's processor time on a simulated kernel")
    ratio = times["Load and Unload"] / times["echo"]
    print(f"  echo             {times['echo'] * 1e6:7.0f} us")
    print(f"  Load and Unload  {times['Load and Unload'] * 1e6:7.0f} us each, {ratio:.1f} echoes   aim <= {AIM:.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
