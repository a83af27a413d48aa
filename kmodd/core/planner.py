# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a request to the exact steps that fulfil it. `Plan`, a dry run, authorisation and execution all use these steps."""

from collections.abc import Callable

from kmodd.core.draft import Draft, Flight, nothing_in_flight
from kmodd.core.insertion import Insertion
from kmodd.core.policy import Policy
from kmodd.core.removal import Removal, Users
from kmodd.errors import KmoddError
from kmodd.kernel.ports import Facts, LoadedModules, ModuleIndex
from kmodd.model import KernelFacts, Operation, Plan, Request, Step, StepAction, Verb
from kmodd.names import Alias, ModuleName, canonical, is_module_name


class Planner:
    """Plans against what is loaded now, and what the steps before will have changed. Reads public facts only."""

    def __init__(self, index: ModuleIndex, loaded: LoadedModules, facts: Facts, *, users: Users | None = None) -> None:
        self._index = index
        self._loaded = loaded
        self._facts = facts
        self._users = users
        self._policy = Policy(index)

    def plan(self, request: Request, flight: Callable[[ModuleName], Flight] = nothing_in_flight) -> Plan:
        """Plan every operation. What is wrong with one is on its step; the others are planned all the same.

        An operation that is known to fail has that one step: none of its other steps would be taken.
        """
        self._index.refresh()
        facts = _Once(self._facts)
        draft = Draft(self._loaded)
        targets: list[tuple[ModuleName, ...]] = []
        steps: list[Step] = []
        overrides: list[str] = []
        for number, operation in enumerate(request.operations):
            attempt = draft.copy()
            insertion = Insertion(
                self._index,
                self._loaded,
                self._policy,
                facts,
                attempt,
                flight,
                asked=operation.module,
                operation=number,
                override=request.override_policy,
            )
            removal = Removal(
                self._index,
                self._loaded,
                self._policy,
                facts,
                attempt,
                flight,
                operation=number,
                users=self._users,
            )
            names = self._targets(operation, draft)
            targets.append(names)
            try:
                if not names:
                    self._policy.check_alias(operation.module)
                    raise insertion.missing(operation.module)
                _plan_one(operation, names, insertion, removal, attempt)
            except KmoddError as error:
                steps.append(_failing(operation, number, names, error))
                continue
            draft = attempt
            steps += removal.steps
            steps += insertion.steps
            overrides += insertion.overrides
        return Plan(request, tuple(targets), tuple(steps), tuple(dict.fromkeys(overrides)))

    def _targets(self, operation: Operation, draft: Draft) -> tuple[ModuleName, ...]:
        asked = operation.module
        if is_module_name(asked):
            name = canonical(asked)
            if draft.get(name) is not None or self._index.exists(name) or self._loaded.is_builtin(name):
                return (name,)
        return tuple(dict.fromkeys(self._index.resolve(asked)))


class _Once:
    """Reads the kernel facts when they are first needed, once for a plan."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._read: KernelFacts | None = None

    def __call__(self) -> KernelFacts:
        if self._read is None:
            self._read = self._facts.read()
        return self._read


def _plan_one(
    operation: Operation, names: tuple[ModuleName, ...], insertion: Insertion, removal: Removal, draft: Draft
) -> None:
    if operation.verb is Verb.LOAD:
        for name in names:
            insertion.load(name, operation.parameters)
        return
    if operation.verb is Verb.RELOAD:
        names = tuple(name for name in names if not (insertion.is_builtin(name) and draft.get(name) is None)) or names
    for name in names:
        if operation.verb is Verb.UNLOAD or draft.get(name) is not None or insertion.is_builtin(name):
            removal.unload(name, dependents=operation.dependents)
    if operation.verb is Verb.UNLOAD:
        if operation.unused_dependencies:
            removal.drop_unused()
        return
    for name in names:
        insertion.load(name, operation.parameters)
    for name in reversed(removal.removed):
        if name not in names:
            insertion.again(name, "was loaded before")


def _failing(operation: Operation, number: int, names: tuple[ModuleName, ...], error: KmoddError) -> Step:
    action = StepAction.INSERT if operation.verb is Verb.LOAD else StepAction.REMOVE
    return Step(action, _blamed(operation.module, names, error), because="requested", operation=number, error=error)


def _blamed(asked: ModuleName | Alias, names: tuple[ModuleName, ...], error: KmoddError) -> ModuleName:
    if is_module_name(error.module):
        return canonical(error.module)
    return names[0] if names else canonical(asked)
