# SPDX-License-Identifier: LGPL-2.1-or-later
"""Applies the desired state at boot and when a module or device it depends on appears or disappears. Never on a timer."""

import asyncio
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Protocol

from kmodd.core.desired.state import DesiredState
from kmodd.core.events import Audit, Event, Events, ModuleAdded, ModuleRemoved
from kmodd.core.operations.operations import Operations
from kmodd.core.planning.planner import PlanReadings
from kmodd.errors import KmoddError
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import KMODD, Operation, OperationResult, Plan, Record, Request, Result, State, Verb
from kmodd.model.rules import BlacklistMode, DesiredModule, ManagedFile, Presence
from kmodd.names import ModuleName, canonical

SETTLE = 0.05
"""Seconds between an event and acting on it: replies go first, and a burst is one look."""
AT_ONCE = 4
"""Modules handled concurrently; a driver that waits for its hardware does not delay the others."""


class AppliedModules(Protocol):
    """The modules whose desired state was applied since boot, across restarts of the daemon."""

    def read(self) -> frozenset[str] | None:
        """None when this is the first start since boot."""

    def write(self, names: Collection[str]) -> None:
        """Keep them; never raises."""


class Reconciler:
    """Loads modules as soon as their conditions hold, once; unloads those that are desired only beside another one that went.

    A module that another program unloads stays unloaded until its condition ends and holds again, or until `Apply`: an
    administrator's manual change wins. Modules are independent; the failure of one does not affect others.
    """

    def __init__(
        self,
        desired: DesiredState,
        operations: Operations,
        *,
        loaded: LoadedModules,
        index: ModuleIndex,
        events: Events,
        audit: Audit,
        known: AppliedModules,
        changed: Callable[[], None],
        settle: float = SETTLE,
        held: Callable[[], Container[object]] = tuple,
    ) -> None:
        """`changed` is called when what `failures` answers did; `held` answers the modules that wait for `Apply`."""
        self._held = held
        self._settle = settle
        self._desired = desired
        self._operations = operations
        self._loaded = loaded
        self._index = index
        self._events = events
        self._audit = audit
        self._known = known
        self._changed = changed
        self._met: set[ModuleName] = set()
        """Modules whose conditions held at the last check."""
        self._failures: dict[ModuleName, KmoddError] = {}
        self._tasks: dict[ModuleName, asyncio.Task[None]] = {}
        self._again: set[ModuleName] = set()
        self._touched: set[ModuleName] = set()
        self._plugged: dict[ModuleName, set[str]] = {}
        """Modules whose hardware condition may have changed, with the uevents of such devices."""
        self._unplugged: set[ModuleName] = set()
        """Modules of which such a device was removed. If it comes back it counts as new, even if its absence was never seen."""
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        self._closed = False
        self._places = asyncio.Semaphore(AT_ONCE)

    @property
    def failures(self) -> Mapping[ModuleName, KmoddError]:
        """Modules whose desired state could not be reached, with the error of the last attempt."""
        return self._failures

    def is_busy_with(self, name: ModuleName) -> bool:
        """Whether work is in progress, or may start in a moment because kmodd has just started."""
        return self._desired.daemon_settings.reconcile and (not self._started or name in self._tasks)

    def waiting(self) -> dict[ModuleName, str]:
        """Modules whose conditions do not hold yet, with what they wait for."""
        reasons = {}
        for entry in self._desired.desired_modules.values():
            if entry.state is Presence.LOADED and not self._is_live(entry.module) and (why := self._missing(entry)):
                reasons[entry.module] = why
        return reasons

    def pending(self) -> dict[ModuleName, str]:
        """Of these, those whose conditions can hold in this boot."""
        modules = self._desired.desired_modules
        return {name: why for name, why in self.waiting().items() if self._desired.is_for_this_kernel(modules[name])}

    # --- beginning and end --------------------------------------------------------------------------------------------

    def start(self) -> Callable[[], None]:
        """Follow events, and apply the desired state at the first start since boot; call the result to stop."""
        unsubscribe = self._events.subscribe(self._on_event, ModuleAdded, ModuleRemoved)
        applied = self._known.read()
        if applied is not None:
            # One that waits for nothing was met as soon as there was a daemon to know it: written since, it waits for `Apply`.
            self._met = {
                entry.module
                for entry in self._desired.desired_modules.values()
                if entry.module in applied or not (entry.after or entry.alias)
            }
        self.reconcile(everything=applied is None)
        if applied is None:
            # Also if no condition holds: the next start is not a boot.
            self._known.write(self._met)
        self._started = True
        self._changed()

        def stop() -> None:
            unsubscribe()
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        return stop

    async def close(self) -> None:
        """Give up what is under way; operations undo or finish by themselves."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def reconcile(self, *, everything: bool = False) -> None:
        """Check every module; with `everything` also unload those to be absent, and forget earlier results."""
        if not self._desired.daemon_settings.reconcile:
            return
        if everything:
            self._met.clear()
        for entry in self._desired.desired_modules.values():
            self._consider(entry, retry=True)
            if (
                everything
                and entry.module not in self._held()
                and entry.state is Presence.ABSENT
                and self._is_live(entry.module)
                and not self._missing(entry)
            ):
                self._act(entry, Verb.UNLOAD)

    def note(self, results: Iterable[OperationResult]) -> None:
        """Take over the results of an `Apply`: what failed is retried as if the reconciler had tried it."""
        by_name = [(canonical(name), result) for result in results for name in result.module.split()]
        done = {name for name, result in by_name if result.result in (Result.CHANGED, Result.UNCHANGED)}
        failed = {name: result.error for name, result in by_name if result.error is not None}
        for name in done:
            self._failures.pop(name, None)
        self._failures |= {name: error for name, error in failed.items() if name in self._desired.desired_modules}
        self._changed()

    def files_changed(self) -> None:
        """The desired state or the module index was read again: drop modules that are no longer in it, retry failures.

        A new table is applied automatically only if it has `after`; others wait for `Apply`, as a half-finished edit must not
        unload or load anything.
        """
        self._desired.find_modules()
        desired_modules = self._desired.desired_modules
        self._forget_fulfilled()
        self._met &= desired_modules.keys()
        if self._desired.daemon_settings.reconcile:
            for entry in desired_modules.values():
                if entry.after or entry.module in self._failures:
                    self._consider(entry, retry=True)
        self._changed()

    # --- events -------------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ModuleAdded | ModuleRemoved) and self._desired.desired_modules:
            self._touch(event.name)

    def device_changed(self, action: str, alias: str) -> None:
        """A device with this modalias came (`add`) or went (`remove`); an empty one when it may have been any."""
        self._desired.devices_changed()
        for entry in self._desired.desired_modules.values():
            if entry.alias and (not alias or fnmatchcase(alias, entry.alias)):
                self._plugged.setdefault(entry.module, set()).add(action)
                self._touch()

    def _touch(self, *names: ModuleName) -> None:
        self._touched.update(names)
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._settle, self._look)

    def _look(self) -> None:
        self._timer = None
        touched, self._touched = self._touched, set()
        plugged, self._plugged = self._plugged, {}
        if self._desired.refresh():
            self.files_changed()
        if not self._desired.daemon_settings.reconcile:
            return
        self._forget_fulfilled()
        for entry in self._desired.desired_modules.values():
            self._retry_absent(entry, touched)
            helped = touched.intersection((*entry.after, *self._index.dependencies(entry.module)))
            happened = plugged.get(entry.module, set())
            if "remove" in happened:
                self._unplugged.add(entry.module)
            if "add" in happened and entry.module in self._unplugged:
                self._unplugged.discard(entry.module)
                self._met.discard(entry.module)
            if helped or entry.module in plugged:
                self._consider(entry, retry=True)

    def _forget_fulfilled(self) -> None:
        """Drop failures of modules that reached their desired state, by any program, or no longer have one."""
        for name in list(self._failures):
            entry = self._desired.desired_modules.get(name)
            if entry is not None and entry.state is Presence.UNSET:
                continue  # it is about a file of ours, and `Apply` alone writes those
            if entry is None or self._is_live(name) is (entry.state is Presence.LOADED):
                del self._failures[name]
                self._changed()

    def _retry_absent(self, entry: DesiredModule, gone: Collection[ModuleName]) -> None:
        """What could not be unloaded is tried again when a module goes that was in its way."""
        error = self._failures.get(entry.module)
        if entry.state is Presence.ABSENT and error is not None and not set(error.evidence.holders).isdisjoint(gone):
            self._act(entry, Verb.UNLOAD)

    def _is_live(self, name: ModuleName) -> bool:
        """The current state of the kernel: uevents arrive slightly later, and a module just loaded is done."""
        module = self._loaded.read(name) or self._loaded.read(self._index.holds(name))
        return module is not None and module.state is State.LIVE

    def _missing(self, entry: DesiredModule) -> str:
        absent = [name for name in entry.after if not self._is_live(name) and not self._index.is_builtin(name)]
        if not absent:
            return self._desired.unmet(entry)
        return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not loaded"

    def _consider(self, entry: DesiredModule, *, retry: bool = False) -> None:
        name = entry.module
        if entry.state is not Presence.LOADED or name in self._held():
            return
        was, met = name in self._met, not self._missing(entry)
        if met != was:
            (self._met.add if met else self._met.discard)(name)
            self._known.write(self._met)
        if met and not self._is_live(name) and (not was or (retry and entry.retry and name in self._failures)):
            self._act(entry, Verb.LOAD)
        elif was and not met and entry.unload_when_gone and self._is_live(name):
            self._act(entry, Verb.UNLOAD)
        elif not met and self._failures.pop(name, None) is not None:
            self._changed()

    # --- acting -------------------------------------------------------------------------------------------------------

    def _act(self, entry: DesiredModule, verb: Verb) -> None:
        if entry.module in self._tasks:
            self._again.add(entry.module)
            return
        task = asyncio.get_running_loop().create_task(self._fulfil(entry, verb))
        self._tasks[entry.module] = task
        task.add_done_callback(lambda _: self._done(entry.module, verb))

    def _done(self, name: ModuleName, verb: Verb) -> None:
        """Events that arrive while the kernel is busy count as well; they are handled when all of them have arrived."""
        del self._tasks[name]
        entry = self._desired.desired_modules.get(name)
        again = name in self._again
        self._again.discard(name)
        if entry is None or entry.state is not Presence.LOADED:
            return
        met = not self._missing(entry)
        if verb is Verb.LOAD and not met:
            self._met.add(name)
        elif verb is Verb.UNLOAD and met:
            self._met.discard(name)
        elif not again:
            return
        self._touch(*entry.after)

    async def _fulfil(self, entry: DesiredModule, verb: Verb) -> None:
        async with self._places:
            try:
                await self._operations.run(self._plan(entry, verb), KMODD)
            except KmoddError as error:
                self._failures[entry.module] = error
                self._audit.record(_failed(entry, verb, error))
            else:
                self._failures.pop(entry.module, None)
        self._changed()

    def _plan(self, entry: DesiredModule, verb: Verb) -> Plan:
        operation = Operation(verb, entry.module, entry.live if verb is Verb.LOAD else (), itself=True)
        reason = entry.reason or f"desired state: {entry.file}, line {entry.line}"
        request = Request((operation,), reason=reason, timeout=float(self._desired.daemon_settings.timeout))
        return plan_over_own_blacklist(self._operations, request, self._desired)


def plan_over_own_blacklist(
    operations: Operations, request: Request, desired: DesiredState, look: PlanReadings | None = None
) -> Plan:
    """Plan; a module desired and softly blacklisted in one table is loaded over kmodd's own line, over no other."""
    wanted = {
        entry.module
        for entry in desired.desired_modules.values()
        if entry.state is Presence.LOADED and entry.blacklist is BlacklistMode.SOFT and not desired.unmet(entry)
    }
    if wanted:
        with suppress(KmoddError):
            plan = operations.plan(replace(request, override_policy=True), look)
            if all(rule.file == ManagedFile.BLACKLIST and rule.module in wanted for rule in plan.overrides):
                return plan
    return operations.plan(request, look)


def _failed(entry: DesiredModule, verb: Verb, error: KmoddError) -> Record:
    return Record(
        "desired.failed",
        f"{entry.module} should be {entry.state or 'changed'} according to {entry.file}, line {entry.line}, but {error.message}",
        module=entry.module,
        action=verb,
        result="failed",
        error=error.name(),
        reason=entry.reason,
        hint=error.evidence.hint,
        priority=4,
        extra={"FILE": entry.file, "LINE": str(entry.line)},
    )
