# SPDX-License-Identifier: LGPL-2.1-or-later
"""The journal's records of what operations came to. One per result."""

from collections.abc import Callable, Collection
from dataclasses import replace

from kmodd.core.arguments import spell
from kmodd.errors import Crashed, KmoddError, TimedOut
from kmodd.model import Attempt, Caller, Operation, OperationResult, Outcome, Plan, Record, Result, Step, Verb
from kmodd.names import ModuleName

_DONE = {
    Verb.LOAD: ("module.loaded", "loaded"),
    Verb.UNLOAD: ("module.unloaded", "unloaded"),
    Verb.RELOAD: ("module.reloaded", "reloaded"),
}
WARNING, ERROR, NOTICE, INFO = 4, 3, 5, 6


def result_records(
    plan: Plan,
    caller: Caller,
    job: int,
    results: tuple[OperationResult, ...],
    duration_usec: int,
    secret: Callable[[ModuleName], Collection[str]],
) -> tuple[Record, ...]:
    """One record for each operation that was tried, and one for a batch that was undone.

    `secret` names the parameters of a live module that only root may read; their values are withheld.
    """
    records = []
    for operation, result in zip(plan.request.operations, results, strict=True):
        if result.error is not None:
            records.append(failure_record(plan, caller, job, operation, result.module, result.error, duration_usec))
        elif result.result in (Result.CHANGED, Result.UNCHANGED):
            records.append(_success(plan, caller, job, operation, result, duration_usec, secret))
    undone = [result.module for result in results if result.result is Result.ROLLED_BACK]
    if undone:
        what = "the batch" if any(result.error is not None for result in results) else "what had to follow the batch"
        remarks = [remark for result in results for remark in result.remarks]
        records.append(
            replace(
                _about(plan, caller, job),
                event="batch.rolled-back",
                message="; ".join((f"{what} failed, what was done to {', '.join(undone)} was undone", *remarks)),
                module=" ".join(undone),
                action="batch",
                result=Result.ROLLED_BACK,
                priority=WARNING,
            )
        )
    return tuple(records)


def failure_record(
    plan: Plan,
    caller: Caller,
    job: int,
    operation: Operation | None,
    module: str,
    error: KmoddError,
    duration_usec: int | None = None,
) -> Record:
    """The record of an operation (None: of the whole request) that failed."""
    event, priority = "operation.failed", WARNING
    if isinstance(error, TimedOut):
        event, priority = "operation.stuck", ERROR
    elif isinstance(error, Crashed):
        event, priority = "operation.crashed", ERROR
    extra = {}
    if error.module and error.module != module:
        extra["BLAMED"] = error.module
    if error.touched:
        extra["TOUCHED"] = " ".join(error.touched)
    if error.evidence.holders:
        extra["HOLDERS"] = " ".join(error.evidence.holders)
    if error.evidence.users:
        shown = [
            f"{kind} {name} ({detail})" if detail else f"{kind} {name}" for kind, name, detail in error.evidence.users
        ]
        extra["USERS"] = "; ".join(shown)
    if error.evidence.rule and error.evidence.file:
        extra["RULE"] = f"{error.evidence.file}:{error.evidence.line}: {error.evidence.rule}"
    return replace(
        _about(plan, caller, job),
        event=event,
        message=error.message,
        module=module,
        action=operation.verb if operation is not None else request_action(plan),
        result=Result.FAILED,
        error=error.name(),
        duration_usec=duration_usec,
        errno=error.evidence.errno,
        kernel_log=error.evidence.kernel_log,
        hint=error.evidence.hint,
        priority=priority,
        extra=extra,
    )


def attempt_record(attempt: Attempt, error: KmoddError, caller: Caller) -> Record:
    """The record of a request that is no plan, and that was known to fail."""
    return Record(
        "operation.failed",
        error.message,
        module=attempt.module,
        action=attempt.action,
        result=Result.FAILED,
        error=error.name(),
        uid=caller.uid,
        sender=caller.sender,
        exe=caller.exe,
        on_behalf_of=caller.on_behalf_of,
        reason=attempt.reason,
        errno=error.evidence.errno,
        kernel_log=error.evidence.kernel_log,
        hint=error.evidence.hint,
        priority=WARNING,
    )


def released_record(step: Step, job: int, outcome: Outcome, *, still_there: bool) -> Record:
    """The record of a call that ended after it was given up."""
    what = "init" if step.action == "insert" else "exit"
    if outcome.kind == "crashed" and still_there:
        ended = "crashed"
    # A worker that was given up was killed, too: it ends without an answer as soon as the kernel lets it go.
    elif outcome.errno:
        ended = "failed"
    else:
        ended = "ended"
    return Record(
        "operation.released",
        f"the {what} of {step.module} {ended} after all"
        + ("; the kernel keeps it half way until the next boot" if still_there else "; the module is usable again"),
        module=step.module,
        action="load" if what == "init" else "unload",
        result=ended,
        job=str(job) if job else "",
        duration_usec=outcome.duration_usec,
        errno=outcome.errno or None,
        priority=NOTICE,
    )


def request_action(plan: Plan) -> str:
    """`load`, `unload`, `reload`, or `batch` for several operations."""
    operations = plan.request.operations
    return operations[0].verb.value if len(operations) == 1 else "batch"


def _success(
    plan: Plan,
    caller: Caller,
    job: int,
    operation: Operation,
    result: OperationResult,
    duration_usec: int,
    secret: Callable[[ModuleName], Collection[str]],
) -> Record:
    event, word = _DONE[operation.verb]
    if result.result is Result.UNCHANGED:
        event, message = "operation.unchanged", f"nothing to do to {operation.verb} {result.module}"
    else:
        others = [name for name in result.touched if name not in result.module.split()]
        message = f"{result.module} was {word}" + (f", and with it {', '.join(others)}" if others else "")
    extra = {}
    if result.touched:
        extra["TOUCHED"] = " ".join(result.touched)
    if operation.parameters:
        hidden = {name for module in plan.targets[plan.request.operations.index(operation)] for name in secret(module)}
        extra["PARAMETERS"] = spell((name, "…" if name in hidden else value) for name, value in operation.parameters)
    if plan.overrides:
        extra["OVERRIDES"] = "; ".join(plan.overrides)
    return replace(
        _about(plan, caller, job),
        event=event,
        message=message,
        module=result.module,
        action=operation.verb,
        result=result.result,
        duration_usec=duration_usec,
        priority=INFO,
        extra=extra,
    )


def _about(plan: Plan, caller: Caller, job: int) -> Record:
    """What every record of one request says about who asked and why."""
    return Record(
        "",
        "",
        uid=caller.uid,
        sender=caller.sender,
        exe=caller.exe,
        on_behalf_of=caller.on_behalf_of,
        reason=plan.request.reason,
        job=str(job) if job else "",
    )


def foretold(plan: Plan) -> tuple[OperationResult, ...]:
    """The results of a dry run."""
    results = []
    for number in range(len(plan.request.operations)):
        steps = [step for step in plan.steps if step.operation == number]
        error = next((step.error for step in steps if step.error is not None), None)
        touched = tuple(dict.fromkeys(step.module for step in steps))
        if error is not None:
            results.append(OperationResult(plan.label(number), Result.FAILED, error))
        else:
            result = Result.CHANGED if steps else Result.UNCHANGED
            results.append(OperationResult(plan.label(number), result, touched=touched))
    return tuple(results)
