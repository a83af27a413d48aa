# SPDX-License-Identifier: LGPL-2.1-or-later
"""kernel.modules_disabled: set once the desired state is reached, and never while something is pending.

The kernel takes it back at the next boot only, and unloads nothing either until then.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from kmodd.core.desired.apply import DesiredStateService
from kmodd.core.events import Audit, Clock
from kmodd.core.leases import LeaseTable
from kmodd.core.operations.jobs import Jobs, run_to_completion
from kmodd.core.surface.cve_responses import Responses
from kmodd.core.surface.enforcement import Enforcement
from kmodd.core.surface.resolution import Resolver
from kmodd.errors import Conflict, Evidence, KmoddError, NotPermitted, errno_name, machine_fault
from kmodd.kernel.ports import Executor, Facts, InstalledKernels, LoadedModules, ModuleIndex
from kmodd.model import Caller, KernelFacts, Record
from kmodd.model.surface import Fault, LockPlan, Needs, Reason
from kmodd.names import ModuleName

LOCK = "surface-lock"
TIMEOUT = 10.0
"""Seconds for one write."""
_SWITCH = "kernel.modules_disabled"
_UNMET = frozenset({"presence", "parameter", "store-version"})
"""Differences from the desired state that take a load or an unload."""
_NOT_LATER = frozenset(
    {"loaded", "devices", "initramfs", "dependency", "soft-dependency", "weak-dependency", "allow", "custom"}
)
"""Sources that say nothing of a need that is still to come."""
_BREAKS_MAX = 64
"""Modules that the journal names."""
# The classes of interfaces as in drivers/usb; a device's own numbers are 0, so that only drivers of the class answer.
_USB = {
    "ic08isc06ip50": "storage devices",
    "ic08isc06ip62": "storage devices (UAS)",
    "ic03isc01ip01": "keyboards and mice",
    "ic01isc01ip00": "audio devices",
    "ic0Eisc01ip00": "cameras",
    "ic07isc01ip02": "printers",
    "icE0isc01ip01": "Bluetooth adapters",
    "ic02isc06ip00": "network adapters",
    "ic02isc02ip01": "modems and serial consoles",
}


class KernelLock:
    """One lock at a time."""

    def __init__(
        self,
        *,
        executor: Executor,
        facts: Facts,
        loaded: LoadedModules,
        installed: InstalledKernels,
        driverless: Callable[[], Iterable[str]],
        enforcement: Enforcement,
        responses: Responses,
        desired: DesiredStateService,
        waiting: Callable[[], Mapping[ModuleName, str]],
        jobs: Jobs,
        leases: LeaseTable,
        audit: Audit,
        clock: Clock,
        locked: Callable[[], None],
    ) -> None:
        """`driverless` are the aliases of devices without a driver; `waiting` are modules of the desired state whose conditions may
        still hold in this boot, and what they wait for. `locked` is called when the kernel is locked.
        """
        self._executor = executor
        self._facts = facts
        self._loaded = loaded
        self._installed = installed
        self._driverless = driverless
        self._enforcement = enforcement
        self._responses = responses
        self._desired = desired
        self._waiting = waiting
        self._jobs = jobs
        self._leases = leases
        self._audit = audit
        self._clock = clock
        self._locked = locked
        self._lock = asyncio.Lock()

    async def plan(self) -> LockPlan:
        """What is pending, and what can be loaded no more; OSError, KmoddError where that cannot be known."""
        facts = self._facts.read()
        if facts.modules_disabled:
            return LockPlan(locked=True)
        needs = await self._enforcement.needs(facts.release, initramfs=False)
        pending = [*self._under_way(), *await self._unsettled()]
        devices, breaks = await asyncio.to_thread(self._resolve, facts, needs)
        return LockPlan(locked=False, pending=(*pending, *devices), breaks=Needs(breaks, needs.faults))

    async def lock(self, caller: Caller, *, dry_run: bool) -> LockPlan:
        """Lock; Conflict while something is pending, NotPermitted. A caller that leaves stops nothing."""
        if dry_run:
            return await self.plan()
        return await run_to_completion(asyncio.get_running_loop().create_task(self._recorded(caller)))

    async def _recorded(self, caller: Caller) -> LockPlan:
        begun = self._clock()
        record = Record("operation.failed", "", action=LOCK, result="failed", reason=caller.reason, priority=4)
        try:
            async with self._lock:
                plan = await self._write()
        except (KmoddError, OSError) as problem:
            error = problem if isinstance(problem, KmoddError) else machine_fault(problem, "")
            record = replace(record, message=error.message, error=error.name(), hint=error.evidence.hint)
            self._audit.record(replace(record, duration_usec=self._clock() - begun).by(caller))
            raise error from problem
        changed = not plan.locked
        lost = sorted(plan.breaks.reasons)[:_BREAKS_MAX]
        record = replace(
            record,
            event="policy.locked" if changed else "operation.unchanged",
            message="loading and unloading of modules is disabled until reboot",
            result="changed" if changed else "unchanged",
            priority=5,
            duration_usec=self._clock() - begun,
            extra={"BREAKS": " ".join(lost)} if lost else {},
        )
        self._audit.record(record.by(caller))
        if changed:
            self._locked()
        return replace(plan, locked=True)

    async def _write(self) -> LockPlan:
        plan = await self.plan()
        if plan.locked:
            return plan
        # The plan took seconds.
        trials = await self._trials()
        self._jobs.closed = "loading and unloading of modules is being disabled"
        try:
            return await self._write_unless(plan, plan.pending or (*trials, *self._under_way()))
        finally:
            self._jobs.closed = ""

    async def _write_unless(self, plan: LockPlan, pending: Sequence[Fault]) -> LockPlan:
        if pending:
            more = f", and {len(pending) - 1} more" if len(pending) > 1 else ""
            raise Conflict(
                f"modules cannot be locked while something is pending: {pending[0].message}{more}",
                evidence=Evidence(hint="kmodctl surface lock --dry-run"),
            )
        try:
            outcome = await self._executor.lock(timeout=TIMEOUT)
        except OSError as error:
            raise _unwritten(error.errno or 0) from error
        if not self._facts.read().modules_disabled:
            raise _unwritten(outcome.errno)
        return plan

    # --- what is pending ----------------------------------------------------------------------------------------------

    def _under_way(self) -> Iterator[Fault]:
        for job in self._jobs.all():
            yield Fault("operation", f"an operation is under way ({job.action} {job.module})", hint="kmodctl monitor")
        if self._responses.is_busy:
            yield Fault("response", "a response is under way", hint="kmodctl respond list")
        for lease in self._leases.leases.values():
            name = next(iter(lease.modules), None)
            yield Fault(
                "lease",
                f"{', '.join(lease.modules) or 'what is held'} could not be unloaded when its lease ends",
                module=name,
                hint="" if name is None else f"kmodctl why {name}",
            )

    async def _trials(self) -> Sequence[Fault]:
        return [
            Fault("trial", trial, hint=hint)
            for trial, hint in (
                (await self._enforcement.trial(), "kmodctl surface confirm, or kmodctl surface revert"),
                (self._desired.trial.told, "kmodctl config confirm, or kmodctl config revert"),
            )
            if trial
        ]

    async def _unsettled(self) -> Sequence[Fault]:
        faults: list[Fault] = [*await self._trials()]
        loaded = self._loaded.snapshot()
        for response in await self._responses.all():
            faults += [
                Fault(
                    "response",
                    f"{name}, which {response.id} keeps out, is still loaded",
                    module=name,
                    hint=f"kmodctl why {name}; kmodctl unload {name}",
                )
                for name in response.vulnerability.modules
                if name in loaded
            ]
        fault = self._desired.fault
        if fault is not None:
            faults.append(Fault("desired-state", fault.message, hint="kmodctl config reload"))
        faults += [
            Fault(
                "desired-state",
                f"{row.module} is to be {row.wanted}, and is {row.actual}",
                module=ModuleName(row.module),
                hint=row.hint,
            )
            for row in await self._desired.drift()
            if row.kind in _UNMET
        ]
        drifted = {fault.module for fault in faults}
        faults += [
            Fault("desired-state", f"{name} waits: {why}", module=name, hint="kmodctl config drift")
            for name, why in self._waiting().items()
            if name not in drifted
        ]
        return faults

    # --- what becomes of modules that are not loaded ------------------------------------------------------------------

    def _resolve(
        self, facts: KernelFacts, needs: Needs
    ) -> tuple[Sequence[Fault], Mapping[ModuleName, tuple[Reason, ...]]]:
        """Devices whose driver could still be loaded, and modules that something loads later."""
        loaded = self._loaded.snapshot()
        breaks: dict[ModuleName, tuple[Reason, ...]] = {}
        with self._installed.index(facts.release) as index:
            resolver = Resolver(index, facts.command_line)
            for name, reasons in needs.reasons.items():
                later = tuple(reason for reason in reasons if reason.source not in _NOT_LATER)
                if later and name not in loaded and _is_loadable(resolver.load(name).inserted, name, index):
                    breaks[name] = later
            for ending, what in _USB.items():
                reason = Reason("usb", f"{what} that are plugged in later", kernels=(facts.release,))
                for name in _drivers(index, resolver, f"usb:v0000p0000d0000dc00dsc00dp00{ending}in00"):
                    if name not in loaded:
                        breaks[name] = (*breaks.get(name, ()), reason)
            faults: dict[ModuleName, Fault] = {}
            for alias in dict.fromkeys(self._driverless()):
                for name in _drivers(index, resolver, alias):
                    if name not in loaded:
                        faults[name] = Fault(
                            "device",
                            f"the device {alias} has no driver, and {name} is not loaded",
                            module=name,
                            hint=f"kmodctl load {name}; if it has no use here, kmodctl config blacklist {name}",
                        )
        return tuple(faults.values()), dict(sorted(breaks.items()))


def _drivers(index: ModuleIndex, resolver: Resolver, alias: str) -> Iterator[ModuleName]:
    """The modules that udev would insert for a device."""
    for target in index.lookup(alias):
        if _is_loadable(resolver.by_alias(target).inserted, target.name, index):
            yield target.name


def _is_loadable(inserted: Mapping[ModuleName, ModuleName], name: ModuleName, index: ModuleIndex) -> bool:
    return name in inserted and not index.is_builtin(name)


def _unwritten(number: int) -> KmoddError:
    because = f" ({errno_name(number)})" if number else ""
    return NotPermitted(f"{_SWITCH} cannot be set{because}", evidence=Evidence(errno=number or None))
