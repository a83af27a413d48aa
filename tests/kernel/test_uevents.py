# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module events over a socket pair in place of the kernel's netlink socket; the real one is tried in the virtual machine."""

import asyncio
import errno
import gc
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kmodd.kernel.proc.uevents import KernelUevents, drain
from kmodd.model import Uevent
from kmodd.names import ModuleName


@dataclass
class FakeDevice:
    action: str | None
    device_path: str
    properties: Mapping[str, str] = field(default_factory=dict)


class FakeMonitor:
    """Says what pyudev says: after an overflow the same error on every call, until someone drains the socket."""

    def __init__(self) -> None:
        self.ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.kernel.setblocking(False)
        self.broken: Exception | None = None

    def fileno(self) -> int:
        return self.ours.fileno()

    def poll(self, timeout: float | None = None) -> FakeDevice | None:
        assert timeout == 0, "the loop must not be blocked"
        try:
            if self.broken is not None:
                self.ours.recv(1, socket.MSG_PEEK)
                raise self.broken
            action, path, *alias = self.ours.recv(4096).decode().split(" ")
        except BlockingIOError:
            self.broken = None
            return None
        return FakeDevice(action, path, {"MODALIAS": alias[0]} if alias else {"SUBSYSTEM": "pci"})

    def send(self, action: str, path: str, *alias: str) -> None:
        self.kernel.send(" ".join((action, path, *alias)).encode())


@pytest.fixture
def monitor() -> Iterator[FakeMonitor]:
    made = FakeMonitor()
    yield made
    made.ours.close()
    made.kernel.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def take(source: KernelUevents, count: int) -> list[Uevent]:
    taken: list[Uevent] = []
    async with asyncio.timeout(5):
        async for event in source.events():
            taken.append(event)
            if len(taken) == count:
                break
    return taken


async def test_events_before_and_after_the_first_look_come_in_order(monitor: FakeMonitor) -> None:
    source = KernelUevents(monitor)
    monitor.send("add", "/module/dummy")
    asyncio.get_running_loop().call_later(0.05, monitor.send, "remove", "/module/dummy")
    assert await take(source, 2) == [Uevent("add", ModuleName("dummy")), Uevent("remove", ModuleName("dummy"))]
    source.close()


async def test_names_are_canonical(monitor: FakeMonitor) -> None:
    monitor.send("add", "/module/snd-pcm")
    assert await take(KernelUevents(monitor), 1) == [Uevent("add", ModuleName("snd_pcm"))]


@pytest.mark.parametrize(
    ("action", "path"),
    [
        ("change", "/module/dummy"),
        ("add", "/module/dummy/drivers/x"),
        ("add", "/devices/module/x"),
        ("add", "/module/"),
        ("add", "/module/.."),
        ("add", "/module/a.b"),
    ],
)
async def test_what_is_no_module_coming_or_going_is_passed_over(monitor: FakeMonitor, action: str, path: str) -> None:
    monitor.send(action, path)
    monitor.send("add", "/module/after")
    assert await take(KernelUevents(monitor), 1) == [Uevent("add", ModuleName("after"))]


async def test_devices_with_an_alias_are_reported_too(monitor: FakeMonitor) -> None:
    source = KernelUevents(monitor)
    monitor.send("add", "/devices/pci0000:00/0000:00:01.0", "pci:v1")
    monitor.send("add", "/module/first")
    assert await take(source, 1) == [Uevent("add", ModuleName("first"))], "nobody wants to know of devices"
    told: list[tuple[str, str]] = []
    source.on_device = lambda action, alias: told.append((action, alias))
    announced: list[tuple[str, str]] = []
    source.on_announced = lambda alias, device: announced.append((alias, device))
    monitor.send("add", "/devices/pci0000:00/0000:00:02.0", "pci:v2")
    monitor.send("change", "/devices/pci0000:00/0000:00:02.0", "pci:v2")
    monitor.send("bind", "/devices/pci0000:00/0000:00:02.0", "pci:v2")
    monitor.send("add", "/devices/virtual/net/lo")
    monitor.send("remove", "/devices/pci0000:00/0000:00:02.0", "pci:v2")
    monitor.send("add", "/module/second")
    assert await take(source, 1) == [Uevent("add", ModuleName("second"))]
    assert told == [("add", "pci:v2"), ("remove", "pci:v2")]
    assert announced == [("pci:v2", "0000:00:02.0")] * 3, "however they are announced, as long as they are there"
    monitor.broken = OSError(errno.ENOBUFS, "overflow")
    monitor.send("add", "/module/lost")
    assert await take(source, 1) == [Uevent("overflow")]
    assert told[2:] == [("overflow", "")]


@pytest.mark.parametrize("error", [OSError(errno.ENOBUFS, "overflow"), ValueError("EINVAL")])
async def test_overflow_is_reported_once_and_listening_goes_on(monitor: FakeMonitor, error: Exception) -> None:
    for _ in range(5):
        monitor.send("add", "/module/lost")
    monitor.broken = error
    source = KernelUevents(monitor)
    asyncio.get_running_loop().call_later(0.05, monitor.send, "add", "/module/later")
    assert await take(source, 2) == [Uevent("overflow"), Uevent("add", ModuleName("later"))]
    source.close()


async def test_real_overflow_of_a_netlink_like_queue_is_drained(monitor: FakeMonitor) -> None:
    with suppress(BlockingIOError):
        while True:
            monitor.send("add", "/module/flood")
    drain(monitor.fileno())
    monitor.send("add", "/module/after")
    assert await take(KernelUevents(monitor), 1) == [Uevent("add", ModuleName("after"))]


async def test_close_ends_a_waiting_reader(monitor: FakeMonitor) -> None:
    source = KernelUevents(monitor)
    reader = asyncio.create_task(take(source, 1))
    await asyncio.sleep(0.02)
    source.close()
    source.close()
    assert await asyncio.wait_for(reader, 2) == []
    assert asyncio.get_running_loop().remove_reader(monitor.fileno()) is False


async def test_cancelled_reader_leaves_no_watch_and_another_can_read(monitor: FakeMonitor) -> None:
    source = KernelUevents(monitor)
    reader = asyncio.create_task(take(source, 1))
    await asyncio.sleep(0.02)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert asyncio.get_running_loop().remove_reader(monitor.fileno()) is False
    monitor.send("add", "/module/dummy")
    assert len(await take(source, 1)) == 1


async def test_broken_socket_is_an_error_and_no_endless_overflow(monitor: FakeMonitor) -> None:
    source = KernelUevents(monitor)
    monitor.broken = OSError(errno.ENOBUFS, "overflow")
    monitor.send("add", "/module/x")
    other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, monitor.fileno())
    os.close(other)
    monitor.poll = _raise  # type: ignore[method-assign]
    with pytest.raises(OSError, match="socket"):
        await take(source, 1)


def _raise(timeout: float | None = None) -> FakeDevice | None:
    raise OSError(errno.ENOBUFS, f"overflow {timeout}")


async def test_real_monitor_opens_and_closes_one_socket() -> None:
    KernelUevents().close()  # libudev reads its configuration the first time
    gc.collect()
    before = descriptors()
    source = KernelUevents()
    assert descriptors() == before + 1
    source.close()
    gc.collect()
    assert descriptors() == before
