# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loading and unloading for callers: locks, jobs, the state of the kernel read again, execution, records, what is stuck."""

import asyncio
from collections.abc import Awaitable, Callable

from kmodd.core.afterwards import Afterwards
from kmodd.core.api import (
    Audit,
    Clock,
    Event,
    Events,
    ModuleRemoved,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from kmodd.core.calls import CallResult, KernelCalls
from kmodd.core.execution import Execution, refuse
from kmodd.core.failures import Failures
from kmodd.core.freshness import FreshPlans
from kmodd.core.jobs import Jobs
from kmodd.core.locks import ModuleLocks
from kmodd.core.planner import Planner
from kmodd.core.records import failure_record, foretold, request_action, result_records
from kmodd.core.rollback import LiveParameters
from kmodd.core.stuck_calls import StuckCalls
from kmodd.core.unbroken import unbroken
from kmodd.errors import Conflict, Evidence, KmoddError, LimitsExceeded
from kmodd.kernel.ports import Kernel
from kmodd.model import (
    Caller,
    LoadedBy,
    OperationResult,
    Plan,
    Record,
    Request,
    Result,
    State,
    Step,
)
from kmodd.names import ModuleName

STUCK_MAX = 4
"""Calls that may be stuck in the kernel at once, unless it is set otherwise."""
_HALF_WAY = (State.COMING, State.GOING)


class Operations:
    """Everything that changes which modules are loaded goes through here."""

    def __init__(
        self,
        planner: Planner,
        kernel: Kernel,
        *,
        locks: ModuleLocks,
        jobs: Jobs,
        failures: Failures,
        audit: Audit,
        events: Events,
        clock: Clock,
        capable: Callable[[int], bool] = lambda worker: True,
        stuck_max: Callable[[], int] = lambda: STUCK_MAX,
    ) -> None:
        """`capable` tells whether a worker (by process number) holds CAP_SYS_MODULE; asked only to explain a refusal.

        `stuck_max` answers how many calls may be stuck in the kernel at once; beyond that nothing new is begun.
        """
        self._planner = planner
        self._kernel = kernel
        self._locks = locks
        self._jobs = jobs
        self._failures = failures
        self._audit = audit
        self._clock = clock
        self._events = events
        self._stuck_max = stuck_max
        self._calls = KernelCalls(kernel, capable=capable)
        self._live = LiveParameters(kernel.index, kernel.loaded)
        self._afterwards = Afterwards()
        self._fresh = FreshPlans(clock)
        self._under_way: dict[asyncio.Task[tuple[OperationResult, ...]], Execution] = {}
        self._all_ended = asyncio.Event()
        """Set when nothing is under way any more; looked at by `close` alone."""
        self._stuck = StuckCalls(
            kernel, locks=locks, jobs=jobs, failures=failures, events=events, clock=clock, record=self._record
        )
        self._unsubscribe = events.subscribe(self._on_event)

    def plan(self, request: Request) -> Plan:
        """Plan against what is loaded and what is under way now; what is wrong is on the steps."""
        return self._fresh.note(self._planner.plan(request, lambda name: self._stuck.flight(name, 0)))

    async def run(self, plan: Plan, caller: Caller) -> tuple[ModuleName, ...]:
        """Execute a plan of one operation; answers the modules touched, raises its error."""
        (result,) = await self.execute(plan, caller)
        if result.error is not None:
            raise result.error
        return result.touched

    async def execute(
        self, plan: Plan, caller: Caller, then: Callable[[], Awaitable[bool]] | None = None
    ) -> tuple[OperationResult, ...]:
        """Make an authorised plan real; errors of single operations are in their results.

        `then` is what has to follow an atomic plan, under its locks: where it answers false, the plan is undone.

        Raises only what concerns the whole request: Conflict when the machine changed so much that the plan would
        touch other modules than were authorised, or when the job was cancelled while it waited; LimitsExceeded when
        too many calls are stuck. On cancellation the call under way is waited for, then an atomic request that is half
        done is undone.
        """
        if plan.request.dry_run:
            return foretold(plan)
        number = self._jobs.add(request_action(plan), _modules_named(plan), caller.sender)
        taken = self._locks.take_now(plan.modules, number)
        if taken is None:
            taken = await self._wait(plan, caller, number)
        execution = Execution(
            self._kernel,
            self._calls,
            self._live,
            watch=_Watch(
                self, number, LoadedBy(caller.uid, caller.exe or caller.sender, plan.request.reason, self._clock())
            ),
            progress=lambda done: self._jobs.progress(number, done),
        )
        # When the caller leaves, the call that is in the kernel goes on, and so must its aftermath.
        work = asyncio.get_running_loop().create_task(self._locked(plan, caller, number, taken, execution, then))
        self._under_way[work] = execution
        try:
            return await unbroken(work, execution.leave)
        finally:
            del self._under_way[work]
            if not self._under_way:
                self._all_ended.set()

    async def refuse(self, plan: Plan, caller: Caller) -> tuple[OperationResult, ...]:
        """Answer and record what `execute` would of an atomic plan that is known to fail; nothing is begun."""
        begun = self._clock()
        results = await refuse(plan, self._kernel)
        self._failures.share(results, plan.targets)
        self._tell_results(plan, caller, 0, results, self._clock() - begun)
        return results

    def parameters(self, name: ModuleName) -> tuple[tuple[str, str], ...]:
        """With which parameters a module is loaded now, as far as that can be told."""
        return self._live.remember(name).parameters

    def reset_failed(self, name: ModuleName, caller: Caller | None = None) -> None:
        """Forget the failure of a module; nothing remembered is no error. Stuck while the kernel has not let go."""
        if not self._stuck.forget(name):
            return
        self._record(
            Record(
                "failure.reset",
                f"the failure of {name} was reset",
                module=name,
                action="reset-failed",
                result=Result.CHANGED,
                uid=caller.uid if caller is not None else None,
                sender=caller.sender if caller is not None else "",
                exe=caller.exe if caller is not None else "",
                on_behalf_of=caller.on_behalf_of if caller is not None else "",
            )
        )

    def recover(self) -> None:
        """At start: know again what is stuck in the kernel, and forget that about what is not any more."""
        self._stuck.recover()

    async def close(self, patience: float = 5.0) -> None:
        """End: what runs is told to stop after its call into the kernel and to undo what is half done.

        After `patience` seconds what is still in the kernel is given up, as if its time were over, and remembered for the next
        daemon; after as many again everything else is broken off.
        """
        self._unsubscribe()
        for execution in self._under_way.values():
            execution.leave()
        given_up = False
        while self._under_way:
            self._all_ended.clear()
            try:
                await asyncio.wait_for(self._all_ended.wait(), patience)
            except TimeoutError:
                if given_up:
                    for work in self._under_way:
                        work.cancel()
                else:
                    given_up = True
                    self._kernel.executor.give_up()
        self.flush()

    def flush(self) -> None:
        """Write the records and tell the events that wait for a caller's answer to be gone."""
        self._afterwards.flush()
        self._jobs.flush()

    # --- under way ----------------------------------------------------------------------------------------------------

    async def _wait(self, plan: Plan, caller: Caller, number: int) -> tuple[ModuleName, ...]:
        cancelled = Conflict(
            f"the operation on {_modules_named(plan)} was cancelled while it waited for another one",
            module=_modules_named(plan),
        )
        self._jobs.wait(number, lambda: self._locks.give_up(number, cancelled))
        try:
            taken = await self._locks.take(plan.modules, number)
        except (asyncio.CancelledError, Conflict) as error:
            self._jobs.finish(number, "cancelled")
            if isinstance(error, Conflict):
                self._record(failure_record(plan, caller, number, None, _modules_named(plan), error))
            raise
        self._jobs.run(number)
        return taken

    async def _locked(
        self,
        plan: Plan,
        caller: Caller,
        number: int,
        taken: tuple[ModuleName, ...],
        execution: Execution,
        then: Callable[[], Awaitable[bool]] | None,
    ) -> tuple[OperationResult, ...]:
        begun = self._clock()
        outcome = "Failed"
        try:
            # Root is never asked for anything, so nothing was waited for; the plans of all others are made again.
            young = caller.uid == 0 and self._fresh.take(plan)
            fresh = plan if young else self._planner.plan(plan.request, lambda name: self._stuck.flight(name, number))
            self._check(plan, fresh)
            results = await execution.run(fresh, then)
            self._failures.share(results, fresh.targets)
            outcome = next((result.error.name() for result in results if result.error is not None), "done")
            took = self._clock() - begun
            self._afterwards.soon(lambda: self._tell_results(fresh, caller, number, results, took))
        except KmoddError as error:
            outcome = error.name()
            self._record(failure_record(plan, caller, number, None, _modules_named(plan), error))
            raise
        else:
            return results
        finally:
            held = self._stuck.held(number)
            self._fresh.changed()
            self._locks.release([name for name in taken if name not in held], number)
            if not held:
                self._jobs.finish(number, outcome)

    def _check(self, plan: Plan, fresh: Plan) -> None:
        beyond = sorted(set(fresh.modules) - set(plan.modules))
        if beyond or set(fresh.overrides) - set(plan.overrides):
            raise Conflict(
                "the machine changed meanwhile: the operation would now touch "
                f"{', '.join(beyond) or 'modules that other rules disable'} too; ask again",
                module=_modules_named(plan),
            )
        begins = any(step.error is None for step in fresh.steps)
        if begins and self._stuck.count() >= self._stuck_max():
            raise LimitsExceeded(
                f"{self._stuck_max()} operations are stuck in the kernel, nothing new is begun until one of them ends",
                module=_modules_named(plan),
                evidence=Evidence(hint="kmodctl status; a reboot is near"),
            )

    def begin(self, step: Step, by: LoadedBy) -> None:
        """A call into the kernel is about to be made."""
        self._events.publish(StepStarted(step.module, step.action, by))

    def end(self, number: int, step: Step, called: CallResult, by: LoadedBy) -> None:
        """A call into the kernel was made."""
        took, error = called.outcome.duration_usec, called.error
        if error is None:
            self._events.publish(StepSucceeded(step.module, step.action, by, took, called.changed))
        else:
            stuck = called.outcome.kind == "timed-out"
            self._events.publish(StepFailed(step.module, step.action, error.name(), took, stuck))
        self._stuck.observe(number, step, called, by)

    def _on_event(self, event: Event) -> None:
        self._fresh.changed()
        if isinstance(event, ModuleRemoved) and self._kernel.loaded.read(event.name) is None:
            self._live.removed(event.name)
        self._stuck.on_event(event)

    def _tell_results(
        self, plan: Plan, caller: Caller, number: int, results: tuple[OperationResult, ...], took: int
    ) -> None:
        for record in result_records(plan, caller, number, results, took, self._secret):
            self._audit.record(record)

    def _secret(self, name: ModuleName) -> set[str]:
        return {p.name.replace("-", "_") for p in self._kernel.loaded.parameters(name) if not p.public}

    def _record(self, record: Record) -> None:
        # Writing to the journal takes longer than some calls into the kernel: the caller's answer goes first.
        self._afterwards.soon(lambda: self._audit.record(record))


class _Watch:
    """Tells of the calls of one operation, and for whom they are made."""

    def __init__(self, operations: Operations, number: int, by: LoadedBy) -> None:
        self._operations = operations
        self._number = number
        self._by = by

    def begin(self, step: Step) -> None:
        self._operations.begin(step, self._by)

    def end(self, step: Step, called: CallResult) -> None:
        self._operations.end(self._number, step, called, self._by)


def _modules_named(plan: Plan) -> str:
    named = [name for names in plan.targets for name in names]
    return " ".join(dict.fromkeys(named)) or " ".join(operation.module for operation in plan.request.operations)
