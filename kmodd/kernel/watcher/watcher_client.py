# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's side of the watcher: keeps one running, and reads what it says as a stranger's."""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from kmodd.kernel.watcher.watcher import MESSAGE_MAX
from kmodd.kernel.worker.worker_client import WorkerProcess, WorkerUnit
from kmodd.model import ModuleLoad, ModuleRequest, Requester
from kmodd.names import ModuleName, is_module_name

RETRY: Final = 5.0
"""Seconds until a watcher that ended is replaced; doubled each time, up to `RETRY_MAX`."""
RETRY_MAX: Final = 600.0
_TEXT_MAX = 1024


class Watcher:
    """`ports.RequestSource`: requests and loads as the kernel's trace has them."""

    def __init__(self, unit_socket: str, clock: Callable[[], int]) -> None:
        """`unit_socket` is where systemd starts the watcher; without it there is none."""
        self.off = "" if unit_socket else "no watcher is installed"
        self.lost = 0
        self._socket = unit_socket
        self._clock = clock
        self._process: WorkerProcess | None = None
        self._retry = RETRY
        self._timer: asyncio.TimerHandle | None = None
        self._requested: Callable[[ModuleRequest], None] = lambda _: None
        self._loaded: Callable[[ModuleLoad], None] = lambda _: None

    def start(self, requested: Callable[[ModuleRequest], None], loaded: Callable[[ModuleLoad], None]) -> None:
        """Tell of each from now on."""
        self._requested, self._loaded = requested, loaded
        if self._socket:
            self._connect()

    def close(self) -> None:
        """Let it go."""
        self._socket = ""
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            self._process.forget()
            self._process = None

    def _connect(self) -> None:
        self._timer = None
        if not Path(self._socket).exists():
            self.off = "the watcher is not started (kmodd-watcher.socket)"  # its socket comes with the daemon
            return
        try:
            self._process = _WatcherUnit(
                (self._socket,), answered=self._answered, ended=self._ended, came_up=self._came_up
            )
        except OSError as error:
            self._over(f"it cannot be started: {error.strerror}")

    def _came_up(self, _: WorkerProcess) -> None:
        self.off, self._retry = "", RETRY

    def _answered(self, process: WorkerProcess, data: bytes) -> None:
        try:
            message = read(data, self._clock())
        except (ValueError, KeyError, TypeError, RecursionError):
            process.forget()
            self._process = None
            self._over("its message was invalid")
            return
        match message:
            case ModuleRequest():
                self._requested(message)
            case ModuleLoad():
                self._loaded(message)
            case int():
                self.lost += message
            case str():
                self.off = message
                self._retry = RETRY_MAX

    def _ended(self, process: WorkerProcess) -> None:
        process.forget()
        self._process = None
        self._over(self.off or "it ended")

    def _over(self, reason: str) -> None:
        self.off = reason
        if self._socket:
            self._timer = asyncio.get_running_loop().call_later(self._retry, self._connect)
            self._retry = min(self._retry * 2, RETRY_MAX)


class _WatcherUnit(WorkerUnit):
    answer_max = MESSAGE_MAX


def read(data: bytes, now: int) -> ModuleRequest | ModuleLoad | int | str:
    """One message: a request, a load, a number of lost events, or why there is nothing to read.

    ValueError, KeyError or TypeError where it is not what it has to be.
    """
    document = json.loads(data)
    if not isinstance(document, Mapping) or len(document) != 1:
        raise TypeError("not a mapping with one key")
    if "request" in document:
        values = document["request"]
        return ModuleRequest(_text(values["alias"]), _process(values), _text(values["site"]), now)
    if "load" in document:
        values = document["load"]
        name = _text(values["module"])
        if not is_module_name(name):
            raise ValueError("not a module")
        return ModuleLoad(ModuleName(name), _process(values), alias=_text(values["alias"]), time=now)
    if "lost" in document:
        return _number(document["lost"])
    return _text(document["off"])


def _process(values: Mapping[str, Any]) -> Requester:
    return Requester(
        _number(values["pid"]),
        _number(values["uid"]) if values["uid"] is not None else None,
        *(_text(values[key]) for key in ("name", "exe", "unit", "container", "device")),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_MAX or not value.isprintable():
        raise ValueError("not a printable text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError("not a number")
    return value
