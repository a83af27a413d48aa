# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times kmodd next to the floor and next to the tools people use today. Runs in the virtual machine, as root.

Every figure is a median of rounds in which all contenders take turns, so a machine that drifts drifts for all. Nothing
here passes or fails: it prints what it measured, and what was aimed at.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from dbus_next import BusType, Message, MessageType, Variant
from dbus_next.aio import MessageBus

from tests.bench import bare

MODULE = "dummy"
PARAMETERS = {"numdummies": "0"}
POLICY = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><policy user="root"><allow own="org.kmodd1.bench"/><allow send_destination="org.kmodd1.bench"/></policy></busconfig>
"""


async def _call(bus: MessageBus, message: Message) -> list[Any]:
    reply = await bus.call(message)
    assert reply is not None
    if reply.message_type is MessageType.ERROR:
        raise RuntimeError(f"{message.member}: {reply.error_name}: {reply.body}")
    body: list[Any] = reply.body
    return body


def _manager(member: str, signature: str, body: list[Any]) -> Message:
    return Message(
        destination="org.kmodd1", path="/org/kmodd1", interface="org.kmodd1.Manager", member=member,
        signature=signature, body=body,
    )  # fmt: skip


def _echo(signature: str, body: list[Any]) -> Message:
    return Message(
        destination="org.kmodd1.bench", path="/echo", interface="org.kmodd1.bench", member="Echo",
        signature=signature, body=body,
    )  # fmt: skip


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    begin = time.perf_counter()
    await work()
    return time.perf_counter() - begin


def _process(*command: str) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


class Table:
    """Rows of samples by name, printed as medians and ratios."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        """Keep one sample."""
        self.samples.setdefault(name, []).append(seconds)

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.samples[name])

    def show(self) -> None:
        """Print every row."""
        for name, values in self.samples.items():
            low, high = min(values), max(values)
            print(
                f"  {name:<34} {self.median(name) * 1e3:9.2f} ms   (min {low * 1e3:.2f}, max {high * 1e3:.2f}, n={len(values)})"
            )

    def ratio(self, text: str, value: float, aim: str) -> None:
        """Print one ratio with what was aimed at."""
        print(f"  {text:<64} {value:6.2f}   aim {aim}")


async def load_and_unload(bus: MessageBus, rounds: int) -> None:
    """One small module in and out, by every way there is."""
    table = Table()
    path = Path(subprocess.run(["modinfo", "-n", MODULE], check=True, capture_output=True, text=True).stdout.strip())
    arguments = " ".join(f"{key}={value}" for key, value in PARAMETERS.items())
    load = ("sa{ss}a{sv}", [MODULE, PARAMETERS, {}])
    unload = ("sa{sv}", [MODULE, {}])
    for turn in range(rounds + 3):
        row: list[tuple[str, float]] = []
        row.append(("finit_module, bare", bare.insert(path, arguments)))
        row.append(("delete_module, bare", bare.remove(MODULE)))
        row.append(("echo of Load", await _timed(lambda: _call(bus, _echo(*load)))))
        row.append(("echo of Unload", await _timed(lambda: _call(bus, _echo(*unload)))))
        row.append(("kmodd Load", await _timed(lambda: _call(bus, _manager("Load", *load)))))
        row.append(("kmodd Unload", await _timed(lambda: _call(bus, _manager("Unload", *unload)))))
        row.append(("modprobe process", _process("modprobe", MODULE, arguments)))
        row.append(("rmmod process", _process("rmmod", MODULE)))
        await asyncio.sleep(0.1)  # the events of this round are nobody's load in the next
        if turn >= 3:
            for name, seconds in row:
                table.add(name, seconds)
    print("Load and unload of one small module")
    table.show()
    table.ratio(
        "Load / (bare finit_module + echo)",
        table.median("kmodd Load") / (table.median("finit_module, bare") + table.median("echo of Load")),
        "<= 1.5",
    )
    table.ratio(
        "Unload / (bare delete_module + echo)",
        table.median("kmodd Unload") / (table.median("delete_module, bare") + table.median("echo of Unload")),
        "<= 1.5",
    )
    table.ratio("modprobe process / Load", table.median("modprobe process") / table.median("kmodd Load"), ">= 3")
    table.ratio("rmmod process / Unload", table.median("rmmod process") / table.median("kmodd Unload"), ">= 1.5")


async def list_modules(bus: MessageBus, rounds: int) -> None:
    """Everything loaded, against an echo of the very same body."""
    table = Table()
    body = await _call(bus, _manager("ListModules", "a{sv}", [{}]))
    for _ in range(rounds):
        table.add("ListModules", await _timed(lambda: _call(bus, _manager("ListModules", "a{sv}", [{}]))))
        table.add("echo of its answer", await _timed(lambda: _call(bus, _echo("aa{sv}", body))))
    print(f"ListModules of the {len(body[0])} modules loaded")
    table.show()
    table.ratio("ListModules / echo", table.median("ListModules") / table.median("echo of its answer"), "<= 3")


async def describe_all(bus: MessageBus) -> None:
    """Every available module once, against modinfo given all names at once."""
    options = {"state": Variant("s", "available")}
    rows = (await _call(bus, _manager("ListModules", "a{sv}", [options])))[0]
    names = [row["name"].value for row in rows]
    table = Table()
    for _ in range(3):
        begin = time.perf_counter()
        for name in names:
            await _call(bus, _manager("Describe", "s", [name]))
        table.add(f"Describe x {len(names)}", time.perf_counter() - begin)
        table.add(f"modinfo of {len(names)} names", _process("modinfo", *names))
    print("Describe of every available module")
    table.show()
    first, second = table.samples
    table.ratio("Describe / modinfo", table.median(first) / table.median(second), "<= 2")


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def _kmodd() -> tuple[int, list[int]]:
    shown = subprocess.run(["systemctl", "show", "-P", "MainPID", "kmodd"], check=True, capture_output=True, text=True)
    main = int(shown.stdout)
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    return main, [int(child) for child in children]


async def idle(seconds: int) -> None:
    """Memory and wake-ups while nobody asks anything."""
    main, workers = _kmodd()
    before = _status(main, "voluntary_ctxt_switches")
    worker_before = [_status(worker, "voluntary_ctxt_switches") for worker in workers]
    await asyncio.sleep(seconds)
    woken = _status(main, "voluntary_ctxt_switches") - before
    worker_woken = sum(_status(worker, "voluntary_ctxt_switches") for worker in workers) - sum(worker_before)
    print(f"Idle for {seconds} s")
    print(
        f"  kmodd   {_status(main, 'VmRSS') / 1024:6.1f} MB resident, {woken} wake-ups   aim <= 30 MB, the watchdog's only"
    )
    for worker in workers:
        print(
            f"  worker  {_status(worker, 'VmRSS') / 1024:6.1f} MB resident, {worker_woken} wake-ups   aim <= 15 MB, 0"
        )


def start_time(rounds: int = 3) -> None:
    """From `systemctl start` to ready."""
    table = Table()
    for _ in range(rounds):
        subprocess.run(["systemctl", "stop", "kmodd"], check=True)
        table.add("systemctl start kmodd", _process("systemctl", "start", "kmodd"))
        table.add("python3 -I -c 'import asyncio'", _process("/usr/bin/python3", "-I", "-c", "import asyncio"))
    print("Start to ready (under emulation; the aim of one second is outside it)")
    table.show()


async def main() -> None:
    """Everything, in order."""
    rounds = int(os.environ.get("KMODD_BENCH_ROUNDS", "30"))
    Path("/etc/dbus-1/system.d/org.kmodd1.bench.conf").write_text(POLICY)
    subprocess.run(["busctl", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "ReloadConfig"], check=True)
    subprocess.run(["systemctl", "start", "kmodd"], check=True)
    service = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("echo.py")), stdout=asyncio.subprocess.PIPE
    )
    assert service.stdout is not None
    await service.stdout.readline()
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    try:
        await load_and_unload(bus, rounds)
        await list_modules(bus, rounds)
        await describe_all(bus)
        await idle(20)
        start_time()
    finally:
        bus.disconnect()
        service.kill()
        await service.wait()


if __name__ == "__main__":
    asyncio.run(main())
