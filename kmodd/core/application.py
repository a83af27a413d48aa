# SPDX-License-Identifier: LGPL-2.1-or-later
"""One `Apply`: all of it, or none of it.

In this order, what is easily undone before what is not: everything is checked; versions of the store are switched; live
parameters are written; loads, unloads and reloads are done as one atomic batch; and while that batch can still be undone,
kmodd's own files in /etc are written. Whatever fails, everything before it is undone in reverse.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kmodd.core.drift import Write
from kmodd.errors import (
    BadModule,
    BadParameter,
    BadSignature,
    KmoddError,
    NoSuchModule,
    UnknownParameter,
    UnknownSymbol,
    WrongKernel,
)
from kmodd.model import Caller, OperationResult, Plan, Request, Result, Step
from kmodd.model.configuration import RuleChange
from kmodd.names import ModuleName

Undo = Callable[[], Awaitable[object]]
_ABOUT_THE_FILE = (NoSuchModule, BadModule, WrongKernel, BadSignature, UnknownSymbol, UnknownParameter, BadParameter)
"""What another version of the module may be the answer to."""


class Batches(Protocol):
    """Carries out plans of modules: `kmodd.core.operations.Operations`."""

    def plan(self, request: Request) -> Plan:
        """The steps now."""

    async def execute(
        self, plan: Plan, caller: Caller, then: Callable[[], Awaitable[bool]] | None = None
    ) -> Sequence[OperationResult]:
        """Carry out a plan; when `then` answers false, the batch is undone."""

    async def refuse(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """What `execute` would answer of a plan that is known to fail, recorded as well; nothing is begun."""


class RuleFiles(Protocol):
    """kmodd's own files in /etc."""

    async def write_all(self, changes: Sequence[RuleChange], caller: Caller) -> Mapping[int, KmoddError]:
        """Make all changes, or none and answer what is in the way of which; dry runs see whether they could be made."""


class Parameters(Protocol):
    """Live parameters."""

    def prepare(self, module: ModuleName, parameter: str, value: str, *, reason: str = "") -> Any:
        """Check; the answer is for the others."""

    async def write(self, write: Any, caller: Caller) -> str:
        """Write."""

    def opposite(self, write: Any) -> Any | None:
        """What writes the value that is there now; None when that cannot be known or written."""


class Versions(Protocol):
    """The store."""

    async def activate(self, name: ModuleName, version: str, caller: Caller, *, dry_run: bool) -> Sequence[ModuleName]:
        """Make a version the active one; answers what was loaded anew."""

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

    @property
    def modules(self) -> tuple[ModuleName, ...]:
        """Every module that is touched by any of it, sorted."""
        others = (
            *(change.module for change in self.changes),
            *(write.module for write in self.writes),
            *(name for name, _ in self.versions),
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
        operations: Batches,
        rules: RuleFiles,
        parameters: Parameters,
        versions: Versions | None,
    ) -> None:
        self._plan = plan
        self._caller = caller
        self._operations = operations
        self._rules = rules
        self._parameters = parameters
        self._versions = versions
        self._batch = Plan(plan.request, plan.targets, plan.steps, plan.overrides)
        self._switched = {name for name, _ in plan.versions}
        """Modules of which nobody knows what the files say before their version is the active one."""
        self._dry_run = plan.request.dry_run
        self._undo: list[tuple[int, Undo]] = []
        """How to undo what was done, each with the number of its result."""
        names = (
            *(name for name, _ in plan.versions),
            *(write.module for write in plan.writes),
            *(plan.label(number) for number in range(len(plan.request.operations))),
            *(change.module for change in plan.changes),
        )
        self._results = [OperationResult(name, Result.SKIPPED) for name in names]
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
        known = [number for number, one in enumerate(self._plan.changes) if one.module not in self._switched]
        trials = [replace(self._plan.changes[number], dry_run=True) for number in known]
        refused = await self._rules.write_all(trials, self._caller)
        self._end_changes({known[number]: error for number, error in refused.items()}, Result.SKIPPED)
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
        for number, (name, version) in enumerate(self._plan.versions):
            assert self._versions is not None  # noqa: S101 - without a store no version differs
            before = self._versions.active_version(name)
            try:
                touched = await self._versions.activate(name, version, self._caller, dry_run=self._dry_run)
            except KmoddError as error:
                self._end(number, Result.FAILED, error)
                if self._dry_run:
                    continue
                return
            self._end(number, Result.CHANGED, None, *touched)
            self._undo.append((number, _bound(self._versions.restore, name, before, self._caller)))

    async def _set(self) -> None:
        for number, write in enumerate(self._plan.writes, self._first_write):
            if self._results[number].error is not None:
                continue
            if self._dry_run and write.module in self._switched:
                self._end(number, Result.CHANGED)
                continue
            try:
                prepared = self._prepare(write)
                opposite = self._parameters.opposite(prepared)
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
            await self._write_files()

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
        return replace(self._batch, targets=fresh.targets, steps=(*self._batch.steps, *brought))

    async def _write_files(self) -> bool:
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
