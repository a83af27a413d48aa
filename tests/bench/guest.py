# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times kmodd next to the floor and next to the tools people use today. Runs in the virtual machine, as root.

`python3 -m tests.bench [ROUNDS [PART …]]`, parts being idle, load, row, list, describe, start; all of them by default.

Every figure is a median of rounds in which all contenders take turns, so a machine that drifts drifts for all. Nothing
here passes or fails: it prints what it measured, and what was aimed at.
"""

import asyncio
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
from tests.bench.pipeline import Pipeline

MODULE = "dummy"
PARAMETERS = {"numdummies": "0"}
PLAIN = "ts_kmp"
"""A module without interfaces and devices: what is removed with it is known without a look at each process's namespaces."""
PAUSE = 0.1
"""Seconds. Longer ones measure how fast the host wakes an idle virtual machine."""
POLICY = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><policy user="root"><allow own="org.kmodd1.bench"/><allow send_destination="org.kmodd1.bench"/></policy></busconfig>
"""


async def call(bus: MessageBus, message: Message) -> list[Any]:
    """The answer's values; RuntimeError for an error."""
    reply = await bus.call(message)
    assert reply is not None
    if reply.message_type is MessageType.ERROR:
        raise RuntimeError(f"{message.member}: {reply.error_name}: {reply.body}")
    body: list[Any] = reply.body
    return body


def manager(member: str, signature: str, body: list[Any]) -> Message:
    """A call of the Manager's."""
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

    def minimum(self, name: str) -> float:
        """Seconds."""
        return min(self.samples[name])

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

    async def bare_load() -> float:
        return bare.insert(path, arguments)

    async def bare_unload() -> float:
        return bare.remove(MODULE)

    async def process(*command: str) -> float:
        return _process(*command)

    contenders: list[tuple[str, Callable[[], Awaitable[float]]]] = [
        ("finit_module, bare", bare_load),
        ("delete_module, bare", bare_unload),
        ("echo of Load", lambda: _timed(lambda: call(bus, _echo(*load)))),
        ("echo of Unload", lambda: _timed(lambda: call(bus, _echo(*unload)))),
        ("kmodd Load", lambda: _timed(lambda: call(bus, manager("Load", *load)))),
        ("kmodd Unload", lambda: _timed(lambda: call(bus, manager("Unload", *unload)))),
        ("modprobe process", lambda: process("modprobe", MODULE, arguments)),
        ("rmmod process", lambda: process("rmmod", MODULE)),
        (f"kmodd Load of {PLAIN}", lambda: _timed(lambda: call(bus, manager("Load", "sa{ss}a{sv}", [PLAIN, {}, {}])))),
        (f"kmodd Unload of {PLAIN}", lambda: _timed(lambda: call(bus, manager("Unload", "sa{sv}", [PLAIN, {}])))),
        (f"modprobe process for {PLAIN}", lambda: process("modprobe", PLAIN)),
        (f"rmmod process for {PLAIN}", lambda: process("rmmod", PLAIN)),
    ]
    for turn in range(rounds + 3):
        for name, contender in contenders:
            # Events of a change, in udev, systemd and kmodd, are nobody's load in the next measurement.
            await asyncio.sleep(PAUSE)
            seconds = await contender()
            if turn >= 3:
                table.add(name, seconds)
    print(f"Load and unload of one small module, {PAUSE} s of rest before each")
    table.show()
    for text, name, floor in (
        ("Load / (bare finit_module + echo)", "kmodd Load", ("finit_module, bare", "echo of Load")),
        ("Unload / (bare delete_module + echo)", "kmodd Unload", ("delete_module, bare", "echo of Unload")),
    ):
        for kind, of in (("medians", table.median), ("minima", table.minimum)):
            table.ratio(f"{text}, {kind}", of(name) / sum(map(of, floor)), "<= 1.5")
    for text, tool, name, aim in (
        ("modprobe process / Load", "modprobe process", "kmodd Load", ">= 3"),
        ("rmmod process / Unload", "rmmod process", "kmodd Unload", ">= 1.5"),
    ):
        for kind, of in (("medians", table.median), ("minima", table.minimum)):
            table.ratio(f"{text}, {kind}", of(tool) / of(name), aim)
    plain = table.median(f"rmmod process for {PLAIN}") / table.median(f"kmodd Unload of {PLAIN}")
    table.ratio(f"rmmod process / Unload of {PLAIN}, medians", plain, "none")


async def in_a_row(bus: MessageBus, rounds: int) -> None:
    """Load and unload with no rest in between, where each also pays for what the one before left to be told."""
    table = Table()
    arguments = " ".join(f"{key}={value}" for key, value in PARAMETERS.items())

    async def kmodd() -> None:
        await call(bus, manager("Load", "sa{ss}a{sv}", [MODULE, PARAMETERS, {}]))
        await call(bus, manager("Unload", "sa{sv}", [MODULE, {}]))

    for _ in range(rounds):
        table.add("kmodd Load and Unload", await _timed(kmodd))
        table.add("modprobe and rmmod processes", _process("modprobe", MODULE, arguments) + _process("rmmod", MODULE))
    print("Load and unload in a row")
    table.show()
    first, second = table.samples
    table.ratio("processes / kmodd, medians", table.median(second) / table.median(first), "none")


async def list_modules(bus: MessageBus, rounds: int) -> None:
    """Everything loaded, against an echo of the very same body."""
    table = Table()
    body = await call(bus, manager("ListModules", "a{sv}", [{}]))
    for _ in range(rounds):
        table.add("ListModules", await _timed(lambda: call(bus, manager("ListModules", "a{sv}", [{}]))))
        table.add("echo of its answer", await _timed(lambda: call(bus, _echo("aa{sv}", body))))
    print(f"ListModules of the {len(body[0])} modules loaded")
    table.show()
    table.ratio("ListModules / echo", table.median("ListModules") / table.median("echo of its answer"), "<= 3")


async def describe_all(bus: MessageBus, rounds: int = 5) -> None:
    """Every available module once, against modinfo given all names at once.

    A call over the bus costs a round trip, so who wants a thousand answers asks without waiting for each: 32 calls in
    flight, as the bus allows many more. Once more with one call at a time, and the same number of echoes of its calls.
    """
    options = {"state": Variant("s", "available")}
    rows = (await call(bus, manager("ListModules", "a{sv}", [options])))[0]
    names = [row["name"].value for row in rows]
    pipeline = Pipeline()
    calls = [pipeline.marshalled(manager("Describe", "s", [name])) for name in names]
    echoes = [pipeline.marshalled(_echo("s", [name])) for name in names]
    table = Table()
    # Then the machine has read every file once, for whoever comes first; kmodd has not: it is started anew.
    _process("modinfo", *names)
    subprocess.run(["systemctl", "restart", "kmodd"], check=True)
    await asyncio.sleep(2)
    cold = await _threaded(lambda: pipeline.run(calls, 32))
    for _ in range(rounds):
        table.add(f"modinfo of {len(names)} names", _process("modinfo", *names))
        table.add(f"Describe x {len(names)}, 32 in flight", await _threaded(lambda: pipeline.run(calls, 32)))
    table.add(f"Describe x {len(names)}, for the first time", cold)
    table.add("as many echoes, 32 in flight", await _threaded(lambda: pipeline.run(echoes, 32)))
    table.add(f"Describe x {len(names)}, one at a time", await _threaded(lambda: pipeline.run(calls, 1)))
    table.add("as many echoes, one at a time", await _threaded(lambda: pipeline.run(echoes, 1)))
    pipeline.close()
    print("Describe of every available module, by a client that only counts the replies")
    table.show()
    first, second, third, *_ = table.samples
    table.ratio("Describe / modinfo, medians", table.median(second) / table.median(first), "<= 2")
    table.ratio("Describe / modinfo, minima", table.minimum(second) / table.minimum(first), "<= 2")
    table.ratio("Describe for the first time / modinfo", table.median(third) / table.median(first), "<= 2")


async def _threaded(work: Callable[[], object]) -> float:
    """Seconds it took beside this loop, which is idle meanwhile."""
    return await _timed(lambda: asyncio.to_thread(work))


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def memory(pid: int) -> float:
    """Megabytes that a process has resident."""
    return _status(pid, "VmRSS") / 1024


def _kmodd() -> tuple[int, list[int]]:
    """Process numbers of the daemon and of its workers, which are units of their own."""
    shown = subprocess.run(["systemctl", "show", "-P", "MainPID", "kmodd"], check=True, capture_output=True, text=True)
    listed = subprocess.run(
        ["systemctl", "show", "-P", "MainPID", "kmodd-worker@*.service"], check=True, capture_output=True, text=True
    )
    return int(shown.stdout), [int(line) for line in listed.stdout.split() if line != "0"]


async def idle(seconds: int, when: str) -> None:
    """Memory and wake-ups while nobody asks anything."""
    main, workers = _kmodd()
    before = _status(main, "voluntary_ctxt_switches")
    worker_before = [_status(worker, "voluntary_ctxt_switches") for worker in workers]
    await asyncio.sleep(seconds)
    woken = _status(main, "voluntary_ctxt_switches") - before
    worker_woken = sum(_status(worker, "voluntary_ctxt_switches") for worker in workers) - sum(worker_before)
    print(f"Idle for {seconds} s, {when}")
    print(f"  kmodd   {memory(main):6.1f} MB resident, {woken} wake-ups   aim <= 30 MB, the watchdog's only")
    for worker in workers:
        print(f"  worker  {memory(worker):6.1f} MB resident, {worker_woken} wake-ups   aim <= 15 MB, 0")


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
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    wanted = sys.argv[2:] or ["idle", "load", "row", "list", "describe", "start"]
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
        if "idle" in wanted:
            subprocess.run(["systemctl", "restart", "kmodd"], check=True)
            await asyncio.sleep(2)
            await idle(20, "after its start")
        if "load" in wanted:
            await load_and_unload(bus, rounds)
        if "row" in wanted:
            await in_a_row(bus, rounds)
        if "list" in wanted:
            await list_modules(bus, rounds)
        if "describe" in wanted:
            await describe_all(bus)
        if "idle" in wanted:
            await asyncio.sleep(2)
            await idle(20, "after all of this")
        if "start" in wanted:
            start_time()
    finally:
        bus.disconnect()
        service.kill()
        await service.wait()


if __name__ == "__main__":
    asyncio.run(main())
