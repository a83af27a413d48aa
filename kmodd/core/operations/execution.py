# SPDX-License-Identifier: LGPL-2.1-or-later
"""Executes a plan under its locks, operation by operation, and rolls back where required."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from kmodd.core.diagnosis.in_use import in_use
from kmodd.core.operations.calls import CallResult, KernelCalls
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import ModuleLocks
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.operations.parameters import ParameterCalls
from kmodd.core.planning.parameters import UNSET, effective, is_standard, read_options
from kmodd.errors import Conflict, InUse, KmoddError, machine_fault
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Kernel, ModuleIndex
from kmodd.model import Failure, OperationResult, Outcome, Plan, Result, Step, StepAction
from kmodd.model.arguments import Arguments
from kmodd.names import ModuleName

NAMED = 4
"""Parameters that could not be restored and are named; the others are counted."""


@dataclass(frozen=True, slots=True)
class FormerState:
    """What is needed to bring a module back as it was."""

    parameters: Arguments = ()
    lost: tuple[str, ...] = ()
    """Parameters whose values cannot be known or cannot be given when loading."""
    renamed: ModuleName | None = None
    """What the file is called that it was inserted from, where that is not the module's name."""
    failure: Failure | None = None
    """What was remembered of it before that was reset."""


@dataclass(frozen=True, slots=True)
class RollbackResult:
    """What became of undoing."""

    left: tuple[ModuleName, ...] = ()
    """Modules that stay changed."""
    remarks: tuple[tuple[ModuleName, str], ...] = ()
    """(module, clause) about what is not as it was before, and what was loaded again."""


class LiveParameters:
    """Remembers with which parameters modules are live."""

    def __init__(self, index: ModuleIndex, values: LiveValues, given: GivenValues) -> None:
        self._index = index
        self._values = values
        self._given = given
        self._renamed: dict[ModuleName, ModuleName] = {}
        """The files that modules were inserted from, where these are called by another name."""

    def inserted(self, name: ModuleName, parameters: Arguments, file: ModuleName) -> None:
        """Remember what a module was inserted with, and from: many parameters cannot be read from it."""
        self._values.forget(name)
        self._given.inserted(name, parameters)
        if file != name:
            self._renamed[name] = file

    def removed(self, name: ModuleName) -> None:
        """Forget it."""
        self._values.forget(name)
        self._given.removed(name)
        self._renamed.pop(name, None)

    def _file(self, name: ModuleName) -> ModuleName:
        file = self._renamed.get(name, name)
        return file if self._index.exists(file) else self._index.file_for(name)

    async def remember(self, name: ModuleName) -> FormerState:
        """Read what is needed to bring it back; values only root may read included, as they go back to the kernel only."""
        file = self._file(name)
        base = self._given.of(name) or read_options(self._index.rules(file)).pairs
        try:
            kinds = {p.name.replace("-", "_"): p.type for p in self._index.info(file).parameters}
        except KmoddError:
            # Its file is gone: it cannot be brought back at all, which undoing will find and say.
            kinds = {}
        live: dict[str, str] = {}
        unset: set[str] = set()
        for parameter in await self._values.read(name, private=True):
            key = parameter.name.replace("-", "_")
            # Only what the kernel's own setters read: a setter of the module's own may not exist, or do something else.
            if is_standard(kinds.get(key, "")) and _can_be_given(kinds[key], parameter.value):
                live[key] = parameter.value or ""
            elif is_standard(kinds.get(key, "")) and _is_unset(kinds[key], parameter.value):
                unset.add(key)
        pairs = effective((*base, *live.items()))
        keys = {key for key, _ in pairs}
        lost = tuple(key for key in kinds if key not in keys and key not in unset)
        return FormerState(pairs, lost, None if file == name else file)


class Rollback:
    """The steps that one operation really took."""

    def __init__(self, index: ModuleIndex) -> None:
        self._index = index
        self.done: list[tuple[Step, FormerState]] = []
        """Those that changed something, with what it takes to undo them."""

    async def undo(
        self, take: Callable[[Step], Awaitable[KmoddError | None]], remember: Callable[[Failure], None]
    ) -> RollbackResult:
        """Take the opposite steps in reverse order; one that fails does not stop the others.

        `remember` takes a failure back that was reset.
        """
        left: list[ModuleName] = []
        remarks: list[tuple[ModuleName, str]] = []
        while self.done:
            step, memory = self.done.pop()
            if step.action is StepAction.RESET_FAILED:
                if memory.failure is not None:
                    remember(memory.failure)
                continue
            if step.action is StepAction.SET_PARAMETER:
                old = replace(step, parameters=memory.parameters, because="undone")
                if memory.lost or await take(old) is not None:
                    left.append(step.module)
                    parameter = step.parameters[0][0]
                    remarks.append((step.module, f"parameter {parameter} of {step.module} keeps its new value"))
                continue
            again = step.action is StepAction.REMOVE
            opposite = replace(
                step,
                action=StepAction.INSERT if again else StepAction.REMOVE,
                path=self._index.path(memory.renamed or step.module) if again else "",
                parameters=memory.parameters,
                renamed=memory.renamed,
                because="undone",
            )
            error = await take(opposite)
            if error is not None:
                left.append(step.module)
                remarks.append((step.module, f"{step.module} stays {'unloaded' if again else 'loaded'}"))
            elif again:
                clause = f"{step.module} was loaded again with its old parameters{_but(memory.lost)}"
                remarks.append((step.module, clause))
        return RollbackResult(tuple(reversed(left)), tuple(remarks))


def _can_be_given(kind: str, value: str | None) -> bool:
    if value is None or '"' in value or "\n" in value:
        return False
    # An array without elements reads as nothing, and giving that back would set it.
    return UNSET not in value and (value != "" or kind in ("charp", "string"))


def _is_unset(kind: str, value: str | None) -> bool:
    """Not to give it brings it back: a string that is NULL, and an array of such, or one without elements."""
    if value is None:
        return False
    return set(value.split(",")) == {UNSET} or (value == "" and kind not in ("charp", "string"))


def _but(lost: tuple[str, ...]) -> str:
    if not lost:
        return ""
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return f", but {', '.join(lost[:NAMED])}{more} could not be read"


Then = Callable[[Sequence[OperationResult]], Awaitable[bool]]
"""What has to follow an atomic plan, with the results so far; where it answers false, the plan is undone."""


class Execution:
    """Runs once."""

    def __init__(
        self,
        kernel: Kernel,
        calls: KernelCalls,
        live: LiveParameters,
        *,
        locks: ModuleLocks,
        owner: int,
        parameters: ParameterCalls,
        failures: Failures,
        begin: Callable[[Step], None],
        end: Callable[[Step, CallResult], None],
        progress: Callable[[float], None],
    ) -> None:
        """`begin` is called before each call into the kernel and `end` after it, whatever became of it."""
        self._kernel = kernel
        self._calls = calls
        self._live = live
        self._locks = locks
        self._owner = owner
        self._parameters = parameters
        self._failures = failures
        self._begin = begin
        self._end = end
        self._progress = progress
        self._left = False
        self._there: set[ModuleName] = set()
        """Modules that a step was to insert and that were there by then."""

    def abort(self) -> None:
        """The caller is gone: end after the call into the kernel that is under way, and undo what is half done."""
        self._left = True

    async def run(self, plan: Plan, then: Then | None = None) -> tuple[OperationResult, ...]:
        """Do it. Typed errors are in the results, never raised.

        `then` is awaited when all of an atomic plan was done; where it answers false, all of it is undone.
        """
        operations = plan.request.operations
        atomic = plan.request.atomic
        if atomic and plan.error is not None:
            return await refuse(plan, self._kernel)
        results = _skipped(plan)
        values = _known(plan)
        done: dict[int, Rollback] = {}
        for number in range(len(operations)):
            if number in values:
                results[number] = await _refused(results[number], values[number], self._kernel)
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

    async def _follow(self, plan: Plan, then: Then, done: dict[int, Rollback], results: list[OperationResult]) -> None:
        followed = False
        try:
            followed = await then(tuple(results))
        finally:
            # An error of `then` is its caller's, and leaves no half behind all the same.
            if not followed:
                await self._undo_before(plan, len(plan.request.operations), done, results)

    async def _operate(self, plan: Plan, number: int, rollback: Rollback, result: OperationResult) -> OperationResult:
        steps = [step for step in plan.steps if step.operation == number]
        # What a module was like matters only when something that comes later can make it come back.
        last = plan.steps[-1] if plan.request.atomic and plan.steps else (steps[-1] if steps else None)
        error: KmoddError | None = None
        touched: dict[ModuleName, None] = {}
        for step in steps:
            if self._left:
                error = _caller_left(result)
                break
            try:
                memory = (
                    FormerState() if step is last or step.action is StepAction.INSERT else await self._remember(step)
                )
            except OSError as fault:
                # What cannot be brought back as it was stays.
                error = machine_fault(fault, step.module)
                break
            if step.action is StepAction.REMOVE and step.module in self._there:
                # Planned as a load of this caller's: that is what polkit's rules saw.
                message = f"{step.module} was loaded by another program meanwhile"
                error = Conflict(message, module=step.module)
                break
            called = await self._call(plan, step)
            self._progress((plan.steps.index(step) + 1) / len(plan.steps))
            if step.action is StepAction.INSERT and called.error is None and not called.changed:
                self._there.add(step.module)
            if called.changed:
                rollback.done.append((step, memory))
                touched[step.module] = None
            elif called.error is not None and not step.optional:
                error = called.error
                break
        if error is None:
            return replace(result, result=Result.CHANGED if touched else Result.UNCHANGED, touched=tuple(touched))
        undone = await rollback.undo(lambda step: self._take_back(plan, step), self._failures.remember)
        return replace(result, result=Result.FAILED, error=_amended(error, undone), touched=undone.left)

    async def _undo_before(
        self, plan: Plan, failed: int, done: dict[int, Rollback], results: list[OperationResult]
    ) -> None:
        """Undo the operations before the one that failed (or before what had to follow them), the last one first."""
        for number in sorted((n for n in done if n < failed), reverse=True):
            if results[number].result is not Result.CHANGED:
                continue
            undone = await done[number].undo(lambda step: self._take_back(plan, step), self._failures.remember)
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

    async def _remember(self, step: Step) -> FormerState:
        """Read what is needed to undo a step. OSError where that cannot be read."""
        if step.action is StepAction.REMOVE:
            return await self._live.remember(step.module)
        if step.action is StepAction.RESET_FAILED:
            return FormerState(failure=self._failures.get(step.module))
        if step.action is StepAction.SET_PARAMETER:
            ((name, _),) = step.parameters
            value = await self._parameters.value(step.module, name)
            return FormerState(lost=(name,)) if value is None or UNSET in value else FormerState(((name, value),))
        return FormerState()

    async def _write(self, step: Step) -> CallResult:
        """Set a live parameter. It is no load and no unload, so what watches these does not hear of it."""
        ((name, value),) = step.parameters
        try:
            prepared = self._parameters.prepare(step.module, name, value or "")
            written = await self._parameters.make(prepared, self._locks, self._owner)
        except OSError as fault:
            return CallResult(Outcome("done"), changed=False, error=machine_fault(fault, step.module))
        except KmoddError as error:
            return CallResult(Outcome("done"), changed=False, error=error)
        return CallResult(Outcome("done"), changed=written.changed)

    async def _call(self, plan: Plan, step: Step) -> CallResult:
        if step.action is StepAction.SET_PARAMETER:
            return await self._write(step)
        if step.action is StepAction.RESET_FAILED:
            return CallResult(Outcome("done"), changed=self._failures.forget(step.module))
        parameters: tuple[str, ...] = ()
        if step.module in plan.targets[step.operation] and step.because != "undone":
            parameters = tuple(dict(plan.request.operations[step.operation].parameters))
        self._begin(step)
        called = await self._calls.make(step, plan.request.timeout, parameters)
        if called.changed:
            if step.action is StepAction.INSERT:
                self._live.inserted(step.module, step.parameters, step.renamed or step.module)
            else:
                self._live.removed(step.module)
        self._end(step, called)
        return called


async def refuse(plan: Plan, kernel: Kernel) -> tuple[OperationResult, ...]:
    """The results of an atomic plan that is known to fail: nothing of it is begun."""
    results = _skipped(plan)
    for number, error in _known(plan).items():
        results[number] = await _refused(results[number], error, kernel)
    return tuple(results)


def _skipped(plan: Plan) -> list[OperationResult]:
    results = []
    for number, operation in enumerate(plan.request.operations):
        results.append(OperationResult(plan.label(number), Result.SKIPPED, action=operation.verb.value))
    return results


def _known(plan: Plan) -> dict[int, KmoddError]:
    """What is known to fail, by the number of the operation."""
    errors = {}
    for step in plan.steps:
        if step.error is not None:
            errors[step.operation] = step.error
    return errors


async def _refused(result: OperationResult, error: KmoddError, kernel: Kernel) -> OperationResult:
    """Complete what planning, which may look at public facts only, could not say about a busy module."""
    if isinstance(error, InUse) and not (error.evidence.users or error.evidence.consequences):
        module = None
        with suppress(OSError):  # the error stands without
            module = kernel.loaded.read(ModuleName(error.module))
        if module is not None and module.references > len(module.holders):
            usage = await kernel.inspection.users(module.name)
            error = in_use(module, usage.users)
    return replace(result, result=Result.FAILED, error=error)


def _caller_left(result: OperationResult) -> KmoddError:
    return Conflict(f"the caller disconnected before the operation on {result.module} finished", module=result.module)


def _amended(error: KmoddError, undone: RollbackResult) -> KmoddError:
    if not undone.remarks:
        return error
    touched = tuple(dict.fromkeys((*error.touched, *undone.left)))
    return replace(error.after((*error.aftermath, *undone.remarks)), touched=touched)
