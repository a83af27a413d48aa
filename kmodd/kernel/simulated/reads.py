# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads of the simulated kernel: /proc/modules, /sys/module, its log, users, facts and uevents."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from kmodd.kernel.files import readlink
from kmodd.kernel.modprobe.modprobe_d import parse_rules
from kmodd.kernel.ports import ModuleIndex
from kmodd.kernel.proc.kmsg import without_addresses
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.simulated.index import SimulatedIndex, source_version
from kmodd.kernel.simulated.machine import TAINT_BITS, SimulatedMachine
from kmodd.model import (
    Consequence,
    KernelFacts,
    LoadedModule,
    ModuleLoad,
    ModuleRequest,
    ParameterValue,
    Rule,
    Uevent,
    Usage,
)
from kmodd.model.rules import ManagedFile
from kmodd.model.surface import DeviceNode, Gate, Guard, Reading, Tables
from kmodd.names import ModuleName

_LINES = 200
_TAINT_TEXTS = {
    "P": "proprietary module was loaded",
    "D": "kernel died recently, i.e. there was an OOPS or BUG",
    "O": 'externally-built ("out-of-tree") module was loaded',
    "E": "unsigned module was loaded",
}


_GUARDS = {
    Gate.MODULES_DISABLED: "0",
    Gate.MODPROBE: "/sbin/modprobe",
    Gate.USERNS_CLONE: "1",
    Gate.USER_NAMESPACES: "7824",
    Gate.NET_NAMESPACES: "7824",
    Gate.MOUNT_NAMESPACES: "7824",
    Gate.LDISC_AUTOLOAD: "1",
}
"""Of Debian 12. An empty kernel.modprobe would close, so that is never the setting that a kernel does not have."""
_CLOSING = {Gate.MODULES_DISABLED: "1", Gate.MODPROBE: "", Gate.APPARMOR_USERNS: "1"}
_NODES = (
    DeviceNode("fuse", ModuleName("fuse"), "char-major-10-229", 0o666, "root"),
    DeviceNode("net/tun", ModuleName("tun"), "char-major-10-200", 0o666, "root"),
)


class SimulatedLoadedModules:
    """/proc/modules and /sys/module; see LoadedModules."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    def raw(self) -> bytes:
        """The text of /proc/modules."""
        return self._machine.raw()

    def find(self, text: bytes, name: ModuleName) -> LoadedModule | None:
        """One module of that text."""
        return self._machine.snapshot().get(name) if text == self._machine.raw() else ProcModules.find(text, name)

    def snapshot(self) -> Mapping[ModuleName, LoadedModule]:
        """Everything resident."""
        return self._machine.snapshot()

    def read(self, name: ModuleName) -> LoadedModule | None:
        """One module."""
        return self._machine.snapshot().get(name)

    def instance(self, name: ModuleName) -> int:
        """The number of its insertion."""
        resident = self._machine.resident.get(name)
        return resident.serial if resident is not None else 0

    def is_builtin(self, name: ModuleName) -> bool:
        """It is part of the kernel image."""
        return name in self._machine.builtin_values

    def parameter_files(self, name: ModuleName) -> tuple[ParameterValue, ...]:
        """Live parameters that have a file, without values."""
        return tuple(ParameterValue(each.name, None, each.mode) for each in self.parameters(name))

    def parameters(self, name: ModuleName, *, private: bool = False) -> tuple[ParameterValue, ...]:
        """Live parameters that have a file, as read by other programs."""
        values = self._values(name)
        if values is None:
            return ()
        return tuple(
            ParameterValue(each.name, values[each.name] if private or each.mode & 0o004 else None, each.mode)
            for each in self._machine.spec(name).parameters
            if each.mode
        )

    def write_parameter(self, name: ModuleName, parameter: str, value: str) -> None:
        """Write one; OSError carries the errno."""
        values = self._values(name)
        declared = self._machine.spec(name).parameters if values is not None else ()
        declaration = next((each for each in declared if each.name == parameter and each.mode), None)
        if values is None or declaration is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not declaration.mode & 0o200:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        values[parameter] = declaration.take(value.removesuffix("\n"))
        self._machine.changed()  # it may hold a reference by a parameter

    def attributes(self, name: ModuleName) -> Mapping[str, str]:
        """Small files of /sys/module/NAME."""
        resident = self._machine.resident.get(name)
        if resident is None:
            return {}
        facts = {
            "srcversion": source_version(name),
            "taint": resident.taint,
            "coresize": str(resident.spec.size),
            "initsize": "0",
        }
        if resident.spec.version:
            facts["version"] = resident.spec.version
        return facts

    def _values(self, name: ModuleName) -> dict[str, str] | None:
        resident = self._machine.resident.get(name)
        return resident.values if resident is not None else self._machine.builtin_values.get(name)


class SimulatedLogMark:
    """A place in the simulated kernel log."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self._since = machine.logged
        self.fault = ""

    def lines(self) -> tuple[str, ...]:
        """What was logged since, at most 200 lines, without addresses."""
        log, since = self._machine.log, self._machine.logged - self._since
        lines = tuple(log)[max(0, len(log) - since) :][:_LINES] if since else ()
        return tuple(map(without_addresses, lines))

    def close(self) -> None:
        """Nothing is kept open."""


class SimulatedKernelLog:
    """See KernelLog."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    def mark(self) -> SimulatedLogMark:
        """Remember this moment."""
        return SimulatedLogMark(self._machine)


class SimulatedInspection:
    """See Inspection. The users are the simulation's, the processes are real."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    async def users(self, name: ModuleName) -> Usage:
        """What holds it in user space."""
        resident = self._machine.resident.get(name)
        return Usage(tuple(resident.users) if resident is not None else ())

    async def consequences(self, names: Collection[ModuleName]) -> Mapping[ModuleName, tuple[Consequence, ...]]:
        """What goes with each."""
        resident = {name: self._machine.resident.get(name) for name in names}
        return {name: tuple(each.consequences) if each is not None else () for name, each in resident.items()}

    async def executable(self, pid: int) -> str:
        """As this process may see it."""
        return readlink(f"/proc/{pid}/exe")

    async def close(self) -> None:
        """Nothing is kept open."""


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


class SimulatedRequests:
    """`ports.RequestSource`: what a test says that the kernel traced."""

    def __init__(self) -> None:
        self.off = ""
        self.lost = 0
        self.request: Callable[[ModuleRequest], None] = lambda _: None
        """Say that the kernel asks for a module."""
        self.load: Callable[[ModuleLoad], None] = lambda _: None
        """Say that a process loads one."""

    def start(self, requested: Callable[[ModuleRequest], None], loaded: Callable[[ModuleLoad], None]) -> None:
        """See `ports.RequestSource`."""
        self.request, self.load = requested, loaded

    def close(self) -> None:
        """See `ports.RequestSource`."""
        self.request, self.load = (lambda _: None), (lambda _: None)


class SimulatedUevents:
    """See UeventSource. One reader at a time."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self.on_device: Callable[[str, str], None] | None = None
        self.on_announced: Callable[[str, str], None] | None = None
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


class SimulatedInstalled:
    """`ports.InstalledKernels`: the simulated kernel alone, with the settings of Debian."""

    def __init__(self, machine: SimulatedMachine, index: ModuleIndex) -> None:
        self._machine = machine
        self._index = index
        self.settings = dict.fromkeys(Gate, "") | _GUARDS
        """The value of each setting; empty for one that this kernel does not have."""
        self.nodes = _NODES
        self.versions: dict[str, str] = {}
        """What each kernel's image says of its version."""

    def releases(self) -> tuple[str, ...]:
        """Its own."""
        return (self._machine.facts.release,)

    def stamp(self, release: str) -> object:
        """Changes with the rules."""
        return release, self._index.version, self._index.all_rules()

    def guards(self) -> tuple[Guard, ...]:
        """What a test set."""
        return tuple(
            Guard(
                gate,
                value,
                closes := value == _CLOSING.get(gate, "0"),
                "closed" if closes else "does not restrict",
                unusual=gate is Gate.MODPROBE and value not in ("", _GUARDS[gate]),
            )
            for gate, value in self.settings.items()
        )

    def tables(self, release: str) -> Tables:
        """The same for any release."""
        del release
        return Tables(self.guards(), self.nodes)

    def version_text(self, release: str) -> str:
        """What a test set."""
        return self.versions.get(release, "")

    def initramfs_modules(self, release: str) -> frozenset[ModuleName] | None:
        """There is none."""
        del release
        return None

    def initramfs_list(self) -> tuple[Rule, ...]:
        """Of none."""
        return ()

    @contextmanager
    def index(self, release: str, *, surface: bytes | None = None) -> Iterator[ModuleIndex]:
        """The one index; an empty one for another release."""
        if release != self._machine.facts.release:
            yield SimulatedIndex({}, ())
        elif surface is None:
            yield self._index
        else:
            own = {ManagedFile.SURFACE, ManagedFile.SURFACE_TRIAL}
            others = [rule for rule in self._index.all_rules() if rule.file not in own]
            rules = [*parse_rules(surface, ManagedFile.SURFACE), *others]
            yield SimulatedIndex(self._machine.modules, sorted(rules, key=lambda rule: rule.file.rpartition("/")[2]))


class SimulatedNeeds:
    """`ports.NeedSources`: what a test sets."""

    def __init__(self) -> None:
        self.readings: tuple[Reading, ...] = ()
        self.image = Reading("initramfs")

    def read(self) -> tuple[Reading, ...]:
        """What a test set."""
        return self.readings

    def initramfs(self, release: str) -> Reading:
        """What a test set, for any kernel."""
        del release
        return self.image
