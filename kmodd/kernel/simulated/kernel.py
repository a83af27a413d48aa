# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel in memory that implements `kmodd.kernel.ports`, for tests and for developers of clients.

It returns the error codes, log lines, states, reference counts and uevents of Debian's 6.1. It is deterministic, starts no
thread and accesses nothing of the system it runs on.
"""

import os
from collections.abc import Iterable
from dataclasses import replace

from kmodd.kernel.simulated.catalogue import INITIALLY_LOADED, catalogue, rules
from kmodd.kernel.simulated.executor import SimulatedExecutor
from kmodd.kernel.simulated.index import SimulatedConfiguration, SimulatedIndex
from kmodd.kernel.simulated.machine import SimulatedMachine
from kmodd.kernel.simulated.modules import Fault, SimulatedModule
from kmodd.kernel.simulated.reads import (
    SimulatedFacts,
    SimulatedInspection,
    SimulatedInstalled,
    SimulatedKernelLog,
    SimulatedLoadedModules,
    SimulatedNeeds,
    SimulatedRequests,
    SimulatedUevents,
)
from kmodd.model import Consequence, KernelFacts, Rule, State, Uevent, User
from kmodd.names import ModuleName, canonical


class SimulatedKernel:
    """Everything together; implements `kmodd.kernel.ports.Kernel`.

    The methods below are what a machine does behind kmodd's back. A call that would fail on a real machine raises
    OSError with the same errno.
    """

    simulated = True
    boot_id = ""
    """It never booted; tests give it one."""

    def __init__(
        self,
        modules: Iterable[SimulatedModule] | None = None,
        *,
        rules_in_force: Iterable[Rule] | None = None,
        loaded: Iterable[str] | None = None,
        facts: KernelFacts | None = None,
        pace: float = 1.0,
    ) -> None:
        """`modules`, `rules_in_force` and `loaded` (in order of insertion) replace those of the catalogue.

        `pace` is how many seconds a simulated second takes: with 0 no call takes time, an operation costs some
        microseconds, and a call that would hang is abandoned immediately.
        """
        if modules is None:
            modules = catalogue()
            rules_in_force = rules() if rules_in_force is None else rules_in_force
            loaded = INITIALLY_LOADED if loaded is None else loaded
        self.machine = SimulatedMachine(modules, facts)
        others = tuple(rules_in_force or ())
        self.index = SimulatedIndex(self.machine.modules, others)
        self.configuration = SimulatedConfiguration(others, self.index.change_rules)
        self.loaded = SimulatedLoadedModules(self.machine)
        self.requests = SimulatedRequests()
        self.executor = SimulatedExecutor(self.machine, self.loaded, pace)
        self.log = SimulatedKernelLog(self.machine)
        self.inspection = SimulatedInspection(self.machine)
        self.facts = SimulatedFacts(self.machine)
        self.installed = SimulatedInstalled(self.machine, self.index)
        self.needs = SimulatedNeeds()
        self.uevents = SimulatedUevents(self.machine)
        for name in loaded or ():
            self.modprobe(name)
        self.machine.uevents.clear()

    # --- behind kmodd's back ------------------------------------------------------------------------------------------

    def modprobe(self, name: str, arguments: str = "") -> None:
        """Load with dependencies immediately, whatever time init() would take; no soft dependencies, no policy."""
        target = canonical(name)
        for needed in (*self.index.dependencies(target), target):
            resident = self.machine.resident.get(needed)
            if resident is None or resident.state is not State.LIVE:
                self.insmod(needed, arguments if needed == target else "")

    def insmod(self, name: str, arguments: str = "") -> None:
        """Load one module immediately."""
        call = self.machine.start_insert(self.index.path(canonical(name)), arguments)
        if not call.ended and call.behind is None:
            self.machine.end(call)
        if call.errno:
            raise OSError(call.errno, os.strerror(call.errno))

    def rmmod(self, name: str) -> None:
        """Remove one module immediately."""
        call = self.machine.start_remove(canonical(name))
        self.machine.end(call)
        if call.errno:
            raise OSError(call.errno, os.strerror(call.errno))

    def hold(self, name: str, *users: User) -> None:
        """Let something in user space take hold of a live module, one reference each."""
        self.machine.resident[canonical(name)].users.extend(users)
        self.machine.changed()

    def attach(self, name: str, *consequences: Consequence) -> None:
        """Let interfaces and devices come into being that go with a live module; they hold no reference."""
        self.machine.resident[canonical(name)].consequences.extend(consequences)

    def detach(self, name: str) -> None:
        """Let them go again."""
        self.machine.resident[canonical(name)].consequences.clear()

    def end_hang(self, name: str) -> None:
        """Let everything in user space let go of a module."""
        self.machine.resident[canonical(name)].users.clear()
        self.machine.changed()

    def release(self, name: str) -> None:
        """Let the hung call of a module end; ValueError for a permanent hang, LookupError if none hangs."""
        call = self.machine.resident[canonical(name)].call
        if call is None:
            raise LookupError(f"{name} does not hang")
        if call.fault is not None and call.fault.for_ever:
            raise ValueError(f"{name} hangs forever")
        self.machine.end(call)

    def fail_next(self, name: str, fault: Fault | None, *, removes: bool = False, times: int = 1) -> None:
        """Script how the next calls for a module end; None makes a module with a fault succeed."""
        self.machine.script(canonical(name), fault, removes=removes, times=times)

    def overflow(self) -> None:
        """Lose the events that were not read yet, as a socket that overflows does."""
        self.machine.uevents.clear()
        self.machine.announce("overflow", None)

    def forge(self, action: str, name: str) -> None:
        """Send an event about something that did not happen, as root can by writing to a uevent file."""
        self.machine.announce(action, canonical(name))

    def change_facts(self, **facts: object) -> None:
        """Change what is known of the kernel: `modules_disabled=True`, `lockdown="integrity"` …"""
        self.machine.facts = replace(self.machine.facts, **facts)  # type: ignore[arg-type] # names as in KernelFacts

    def change_rules(self, *lines: Rule) -> None:
        """Replace modprobe.d."""
        self.index.change_rules(lines)

    @property
    def queued(self) -> tuple[Uevent, ...]:
        """Unread events."""
        return tuple(self.machine.uevents)

    def holds(self, name: str) -> bool:
        """Tell whether a module is resident in any state."""
        return ModuleName(canonical(name)) in self.machine.resident
