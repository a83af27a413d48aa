# SPDX-License-Identifier: LGPL-2.1-or-later
"""Uevents of modules and devices, by pyudev. The only file that imports it (1.6 MB resident)."""

import asyncio
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Protocol

from kmodd.model import Uevent
from kmodd.names import canonical, is_module_name
from kmodd.text import shown

_LIBRARIES = {"udev": "libudev.so.1", "c": "libc.so.6"}
"""What pyudev loads, by the names that their interfaces are bound to."""


@contextmanager
def _libraries_known() -> Iterator[None]:
    """Tell pyudev, while it is imported, where its libraries are.

    It would ask ctypes.util, which runs ldconfig to know (at every start, from a daemon that runs nothing else) and
    brings half a megabyte of tempfile, shutil and their like.
    """
    loaded = sys.modules.get("ctypes.util")
    answers = ModuleType("ctypes.util")
    vars(answers)["find_library"] = _LIBRARIES.get
    sys.modules["ctypes.util"] = answers
    try:
        yield
    finally:
        if loaded is None:
            del sys.modules["ctypes.util"]
        else:
            sys.modules["ctypes.util"] = loaded


with _libraries_known():
    import pyudev

RECEIVE_BUFFER = 8 << 20
"""Bytes; room for some ten thousand events while the loop is busy."""
_DRAIN_MAX = 1_000_000
_OVERFLOW = Uevent("overflow")
_COMING_OR_GOING = frozenset({"add", "remove"})


class Device(Protocol):
    """What is used of a pyudev.Device."""

    @property
    def action(self) -> str | None: ...
    @property
    def device_path(self) -> str: ...
    @property
    def properties(self) -> Mapping[str, str]: ...


class Monitor(Protocol):
    """What is used of a pyudev.Monitor that was started."""

    def fileno(self) -> int:
        """Its socket."""

    def poll(self, timeout: float | None = None) -> Device | None:
        """The next event; None when there is none within `timeout` seconds."""


def kernel_monitor() -> Monitor:
    """A started monitor on the kernel's own group: it needs no udevd, and only the kernel can send to it.

    It has no filter. libudev's would spare no wake-up: the one it puts into the socket lets everything from the kernel pass
    (sd_device_monitor_filter_update: `wrong magic, pass packet`), and sorts afterwards.
    """
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
    # Needs CAP_NET_ADMIN. Without it the buffer is smaller, and an overflow costs a rescan, nothing more.
    with suppress(OSError):
        monitor.set_receive_buffer_size(RECEIVE_BUFFER)
    monitor.start()
    started: Monitor = monitor
    return started


class KernelUevents:
    """`ports.UeventSource`. Listens from the moment it is made, so what happens before the first look is not lost.

    Root can forge an `add` by writing to a uevent file: an event says where to look, never what is true.
    """

    def __init__(self, monitor: Monitor | None = None) -> None:
        self._monitor: Monitor | None = monitor or kernel_monitor()
        self._arrival: asyncio.Future[None] | None = None
        self.on_device: Callable[[str, str], None] | None = None
        self.on_announced: Callable[[str, str], None] | None = None

    async def events(self) -> AsyncIterator[Uevent]:
        """`add` and `remove` as they come, `overflow` when some were lost; ends after `close`. For one reader."""
        while self._monitor is not None:
            event = self._next()
            if event is not None:
                yield event
            elif self._monitor is not None:
                await self._arrived(self._monitor)

    def close(self) -> None:
        """Close the socket and end the iteration."""
        if self._monitor is not None and self._arrival is not None:
            self._arrival.get_loop().remove_reader(self._monitor.fileno())
            if not self._arrival.done():
                self._arrival.set_result(None)
        self._arrival = None
        # libudev closes its socket with the last reference to the monitor (udev_monitor_unref in its __del__).
        self._monitor = None

    def _next(self) -> Uevent | None:
        """The next event that has arrived; None when there is none."""
        while self._monitor is not None:
            try:
                device = self._monitor.poll(timeout=0)
            # ENOBUFS after an overflow, and again on every later call (https://github.com/pyudev/pyudev/issues/194).
            # ValueError is how pyudev tells EINVAL, a datagram libudev could not read. Either way something was missed.
            except (OSError, ValueError):
                drain(self._monitor.fileno())
                if self.on_device is not None:
                    self.on_device("overflow", "")
                return _OVERFLOW
            if device is None:
                return None
            event = _event(device)
            if event is not None:
                return event
            action = device.action
            if action is None or not (alias := device.properties.get("MODALIAS", "")):
                continue
            if self.on_device is not None and action in _COMING_OR_GOING:
                self.on_device(action, alias)
            if self.on_announced is not None and action != "remove":
                self.on_announced(alias, _label(device))
        return None

    async def _arrived(self, monitor: Monitor) -> None:
        loop = asyncio.get_running_loop()
        arrival = self._arrival = loop.create_future()
        loop.add_reader(monitor.fileno(), _set, arrival)
        try:
            await arrival
        finally:
            # After `close` the number may belong to someone else's descriptor already.
            if self._monitor is not None:
                loop.remove_reader(monitor.fileno())
                self._arrival = None


def drain(descriptor: int) -> None:
    """Clear the socket's pending error and throw away what is queued; the kernel sends nothing more before that.

    OSError when the socket is of no use any more.
    """
    own = os.dup(descriptor)
    try:
        channel = socket.socket(fileno=own)
    except OSError:
        os.close(own)  # It is no socket any more, so the object that would close it was not made.
        raise
    with channel:
        channel.setblocking(False)
        channel.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        for _ in range(_DRAIN_MAX):
            try:
                channel.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise


def _event(device: Device) -> Uevent | None:
    """What the event says; None when it is not about a module as such."""
    parent, _, name = device.device_path.rpartition("/")
    if parent != "/module" or device.action not in _COMING_OR_GOING or not is_module_name(name):
        return None
    return Uevent(device.action, canonical(name))


def _label(device: Device) -> str:
    """The device by its node, or by subsystem and name."""
    if node := device.properties.get("DEVNAME", ""):
        return shown(f"/dev/{node.removeprefix('/dev/')}")
    subsystem = device.properties.get("SUBSYSTEM", "")
    return shown(f"{subsystem} {device.device_path.rpartition('/')[2]}".strip())


def _set(arrival: asyncio.Future[None]) -> None:
    if not arrival.done():
        arrival.set_result(None)
