# SPDX-License-Identifier: LGPL-2.1-or-later
"""Journal records of the results of operations and of requests refused before authorization, and the reply of `GetHistory`."""

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import replace

from kmodd.core.diagnosis.in_use import in_use
from kmodd.core.events import Audit, Events, HistoryReader, StepRefused
from kmodd.core.fair_share import FairSlots
from kmodd.core.planning.consequence_text import phrase
from kmodd.core.planning.policy import where
from kmodd.errors import Crashed, Evidence, InUse, InvalidArgs, KmoddError, NotPermitted, TimedOut, errno_name, scarce
from kmodd.kernel.ports import Kernel
from kmodd.model import (
    Attempt,
    Caller,
    HistoryEntry,
    HistoryQuery,
    OperationResult,
    Outcome,
    Plan,
    Record,
    Result,
    Step,
    Verb,
)
from kmodd.model.arguments import displayed
from kmodd.names import ModuleName

_DONE = {
    Verb.LOAD: ("module.loaded", "loaded"),
    Verb.UNLOAD: ("module.unloaded", "unloaded"),
    Verb.RELOAD: ("module.reloaded", "reloaded"),
    Verb.SET_PARAMETER: ("parameter.set", "set"),
    Verb.RESET_FAILED: ("failure.reset", "reset"),
}
WARNING, ERROR, NOTICE, INFO = 4, 3, 5, 6
LIMIT_MAX = 1000
READS = 2
"""Concurrent readings, not counting root's; each walks through journal files in a thread, and its reply may have 16 MiB."""


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
    for number, result in enumerate(results):
        if result.error is not None:
            records.append(failure_record(plan, caller, job, number, result.error, duration_usec))
        elif result.result in (Result.CHANGED, Result.UNCHANGED):
            records.append(_success(plan, caller, job, number, result, duration_usec, secret))
    rolled_back = [number for number, result in enumerate(results) if result.result is Result.ROLLED_BACK]
    if rolled_back:
        undone = list(dict.fromkeys(name for number in rolled_back for name in plan.names(number)))
        what = "the batch" if any(result.error is not None for result in results) else "a step after the batch"
        remarks = [remark for result in results for remark in result.remarks]
        records.append(
            replace(
                _about(plan, caller, job),
                event="batch.rolled-back",
                message="; ".join((f"{what} failed, changes to {', '.join(undone)} were rolled back", *remarks)),
                action="batch",
                result=Result.ROLLED_BACK,
                priority=WARNING,
            ).about(undone)
        )
    return tuple(records)


def failure_record(
    plan: Plan,
    caller: Caller,
    job: int,
    number: int | None,
    error: KmoddError,
    duration_usec: int | None = None,
) -> Record:
    """The record of an operation (its number; None: of the whole request) that failed."""
    names = plan.names(number)
    event, priority = "operation.failed", WARNING
    if isinstance(error, TimedOut):
        event, priority = "operation.stuck", ERROR
    elif isinstance(error, Crashed):
        event, priority = "operation.crashed", ERROR
    extra = {"BLAMED": error.module} if error.module and (error.module,) != names else {}
    return replace(
        _about(plan, caller, job),
        event=event,
        message=error.message,
        action=plan.request.operations[number].verb if number is not None else plan.action,
        result=Result.FAILED,
        error=error.name(),
        duration_usec=duration_usec,
        errno=error.evidence.errno,
        kernel_log=error.evidence.kernel_log,
        hint=error.evidence.hint,
        priority=priority,
        extra=extra | evidence_fields(error),
    ).about(names)


def evidence_fields(error: KmoddError) -> dict[str, str]:
    """Further fields of the record of an error: what is not known is left out."""
    evidence = error.evidence
    users = [
        f"{user.kind} {user.name} ({user.detail})" if user.detail else f"{user.kind} {user.name}"
        for user in evidence.users
    ]
    fields = {
        "TOUCHED": " ".join(error.touched),
        "HOLDERS": " ".join(evidence.holders),
        "USERS": "; ".join(users),
        "FILE": evidence.file,
        "LINE": str(evidence.line or ""),
        "RULE": evidence.policy,
        "RULE_KIND": evidence.rule_kind,
        "SYMBOLS": " ".join(evidence.symbols),
        "PARAMETER": evidence.parameter,
        "KERNEL_LOG_FAULT": evidence.log_fault,
    }
    return {name: value for name, value in fields.items() if value}


def refused_steps(plan: Plan, results: Sequence[OperationResult]) -> Iterator[StepRefused]:
    """The steps that were known to fail, of operations that failed for it: for the metrics."""
    for step in plan.steps:
        if step.error is not None and results[step.operation].error is not None:
            yield refused_step(plan, step, step.error)


def refused_step(plan: Plan, step: Step, error: KmoddError) -> StepRefused:
    """A step that was known to fail, under a module's name: a caller's text that leads to no module is no label."""
    return StepRefused(step.module if plan.targets[step.operation] else "", step.action, error.name())


def attempt_record(attempt: Attempt, error: KmoddError, caller: Caller) -> Record:
    """The record of a request that is no plan, and that was known to fail."""
    record = Record("", "", attempt.module, attempt.action, reason=attempt.reason or caller.reason).by(caller)
    return failed_record(record, error)


def failed_record(record: Record, error: KmoddError) -> Record:
    """The record of a change that failed."""
    return replace(
        record,
        event="operation.failed",
        message=error.message,
        result=Result.FAILED,
        error=error.name(),
        errno=error.evidence.errno,
        kernel_log=error.evidence.kernel_log,
        hint=error.evidence.hint,
        priority=WARNING,
        extra={**evidence_fields(error), **record.extra},
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
        + ("; the module stays partially loaded until reboot" if still_there else "; the module is usable again"),
        module=step.module,
        action="load" if what == "init" else "unload",
        result=ended,
        job=str(job) if job else "",
        duration_usec=outcome.duration_usec,
        errno=outcome.errno or None,
        priority=NOTICE,
    )


def _success(
    plan: Plan,
    caller: Caller,
    job: int,
    number: int,
    result: OperationResult,
    duration_usec: int,
    secret: Callable[[ModuleName], Collection[str]],
) -> Record:
    operation, names = plan.request.operations[number], plan.names(number)
    event, word = _DONE[operation.verb]
    if result.result is Result.UNCHANGED:
        event, message = "operation.unchanged", f"nothing to do to {operation.verb} {result.module}"
    elif operation.verb is Verb.SET_PARAMETER:
        many = "s" if len(operation.parameters) > 1 else ""
        named = ", ".join(name for name, _ in operation.parameters)
        message = f"parameter{many} {named} of {result.module} {'were' if many else 'was'} set"
    elif operation.verb is Verb.RESET_FAILED:
        message = f"the failure of {result.module} was reset"
    else:
        others = [name for name in result.touched if name not in names]
        message = f"{result.module} was {word}" + (f", and with it {', '.join(others)}" if others else "")
    extra = {}
    if result.touched:
        extra["TOUCHED"] = " ".join(result.touched)
    if operation.verb is Verb.SET_PARAMETER:
        extra["PARAMETER"] = " ".join(name for name, _ in operation.parameters)
    if operation.parameters:
        hidden = {name for module in plan.targets[number] for name in secret(module)}
        extra["PARAMETERS"] = displayed(operation.parameters, hidden)
    number = plan.request.operations.index(operation)
    rows = (row for step in plan.steps if step.operation == number for row in step.consequences if row.live)
    if taken := dict.fromkeys(map(phrase, rows)):
        extra["CONSEQUENCES"] = "; ".join(taken)
    if plan.overrides:
        extra["OVERRIDES"] = "; ".join(map(where, plan.overrides))
    return replace(
        _about(plan, caller, job),
        event=event,
        message=message,
        action=operation.verb,
        result=result.result,
        duration_usec=duration_usec,
        priority=INFO,
        extra=extra,
    ).about(names)


def _about(plan: Plan, caller: Caller, job: int) -> Record:
    """What every record of one request has about the caller and the reason."""
    return Record("", "", reason=plan.request.reason, job=str(job) if job else "").by(caller)


def foretold(plan: Plan) -> tuple[OperationResult, ...]:
    """The results of a dry run."""
    results = []
    for number, operation in enumerate(plan.request.operations):
        action = operation.verb.value
        steps = [step for step in plan.steps if step.operation == number]
        error = next((step.error for step in steps if step.error is not None), None)
        touched = tuple(dict.fromkeys(step.module for step in steps))
        if error is not None:
            results.append(OperationResult(plan.label(number), Result.FAILED, error, action=action))
        else:
            result = Result.CHANGED if steps else Result.UNCHANGED
            results.append(OperationResult(plan.label(number), result, touched=touched, action=action))
    return tuple(results)


class Refusals:
    """Tells why a plan cannot be carried out."""

    def __init__(self, kernel: Kernel, audit: Audit, events: Events) -> None:
        self._kernel = kernel
        self._audit = audit
        self._events = events

    async def tell(self, plan: Plan, caller: Caller) -> KmoddError:
        """Answer the plan's first known error, with what keeps a busy module so, and record it once."""
        step = next((step for step in plan.steps if step.error is not None), None)
        if step is None or step.error is None:
            raise ValueError("nothing in this plan is known to fail")
        error = step.error
        if isinstance(error, InUse) and not (error.evidence.users or error.evidence.consequences):
            error = await self._completed(error, caller)
        if not plan.request.dry_run:
            self._audit.record(failure_record(plan, caller, 0, step.operation, error))
            self._events.publish(refused_step(plan, step, error))
        return error

    async def note(self, attempt: Attempt, error: KmoddError, caller: Caller) -> KmoddError:
        """Answer the error of a request that is no plan, and record it once."""
        if not attempt.dry_run:
            self._audit.record(attempt_record(attempt, error, caller))
        return error

    async def _completed(self, error: InUse, caller: Caller) -> InUse:
        """Look up what planning, which reads public facts that cost nothing, left out."""
        module = self._kernel.loaded.read(ModuleName(error.module))
        if module is None or module.references <= len(module.holders):
            return error
        usage = await self._kernel.inspection.users(module.name)
        return in_use(module, usage.users)


class History:
    """Reads records back without holding up the daemon."""

    def __init__(
        self,
        reader: HistoryReader,
        *,
        limit_max: Callable[[], int] = lambda: LIMIT_MAX,
        settled: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`limit_max` answers how many records one reading may ask for; `settled` returns when all that was recorded is written."""
        self._reader = reader
        self._settled = settled
        self._limit_max = limit_max
        self._slots = FairSlots(READS, root=1)

    async def read(self, query: HistoryQuery, caller: Caller) -> list[HistoryEntry]:
        """Newest last; InvalidArgs for an impossible query, LimitsExceeded when too many of this user wait.

        NotPermitted when the journal cannot be read: it is not taken for empty.
        """
        if not 1 <= query.limit <= self._limit_max():
            raise InvalidArgs(f"limit must be 1 to {self._limit_max()}", argument="limit")
        if query.since < 0:
            raise InvalidArgs("since must be a time in microseconds since 1970", argument="since")
        if self._settled is not None:
            await self._settled()
        try:
            return await self._slots.in_thread(caller.uid, self._reader.read, query)
        except OSError as error:
            raise scarce(error, "") or NotPermitted(
                f"the journal cannot be read ({errno_name(error.errno or 0)})",
                evidence=Evidence(errno=error.errno, hint="journalctl --verify"),
            ) from error
