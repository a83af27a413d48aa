# SPDX-License-Identifier: LGPL-2.1-or-later
"""`GetDrift`, `Apply` and `Reload`: compares desired and actual state, applies all differences or none, reads the files again.

`Apply` does first what is easily undone: it checks everything, switches versions of the store, writes live parameters,
executes loads, unloads and reloads as one atomic batch, and writes kmodd's own files in /etc while that batch can still be
undone. On a failure everything before it is undone in reverse order.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kmodd.core.desired.drift import Comparison, Difference, Write
from kmodd.core.desired.reconciler import Reconciler, plan_over_own_blacklist
from kmodd.core.desired.state import DesiredState
from kmodd.core.desired.trial import CONFIRM, ApplyTrial, KeptTrial, no_trial
from kmodd.core.events import Audit
from kmodd.core.fair_share import read_files
from kmodd.core.operations.jobs import run_to_completion
from kmodd.core.operations.operations import Operations
from kmodd.core.operations.parameters import Parameters
from kmodd.core.planning.planner import PlanReadings
from kmodd.core.rules.configuration import Configuration
from kmodd.core.store.activation import Switch
from kmodd.errors import (
    BadModule,
    BadParameter,
    BadSignature,
    Conflict,
    Evidence,
    KmoddError,
    NoSuchModule,
    UnknownParameter,
    UnknownSymbol,
    WrongKernel,
)
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import Caller, Operation, OperationResult, Plan, Record, Request, Result, Step, StepAction, Verb
from kmodd.model.rules import Drift, RuleChange
from kmodd.names import ModuleName

Undo = Callable[[], Awaitable[object]]
_ABOUT_THE_FILE = (NoSuchModule, BadModule, WrongKernel, BadSignature, UnknownSymbol, UnknownParameter, BadParameter)
"""What another version of the module may be the answer to."""


class Versions(Protocol):
    """The store."""

    def foresee(self, name: ModuleName, version: str) -> Switch:
        """What making a version the active one would do now; NoSuchModule, NoSuchVersion."""

    async def activate(self, switch: Switch, caller: Caller, *, dry_run: bool) -> Sequence[ModuleName]:
        """Make exactly this version the active one; answers what was reloaded. Conflict where it is another one by now."""

    def active_version(self, name: ModuleName) -> str:
        """The version that is active now; empty for none."""

    async def restore(self, name: ModuleName, version: str, caller: Caller) -> None:
        """Make this one active again, or none (empty)."""


@dataclass(frozen=True, slots=True)
class ApplyPlan(Plan):
    """The steps of the batch, and what goes with it."""

    changes: tuple[RuleChange, ...] = ()
    writes: tuple[Write, ...] = ()
    versions: tuple[tuple[ModuleName, str], ...] = ()
    switches: tuple[Switch | None, ...] = ()
    """For each version what it comes to; None where the store did not have it."""
    trial: int = 0
    """Seconds after which it is taken back unless it is confirmed; 0 for good."""
    confirms: KeptTrial | None = None
    """The trial that it confirms."""

    @property
    def sha256(self) -> tuple[str, ...]:
        """Contents of the versions, and of what they bring with them out of the store."""
        return tuple(
            dict.fromkeys(sha256 for switch in self.switches if switch is not None for sha256 in switch.sha256)
        )

    @property
    def modules(self) -> tuple[ModuleName, ...]:
        """Every module that is touched by any of it, sorted."""
        others = (
            *(change.module for change in self.changes),
            *(write.module for write in self.writes),
            *(name for name, _ in self.versions),
            *(name for switch in self.switches if switch is not None for name in switch.modules),
        )
        steps = (step.module for step in self.steps)
        return tuple(sorted({name for names in self.targets for name in names}.union(others, steps)))


class Application:
    """Runs once."""

    def __init__(
        self,
        plan: ApplyPlan,
        caller: Caller,
        *,
        operations: Operations,
        rules: Configuration,
        parameters: Parameters,
        versions: Versions | None,
    ) -> None:
        self._plan = plan
        self._caller = caller
        self._operations = operations
        self._rules = rules
        self._parameters = parameters
        self._versions = versions
        self._batch = Plan(plan.request, plan.targets, plan.steps, plan.overrides, unseen=plan.unseen)
        self._switched = {name for name, _ in plan.versions}
        """Modules whose file is not known before their version is the active one."""
        self._dry_run = plan.request.dry_run
        self._undo: list[tuple[int, Undo]] = []
        """How to undo what was done, each with the number of its result."""
        done = (
            *(("activate", name) for name, _ in plan.versions),
            *(("set-parameter", write.module) for write in plan.writes),
            *((operation.verb.value, plan.label(number)) for number, operation in enumerate(plan.request.operations)),
            *((change.action.value, change.module) for change in plan.changes),
        )
        self._results = [OperationResult(name, Result.SKIPPED, action=action) for action, name in done]
        self._first_write = len(plan.versions)
        self._first_operation = self._first_write + len(plan.writes)
        self._first_change = self._first_operation + len(plan.request.operations)

    async def run(self) -> tuple[OperationResult, ...]:
        """Do it; one result for each thing, in the order above.

        Raises what concerns the batch as a whole, as `Operations.execute` does; everything is undone then as well.
        """
        try:
            for step in (self._check, self._foresee, self._switch, self._set, self._load_and_write):
                await step()
                # A dry run tells of everything that is in the way.
                if self._has_failed() and not self._dry_run:
                    await self._take_back()
                    break
        except BaseException:
            # The daemon's end included, which breaks a switch of versions off: those before it must not stay.
            await self._take_back()
            raise
        return tuple(self._results)

    def _has_failed(self) -> bool:
        return any(result.result is Result.FAILED for result in self._results)

    def _end(self, number: int, result: Result, error: KmoddError | None = None, *touched: ModuleName) -> None:
        self._results[number] = replace(self._results[number], result=result, error=error, touched=touched)

    async def _check(self) -> None:
        """See whether files and parameters could be written, before anything is done that would have to be undone."""
        pending = [number for number, change in enumerate(self._plan.changes) if change.module not in self._switched]
        trials = [replace(self._plan.changes[number], dry_run=True) for number in pending]
        refused = await self._rules.write_all(trials, self._caller)
        self._end_changes({pending[number]: error for number, error in refused.items()}, Result.SKIPPED)
        for number, write in enumerate(self._plan.writes, self._first_write):
            if write.module in self._switched:
                continue
            try:
                self._prepare(write)
            except KmoddError as error:
                self._end(number, Result.FAILED, error)

    async def _foresee(self) -> None:
        """Have a batch that cannot succeed refused before a driver is reloaded with another version for nothing."""
        plan = self._plan
        if self._dry_run or not (plan.versions or plan.writes):
            return
        fresh = self._operations.plan(plan.request)
        if any(self._is_doomed(step) for step in fresh.steps):
            refused = await self._operations.refuse(fresh, self._caller)
            self._results[self._first_operation : self._first_change] = refused

    def _is_doomed(self, step: Step) -> bool:
        """Tell whether a step is known to fail, whatever version becomes the active one."""
        if step.error is None:
            return False
        switched = not self._switched.isdisjoint((step.module, step.error.module))
        return not switched or not isinstance(step.error, _ABOUT_THE_FILE)

    async def _switch(self) -> None:
        versions = self._versions
        if versions is None:
            return  # without a store no version differs
        for number, (name, version) in enumerate(self._plan.versions):
            before = versions.active_version(name)
            try:
                touched = await versions.activate(
                    self._switch_of(versions, number, name, version), self._caller, dry_run=self._dry_run
                )
            except KmoddError as error:
                self._end(number, Result.FAILED, error)
                if self._dry_run:
                    continue
                return
            self._end(number, Result.CHANGED, None, *touched)
            self._undo.append((number, _bound(versions.restore, name, before, self._caller)))

    def _switch_of(self, versions: Versions, number: int, name: ModuleName, version: str) -> Switch:
        """As it was authorized; the error where the store did not have the version then."""
        switch = self._plan.switches[number]
        if switch is None:
            versions.foresee(name, version)
            raise Conflict(f"version {version} of {name} was imported while authorization was in progress", module=name)
        return switch

    async def _set(self) -> None:
        for number, write in enumerate(self._plan.writes, self._first_write):
            if self._results[number].error is not None:
                continue
            if self._dry_run and write.module in self._switched:
                self._end(number, Result.CHANGED)
                continue
            try:
                prepared = self._prepare(write)
                opposite = await self._parameters.opposite(prepared)
                if not self._dry_run:
                    await self._parameters.write(prepared, self._caller)
            except KmoddError as error:
                self._end(number, Result.FAILED, error)
                if self._dry_run:
                    continue
                return
            self._end(number, Result.CHANGED)
            if opposite is not None:
                self._undo.append((number, _bound(self._parameters.write, opposite, self._caller)))

    async def _load_and_write(self) -> None:
        plan = self._plan
        if plan.request.operations:
            done = await self._operations.execute(self._batch_now(), self._caller, self._write_files)
            self._results[self._first_operation : self._first_change] = done
        if self._dry_run or not plan.request.operations:
            await self._write_files(())

    def _batch_now(self) -> Plan:
        """The batch as it is after the switch: a version has its own dependencies, and may be the first one there is.

        In a dry run there was none, and what only the version can tell is taken for good.
        """
        if not self._switched:
            return self._batch
        if self._dry_run:
            steps = tuple(s if self._is_doomed(s) else replace(s, error=None) for s in self._batch.steps)
            return replace(self._batch, steps=steps)
        fresh = self._operations.plan(self._plan.request)
        own = [number for number, names in enumerate(fresh.targets) if not self._switched.isdisjoint(names)]
        brought = tuple(step for step in fresh.steps if step.operation in own)
        beyond = sorted({step.module for step in brought} - set(self._plan.modules))
        if beyond and self._caller.uid != 0:  # root needs no authorization
            raise Conflict(
                f"the set of affected modules changed since authorization and now includes {', '.join(beyond)}",
                module=beyond[0],
                evidence=Evidence(hint="kmodctl config apply"),
            )
        return replace(self._batch, targets=fresh.targets, steps=(*self._batch.steps, *brought))

    async def _write_files(self, _: Sequence[OperationResult]) -> bool:
        refused = {} if self._dry_run else await self._rules.write_all(self._plan.changes, self._caller)
        self._end_changes(refused, Result.SKIPPED if refused else Result.CHANGED)
        return not refused

    def _end_changes(self, refused: Mapping[int, KmoddError], others: Result) -> None:
        for number in range(len(self._plan.changes)):
            place = self._first_change + number
            if number in refused:
                self._end(place, Result.FAILED, refused[number])
            elif self._results[place].error is None:
                self._end(place, others)

    def _prepare(self, write: Write) -> Any:
        return self._parameters.prepare(write.module, write.parameter, write.value, reason=self._plan.request.reason)

    async def _take_back(self) -> None:
        """Undo in reverse; what cannot be undone stays `changed`, and its error is in the journal."""
        while self._undo and not self._dry_run:
            number, undo = self._undo.pop()
            with suppress(KmoddError):
                await undo()
                self._end(number, Result.ROLLED_BACK)


def _bound(method: Callable[..., Awaitable[object]], *arguments: object) -> Undo:
    return lambda: method(*arguments)


class DesiredStateService:
    """Compares the system with the desired state, and applies it on request."""

    def __init__(
        self,
        desired: DesiredState,
        comparison: Comparison,
        operations: Operations,
        reconciler: Reconciler,
        *,
        rules: Configuration,
        parameters: Parameters,
        versions: Versions | None,
        index: ModuleIndex,
        audit: Audit,
        trial: ApplyTrial,
        settle: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """`settle` waits until what is looked at in the background is known."""
        self._settle = settle
        self._desired = desired
        self._comparison = comparison
        self._operations = operations
        self._reconciler = reconciler
        self._rules = rules
        self._parameters = parameters
        self._versions = versions
        self._index = index
        self._audit = audit
        self.trial = trial

    async def drift(self) -> Sequence[Drift]:
        """Every difference between desired and actual state, now."""
        self.refresh()
        if self._settle is not None:
            await self._settle()
        await read_files(self._index, self._desired.desired_modules)
        await self._comparison.look()
        return self._comparison.find().rows

    @property
    def fault(self) -> Conflict | None:
        """Why the files are not in effect as they are."""
        return self._desired.fault

    def refresh(self) -> None:
        """Read the files again if one changed; cheap otherwise. A bad file is recorded and changes nothing."""
        if self._desired.refresh():
            self._reconciler.files_changed()

    async def reload(self, caller: Caller) -> None:
        """Read all files again; Conflict names a bad one by file, line and key, and the old settings stay."""
        self.read_again(caller)

    def read_again(self, caller: Caller) -> None:
        """The same without yielding to the event loop."""
        self._index.refresh()
        self._desired.reload()
        self._reconciler.files_changed()
        self._audit.record(
            Record(
                "daemon.reloaded",
                "the configuration was reloaded",
                action="reload-configuration",
                result=Result.CHANGED,
                reason=caller.reason,
            ).by(caller)
        )

    async def look(self, plan: Plan | None = None) -> PlanReadings | None:
        """Read what `plan` compares and cannot wait for, and what this plan takes on trust."""
        self.refresh()
        await self._comparison.look()
        return await self._operations.look(plan) if plan is not None else None

    def plan(
        self,
        *,
        dry_run: bool,
        reason: str,
        disconnect: bool = False,
        only_modules: frozenset[ModuleName] | None = None,
        look: PlanReadings | None = None,
        trial: int = 0,
        confirm: bool = False,
    ) -> ApplyPlan:
        """Everything that takes the difference away, as of `look`; for `trial` seconds, or to `confirm` what is on trial.

        Conflict when the files are bad: what they say cannot be applied; while the desired state is on trial, or to confirm it, if it
        is not; and where a trial could not be taken back. AccessDenied when anything of it touches a module outside
        of `only_modules`.
        """
        self.refresh()
        if self._desired.fault is not None:
            raise self._desired.fault
        if not confirm and not dry_run:
            self.trial.refuse()
        elif confirm and not self.trial.until:
            raise no_trial()
        difference = self._comparison.find()
        if trial:
            _refuse_trial(difference)
        if confirm:
            _refuse_confirmation(difference)
        request = Request(
            tuple(difference.operations),
            dry_run=dry_run,
            reason=reason,
            timeout=float(self._desired.daemon_settings.timeout),
            disconnect=disconnect,
            only_modules=only_modules,
        )
        plan = plan_over_own_blacklist(self._operations, request, self._desired, look)
        apply_plan = ApplyPlan(
            plan.request,
            plan.targets,
            plan.steps,
            plan.overrides,
            tuple(replace(change, reason=change.reason or reason, dry_run=dry_run) for change in difference.changes),
            tuple(difference.writes),
            tuple(difference.versions),
            tuple(
                self._foresee(name, version, confined=only_modules is not None) for name, version in difference.versions
            ),
            unseen=plan.unseen,
            trial=trial,
            confirms=self.trial.kept if confirm else None,
        )
        apply_plan.request.confine(apply_plan.modules)
        return apply_plan

    def _foresee(self, name: ModuleName, version: str, *, confined: bool) -> Switch | None:
        try:
            return (
                replace(self._versions.foresee(name, version), confined=confined)
                if self._versions is not None
                else None
            )
        except KmoddError:  # the store does not have it: reported when it is to be activated
            return None

    async def apply(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """Do all of it or none of it; one result for each thing, see `kmodd.core.desired.apply`.

        What was begun is finished or undone, also when the caller leaves.
        """
        if not isinstance(plan, ApplyPlan):
            raise TypeError("a plan of this class's own")
        if plan.request.dry_run:
            return await self._carry_out(plan, caller)
        if plan.confirms is not None:
            # To its end, also when kmodd is stopped: what is confirmed is not taken back.
            work = self._confirm(plan, plan.confirms, caller)
            results = await run_to_completion(asyncio.get_running_loop().create_task(work))
        elif plan.trial:
            results = await self._try(plan, caller)
        else:
            self.trial.give_up()  # one may have begun since the plan was made
            results = await self._carry_out(plan, caller)
            if not (_failed(results) or self.trial.until):  # nor end one that began meanwhile
                self.trial.forget()
        if not _failed(results):
            self._reconciler.reconcile()
        return results

    async def _confirm(self, plan: ApplyPlan, trial: KeptTrial, caller: Caller) -> Sequence[OperationResult]:
        with self.trial.confirmed(trial):
            results = await self._carry_out(plan, caller)
            if not _failed(results):
                self.trial.forget()
        return results

    async def _try(self, plan: ApplyPlan, caller: Caller) -> Sequence[OperationResult]:
        undo = await self._opposites(plan)
        plan = replace(plan, changes=())
        if not undo:
            return await self._carry_out(plan, caller)
        with self.trial.begun(undo, plan.modules, plan.trial):
            results = await self._carry_out(plan, caller)
            if not _failed(results):
                written = {
                    result.module
                    for result in results
                    if result.action == Verb.SET_PARAMETER.value and result.result is Result.CHANGED
                }
                self.trial.narrow({name for result in results for name in result.touched}, written, plan.trial)
        return results

    async def _carry_out(self, plan: ApplyPlan, caller: Caller) -> Sequence[OperationResult]:
        application = Application(
            plan,
            caller,
            operations=self._operations,
            rules=self._rules,
            parameters=self._parameters,
            versions=self._versions,
        )
        results = await run_to_completion(asyncio.get_running_loop().create_task(application.run()))
        if not plan.request.dry_run:
            if results:
                self._audit.record(_applied(results, plan, caller))
            self._reconciler.note(results)  # what failed shows in health until it came about
        return results

    async def _opposites(self, plan: ApplyPlan) -> Sequence[Operation]:
        """What takes it back, in order; Conflict where that is not known."""
        undo: list[Operation] = []
        for write in plan.writes:
            prepared = self._parameters.prepare(write.module, write.parameter, write.value, reason=plan.request.reason)
            opposite = await self._parameters.opposite(prepared)
            if opposite is None:
                raise Conflict(
                    f"parameter {write.parameter} of {write.module} cannot be read, so a trial could not take it back",
                    module=write.module,
                )
            value = ((opposite.parameter, opposite.value),)
            undo.append(Operation(Verb.SET_PARAMETER, write.module, value))
        for step in plan.steps:
            if step.action is StepAction.INSERT:
                undo.append(Operation(Verb.UNLOAD, step.module, itself=True))
            elif step.action is StepAction.REMOVE:
                former = await self._operations.former(step.module)
                given = tuple((name, value) for name, value in former.parameters if value is not None)
                unknown = [*former.lost, *(name for name, value in former.parameters if value is None)]
                if unknown:
                    raise Conflict(
                        f"parameter {unknown[0]} of {step.module} cannot be read, so a trial could not take it back",
                        module=step.module,
                    )
                undo.append(Operation(Verb.LOAD, step.module, given, itself=True))
        return undo[::-1]


def _refuse_trial(difference: Difference) -> None:
    hint = Evidence(hint="kmodctl config apply")
    if difference.versions:
        name, version = difference.versions[0]
        raise Conflict(f"a trial activates no version of the store, and {name} is to be {version}", evidence=hint)
    if difference.changes and not difference.operations and not difference.writes:
        raise Conflict("there is nothing to try: only files are to be written", evidence=hint)


def _refuse_confirmation(difference: Difference) -> None:
    """What is confirmed is what was tried."""
    names = dict.fromkeys(
        (
            *(operation.module for operation in difference.operations),
            *(write.module for write in difference.writes),
            *(name for name, _ in difference.versions),
        )
    )
    if names:
        raise Conflict(
            f"the desired state or the system changed since the trial began: {', '.join(names)}",
            evidence=Evidence(hint="kmodctl config drift; kmodctl config revert, and try again"),
        )


def _failed(results: Sequence[OperationResult]) -> bool:
    return any(result.result is Result.FAILED for result in results)


def _applied(results: Sequence[OperationResult], plan: ApplyPlan, caller: Caller) -> Record:
    failed = sorted({result.module for result in results if result.result is Result.FAILED})
    named = tuple(dict.fromkeys(result.module for result in results))
    names = " ".join(named)
    record = Record(
        "desired.applied",
        f"the desired state was not applied to {names}: {' '.join(failed)} failed{_undone(results)}"
        if failed
        else f"the desired state was applied to {names}{f', for {plan.trial} seconds unless it is confirmed' if plan.trial else ''}",
        action="apply" if plan.confirms is None else CONFIRM,
        result=Result.FAILED if failed else Result.CHANGED,
        reason=plan.request.reason,
        priority=4 if failed else 6,
    )
    return record.by(caller).about(named)


def _undone(results: Sequence[OperationResult]) -> str:
    """What became of the rest after a failure, as a clause."""
    undone = any(result.result is Result.ROLLED_BACK for result in results)
    stay = sorted({result.module for result in results if result.result is Result.CHANGED})
    return (", earlier changes were rolled back" if undone else "") + (
        f"; {' '.join(stay)} stays changed" if stay else ""
    )
