# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one place where core's events become signals of the bus."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from kmodd.bus import frame as frames
from kmodd.bus.call import StandardError, Target
from kmodd.bus.contract import Contract
from kmodd.bus.encoder import encode
from kmodd.bus.reading import Reading
from kmodd.bus.tree import ROOT
from kmodd.core.api import (
    Event,
    HealthChanged,
    HistoryChanged,
    JobAdded,
    JobChanged,
    JobFinished,
    ManagerChanged,
    ModuleAdded,
    ModuleChanged,
    ModuleRemoved,
    StepFailed,
    StepStarted,
    StepSucceeded,
)

MODULES = f"{ROOT}/module"
JOBS = f"{ROOT}/job"
_MANAGER = "org.kmodd1.Manager"
_MODULE = "org.kmodd1.Module"
_JOB = "org.kmodd1.Job"
_OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_SLICE = 32
"""Events told in one turn of the loop: a burst of hundreds leaves room for calls in between."""


class Wire(Protocol):
    """What is needed of the transport."""

    def next_serial(self) -> int:
        """A serial for a message of ours."""

    def send(self, data: bytes) -> None:
        """Queue a marshalled message."""


class Announcer:
    """Tells the bus what happened, in the order in which it happened, a loop turn later.

    Changes of properties are gathered until everything else of the turn was told, so a burst of modules means one
    PropertiesChanged of `LoadedCount`.
    """

    def __init__(
        self, wire: Wire, contract: Contract, reading: Reading, report: Callable[[str, BaseException], None]
    ) -> None:
        self._wire = wire
        self._contract = contract
        self._reading = reading
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._changed: dict[tuple[str, Target], dict[str, None]] = {}
        self._jobs: set[Target] = set()
        """Jobs that the bus was told of."""
        self._scheduled = False
        self.generation = 0
        """Rises with every event that may change one of our objects, for answers that are kept."""

    def on_event(self, event: Event) -> None:
        """Take an event of core."""
        # A record changes nothing that an answer is made of.
        self.generation += not isinstance(event, HistoryChanged)
        if isinstance(event, StepStarted | StepSucceeded | StepFailed):
            return  # core's own affair, and in the middle of a call's way
        self._events.append(event)
        self._schedule()

    @property
    def pending(self) -> int:
        """Events not told yet."""
        return len(self._events) + len(self._changed)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._scheduled = False
        for _ in range(min(_SLICE, len(self._events))):
            event = self._events.popleft()
            try:
                self._tell_one(event)
            except Exception as error:  # noqa: BLE001 - one object that cannot be read must not silence the others
                self._report(f"telling {type(event).__name__} failed", error)
        if self._events:
            self._schedule()
            return
        changed, self._changed = self._changed, {}
        for (interface, target), names in changed.items():
            try:
                self._properties_changed(interface, target, names)
            except StandardError:  # it is gone, which is told by another signal
                continue
            except Exception as error:  # noqa: BLE001 - as above
                self._report(f"telling changes of {interface} failed", error)

    def _tell_one(self, event: Event) -> None:
        match event:
            case ModuleAdded(name):
                self._added(self._target(MODULES, name), _MODULE)
                self._signal(ROOT, _MANAGER, "ModuleAdded", name)
                self._change(_MANAGER, Target(ROOT), ("LoadedCount",))
            case ModuleRemoved(name):
                self._removed(self._target(MODULES, name), _MODULE)
                self._signal(ROOT, _MANAGER, "ModuleRemoved", name)
                self._change(_MANAGER, Target(ROOT), ("LoadedCount",))
            case ModuleChanged(name, properties):
                self._change(_MODULE, self._target(MODULES, name), properties)
            case ManagerChanged(properties):
                self._change(_MANAGER, Target(ROOT), properties)
            case HealthChanged():
                self._change(_MANAGER, Target(ROOT), ("Health",))
            case JobAdded(number):
                target = self._target(JOBS, str(number))
                if self._added(target, _JOB):
                    self._jobs.add(target)
            case JobChanged(number, properties):
                self._change(_JOB, self._target(JOBS, str(number)), properties)
            case JobFinished(number, _, action, module, result):
                target = self._target(JOBS, str(number))
                self._changed.pop((_JOB, target), None)
                # An operation that was over before it could be told was no object to anybody.
                if target in self._jobs:
                    self._jobs.remove(target)
                    self._removed(target, _JOB)
                self._signal(ROOT, _MANAGER, "JobFinished", target.path, action, module, result)
            case HistoryChanged():
                self._signal(ROOT, _MANAGER, "HistoryChanged")
            case _:
                pass  # nothing else is told

    def _target(self, prefix: str, label: str) -> Target:
        return Target(self._reading.tree.path(prefix, label), label)

    def _added(self, target: Target, interface: str) -> bool:
        try:
            values = self._reading.all(interface, target)
        except StandardError:  # gone again already: its end is told next
            return False
        self._signal(ROOT, _OBJECT_MANAGER, "InterfacesAdded", target.path, {interface: values})
        return True

    def _removed(self, target: Target, interface: str) -> None:
        self._changed.pop((interface, target), None)
        self._signal(ROOT, _OBJECT_MANAGER, "InterfacesRemoved", target.path, [interface])

    def _change(self, interface: str, target: Target, names: Iterable[str]) -> None:
        self._changed.setdefault((interface, target), {}).update(dict.fromkeys(names))

    def _properties_changed(self, interface: str, target: Target, names: Iterable[str]) -> None:
        rows = self._contract.interfaces[interface].properties
        told = [name for name in names if name in rows and rows[name].emits == "true"]
        invalidated = [name for name in names if name in rows and rows[name].emits == "invalidates"]
        if told or invalidated:
            values = self._reading.some(interface, told, target)
            self._signal(target.path, _PROPERTIES, "PropertiesChanged", interface, values, invalidated)

    def _signal(self, path: str, interface: str, member: str, *values: Any) -> None:
        signature = self._contract.interfaces[interface].signals[member]
        data = encode(signature, values)
        self._wire.send(frames.signal(self._wire.next_serial(), path, interface, member, signature, data))
