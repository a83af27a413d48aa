# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to do next on a node, and what to say about each module. Pure: from the specification, what kmodd says, what the agent
loaded and what failed; without a bus, an API or a clock.

Nothing is unloaded but what the agent loaded, in the reverse order, and nothing that another module or program uses. Sets come in
the order of the specification. `after` is as systemd's After=: a set that is not on this node is not waited for.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from enum import StrEnum

from kmodd.agent.record import Barred, Owned
from kmodd.errors import Conflict, Evidence, KmoddError, NoSuchVersion
from kmodd.fast_dataclass import dataclass
from kmodd.fleet.resources import (
    LOG_LINE_MAX,
    LOG_LINES_MAX,
    MESSAGE_MAX,
    USER_TEXT_MAX,
    USERS_MAX,
    Foreign,
    Mode,
    ModuleState,
    ModuleStatus,
    NodeModulesSpec,
    NodeSet,
    SetStatus,
    StatusUser,
    WantedModule,
)
from kmodd.model import User


class Recovery(StrEnum):
    """When a failed step may be tried again."""

    CHANGE = "change"
    """When the specification of the module, or kmodd, is another one."""
    RELEASE = "release"
    """When what uses the module may have let go: after any module came or went, and now and then, for the kernel says nothing."""
    BACK_OFF = "back-off"
    BOOT = "boot"
    """Not in this boot: the kernel still holds the call, crashed in it, or forbids loading until it starts again."""


_RECOVERY = {
    "InUse": Recovery.RELEASE,
    "Stuck": Recovery.BOOT,
    "Crashed": Recovery.BOOT,
    "TimedOut": Recovery.BOOT,
    "ModulesDisabled": Recovery.BOOT,
    "Lockdown": Recovery.BOOT,
    # A rule of polkit, a device or the user of a name may come without a word to us.
    "AccessDenied": Recovery.BACK_OFF,
    "InteractiveAuthorizationRequired": Recovery.BACK_OFF,
    "Busy": Recovery.BACK_OFF,
    "LimitsExceeded": Recovery.BACK_OFF,
    "NoDevice": Recovery.BACK_OFF,
    "InitFailed": Recovery.BACK_OFF,
    "Unavailable": Recovery.BACK_OFF,
    "Failed": Recovery.BACK_OFF,
}

FIRST_WAIT, LONGEST_WAIT = 5.0, 600.0
"""Seconds until the second attempt, doubled for each one after it, up to the longest."""


def recovery(reason: str) -> Recovery:
    """When a step that failed for this error may be tried again; for all others when something changed."""
    return _RECOVERY.get(reason, Recovery.CHANGE)


def back_off(attempts: int, chance: float) -> float:
    """Seconds to wait after so many failed attempts; `chance` from 0 to 1 takes up to a fifth off."""
    return float(min(FIRST_WAIT * 2.0 ** min(max(attempts, 1) - 1, 20), LONGEST_WAIT)) * (1 - 0.2 * chance)


class Action(StrEnum):
    """A step."""

    LOAD = "load"
    RELOAD = "reload"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True)
class Step:
    """One call of kmodd."""

    action: Action
    module: str
    parameters: tuple[tuple[str, str], ...] = ()
    version: str = ""
    sets: tuple[str, ...] = ()
    """For whom, as the journal shows it."""


@dataclass(slots=True)
class Failure:
    """A step that failed."""

    step: Step
    error: KmoddError
    attempts: int
    next_try: float | None
    """Of a monotonic clock, seconds; None where time alone changes nothing."""
    next_try_at: str = ""
    """The same as a date."""
    waits: int = 0
    """Times that it was put off, with an attempt or without."""

    def holds(self, step: Step, now: float) -> bool:
        """It stands against this step now."""
        return self.step == step and (self.next_try is None or now < self.next_try)


@dataclass(frozen=True, slots=True)
class Actual:
    """What kmodd says about one module."""

    loaded: bool = False
    moving: bool = False
    """Its init or exit function is running."""
    load_error: KmoddError | None = None
    """Why `Load` with the specified parameters would fail."""
    load_steps: bool = False
    """`Load` would insert something."""
    unload_error: KmoddError | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    """Values in effect of those that are specified, as far as everyone may read them."""
    version: str = ""
    """Of the loaded module, as modinfo prints it."""
    loaded_at: int = 0
    active_version: str | None = None
    """The store's version that is active; None where none is, or none is specified."""
    stored_versions: tuple[str, ...] = ()
    differs: str = ""
    """How what is loaded differs from the file; only where a version is specified."""

    @property
    def as_specified(self) -> bool:
        """It is live, and loading it would do nothing."""
        return self.loaded and not self.moving and self.load_error is None and not self.load_steps and not self.differs


@dataclass(frozen=True, slots=True)
class Wanted:
    """One module as all sets together want it."""

    module: WantedModule
    sets: tuple[str, ...]
    now: bool
    """A set wants it loaded now."""
    foreign: Foreign
    unload_after: int = 0
    conflict: str = ""
    """What the sets do not agree about, as a clause; empty when they do."""
    demanded: bool = False
    """Pods need it now."""

    @property
    def name(self) -> str:
        """The module's canonical name."""
        return self.module.name


@dataclass(frozen=True, slots=True)
class Situation:
    """All that is decided from."""

    spec: NodeModulesSpec
    actual: Mapping[str, Actual]
    owned: Mapping[str, Owned]
    failures: Mapping[str, Failure] = field(default_factory=dict)
    barred: Mapping[str, Barred] = field(default_factory=dict)
    released: Mapping[str, float] = field(default_factory=dict)
    """When a module of the agent's was first seen without demand, on the same clock as `now`."""
    now: float = 0.0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and what to say."""

    step: Step | None
    modules: tuple[ModuleStatus, ...]
    sets: tuple[SetStatus, ...]
    leaving: tuple[ModuleStatus, ...]
    """Of the modules those that no set has any more."""
    wake: float | None
    """When to look again without an event; None for never."""


def merge(spec: NodeModulesSpec) -> dict[str, Wanted]:
    """Every module of the sets, in their order."""
    merged: dict[str, Wanted] = {}
    for node_set in spec.sets:
        for module in node_set.modules:
            before = merged.get(module.name)
            if before is None:
                merged[module.name] = Wanted(
                    module,
                    (node_set.name,),
                    node_set.wanted,
                    node_set.when_foreign_parameters,
                    node_set.unload_after_seconds,
                    demanded=_demanded(node_set),
                )
                continue
            conflict = before.conflict or _conflict(before, module, node_set.name)
            foreign = (
                Foreign.RELOAD
                if Foreign.RELOAD in (before.foreign, node_set.when_foreign_parameters)
                else before.foreign
            )
            merged[module.name] = Wanted(
                before.module,
                (*before.sets, node_set.name),
                before.now or node_set.wanted,
                foreign,
                max(before.unload_after, node_set.unload_after_seconds),
                conflict,
                before.demanded or _demanded(node_set),
            )
    return merged


def _demanded(node_set: NodeSet) -> bool:
    return node_set.mode is Mode.ON_DEMAND and node_set.demanded


def _conflict(before: Wanted, module: WantedModule, set_name: str) -> str:
    for what, ours, theirs in (
        ("parameters", before.module.parameters, module.parameters),
        ("versions", before.module.version, module.version),
    ):
        if ours != theirs:
            return f"the sets {before.sets[0]} and {set_name} give different {what} to {module.name}"
    return ""


def decide(situation: Situation) -> Decision:
    """The next step and the status of every module and set."""
    return _Decider(situation).decide()


class _Decider:
    def __init__(self, situation: Situation) -> None:
        self._at = situation
        self._wanted = merge(situation.spec)
        self._step: Step | None = None
        self._states: dict[str, ModuleStatus] = {}
        self._wakes: list[float] = []

    def decide(self) -> Decision:
        for name in reversed(list(self._at.owned)):
            self._unload(name)
        sets: list[SetStatus] = []
        ready: dict[str, bool] = {}
        names = {node_set.name for node_set in self._at.spec.sets}
        for node_set in self._at.spec.sets:
            waits = next((name for name in node_set.after if name in names and not ready.get(name, False)), "")
            status = self._set(node_set, waits)
            ready[node_set.name] = status.state in (ModuleState.READY, ModuleState.LOADABLE)
            sets.append(status)
        wanted = tuple(self._finished(name) for name in self._wanted)
        leaving = tuple(self._finished(name) for name in self._states if name not in self._wanted)
        return Decision(self._step, (*wanted, *leaving), tuple(sets), leaving, min(self._wakes, default=None))

    # --- unloading ---------------------------------------------------------------------------------------------------

    def _unload(self, name: str) -> None:
        actual, wanted = self._at.actual.get(name, Actual()), self._wanted.get(name)
        if not actual.loaded or (wanted is not None and (wanted.now or wanted.conflict)):
            return
        if wanted is not None:
            end = self._at.released.get(name, self._at.now) + wanted.unload_after
            if self._at.now < end:
                self._wakes.append(end)
                return
        if not self._at.owned[name].requested and actual.unload_error is not None:
            return  # a dependency that is of use to others now
        self._attempt(Step(Action.UNLOAD, name, sets=wanted.sets if wanted else ()))

    # --- loading -----------------------------------------------------------------------------------------------------

    def _set(self, node_set: NodeSet, waits: str) -> SetStatus:
        blocker: ModuleStatus | None = None
        worst: ModuleStatus | None = None
        for module in node_set.modules:
            status = self._states.get(module.name)
            if status is None:
                status = self._module(self._wanted[module.name], node_set, waits, blocker)
                self._states[module.name] = status
            bad = status.state not in (ModuleState.READY, ModuleState.LOADABLE)
            if module.required and bad and blocker is None:
                blocker = status
            if module.required and (worst is None or _rank(status.state) > _rank(worst.state)):
                worst = status
        if worst is None:  # no module is required
            return SetStatus(node_set.name, ModuleState.READY, generation=node_set.generation)
        message = "" if worst.state in (ModuleState.READY, ModuleState.LOADABLE) else worst.message
        return SetStatus(node_set.name, worst.state, worst.reason, message, node_set.generation)

    def _module(self, wanted: Wanted, node_set: NodeSet, waits: str, blocker: ModuleStatus | None) -> ModuleStatus:
        name, actual = wanted.name, self._at.actual.get(wanted.name, Actual())
        if wanted.conflict:
            return _failed(name, Conflict(wanted.conflict, module=name))
        version = self._version(wanted, actual)
        if version is not None:
            return _failed(name, version)
        foreign = isinstance(actual.load_error, Conflict) and actual.loaded
        stale = bool(wanted.module.version) and actual.loaded and bool(actual.differs)
        if not wanted.now:
            return self._idle(wanted, actual, differs=foreign or stale)
        if actual.load_error is None and actual.moving:
            return ModuleStatus(name, ModuleState.PENDING, message=f"{name} is being loaded or unloaded")
        if actual.load_error is None and not actual.load_steps and not stale:
            return ModuleStatus(name, ModuleState.READY)
        reload = foreign or stale
        if reload and name not in self._at.owned and wanted.foreign is Foreign.REPORT:
            return self._drifted(name, actual)
        if actual.load_error is not None and not reload:
            return self._refused(name, actual.load_error)
        if waits:
            return ModuleStatus(name, ModuleState.BLOCKED, message=f"the set {waits}, which comes first, is not ready")
        if blocker is not None:
            message = f"{blocker.name}, which comes before it in the set {node_set.name}, is not ready"
            return ModuleStatus(name, ModuleState.BLOCKED, blocker.reason, message)
        action = Action.RELOAD if reload else Action.LOAD
        return self._attempt(Step(action, name, wanted.module.parameters, wanted.module.version, wanted.sets))

    def _version(self, wanted: Wanted, actual: Actual) -> KmoddError | None:
        name, version = wanted.name, wanted.module.version
        if not version or actual.active_version == version:
            return None
        if version not in actual.stored_versions:
            return NoSuchVersion(
                f"the store has no version {version} of {name}",
                module=name,
                evidence=Evidence(hint="kmodctl store list"),
            )
        active = (
            f"version {actual.active_version} of {name} is active"
            if actual.active_version
            else f"no version of {name} is active"
        )
        return Conflict(
            f"{active}, not {version}",
            module=name,
            evidence=Evidence(hint=f"kmodctl store activate {name} {shlex.quote(version)}"),
        )

    def _idle(self, wanted: Wanted, actual: Actual, *, differs: bool) -> ModuleStatus:
        name = wanted.name
        if name in self._states:
            return self._states[name]  # being unloaded
        if differs and name not in self._at.owned and wanted.foreign is Foreign.REPORT:
            return self._drifted(name, actual)
        if actual.load_error is not None and not differs:
            return self._refused(name, actual.load_error)
        return self._barred(name) or ModuleStatus(name, ModuleState.LOADABLE)

    def _drifted(self, name: str, actual: Actual) -> ModuleStatus:
        error = actual.load_error or Conflict(
            f"what is loaded differs from the file of {name}: {actual.differs}", module=name
        )
        return replace(_failed(name, error), state=ModuleState.DRIFTED)

    def _refused(self, name: str, error: KmoddError) -> ModuleStatus:
        # kmodd knows without trying. The agent checks again at each event, and of what passes by itself also now and then.
        if recovery(error.name()) is Recovery.BACK_OFF:
            self._wakes.append(self._at.now + LONGEST_WAIT)
        return self._barred(name) or _failed(name, error)

    def _barred(self, name: str) -> ModuleStatus | None:
        row = self._at.barred.get(name)
        if row is None:
            return None
        return ModuleStatus(name, ModuleState.FAILED, row.reason, row.message, row.hint, row.kernel_log)

    def _attempt(self, step: Step) -> ModuleStatus:
        name = step.module
        status = self._barred(name)
        if status is None:
            failure = self._at.failures.get(name)
            if failure is not None and failure.step == step:
                status = replace(_failed(name, failure.error), attempts=failure.attempts, next_try=failure.next_try_at)
                if recovery(failure.error.name()) is Recovery.RELEASE:
                    status = replace(status, state=ModuleState.BLOCKED)
                if failure.next_try is not None:
                    self._wakes.append(failure.next_try)
                if not failure.holds(step, self._at.now):
                    self._take(step)
            else:
                status = ModuleStatus(name, ModuleState.PENDING, message=f"{name} is about to be {_DONE[step.action]}")
                self._take(step)
        self._states[name] = status
        return status

    def _take(self, step: Step) -> None:
        if self._step is None:
            self._step = step

    def _finished(self, name: str) -> ModuleStatus:
        status, actual = self._states[name], self._at.actual.get(name, Actual())
        return replace(
            status,
            parameters=actual.parameters if actual.loaded else (),
            version=actual.version if actual.loaded else "",
            owned_by_agent=actual.loaded and name in self._at.owned,
            observed_generation=self._at.generation,
        )


_DONE = {Action.LOAD: "loaded", Action.RELOAD: "reloaded", Action.UNLOAD: "unloaded"}
_ORDER = tuple(ModuleState)


def _rank(state: ModuleState) -> int:
    return _ORDER.index(state)


def _within(text: str, size: int) -> str:
    """No more characters than the schema takes."""
    return text[:size]


def _failed(name: str, error: KmoddError) -> ModuleStatus:
    evidence = error.evidence
    return ModuleStatus(
        name,
        ModuleState.FAILED,
        error.name(),
        _within(error.message, MESSAGE_MAX),
        _within(evidence.hint, MESSAGE_MAX),
        tuple(_within(line, LOG_LINE_MAX) for line in evidence.kernel_log[-LOG_LINES_MAX:]),
        _users(evidence),
    )


def _users(evidence: Evidence) -> tuple[StatusUser, ...]:
    modules = tuple(User("module", holder, "uses it") for holder in evidence.holders)
    shown: Sequence[User] = (*modules, *(user for user in evidence.users if user.kind != "module"))
    return tuple(
        StatusUser(
            user.kind,
            _within(user.name, USER_TEXT_MAX),
            _within(user.detail, USER_TEXT_MAX),
            max(user.count, 0) or None,
        )
        for user in shown[:USERS_MAX]
    )
