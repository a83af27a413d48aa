# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `GetDrift`, `Apply` and `Reload` do: tell the difference, take it away, read the files again."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kmodd.core.api import Audit
from kmodd.core.desired import DesiredState
from kmodd.core.drift import Comparison, Write
from kmodd.core.reconcile import Reconciler, plan_over_own_blacklist
from kmodd.errors import KmoddError
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import Caller, OperationResult, Plan, Record, Request, Result
from kmodd.model.configuration import Drift, RuleChange
from kmodd.model.desired import Ban
from kmodd.names import ModuleName


class Operations(Protocol):
    """Plans and carries out."""

    def plan(self, request: Request) -> Plan:
        """The steps now."""

    async def run(self, plan: Plan, caller: Caller) -> tuple[ModuleName, ...]:
        """Carry out a plan of one operation."""

    async def execute(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """Carry out a plan."""


class RuleFiles(Protocol):
    """kmodd's own files in /etc."""

    async def write(self, change: RuleChange, caller: Caller) -> None:
        """Make a change; a dry run sees whether it could be made."""


class Parameters(Protocol):
    """Live parameters."""

    def prepare(self, module: ModuleName, parameter: str, value: str, *, reason: str = "") -> Any:
        """Check; the answer is for `write`."""

    async def write(self, write: Any, caller: Caller) -> str:
        """Write."""


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


class Convergence:
    """Brings the machine to the wanted state on request.

    The order of `Apply`: everything that is written is checked; versions of the store; the atomic batch of loads, unloads
    and reloads; kmodd's own files; live parameters. When a version or the batch fails, the versions before are active again and
    nothing after it is done.
    """

    def __init__(
        self,
        desired: DesiredState,
        comparison: Comparison,
        operations: Operations,
        reconciler: Reconciler,
        *,
        rules: RuleFiles,
        parameters: Parameters,
        versions: Versions | None,
        index: ModuleIndex,
        audit: Audit,
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

    async def drift(self) -> Sequence[Drift]:
        """Every difference between the wanted state and the machine, now."""
        self.refresh()
        if self._settle is not None:
            await self._settle()
        return self._comparison.find().rows

    def refresh(self) -> None:
        """Read the files again if one changed; cheap otherwise. A bad file is recorded and changes nothing."""
        if self._desired.refresh():
            self._reconciler.files_changed()

    async def reload(self, caller: Caller) -> None:
        """Read all files again; Conflict names a bad one by file, line and key, and the old settings stay."""
        self.read_again(caller)

    def read_again(self, caller: Caller) -> None:
        """The same at once."""
        self._index.refresh()
        self._desired.reload()
        self._reconciler.files_changed()
        self._audit.record(
            Record(
                "daemon.reloaded",
                "the configuration was read again",
                action="reload-configuration",
                result=Result.CHANGED,
                uid=caller.uid,
                sender=caller.sender,
                exe=caller.exe,
                on_behalf_of=caller.on_behalf_of,
            )
        )

    def plan(self, *, dry_run: bool, reason: str) -> ApplyPlan:
        """Everything that takes the difference away. Conflict when the files are bad: what they say cannot be applied."""
        self.refresh()
        if self._desired.fault is not None:
            raise self._desired.fault
        found = self._comparison.find()
        wishes = self._desired.wishes
        request = Request(
            tuple(found.operations),
            dry_run=dry_run,
            reason=reason,
            timeout=float(self._desired.tunables.timeout),
        )
        wanted = [wishes[ModuleName(one.module)] for one in found.operations if one.module in wishes]
        plan = plan_over_own_blacklist(
            self._operations, request, soft=any(wish.blacklist is Ban.SOFT for wish in wanted)
        )
        return ApplyPlan(
            plan.request,
            plan.targets,
            plan.steps,
            plan.overrides,
            tuple(replace(change, reason=change.reason or reason, dry_run=dry_run) for change in found.changes),
            tuple(found.writes),
            tuple(found.versions),
        )

    async def apply(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """Do it; one result for each thing done, in the order above."""
        if not isinstance(plan, ApplyPlan):
            raise TypeError("a plan of this class's own")
        refused = [one for change in plan.changes if (one := await self._refusal(change, caller)) is not None]
        if refused:
            self._note(refused, plan)
            return refused
        former: list[tuple[ModuleName, str]] = []
        results = await self._activate(plan, caller, former)
        if not _failed(results) and plan.request.operations:
            batch = Plan(plan.request, plan.targets, plan.steps, plan.overrides)
            results += await self._operations.execute(batch, caller)
        if _failed(results):
            await self._give_back(former, results, caller)
            self._note(results, plan)
            return results
        for change in plan.changes:
            results.append(await self._write(change, caller))
        for write in plan.writes:
            results.append(await self._set(write, plan.request, caller))
        if results and not plan.request.dry_run:
            self._audit.record(_applied(results, plan.request.reason, caller))
        self._note(results, plan)
        if not plan.request.dry_run:
            self._reconciler.reconcile()
        return results

    def _note(self, results: Sequence[OperationResult], plan: Plan) -> None:
        """What failed shows in health until it came about."""
        if not plan.request.dry_run:
            self._reconciler.note(results)

    async def _activate(
        self, plan: ApplyPlan, caller: Caller, former: list[tuple[ModuleName, str]]
    ) -> list[OperationResult]:
        """Switch versions until one fails; `former` gets what was active before each that was switched."""
        results: list[OperationResult] = []
        for name, version in plan.versions if self._versions is not None else ():
            assert self._versions is not None  # noqa: S101 - the loop is empty without a store
            if _failed(results):
                results.append(OperationResult(name, Result.SKIPPED))
                continue
            before = self._versions.active_version(name)
            try:
                touched = await self._versions.activate(name, version, caller, dry_run=plan.request.dry_run)
            except KmoddError as error:
                results.append(OperationResult(name, Result.FAILED, error))
            else:
                results.append(OperationResult(name, Result.CHANGED, touched=tuple(touched)))
                if not plan.request.dry_run:
                    former.append((name, before))
        return results

    async def _give_back(
        self, former: Sequence[tuple[ModuleName, str]], results: list[OperationResult], caller: Caller
    ) -> None:
        """Undo switches in reverse; one that cannot be undone stays `changed`, and its error is in the journal."""
        for number, (name, version) in reversed(list(enumerate(former))):
            assert self._versions is not None  # noqa: S101 - somebody switched them
            with suppress(KmoddError):
                await self._versions.restore(name, version, caller)
                results[number] = OperationResult(name, Result.ROLLED_BACK)

    async def _refusal(self, change: RuleChange, caller: Caller) -> OperationResult | None:
        """See whether a file could be written, before anything is done that would have to be undone."""
        try:
            await self._rules.write(replace(change, dry_run=True), caller)
        except KmoddError as error:
            return OperationResult(change.module, Result.FAILED, error)
        return None

    async def _write(self, change: RuleChange, caller: Caller) -> OperationResult:
        if change.dry_run:
            return OperationResult(change.module, Result.CHANGED)
        try:
            await self._rules.write(change, caller)
        except KmoddError as error:
            return OperationResult(change.module, Result.FAILED, error)
        return OperationResult(change.module, Result.CHANGED)

    async def _set(self, write: Write, request: Request, caller: Caller) -> OperationResult:
        try:
            prepared = self._parameters.prepare(write.module, write.parameter, write.value, reason=request.reason)
            if not request.dry_run:
                await self._parameters.write(prepared, caller)
        except KmoddError as error:
            return OperationResult(write.module, Result.FAILED, error)
        return OperationResult(write.module, Result.CHANGED)


def _failed(results: Sequence[OperationResult]) -> bool:
    return any(result.result is Result.FAILED for result in results)


def _applied(results: Sequence[OperationResult], reason: str, caller: Caller) -> Record:
    failed = sorted({result.module for result in results if result.result is Result.FAILED})
    names = " ".join(dict.fromkeys(result.module for result in results))
    return Record(
        "desired.applied",
        f"the wanted state was applied to {names}" + (f", but not to {' '.join(failed)}" if failed else ""),
        module=names,
        action="apply",
        result=Result.FAILED if failed else Result.CHANGED,
        uid=caller.uid,
        sender=caller.sender,
        exe=caller.exe,
        on_behalf_of=caller.on_behalf_of,
        reason=reason,
    )
