# SPDX-License-Identifier: LGPL-2.1-or-later
"""One plan made real, under its locks: operation by operation, undone where it has to be."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from kmodd.core.calls import CallResult, KernelCalls
from kmodd.core.rollback import LiveParameters, Memory, Rollback, Undone
from kmodd.core.usage import in_use
from kmodd.errors import Conflict, InUse, KmoddError
from kmodd.kernel.ports import Kernel
from kmodd.model import OperationResult, Plan, Result, Step, StepAction
from kmodd.names import ModuleName


class Watcher(Protocol):
    """Told of every call into the kernel."""

    def begin(self, step: Step) -> None:
        """It is about to be made."""

    def end(self, step: Step, called: CallResult) -> None:
        """It was made, whatever became of it."""


class Execution:
    """Runs once."""

    def __init__(
        self,
        kernel: Kernel,
        calls: KernelCalls,
        live: LiveParameters,
        *,
        watch: Watcher,
        progress: Callable[[float], None],
    ) -> None:
        self._kernel = kernel
        self._calls = calls
        self._live = live
        self._watch = watch
        self._progress = progress
        self._left = False

    def leave(self) -> None:
        """The caller is gone: end after the call into the kernel that is under way, and undo what is half done."""
        self._left = True

    async def run(self, plan: Plan, then: Callable[[], Awaitable[bool]] | None = None) -> tuple[OperationResult, ...]:
        """Do it. Typed errors are in the results, never raised.

        `then` is awaited when all of an atomic plan was done; where it answers false, all of it is undone.
        """
        operations = plan.request.operations
        atomic = plan.request.atomic
        if atomic and plan.error is not None:
            return await refuse(plan, self._kernel)
        results = _skipped(plan)
        known = _known(plan)
        done: dict[int, Rollback] = {}
        for number in range(len(operations)):
            if number in known:
                results[number] = await _refused(results[number], known[number], self._kernel)
                continue
            if self._left and any(step.operation >= number for step in plan.steps):
                results[number] = replace(results[number], result=Result.FAILED, error=_caller_left(results[number]))
            else:
                done[number] = Rollback(self._kernel.index)
                results[number] = await self._operate(plan, number, done[number], results[number])
            if results[number].result is Result.FAILED and (atomic or self._left):
                if atomic:
                    await self._undo_before(plan, number, done, results)
                break
        else:
            if then is not None and atomic:
                await self._follow(plan, then, done, results)
        return tuple(results)

    async def _follow(
        self, plan: Plan, then: Callable[[], Awaitable[bool]], done: dict[int, Rollback], results: list[OperationResult]
    ) -> None:
        followed = False
        try:
            followed = await then()
        finally:
            # An error of `then` is its caller's, and leaves no half behind all the same.
            if not followed:
                await self._undo_before(plan, len(plan.request.operations), done, results)

    async def _operate(self, plan: Plan, number: int, rollback: Rollback, result: OperationResult) -> OperationResult:
        steps = [step for step in plan.steps if step.operation == number]
        # What a module was like matters only when something that comes later can make it come back.
        last = plan.steps[-1] if plan.request.atomic and plan.steps else (steps[-1] if steps else None)
        error: KmoddError | None = None
        for step in steps:
            if self._left:
                error = _caller_left(result)
                break
            removing = step.action is StepAction.REMOVE
            memory = self._live.remember(step.module) if removing and step is not last else Memory()
            called = await self._call(plan, step)
            self._progress((plan.steps.index(step) + 1) / len(plan.steps))
            if called.changed:
                rollback.note(step, memory)
            elif called.error is not None and not step.optional:
                error = called.error
                break
        if error is None:
            touched = rollback.touched
            return replace(result, result=Result.CHANGED if touched else Result.UNCHANGED, touched=touched)
        undone = await rollback.undo(lambda step: self._take_back(plan, step))
        return replace(result, result=Result.FAILED, error=_amended(error, undone), touched=undone.left)

    async def _undo_before(
        self, plan: Plan, failed: int, done: dict[int, Rollback], results: list[OperationResult]
    ) -> None:
        """Undo the operations before the one that failed (or before what had to follow them), the last one first."""
        for number in sorted((n for n in done if n < failed), reverse=True):
            if results[number].result is not Result.CHANGED:
                continue
            undone = await done[number].undo(lambda step: self._take_back(plan, step))
            if undone.left:
                results[number] = replace(results[number], touched=undone.left)
            else:
                results[number] = replace(results[number], result=Result.ROLLED_BACK, touched=())
            if failed == len(results):
                results[number] = replace(results[number], remarks=tuple(clause for _, clause in undone.remarks))
            elif (error := results[failed].error) is not None:
                results[failed] = replace(results[failed], error=_amended(error, undone))

    async def _take_back(self, plan: Plan, step: Step) -> KmoddError | None:
        return (await self._call(plan, step)).error

    async def _call(self, plan: Plan, step: Step) -> CallResult:
        given: tuple[str, ...] = ()
        if step.module in plan.targets[step.operation] and step.because != "undone":
            given = tuple(name for name, _ in plan.request.operations[step.operation].parameters)
        self._watch.begin(step)
        called = await self._calls.make(step, plan.request.timeout, given)
        if called.changed:
            if step.action is StepAction.INSERT:
                self._live.inserted(step.module, step.parameters)
            else:
                self._live.removed(step.module)
        self._watch.end(step, called)
        return called


async def refuse(plan: Plan, kernel: Kernel) -> tuple[OperationResult, ...]:
    """The results of an atomic plan that is known to fail: nothing of it is begun."""
    results = _skipped(plan)
    for number, error in _known(plan).items():
        results[number] = await _refused(results[number], error, kernel)
    return tuple(results)


def _skipped(plan: Plan) -> list[OperationResult]:
    return [OperationResult(plan.label(number), Result.SKIPPED) for number in range(len(plan.request.operations))]


def _known(plan: Plan) -> dict[int, KmoddError]:
    """What is known to fail, by the number of the operation."""
    return {step.operation: step.error for step in plan.steps if step.error is not None}


async def _refused(result: OperationResult, error: KmoddError, kernel: Kernel) -> OperationResult:
    """Complete what planning, which may look at public facts only, could not say about a busy module."""
    if isinstance(error, InUse) and not error.evidence.users:
        module = kernel.loaded.read(ModuleName(error.module))
        if module is not None and module.references > len(module.holders):
            users = await asyncio.to_thread(kernel.usage.users, module.name)
            error = in_use(module, users)
    return replace(result, result=Result.FAILED, error=error)


def _caller_left(result: OperationResult) -> KmoddError:
    return Conflict(f"the caller left the bus before the operation on {result.module} was done", module=result.module)


def _amended(error: KmoddError, undone: Undone) -> KmoddError:
    if not undone.remarks:
        return error
    touched = tuple(dict.fromkeys((*error.touched, *undone.left)))
    return replace(error.after((*error.aftermath, *undone.remarks)), touched=touched)
