# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns a request into the exact steps that fulfil it, for `Plan`, dry runs, authorization and execution.

Looking at the index's files once for all calls that arrived together.
"""

from collections.abc import Callable, Sequence
from dataclasses import field, replace
from functools import cache

from kmodd.core.diagnosis.advice import shown_name
from kmodd.core.fair_share import Work, straight
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.operations.parameters import ParameterCalls, not_loaded
from kmodd.core.planning.insert import Insertion, stuck
from kmodd.core.planning.parameters import check_parameters
from kmodd.core.planning.planned_state import InFlight, PlannedState, ReadModules, nothing_in_flight
from kmodd.core.planning.policy import Policy
from kmodd.core.planning.remove import Foreseen, Removal, Users
from kmodd.errors import Evidence, KmoddError, LimitsExceeded
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Facts, LoadedModules, ModuleIndex
from kmodd.model import FactsPending, Operation, Plan, Request, Rule, Step, StepAction, Target, Verb
from kmodd.names import Alias, ModuleName, canonical, is_module_name

STEPS_MAX = 2048
"""Steps of one plan. Batches have at most 256 operations, and few of them touch more than a dozen modules each."""
_FIRST_STEP = {
    Verb.LOAD: StepAction.INSERT,
    Verb.UNLOAD: StepAction.REMOVE,
    Verb.RELOAD: StepAction.REMOVE,
    Verb.SET_PARAMETER: StepAction.SET_PARAMETER,
    Verb.RESET_FAILED: StepAction.RESET_FAILED,
}


@dataclass(frozen=True, slots=True)
class PlanReadings:
    """What was read for a plan that could not be read while it was made."""

    since: float
    """The time at which reading began, for `LiveValues.is_fresh`."""
    foreseen: Foreseen = field(default_factory=dict)
    """What goes with the modules that the plan removes."""


class Planner:
    """Plans against what is loaded now, and what the steps before will have changed. Reads public facts only."""

    def __init__(
        self,
        index: ModuleIndex,
        loaded: LoadedModules,
        facts: Facts,
        values: LiveValues,
        *,
        users: Users | None = None,
        given: GivenValues | None = None,
        failed: Callable[[ModuleName], bool] = lambda _: True,
        held: Users = lambda _: (),
    ) -> None:
        """`failed` tells whether a failure of the module is remembered, which can be reset; `held` answers its leases."""
        self.values = values
        self.given = GivenValues() if given is None else given
        """What loaded modules were given: to give it again changes nothing."""
        self.parameters = ParameterCalls(index, loaded, facts, values, given=self.given)
        self._index = index
        self._loaded = loaded
        self._facts = facts
        self._users = users
        self._failed = failed
        self._held = held
        self._policy = Policy(index)

    def plan(
        self,
        request: Request,
        flight: Callable[[ModuleName], InFlight] = nothing_in_flight,
        *,
        look: PlanReadings | None = None,
    ) -> Plan:
        """Plan every operation without yielding; see `work`."""
        return straight(self.work(request, flight, look=look))

    def work(
        self,
        request: Request,
        flight: Callable[[ModuleName], InFlight] = nothing_in_flight,
        *,
        look: PlanReadings | None = None,
        version: int = -1,
        made: int = 0,
    ) -> Work[Plan]:
        """Plan every operation, one a piece. What is wrong with one is on its step; the others are planned all the same.

        An operation that is known to fail has that one step: none of its other steps would be taken. LimitsExceeded for a
        plan of more than STEPS_MAX steps, AccessDenied for one that touches a module outside of the request's `only_modules`.

        Where a loaded module is to have other parameters than were read lately, the plan takes on trust that it has them, and
        says so in `unread`; where modules are removed, it takes on trust that nothing live goes with them, and says so in
        `unseen`. With `look` an operation that needs what has not been read since fails.
        """
        self._index.refresh()
        index_version = self._index.version
        facts = cache(self._facts.read)  # when they are first needed, once for the plan
        text = self._loaded.raw()
        draft = PlannedState(ReadModules(self._loaded, text))
        targets: list[tuple[ModuleName, ...]] = []
        steps: list[Step] = []
        overrides: list[Rule] = []
        unread: list[ModuleName] = []
        unseen: list[ModuleName] = []
        for number, operation in enumerate(request.operations):
            if number:
                yield ()
            while True:
                attempt = draft.copy()
                insertion = Insertion(
                    self._index,
                    self._loaded,
                    self.values,
                    self._policy,
                    facts,
                    attempt,
                    flight,
                    given=self.given,
                    since=look.since if look is not None else None,
                    requested=operation.module,
                    operation=number,
                    override=request.override_policy,
                )
                removal: Removal | None = None
                leads = self._targets(operation, draft)
                names = tuple(dict.fromkeys(target.name for target in leads if self._is_module(target.name, draft)))
                try:
                    if not leads:
                        raise insertion.missing(operation.module)
                    names = tuple(dict.fromkeys(map(insertion.module_in, names)))
                    own: tuple[Step, ...] = ()
                    if operation.verb is Verb.SET_PARAMETER:
                        own = self._set(operation, number, attempt, flight)
                    elif operation.verb is Verb.RESET_FAILED:
                        own = self._reset(operation, number, flight)
                    elif operation.verb is Verb.LOAD:
                        self._load(operation, leads, insertion, override=request.override_policy)
                    else:
                        removal = Removal(
                            self._index,
                            self._loaded,
                            self._policy,
                            facts,
                            attempt,
                            flight,
                            operation,
                            operation=number,
                            users=self._users,
                            held=self._held,
                            foreseen=look.foreseen if look is not None else None,
                            disconnect=request.disconnect,
                        )
                        _plan_one(
                            operation,
                            tuple(dict.fromkeys(target.name for target in leads)),
                            insertion,
                            removal,
                            attempt,
                        )
                except FactsPending as pending:
                    yield pending.names
                    continue
                except KmoddError as error:
                    steps.append(_failing(operation, number, names, error))
                else:
                    draft = attempt
                    if removal is not None:
                        steps += removal.steps
                        unseen += removal.unseen
                    steps += insertion.steps
                    steps += own
                    overrides += insertion.overrides
                    unread += insertion.unread
                break
            targets.append(names)
            if len(steps) > STEPS_MAX:
                raise LimitsExceeded(
                    f"the operations need more than {STEPS_MAX} steps in total",
                    evidence=Evidence(hint="use fewer operations in one request"),
                )
        plan = Plan(
            request,
            tuple(targets),
            tuple(steps),
            tuple(dict.fromkeys(overrides)),
            unread=tuple(dict.fromkeys(unread)),
            unseen=tuple(dict.fromkeys(unseen)),
            loaders=(),
            version=version,
            made=made,
            seen=(index_version, text),
        )
        if request.only_modules is not None:
            request.confine(plan.modules)
        return plan

    def _targets(self, operation: Operation, draft: PlannedState) -> tuple[Target, ...]:
        name = operation.module
        if operation.verb in (Verb.SET_PARAMETER, Verb.RESET_FAILED):
            return (Target(canonical(name)),)
        # A reload loads the same module again, and kmodd's own files mean the module that they name.
        if (operation.itself or operation.verb is Verb.RELOAD) and self._is_module(canonical(name), draft):
            return (Target(self._file(operation, canonical(name))),)
        targets = self._index.lookup(name)
        if not targets and is_module_name(name) and self._is_module(canonical(name), draft):
            # Loaded, but not in the index.
            return (Target(canonical(name)),)
        return targets

    def _file(self, operation: Operation, name: ModuleName) -> ModuleName:
        """What is loaded again from a file that was renamed comes from there."""
        again = operation.verb is Verb.RELOAD and not self._index.exists(name) and not self._loaded.is_builtin(name)
        return self._index.file_for(name) if again else name

    def _is_module(self, name: ModuleName, draft: PlannedState) -> bool:
        return self._index.exists(name) or self._loaded.is_builtin(name) or draft.get(name) is not None

    def _load(self, operation: Operation, targets: Sequence[Target], insertion: Insertion, *, override: bool) -> None:
        """Plan every module that the name leads to, as modprobe takes them.

        Of several, those that are blacklisted are passed over, and whether the last one can be had decides: it may stand
        among them more than once.
        """
        last = targets[-1]
        if len(targets) > 1 and not override:
            kept = [target for target in targets if not self._policy.blacklists(target.name)]
            targets = kept or targets[:1]
            last = last if kept else targets[0]
        for target in dict.fromkeys(targets):
            if self._is_nowhere(target, insertion):
                if target == last:
                    self._policy.check_alias(operation.module)
                    raise self._leads_nowhere(operation.module, target, insertion)
                continue
            insertion.load(target, operation.parameters)

    def _is_nowhere(self, target: Target, insertion: Insertion) -> bool:
        """Tell whether an alias leads to what modprobe would find no module for: what is loaded is there without a file too."""
        name = target.name
        return bool(
            target.alias
            and not self._index.exists(name)
            and not insertion.is_builtin(name)
            and not insertion.is_present(name)
            and not self._policy.has_command(name)
        )

    def _set(
        self, operation: Operation, number: int, draft: PlannedState, flight: Callable[[ModuleName], InFlight]
    ) -> tuple[Step, ...]:
        """Plan the writes to live parameters, by what can be known of the module before."""
        name = canonical(operation.module)
        if flight(name) is InFlight.STUCK:
            raise stuck(name)
        if draft.is_inserted(name):
            # Which of its parameters are writable shows when it is there.
            check_parameters(self._index.info(self._index.file_for(name)), operation.parameters)
        elif draft.get(name) is None and self._loaded.read(name) is not None:
            raise not_loaded(name, operation.parameters[0][0])
        else:
            for parameter, value in operation.parameters:
                self.parameters.prepare(name, parameter, value)
        return tuple(
            Step(StepAction.SET_PARAMETER, name, parameters=(pair,), because="requested", operation=number)
            for pair in operation.parameters
        )

    def _reset(self, operation: Operation, number: int, flight: Callable[[ModuleName], InFlight]) -> tuple[Step, ...]:
        name = canonical(operation.module)
        if flight(name) is InFlight.STUCK:
            raise stuck(name)
        if not self._failed(name):
            return ()
        return (Step(StepAction.RESET_FAILED, name, because="requested", operation=number),)

    def _leads_nowhere(self, name: ModuleName | Alias, target: Target, insertion: Insertion) -> KmoddError:
        error = insertion.missing(target.name)
        line = self._policy.alias_line(target)
        if line is not None:
            error.message = (
                f"{shown_name(name)} is an alias of {target.name} ({line.file}, line {line.line}): {error.message}"
            )
            error.evidence = replace(
                error.evidence, file=line.file, line=line.line, rule=line.told, rule_kind=line.kind
            )
        return error


def _plan_one(
    operation: Operation, names: tuple[ModuleName, ...], insertion: Insertion, removal: Removal, draft: PlannedState
) -> None:
    if operation.verb is Verb.RELOAD:
        names = tuple(name for name in names if not (insertion.is_builtin(name) and draft.get(name) is None)) or names
    modules = {insertion.module_in(name): name for name in names}
    for module, name in modules.items():
        if operation.verb is Verb.UNLOAD or draft.get(module) is not None or insertion.is_builtin(name):
            unused = operation.verb is Verb.UNLOAD and operation.unused_dependencies
            removal.unload(module, dependents=operation.dependents, unused=unused, file=name)
    if operation.verb is Verb.UNLOAD:
        removal.check_consequences()
        return
    for name in names:
        insertion.load(Target(name), operation.parameters)
    for name in reversed(removal.removed):
        if name not in modules:
            insertion.again(name, "was loaded before")
    removal.check_consequences()


def _failing(operation: Operation, number: int, names: tuple[ModuleName, ...], error: KmoddError) -> Step:
    return Step(
        _FIRST_STEP[operation.verb],
        _blamed(operation.module, names, error),
        because="requested",
        operation=number,
        error=error,
        consequences=error.evidence.consequences,
    )


def _blamed(requested: ModuleName | Alias, names: tuple[ModuleName, ...], error: KmoddError) -> ModuleName:
    if is_module_name(error.module):
        return canonical(error.module)
    return names[0] if names else canonical(requested)


class IndexRefresher:
    """Refreshes the index, unless it was since anything last arrived.

    A caller may count on every change made before its call. Whatever is being answered arrived before the last arrival,
    so a refresh started after that one has seen all relevant changes. Only for calls answered immediately: a call that waits
    for a lock or a password refreshes again.
    """

    def __init__(self, index: ModuleIndex, arrivals: Callable[[], int]) -> None:
        """`arrivals` is a number that rises whenever something is received."""
        self._index = index
        self._arrivals = arrivals
        self._seen = -1

    def __call__(self) -> None:
        """Refresh it if need be."""
        arrivals = self._arrivals()
        if arrivals != self._seen:
            self._index.refresh()
            self._seen = arrivals
