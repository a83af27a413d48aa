# SPDX-License-Identifier: LGPL-2.1-or-later
"""The loaded modules, kept current by the kernel's uevents, whichever program loads or unloads them."""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, field, replace
from typing import Any

from kmodd.core.events import (
    Audit,
    Clock,
    Event,
    Events,
    ManagerChanged,
    ModuleAdded,
    ModuleChanged,
    ModuleRemoved,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from kmodd.core.operations.failures import read_loader
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Facts, LoadedModules, UeventSource
from kmodd.model import KernelFacts, LoadedBy, LoadedModule, Origin, Record, State, StepAction, Uevent
from kmodd.names import ModuleName

SETTLE = 0.05
"""Seconds between the first event of a burst and looking at /proc/modules.

A load of our own causes an event in the same moment in which its reply is due: reading immediately would put the reading,
the signals and the properties of a burst before the reply that a caller waits for. And a burst costs one reading.
"""

RETRY = 0.5
"""Seconds until /proc/modules is read again after that failed."""

_PRESENT = frozenset({State.LIVE, State.GOING})
_FACTS = {
    "Tainted": "taint",
    "ModulesDisabled": "modules_disabled",
    "Lockdown": "lockdown",
    "SignatureEnforced": "signature_enforced",
}

PROGRAMS_MAX = 1024
"""Connections whose program is remembered."""


@dataclass(frozen=True, slots=True)
class Presence:
    """How a live module came to be there."""

    loaded_at: int = 0
    """Microseconds since the epoch; 0 for what was loaded before kmodd started, unless an earlier run of kmodd since boot loaded it."""
    load_duration_usec: int = 0
    """How long the kernel took; 0 where kmodd did not load it."""
    by: LoadedBy | None = None
    """Who loaded it through kmodd, in this run of the daemon or an earlier one since boot."""
    instance: int = field(default=0, compare=False)
    """`LoadedModules.instance` of what `by` loaded."""


@dataclass(slots=True)
class _Claim:
    """A call of ours that explains what is about to be seen."""

    by: LoadedBy
    duration_usec: int = 0
    ended: bool = False
    instance: int = 0
    """`LoadedModules.instance` of what it loaded."""


class Registry:
    """Live modules with what is known about how they came.

    A module is here from the moment its init() has succeeded until it is gone; one that hangs in init() is not.
    """

    def __init__(
        self,
        loaded: LoadedModules,
        facts: Facts,
        events: Events,
        audit: Audit,
        clock: Clock,
        kept: bytes | None = None,
        keep: Callable[[bytes], None] = lambda data: None,
    ) -> None:
        """`kept` is what `keep` was given last, by an earlier daemon since boot: who loaded what; None for nothing."""
        self._kept = kept
        self._keep = keep
        self._loaded = loaded
        self._facts_source = facts
        self._events = events
        self._audit = audit
        self._clock = clock
        self._modules: dict[ModuleName, LoadedModule] = {}
        self._presences: dict[ModuleName, Presence] = {}
        self._programs: dict[str, str] = {}
        """Of connections, by unique name."""
        self._claims: dict[tuple[ModuleName, StepAction], _Claim] = {}
        self._seen: dict[ModuleName, list[str]] = {}
        """Events not yet dealt with, by module, in their order."""
        self._doubted: frozenset[ModuleName] = frozenset()
        """Modules whose events did not fit /proc/modules when it was last read."""
        self._timer: asyncio.TimerHandle | None = None
        self._facts: KernelFacts | None = None
        self.overflows = 0
        """How often the kernel lost events because they were not read in time."""
        self.uevents = 0
        """Events received."""

    # --- reading ------------------------------------------------------------------------------------------------------

    def names(self) -> tuple[ModuleName, ...]:
        """Every live module."""
        return tuple(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __len__(self) -> int:
        return len(self._modules)

    def get(self, name: ModuleName) -> LoadedModule | None:
        """A live module as last seen; its reference count may be old, the kernel announces no change of it."""
        return self._modules.get(name)

    def presence(self, name: ModuleName) -> Presence:
        """How it came; all unknown for a module that is not live."""
        presence = self._presences.get(name, _UNKNOWN)
        program = self._programs.get(presence.by.client) if presence.by is not None else None
        if presence.by is None or program is None:
            return presence
        return replace(presence, by=replace(presence.by, client=program))

    def loader(self, name: ModuleName) -> LoadedBy | None:
        """Who loaded through kmodd what is loaded now; None where others loaded it, also where no event of that has come yet."""
        presence, claim = self.presence(name), self._claims.get((name, StepAction.INSERT))
        if presence.by is None and claim is None:
            return None
        instance = self._instance(name)
        if presence.by is not None and instance and instance == presence.instance:
            return presence.by
        # A moment ago: its event, or that of what was there before, is on its way.
        return claim.by if claim is not None and instance and instance == claim.instance else None

    def name_client(self, sender: str, program: str) -> None:
        """The program of a connection became known: from now on it stands where only the connection could be named."""
        while len(self._programs) >= PROGRAMS_MAX:
            del self._programs[next(iter(self._programs))]
        self._programs[sender] = program
        if any(presence.by is not None and presence.by.client == sender for presence in self._presences.values()):
            self._remember()

    def facts(self) -> KernelFacts:
        """Kernel facts as last seen."""
        if self._facts is None:
            self._facts = self._facts_source.read()
        return self._facts

    # --- being kept true ----------------------------------------------------------------------------------------------

    def start(self) -> Callable[[], None]:
        """Take what is loaded now as given, without a signal, and follow operations; the answer stops following."""
        self._facts = self._facts_source.read()
        self._modules = self._read()
        self._presences = {**dict.fromkeys(self._modules, _UNKNOWN), **self._recall()}
        unsubscribe = self._events.subscribe(self._on_event, StepStarted, StepSucceeded, StepFailed)

        def stop() -> None:
            unsubscribe()
            self._disarm()
            # What was loaded a moment ago, and of which no event has come yet.
            for (name, action), claim in self._claims.items():
                if action is StepAction.INSERT and claim.instance and claim.instance == self._instance(name):
                    self._presences[name] = Presence(self._clock(), claim.duration_usec, claim.by, claim.instance)
            self._remember()

        return stop

    async def run(self, source: UeventSource) -> None:
        """Follow the kernel's events until the source ends or the task is cancelled."""
        try:
            async for uevent in source.events():
                self.take(uevent)
        finally:
            self._disarm()

    def take(self, uevent: Uevent) -> None:
        """Note an event; the module itself is looked at a little later."""
        self.uevents += 1
        if uevent.action == "overflow":
            self.overflows += 1
            # What was seen before the gap no longer tells the order of what happened.
            self._seen.clear()
        elif uevent.module is not None:
            self._seen.setdefault(uevent.module, []).append(uevent.action)
        if self._timer is None:
            self._arm()

    def look(self) -> None:
        """Read /proc/modules and the facts now, and publish what is different from what was known."""
        self._disarm()
        try:
            before, truth = self._modules, self._read()
            facts = self._facts_source.read()
        except OSError:
            # Out of descriptors or memory: what was seen is kept, and looked at when that may be over.
            self._arm(RETRY)
            return
        claims, self._seen = self._seen, {}
        # The kernel announces a module when its init() has succeeded. One that goes unannounced has failed in it.
        truth = {
            name: module
            for name, module in truth.items()
            if module.state is State.LIVE or name in before or name in claims
        }
        doubted: set[ModuleName] = set()
        steps: list[tuple[str, ModuleName]] = []
        for name, actions in claims.items():
            changes, present = _replay(actions, present=name in before)
            if present == (name in truth):
                steps += [(action, name) for action in changes]
            elif name not in self._doubted:
                # Either it changed again and that event is still on its way, or root wrote to a uevent file. Another look
                # will tell; until then it stays as it was known.
                doubted.add(name)
                self._seen[name] = actions
        self._doubted = frozenset(doubted)
        truth = {
            **{name: module for name, module in truth.items() if name in before or name not in doubted},
            **{name: before[name] for name in doubted if name in before and name not in truth},
        }
        named = {name for _, name in steps}
        steps += [("remove", name) for name in before if name not in truth and name not in named]
        # /proc/modules has the newest first.
        steps += [("add", name) for name in reversed(truth) if name not in before and name not in named]
        self._modules = truth
        last = {step: number for number, step in enumerate(steps)}
        for number, (action, name) in enumerate(steps):
            self._publish_step(action, name, last=last[action, name] == number)
        if steps:
            self._remember()
        self._forget_ended_claims()
        self._publish_changes(before, truth, {name for _, name in steps})
        self._publish_facts(facts, counted=len(before) != len(truth))
        if doubted:
            self._arm()

    def _read(self) -> dict[ModuleName, LoadedModule]:
        return {name: module for name, module in self._loaded.snapshot().items() if module.state in _PRESENT}

    def _publish_step(self, action: str, name: ModuleName, *, last: bool) -> None:
        """`last`: nothing of the kind follows for this module, so that it is what is loaded now."""
        step = StepAction.INSERT if action == "add" else StepAction.REMOVE
        claim = self._claims.get((name, step))
        if action == "add":
            instance = self._instance(name) if claim is not None else 0
            if claim is not None and claim.ended and last and instance not in (0, claim.instance):
                claim = None  # what the call loaded is gone, and this is another program's
            by, duration = (claim.by, claim.duration_usec) if claim is not None else (None, 0)
            self._presences[name] = Presence(self._clock(), duration, by, instance if by is not None else 0)
        else:
            self._presences.pop(name, None)
        if claim is None:
            self._audit.record(_by_others(action, name))
        if action == "add" and (module := self._modules.get(name)) is not None and "E" in module.taint:
            self._audit.record(_unsigned(name, claim.by if claim is not None else None))
        self._events.publish(ModuleAdded(name) if action == "add" else ModuleRemoved(name))

    def _publish_changes(
        self,
        former: Mapping[ModuleName, LoadedModule],
        truth: Mapping[ModuleName, LoadedModule],
        announced: set[ModuleName],
    ) -> None:
        for name, module in truth.items():
            before = former.get(name)
            if before is None or name in announced:
                continue
            changed = () if before.state is module.state else ("State",)
            # The kernel lists holders in no order that means something.
            if before.holders != module.holders and set(before.holders) != set(module.holders):
                changed = (*changed, "Holders")
            if changed:
                self._events.publish(ModuleChanged(name, changed))

    def _publish_facts(self, facts: KernelFacts, *, counted: bool) -> None:
        before, self._facts = self.facts(), facts
        manager = [name for name, field in _FACTS.items() if getattr(facts, field) != getattr(before, field)]
        if counted:
            manager.append("LoadedCount")
        if manager:
            self._events.publish(ManagerChanged(tuple(manager)))

    # --- over a restart of the daemon ---------------------------------------------------------------------------------

    def _instance(self, name: ModuleName) -> int:
        try:
            return self._loaded.instance(name)
        except OSError:
            return 0  # not known, and so nothing is claimed of it

    def _remember(self) -> None:
        present = {name: self.presence(name) for name in self._presences}
        rows = {name: asdict(presence) for name, presence in present.items() if presence.by and presence.instance}
        data = json.dumps(rows).encode()
        if data != self._kept:
            self._keep(data)
            self._kept = data

    def _recall(self) -> dict[ModuleName, Presence]:
        """What an earlier daemon knew, of modules that nothing else loaded since; nothing of what it did not write."""
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            rows = json.loads(self._kept or b"{}")
            read = {ModuleName(name): _read_presence(row) for name, row in rows.items()}
            return {
                name: presence
                for name, presence in read.items()
                if name in self._modules and presence.instance and self._instance(name) == presence.instance
            }
        return {}

    # --- our own operations -------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self._claims[event.module, event.action] = _Claim(event.by)
        elif isinstance(event, StepSucceeded) and not event.changed:
            self._drop_claim(event.module, event.action)
        elif isinstance(event, StepSucceeded):
            instance = self._instance(event.module) if event.action is StepAction.INSERT else 0
            self._claims[event.module, event.action] = _Claim(
                event.by, event.duration_usec, ended=True, instance=instance
            )
            presence = self._presences.get(event.module)
            if event.action is StepAction.INSERT and presence is not None and presence.by is event.by:
                # It was seen while the call was still on its way back.
                self._presences[event.module] = replace(presence, load_duration_usec=event.duration_usec)
                self._events.publish(ModuleChanged(event.module, ("LoadDurationUSec",)))
            if self._timer is None:
                self._arm()
        elif isinstance(event, StepFailed):
            if not event.stuck:
                self._drop_claim(event.module, event.action)
            self._arm()  # its state may be `going` now, or the kernel tainted

    def _drop_claim(self, name: ModuleName, action: StepAction) -> None:
        """The call changed nothing: what was seen meanwhile was another program's doing."""
        claim, presence = self._claims.pop((name, action), None), self._presences.get(name)
        if claim is not None and action is StepAction.INSERT and presence is not None and presence.by is claim.by:
            self._presences[name] = replace(presence, by=None, instance=0)
            self._remember()

    def _forget_ended_claims(self) -> None:
        doubted = self._doubted
        for key in [key for key, claim in self._claims.items() if claim.ended and key[0] not in doubted]:
            del self._claims[key]

    def _arm(self, delay: float = SETTLE) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay, self.look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _read_presence(row: Any) -> Presence:
    loaded_at, took = _whole(row["loaded_at"]), _whole(row["load_duration_usec"])
    return Presence(loaded_at, took, read_loader(row["by"]), _whole(row["instance"]))


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError("not a whole number")
    return value


_UNKNOWN = Presence()


def origin(module: LoadedModule) -> Origin:
    """Where a loaded module came from: the kernel sets taint O for what its own build did not mark."""
    return Origin.OUT_OF_TREE if "O" in module.taint else Origin.IN_TREE


def _replay(actions: list[str], *, present: bool) -> tuple[list[str], bool]:
    """Changes that these events mean for a module that was there or not, and whether it is there after them."""
    changes = []
    for action in actions:
        if action in {"add", "remove"} and (action == "add") != present:
            changes.append(action)
            present = not present
    return changes, present


def _unsigned(name: ModuleName, by: LoadedBy | None) -> Record:
    """The kernel took it without a signature it knows (taint E)."""
    return Record(
        "module.unsigned",
        f"Module {name} was loaded without a valid signature.",
        name,
        "load",
        "changed",
        uid=by.uid if by is not None else None,
        sender=by.client if by is not None and by.client.startswith(":") else "",
        exe=by.client if by is not None and not by.client.startswith(":") else "",
        login_uid=by.login_uid if by is not None else None,
        reason=by.reason if by is not None else "",
        hint=f"kmodctl show {name}",
        priority=4,
    )


def _by_others(action: str, name: ModuleName) -> Record:
    if action == "add":
        return Record("module.appeared", f"Module {name} was loaded by another program.", name, "load", "changed")
    return Record("module.disappeared", f"Module {name} was removed by another program.", name, "unload", "changed")
