# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `GetDrift`, `Apply` and `Reload` do: tell the difference, take it away, read the files again."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from kmodd.core.api import Audit
from kmodd.core.application import Application, ApplyPlan, Parameters, RuleFiles, Versions
from kmodd.core.desired import DesiredState
from kmodd.core.drift import Comparison
from kmodd.core.reconcile import Reconciler, plan_over_own_blacklist
from kmodd.core.unbroken import unbroken
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import Caller, OperationResult, Plan, Record, Request, Result
from kmodd.model.configuration import Drift
from kmodd.names import ModuleName


class Operations(Protocol):
    """Plans and carries out."""

    def plan(self, request: Request) -> Plan:
        """The steps now."""

    async def run(self, plan: Plan, caller: Caller) -> tuple[ModuleName, ...]:
        """Carry out a plan of one operation."""

    async def execute(
        self, plan: Plan, caller: Caller, then: Callable[[], Awaitable[bool]] | None = None
    ) -> Sequence[OperationResult]:
        """Carry out a plan; when `then` answers false, it is undone."""

    async def refuse(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """What `execute` would answer of a plan that is known to fail, recorded as well; nothing is begun."""


class Convergence:
    """Tells where the machine differs from the wanted state, and brings it there on request."""

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
        request = Request(
            tuple(found.operations),
            dry_run=dry_run,
            reason=reason,
            timeout=float(self._desired.tunables.timeout),
        )
        plan = plan_over_own_blacklist(self._operations, request, self._desired)
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
        """Do all of it or none of it; one result for each thing, see `kmodd.core.application`.

        What was begun is finished or undone, also when the caller leaves.
        """
        if not isinstance(plan, ApplyPlan):
            raise TypeError("a plan of this class's own")
        application = Application(
            plan,
            caller,
            operations=self._operations,
            rules=self._rules,
            parameters=self._parameters,
            versions=self._versions,
        )
        results = await unbroken(asyncio.get_running_loop().create_task(application.run()))
        if not plan.request.dry_run:
            if results:
                self._audit.record(_applied(results, plan.request.reason, caller))
            self._reconciler.note(results)  # what failed shows in health until it came about
            if not _failed(results):
                self._reconciler.reconcile()
        return results


def _failed(results: Sequence[OperationResult]) -> bool:
    return any(result.result is Result.FAILED for result in results)


def _applied(results: Sequence[OperationResult], reason: str, caller: Caller) -> Record:
    failed = sorted({result.module for result in results if result.result is Result.FAILED})
    names = " ".join(dict.fromkeys(result.module for result in results))
    return Record(
        "desired.applied",
        f"the wanted state was not applied to {names}: {' '.join(failed)} failed{_undone(results)}"
        if failed
        else f"the wanted state was applied to {names}",
        module=names,
        action="apply",
        result=Result.FAILED if failed else Result.CHANGED,
        uid=caller.uid,
        sender=caller.sender,
        exe=caller.exe,
        on_behalf_of=caller.on_behalf_of,
        reason=reason,
        priority=4 if failed else 6,
    )


def _undone(results: Sequence[OperationResult]) -> str:
    """What became of the rest after a failure, as a clause."""
    undone = any(result.result is Result.ROLLED_BACK for result in results)
    stay = sorted({result.module for result in results if result.result is Result.CHANGED})
    return (", what was done before was undone" if undone else "") + (
        f"; {' '.join(stay)} stays changed" if stay else ""
    )
