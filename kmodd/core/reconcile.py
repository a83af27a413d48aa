# SPDX-License-Identifier: LGPL-2.1-or-later
"""Acts on wishes: at boot, and whenever what one waits for comes or goes. Never on a timer."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Protocol

from kmodd.core.api import Audit, Event, Events, ModuleAdded, ModuleRemoved
from kmodd.core.desired import DesiredState
from kmodd.errors import KmoddError
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import Caller, Operation, OperationResult, Plan, Record, Request, Result, State, Verb
from kmodd.model.desired import Ban, Presence, Wish
from kmodd.names import ModuleName, canonical

SETTLE = 0.05
"""Seconds between an event and acting on it: replies go first, and a burst is one look."""
AT_ONCE = 4
"""Wishes that are acted on side by side; a driver that waits for its hardware does not hold up the others."""
OWN_FILES = "/etc/modprobe.d/kmodd-"
CALLER = Caller(sender="", uid=0, exe="kmodd")
"""kmodd itself, for what it does without being asked; what it does is what root wrote into its files."""


class Operations(Protocol):
    """Plans and carries out."""

    def plan(self, request: Request) -> Plan:
        """The steps now."""

    async def run(self, plan: Plan, caller: Caller) -> tuple[ModuleName, ...]:
        """Carry out a plan of one operation."""


class Known(Protocol):
    """Which wishes were acted on since the machine booted, over a restart of the daemon."""

    def read(self) -> frozenset[str] | None:
        """None when this is the first start since boot."""

    def write(self, names: Collection[str]) -> None:
        """Keep them; never raises."""


class Reconciler:
    """Loads what is wanted as soon as it may be, once; unloads what is wanted only beside something that went.

    A module that somebody unloads stays unloaded until what it waits for goes and comes again, or until `Apply`: an
    administrator at the keyboard is right. Each wish is a matter of its own; the failure of one concerns no other.
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
        known: Known,
        changed: Callable[[], None],
        settle: float = SETTLE,
    ) -> None:
        """`changed` is called when what `failures` answers did."""
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
        """Wishes whose conditions held when they were last looked at."""
        self._failures: dict[ModuleName, KmoddError] = {}
        self._tasks: dict[ModuleName, asyncio.Task[None]] = {}
        self._again: set[ModuleName] = set()
        self._touched: set[ModuleName] = set()
        self._plugged: dict[ModuleName, set[str]] = {}
        """Wishes whose condition on hardware may have changed, with what happened to such devices."""
        self._unplugged: set[ModuleName] = set()
        """Wishes of which such a device went. Should one come again, it came anew, though at no look it was missing."""
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        self._closed = False
        self._places = asyncio.Semaphore(AT_ONCE)

    @property
    def failures(self) -> Mapping[ModuleName, KmoddError]:
        """Wishes that could not be fulfilled, with the error of the last attempt."""
        return self._failures

    def is_busy_with(self, name: ModuleName) -> bool:
        """Tell whether a wish is being fulfilled, or may be in a moment, as kmodd has only just started."""
        return self._desired.tunables.reconcile and (not self._started or name in self._tasks)

    def waiting(self) -> dict[ModuleName, str]:
        """Wishes whose time has not come, with what they wait for."""
        found = {}
        for wish in self._desired.wishes.values():
            if wish.state is Presence.LOADED and not self._is_live(wish.module) and (why := self._missing(wish)):
                found[wish.module] = why
        return found

    # --- beginning and end --------------------------------------------------------------------------------------------

    def start(self) -> Callable[[], None]:
        """Follow events, and at the first start since boot bring the machine to the wanted state; the answer stops that."""
        unsubscribe = self._events.subscribe(self._on_event)
        known = self._known.read()
        if known is not None:
            # One that waits for nothing was met as soon as there was a daemon to know it: written since, it waits for `Apply`.
            self._met = {
                wish.module
                for wish in self._desired.wishes.values()
                if wish.module in known or not (wish.after or wish.alias)
            }
        self.reconcile(everything=known is None)
        if known is None:
            # Also where no wish was met: the next start is no boot.
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
        """Look at every wish; with `everything` also unload what is to be absent, and forget what was done before."""
        if not self._desired.tunables.reconcile:
            return
        if everything:
            self._met.clear()
        for wish in self._desired.wishes.values():
            self._consider(wish, retry=True)
            if everything and wish.state is Presence.ABSENT and self._is_live(wish.module) and not self._missing(wish):
                self._act(wish, Verb.UNLOAD)

    def note(self, results: Iterable[OperationResult]) -> None:
        """Take over how it went when somebody had the wanted state applied: what failed is tried again as if kmodd had tried it."""
        told = [(canonical(name), result) for result in results for name in result.module.split()]
        done = {name for name, result in told if result.result in (Result.CHANGED, Result.UNCHANGED)}
        failed = {name: result.error for name, result in told if result.error is not None}
        for name in done:
            self._failures.pop(name, None)
        self._failures |= {name: error for name, error in failed.items() if name in self._desired.wishes}
        self._changed()

    def files_changed(self) -> None:
        """Wishes or the module index were read again: drop what nobody wants any more, try again what failed.

        A new wish is acted on by itself only if it has `after`; the others wait for `Apply`, as an edit half done must not
        unload or load anything.
        """
        wishes = self._desired.wishes
        self._forget_fulfilled()
        self._met &= wishes.keys()
        if self._desired.tunables.reconcile:
            for wish in wishes.values():
                if wish.after or wish.module in self._failures:
                    self._consider(wish, retry=True)
        self._changed()

    # --- events -------------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ModuleAdded | ModuleRemoved) and self._desired.wishes:
            self._touch(event.name)

    def device_changed(self, action: str, alias: str) -> None:
        """A device with this modalias came (`add`) or went (`remove`); an empty one when it may have been any."""
        self._desired.devices_changed()
        for wish in self._desired.wishes.values():
            if wish.alias and (not alias or fnmatchcase(alias, wish.alias)):
                self._plugged.setdefault(wish.module, set()).add(action)
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
        if not self._desired.tunables.reconcile:
            return
        self._forget_fulfilled()
        for wish in self._desired.wishes.values():
            self._retry_absent(wish, touched)
            helped = touched.intersection((*wish.after, *self._index.dependencies(wish.module)))
            happened = plugged.get(wish.module, set())
            if "remove" in happened:
                self._unplugged.add(wish.module)
            if "add" in happened and wish.module in self._unplugged:
                self._unplugged.discard(wish.module)
                self._met.discard(wish.module)
            if helped or wish.module in plugged:
                self._consider(wish, retry=True)

    def _forget_fulfilled(self) -> None:
        """Drop failures of what has come about after all, or is wanted no more, whoever brought it about."""
        for name in list(self._failures):
            wish = self._desired.wishes.get(name)
            if wish is not None and wish.state is Presence.UNSAID:
                continue  # it is about a file of ours, and `Apply` alone writes those
            if wish is None or self._is_live(name) is (wish.state is Presence.LOADED):
                del self._failures[name]
                self._changed()

    def _retry_absent(self, wish: Wish, gone: Collection[ModuleName]) -> None:
        """What could not be unloaded is tried again when a module goes that was in its way."""
        error = self._failures.get(wish.module)
        if wish.state is Presence.ABSENT and error is not None and not set(error.evidence.holders).isdisjoint(gone):
            self._act(wish, Verb.UNLOAD)

    def _is_live(self, name: ModuleName) -> bool:
        """As the kernel has it at this moment: events come a little later, and a wish just fulfilled is no longer open."""
        module = self._loaded.read(name)
        return module is not None and module.state is State.LIVE

    def _missing(self, wish: Wish) -> str:
        absent = [name for name in wish.after if not self._is_live(name) and not self._index.is_builtin(name)]
        if not absent:
            return self._desired.unmet(wish)
        return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not loaded"

    def _consider(self, wish: Wish, *, retry: bool = False) -> None:
        name = wish.module
        if wish.state is not Presence.LOADED:
            return
        was, met = name in self._met, not self._missing(wish)
        if met != was:
            (self._met.add if met else self._met.discard)(name)
            self._known.write(self._met)
        if met and not self._is_live(name) and (not was or (retry and wish.retry and name in self._failures)):
            self._act(wish, Verb.LOAD)
        elif was and not met and wish.unload_when_gone and self._is_live(name):
            self._act(wish, Verb.UNLOAD)
        elif not met and self._failures.pop(name, None) is not None:
            self._changed()

    # --- acting -------------------------------------------------------------------------------------------------------

    def _act(self, wish: Wish, verb: Verb) -> None:
        if wish.module in self._tasks:
            self._again.add(wish.module)
            return
        task = asyncio.get_running_loop().create_task(self._fulfil(wish, verb))
        self._tasks[wish.module] = task
        task.add_done_callback(lambda _: self._done(wish.module, verb))

    def _done(self, name: ModuleName, verb: Verb) -> None:
        """What happened while the kernel was busy with it counts as well; it is looked at when the kernel has told all."""
        del self._tasks[name]
        wish = self._desired.wishes.get(name)
        again = name in self._again
        self._again.discard(name)
        if wish is None or wish.state is not Presence.LOADED:
            return
        met = not self._missing(wish)
        if verb is Verb.LOAD and not met:
            self._met.add(name)
        elif verb is Verb.UNLOAD and met:
            self._met.discard(name)
        elif not again:
            return
        self._touch(*wish.after)

    async def _fulfil(self, wish: Wish, verb: Verb) -> None:
        async with self._places:
            try:
                await self._operations.run(self._plan(wish, verb), CALLER)
            except KmoddError as error:
                self._failures[wish.module] = error
                self._audit.record(_failed(wish, verb, error))
            else:
                self._failures.pop(wish.module, None)
        self._changed()

    def _plan(self, wish: Wish, verb: Verb) -> Plan:
        operation = Operation(verb, wish.module, wish.live if verb is Verb.LOAD else ())
        reason = wish.reason or f"desired state: {wish.file}, line {wish.line}"
        request = Request((operation,), reason=reason, timeout=float(self._desired.tunables.timeout))
        return plan_over_own_blacklist(self._operations, request, self._desired)


def plan_over_own_blacklist(operations: Operations, request: Request, desired: DesiredState) -> Plan:
    """Plan; a module that is wanted and softly blacklisted in one wish is loaded over kmodd's own line, over no other."""
    lines = {
        f"blacklist {wish.module}"
        for wish in desired.wishes.values()
        if wish.state is Presence.LOADED and wish.blacklist is Ban.SOFT and not desired.unmet(wish)
    }
    if lines:
        with suppress(KmoddError):
            plan = operations.plan(replace(request, override_policy=True))
            if all(rule.startswith(OWN_FILES) and rule.partition(": ")[2] in lines for rule in plan.overrides):
                return plan
    return operations.plan(request)


def _failed(wish: Wish, verb: Verb, error: KmoddError) -> Record:
    return Record(
        "desired.failed",
        f"{wish.module} is wanted {wish.state or 'otherwise'} by {wish.file}, line {wish.line}, but {error.message}",
        module=wish.module,
        action=verb,
        result="failed",
        error=error.name(),
        reason=wish.reason,
        hint=error.evidence.hint,
        priority=4,
        extra={"FILE": wish.file, "LINE": str(wish.line)},
    )
