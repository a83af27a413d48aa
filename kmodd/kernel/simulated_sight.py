# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can be seen of the simulated kernel: /proc/modules, /sys/module, its log, its users, its facts, its uevents."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Mapping

from kmodd.kernel.simulated_index import source_version
from kmodd.kernel.simulated_machine import TAINT_BITS, SimulatedMachine
from kmodd.model import KernelFacts, LoadedModule, ParameterValue, Uevent, User
from kmodd.names import ModuleName

_LINES = 200
_TAINT_TEXTS = {
    "P": "proprietary module was loaded",
    "D": "kernel died recently, i.e. there was an OOPS or BUG",
    "O": 'externally-built ("out-of-tree") module was loaded',
    "E": "unsigned module was loaded",
}


class SimulatedLoadedModules:
    """/proc/modules and /sys/module; see LoadedModules."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    def raw(self) -> bytes:
        """The text of /proc/modules."""
        return self._machine.raw()

    def snapshot(self) -> Mapping[ModuleName, LoadedModule]:
        """Everything resident."""
        return self._machine.snapshot()

    def read(self, name: ModuleName) -> LoadedModule | None:
        """One module."""
        return self._machine.snapshot().get(name)

    def is_builtin(self, name: ModuleName) -> bool:
        """It is part of the kernel image."""
        return name in self._machine.builtin_values

    def parameters(self, name: ModuleName, *, private: bool = False) -> tuple[ParameterValue, ...]:
        """Live parameters that have a file."""
        values = self._values(name)
        if values is None:
            return ()
        return tuple(
            ParameterValue(each.name, values[each.name] if private or each.mode & 0o004 else None, each.mode)
            for each in self._machine.modules[name].parameters
            if each.mode
        )

    def write_parameter(self, name: ModuleName, parameter: str, value: str) -> None:
        """Write one; OSError carries the errno."""
        values = self._values(name)
        declared = self._machine.modules[name].parameters if values is not None else ()
        found = next((each for each in declared if each.name == parameter and each.mode), None)
        if values is None or found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not found.mode & 0o200:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        values[parameter] = found.take(value.removesuffix("\n"))
        self._machine.changed()  # it may hold a reference by a parameter

    def attributes(self, name: ModuleName) -> Mapping[str, str]:
        """Small files of /sys/module/NAME."""
        resident = self._machine.resident.get(name)
        if resident is None:
            return {}
        found = {
            "srcversion": source_version(name),
            "taint": resident.taint,
            "coresize": str(resident.spec.size),
            "initsize": "0",
        }
        if resident.spec.version:
            found["version"] = resident.spec.version
        return found

    def _values(self, name: ModuleName) -> dict[str, str] | None:
        resident = self._machine.resident.get(name)
        return resident.values if resident is not None else self._machine.builtin_values.get(name)


class SimulatedLogMark:
    """A place in the simulated kernel log."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self._since = machine.logged

    def lines(self) -> tuple[str, ...]:
        """What was logged since, at most 200 lines."""
        log, since = self._machine.log, self._machine.logged - self._since
        return tuple(log)[max(0, len(log) - since) :][:_LINES] if since else ()

    def close(self) -> None:
        """Nothing is kept open."""


class SimulatedKernelLog:
    """See KernelLog."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    def mark(self) -> SimulatedLogMark:
        """Remember this moment."""
        return SimulatedLogMark(self._machine)


class SimulatedUsage:
    """See Usage."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    def users(self, name: ModuleName) -> tuple[User, ...]:
        """What holds it in user space."""
        resident = self._machine.resident.get(name)
        return tuple(resident.users) if resident is not None else ()


class SimulatedFacts:
    """See Facts."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    def read(self) -> KernelFacts:
        """Now."""
        return self._machine.facts

    def taint_flags(self, taint: int) -> tuple[str, ...]:
        """Flags that this kernel can set."""
        return tuple(f"{letter}: {_TAINT_TEXTS[letter]}" for letter, bit in TAINT_BITS.items() if taint & (1 << bit))

    def trusted_keys(self) -> tuple[str, ...]:
        """The one its modules are signed with."""
        return ("Build time autogenerated kernel key",)


class SimulatedUevents:
    """See UeventSource. One reader at a time."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self.on_device: Callable[[str, str], None] | None = None
        machine.on_uevent = self._wake

    async def events(self) -> AsyncIterator[Uevent]:
        """Events as they come, until the source is closed."""
        queue = self._machine.uevents
        while not self._closed:
            if queue:
                yield queue.popleft()
                continue
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
