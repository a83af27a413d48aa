# SPDX-License-Identifier: LGPL-2.1-or-later
"""The state of the simulated kernel: load_module and delete_module of kernel/module/main.c, in memory and without time.

A call starts and ends here; the executor decides how long it takes and who waits for it.
"""

import errno
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from kmodd.kernel.simulated.modules import RELEASE, Fault, FaultKind, SimulatedModule, split_arguments
from kmodd.model import Consequence, KernelFacts, LoadedModule, State, Uevent, User
from kmodd.names import ModuleName, canonical

TAINT_BITS = {"P": 0, "D": 7, "O": 12, "E": 13}
_WORDS = {State.LIVE: "Live", State.COMING: "Loading", State.GOING: "Unloading"}
_DEFAULT_PARAMETERS = frozenset({"async_probe", "dyndbg"})  # every module accepts these
_QUEUE = 10_000


@dataclass(slots=True)
class Call:
    """One call into the kernel that is under way."""

    module: ModuleName
    removes: bool
    seconds: float = 0.0
    """How long init() or exit() takes; infinite for a hang."""
    fault: Fault | None = None
    behind: "Call | None" = None
    """It waits for this one and then starts again (a dependency is coming, or the same file is being loaded)."""
    ended: bool = False
    errno: int = 0
    crashed: bool = False
    on_end: list[Callable[["Call"], None]] = field(default_factory=list)


@dataclass(slots=True)
class Resident:
    """A module in memory."""

    spec: SimulatedModule
    state: State
    values: dict[str, str]
    taint: str
    holders: dict[ModuleName, None] = field(default_factory=dict)
    users: list[User] = field(default_factory=list)
    consequences: list[Consequence] = field(default_factory=list)
    """What the kernel takes away with it."""
    call: Call | None = None
    serial: int = 0
    """Of this insertion among all."""

    def references(self) -> int:
        """As /proc/modules shows them: one while init() runs, -1 once exit() has begun (module_refcount)."""
        if self.state is State.GOING:
            return -1
        held = self.values.get(self.spec.held_by) == "Y"
        return len(self.holders) + len(self.users) + held + (self.state is State.COMING)


class SimulatedMachine:
    """Modules in memory, kernel log, taint and uevents."""

    def __init__(self, modules: Iterable[SimulatedModule], facts: KernelFacts | None = None) -> None:
        self.modules: dict[ModuleName, SimulatedModule] = {canonical(module.name): module for module in modules}
        self.facts = facts or KernelFacts(release=RELEASE, command_line="root=/dev/vda1 ro quiet")
        self.resident: dict[ModuleName, Resident] = {}
        self.builtin_values: dict[ModuleName, dict[str, str]] = {
            name: {parameter.name: parameter.value for parameter in module.parameters}
            for name, module in self.modules.items()
            if module.builtin
        }
        self.log: deque[str] = deque(maxlen=1000)
        self.logged = 0
        """Lines ever logged: the sequence number of the next one."""
        self.uevents: deque[Uevent] = deque()
        self.on_uevent: Callable[[], None] | None = None
        self._scripted: dict[tuple[ModuleName, bool], deque[Fault | None]] = {}
        self._paths = {module.path: name for name, module in self.modules.items() if module.path}
        self._snapshot: dict[ModuleName, LoadedModule] | None = None
        self._raw: bytes | None = None
        self._insertions = 0

    # --- insertion ----------------------------------------------------------------------------------------------------

    def start_insert(self, path: str, arguments: str) -> Call:
        """finit_module up to init(); a call that failed before is answered ended."""
        file = self._paths.get(path)
        if file is None:
            return self._refused(ModuleName(""), False, errno.ENOENT)
        spec = self.modules[file]
        name = ModuleName(spec.holds) or file
        if self.facts.modules_disabled:
            return self._refused(name, False, errno.EPERM)
        fault = self._fault(name, spec.init, removes=False)
        refusal = self._signature(spec)
        if refusal == 0 and fault is not None and fault.before_init:
            self.say(*fault.log)
            refusal = fault.errno
        if refusal == 0 and name in self._blacklist():
            self.say(f"Module {name} is blacklisted")
            refusal = errno.EPERM
        if refusal:
            return self._refused(name, False, refusal)
        existing = self.resident.get(name)
        if existing is not None:
            if existing.state is State.COMING and existing.call is not None:
                return Call(name, False, behind=existing.call)
            return self._refused(name, False, errno.EEXIST if existing.state is State.LIVE else errno.EBUSY)
        return self._lay_out(name, spec, fault, arguments)

    def _lay_out(self, name: ModuleName, spec: SimulatedModule, fault: Fault | None, arguments: str) -> Call:
        for needed in map(canonical, spec.depends):
            if needed in self.builtin_values:
                continue
            resident = self.resident.get(needed)
            if resident is not None and resident.state is State.COMING and resident.call is not None:
                return Call(name, False, behind=resident.call)
            if resident is None or resident.state is not State.LIVE:
                self.say(f"{name}: Unknown symbol {needed}_register (err -2)")
                return self._refused(name, False, errno.ENOENT)
        values, refusal = self._values(name, spec, arguments)
        if refusal:
            return self._refused(name, False, refusal)
        self._insertions += 1
        resident = Resident(spec, State.COMING, values, self._taint(spec), serial=self._insertions)
        seconds = spec.init_seconds
        if spec.slept_in[0]:
            seconds = int(values[spec.slept_in[0]]) / 1000
        if fault is not None and fault.kind is FaultKind.HANG:
            seconds = float("inf")
        call = resident.call = Call(name, False, seconds, fault)
        self.resident[name] = resident
        for needed in map(canonical, spec.depends):
            if needed in self.resident:
                self.resident[needed].holders[name] = None
        self.changed()
        return call

    def _signature(self, spec: SimulatedModule) -> int:
        if spec.signed:
            return 0
        if self.facts.signature_enforced:
            self.say("Loading of unsigned module is rejected")
            return errno.EKEYREJECTED
        if self.facts.lockdown != "none":
            self.say("Lockdown: kmodd: unsigned module loading is restricted; see man kernel_lockdown.7")
            return errno.EPERM
        return 0

    def _blacklist(self) -> set[str]:
        words = [word for word in self.facts.command_line.split() if word.startswith("module_blacklist=")]
        return {name for word in words for name in word.partition("=")[2].replace("-", "_").split(",")}

    def _values(self, name: ModuleName, spec: SimulatedModule, arguments: str) -> tuple[dict[str, str], int]:
        values = {parameter.name: parameter.value for parameter in spec.parameters}
        if not arguments:
            return values, 0
        declared = {parameter.name: parameter for parameter in spec.parameters}
        for key, text in split_arguments(arguments):
            parameter = declared.get(key)
            if parameter is None:
                if key not in _DEFAULT_PARAMETERS:
                    self.say(f"{name}: unknown parameter '{key}' ignored")
                continue
            try:
                values[key] = parameter.take(text)
            except OSError as error:
                what = "too large" if error.errno == errno.ENOSPC else "invalid"
                self.say(f"{name}: `{text or ''}' {what} for parameter `{key}'")
                return values, error.errno or errno.EINVAL
        return values, 0

    def _taint(self, spec: SimulatedModule) -> str:
        name, letters = canonical(spec.name), ""
        if not spec.license.startswith(("GPL", "Dual")):
            self.say(f"{name}: module license '{spec.license}' taints kernel.")
            letters += "P"
        if not spec.intree:
            self.say(f"{name}: loading out-of-tree module taints kernel.")
            letters += "O"
        if not spec.signed:
            self.say(f"{name}: module verification failed: signature and/or required key missing - tainting kernel")
            letters += "E"
        self.add_taint(letters)
        return letters

    # --- removal ------------------------------------------------------------------------------------------------------

    def start_remove(self, name: ModuleName) -> Call:
        """delete_module with O_NONBLOCK up to exit(), checks in the kernel's order."""
        resident = self.resident.get(name)
        refusal = 0
        if self.facts.modules_disabled:
            refusal = errno.EPERM
        elif resident is None:
            refusal = errno.ENOENT
        elif resident.holders:
            refusal = errno.EAGAIN
        elif resident.state is not State.LIVE or resident.spec.permanent:
            refusal = errno.EBUSY
        elif resident.references():
            refusal = errno.EAGAIN
        if refusal or resident is None:
            return self._refused(name, True, refusal)
        fault = self._fault(name, resident.spec.exit, removes=True)
        if fault is not None and fault.kind is FaultKind.ERROR and fault.errno:
            return self._refused(name, True, fault.errno)  # exit() cannot fail: a scripted refusal
        spec = resident.spec
        seconds = int(resident.values[spec.slept_in[1]]) / 1000 if spec.slept_in[1] else spec.exit_seconds
        if fault is not None and fault.kind is FaultKind.HANG:
            seconds = float("inf")
        resident.state = State.GOING
        resident.call = Call(name, True, seconds, fault)
        self.changed()
        return resident.call

    # --- the end of a call --------------------------------------------------------------------------------------------

    def end(self, call: Call) -> None:
        """init() or exit() comes to its end, whatever that is."""
        if call.ended:
            return
        resident, fault = self.resident[call.module], call.fault
        if fault is not None and fault.kind is FaultKind.OOPS:
            frame = f"{call.module}_{'exit' if call.removes else 'init'}+0x5/0x1000 [{call.module}]"
            self.say(*fault.log, f"RIP: 0010:{frame}")
            self.add_taint("D")
            call.crashed = True  # the module stays as it is until the machine is started again
        elif call.removes:
            self._drop(call.module)
            self.announce("remove", call.module)
        else:
            self._end_insert(call, resident)
        call.ended = True
        for tell in call.on_end:
            tell(call)

    def _end_insert(self, call: Call, resident: Resident) -> None:
        fault = call.fault
        if fault is not None:
            call.errno = fault.errno
            if fault.from_parameter:
                call.errno = max(0, -int(resident.values[fault.from_parameter]))
            self.say(*fault.log)
        if call.errno:
            self._drop(call.module)
            return
        self.say(*resident.spec.init_log)
        resident.users.extend(resident.spec.users)
        resident.consequences.extend(resident.spec.consequences)
        resident.state, resident.call = State.LIVE, None
        self.changed()
        self.announce("add", call.module)

    def _drop(self, name: ModuleName) -> None:
        spec = self.resident.pop(name).spec
        for needed in map(canonical, spec.depends):
            if needed in self.resident:
                self.resident[needed].holders.pop(name, None)
        self.changed()

    def spec(self, name: ModuleName) -> SimulatedModule:
        """What a module that is loaded or built in is like."""
        resident = self.resident.get(name)
        return self.modules[name] if resident is None else resident.spec

    # --- what others see ----------------------------------------------------------------------------------------------

    def snapshot(self) -> Mapping[ModuleName, LoadedModule]:
        """Everything resident, newest first, as /proc/modules lists it."""
        if self._snapshot is None:
            # A new mapping for every change, so that no snapshot changes.
            self._snapshot = {
                name: LoadedModule(
                    name,
                    resident.spec.size,
                    resident.references(),
                    tuple(resident.holders),
                    resident.state,
                    resident.taint,
                    resident.spec.permanent,
                )
                for name, resident in reversed(self.resident.items())
            }
        return self._snapshot

    def raw(self) -> bytes:
        """The text of /proc/modules."""
        if self._snapshot is not None and self._raw is not None:
            return self._raw
        lines = []
        for module in self.snapshot().values():
            users = "".join(f"{holder}," for holder in module.holders) + ("[permanent]," if module.permanent else "")
            taint = f" ({module.taint})" if module.taint else ""
            word = _WORDS[module.state]
            lines.append(f"{module.name} {module.size} {module.references} {users or '-'} {word} 0x0{taint}\n")
        self._raw = "".join(lines).encode()
        return self._raw

    def changed(self) -> None:
        """Whatever /proc/modules shows is different now."""
        self._snapshot = self._raw = None

    def say(self, *lines: str) -> None:
        """Log lines as the kernel."""
        self.log.extend(lines)
        self.logged += len(lines)

    def add_taint(self, letters: str) -> None:
        """Set taint flags by their letters."""
        taint = self.facts.taint
        for letter in letters:
            taint |= 1 << TAINT_BITS[letter]
        if taint != self.facts.taint:
            self.facts = replace(self.facts, taint=taint)

    def announce(self, action: str, name: ModuleName | None) -> None:
        """Send a uevent; a queue that is not read overflows, as the socket does."""
        if len(self.uevents) >= _QUEUE:
            self.uevents.clear()
            self.uevents.append(Uevent("overflow"))
        self.uevents.append(Uevent(action, name))
        if self.on_uevent is not None:
            self.on_uevent()

    def script(self, name: ModuleName, fault: Fault | None, *, removes: bool, times: int) -> None:
        """Let the next calls for a module end like this, before its own habits apply again; None is success."""
        self._scripted.setdefault((name, removes), deque()).extend([fault] * times)

    def _fault(self, name: ModuleName, usual: Fault | None, *, removes: bool) -> Fault | None:
        scripted = self._scripted.get((name, removes))
        if scripted:
            return scripted.popleft()
        return usual

    def _refused(self, name: ModuleName, removes: bool, code: int) -> Call:
        return Call(name, removes, ended=True, errno=code)
