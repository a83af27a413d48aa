# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns core's events into D-Bus signals."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from kmodd.core.events import (
    ConfigurationChanged,
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
)
from kmodd.core.fair_share import ROOT as ROOT_USER
from kmodd.core.fair_share import Slices
from kmodd.dbus import message as frames
from kmodd.dbus.call import StandardError, Target
from kmodd.dbus.interface_xml import Contract
from kmodd.dbus.marshal import encode
from kmodd.dbus.object_tree import ROOT, PropertyReader
from kmodd.dbus.transport import Transport
from kmodd.model import FactsPending

MODULES = f"{ROOT}/module"
JOBS = f"{ROOT}/job"
_MANAGER = "org.kmodd1.Manager"
_MODULE = "org.kmodd1.Module"
_JOB = "org.kmodd1.Job"
_OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
ANNOUNCED = (
    ModuleAdded,
    ModuleRemoved,
    ModuleChanged,
    ManagerChanged,
    JobAdded,
    JobChanged,
    JobFinished,
    HealthChanged,
    ConfigurationChanged,
    HistoryChanged,
)
"""Events that are signals, or change an answer that is kept. Steps are core's own affair, and in the middle of a call's way."""
_SLICE = 32
"""Events sent in one turn of the loop: a burst of hundreds leaves room for calls in between."""


class Announcer:
    """Tells the bus what happened, in the order in which it happened, a loop turn later.

    Changes of properties are gathered until all other events of the turn were sent, so a burst of modules means one
    PropertiesChanged of `LoadedCount`.
    """

    def __init__(
        self,
        wire: Transport,
        contract: Contract,
        reading: PropertyReader,
        slices: Slices,
        report: Callable[[str, BaseException], None],
    ) -> None:
        self._wire = wire
        self._contract = contract
        self._reading = reading
        self._slices = slices
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._changed: dict[tuple[str, Target], dict[str, None]] = {}
        self._jobs: set[Target] = set()
        """Jobs announced on the bus."""
        self._scheduled = False
        self._files: asyncio.Task[None] | None = None
        """Module files are being read for the next signal; later events are sent after it."""
        self.generation = 0
        """Rises with every event that may change one of our objects, for answers that are kept."""

    def on_event(self, event: Event) -> None:
        """Take an event of core of the kinds ANNOUNCED."""
        # A record changes nothing that an answer is made of.
        self.generation += not isinstance(event, HistoryChanged)
        self._events.append(event)
        self._schedule()

    @property
    def pending(self) -> int:
        """Events not yet sent."""
        return len(self._events) + len(self._changed)

    def close(self) -> None:
        """Tell nothing more."""
        if self._files is not None:
            self._files.cancel()

    def _schedule(self) -> None:
        if not self._scheduled and self._files is None:
            self._scheduled = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._scheduled = False
        with self._slices.deferred():
            try:
                self._tell_all()
            except FactsPending as pending:
                self._files = self._loop.create_task(self._slices.read(pending.names, ROOT_USER))
                self._files.add_done_callback(self._go_on)

    def _go_on(self, files: asyncio.Task[None]) -> None:
        self._files = None
        if files.cancelled():
            return
        error = files.exception()
        if error is None:
            self._schedule()
            return
        self._report("reading a module's file for a signal failed", error)
        self._tell_all()

    def _tell_all(self) -> None:
        """FactsPending where the next signal needs a file that was not read; the event is then still the next one."""
        for _ in range(min(_SLICE, len(self._events))):
            event = self._events[0]
            try:
                self._tell_one(event)
            except FactsPending:
                raise
            except Exception as error:  # noqa: BLE001 - one object that cannot be read must not silence the others
                self._report(f"sending the signal for {type(event).__name__} failed", error)
            self._events.popleft()
        if self._events:
            self._schedule()
            return
        for (interface, target), names in list(self._changed.items()):
            try:
                self._properties_changed(interface, target, names)
            except FactsPending:
                raise
            except StandardError:
                pass  # it is gone, and another signal reports that
            except Exception as error:  # noqa: BLE001 - one object that cannot be read must not silence the others
                self._report(f"sending property changes of {interface} failed", error)
            del self._changed[interface, target]

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
                # An operation that finished before JobAdded was sent never had an object.
                if target in self._jobs:
                    self._jobs.remove(target)
                    self._removed(target, _JOB)
                self._signal(ROOT, _MANAGER, "JobFinished", target.path, action, module, result)
            case HistoryChanged():
                self._signal(ROOT, _MANAGER, "HistoryChanged")
            case _:
                pass  # no signal for any other event

    def _target(self, prefix: str, label: str) -> Target:
        return Target(self._reading.tree.path(prefix, label), label)

    def _added(self, target: Target, interface: str) -> bool:
        try:
            values = self._reading.all(interface, target)
        except StandardError:  # already gone: its end is the next event
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
        announced = [name for name in names if name in rows and rows[name].emits == "true"]
        invalidated = [name for name in names if name in rows and rows[name].emits == "invalidates"]
        if announced or invalidated:
            values = self._reading.some(interface, announced, target)
            self._signal(target.path, _PROPERTIES, "PropertiesChanged", interface, values, invalidated)

    def _signal(self, path: str, interface: str, member: str, *values: Any) -> None:
        signature = self._contract.interfaces[interface].signals[member]
        data = encode(signature, values)
        self._wire.send(frames.signal(self._wire.next_serial(), path, interface, member, signature, data))
