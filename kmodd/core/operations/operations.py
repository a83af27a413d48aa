# SPDX-License-Identifier: LGPL-2.1-or-later
"""Executes requests: locks, jobs, a fresh look at the kernel, execution, records, and stuck calls."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from kmodd.core.audit.records import failure_record, foretold, refused_steps, result_records
from kmodd.core.events import (
    Audit,
    Clock,
    ConfigurationChanged,
    Event,
    Events,
    ManagerChanged,
    ModuleAdded,
    ModuleChanged,
    ModuleRemoved,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from kmodd.core.fair_share import Work, straight
from kmodd.core.operations.calls import CallResult, KernelCalls, StuckCalls
from kmodd.core.operations.execution import Execution, FormerState, LiveParameters, Then, refuse
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import Deferred, Jobs, ModuleLocks, run_to_completion
from kmodd.core.planning.planner import Planner, PlanReadings
from kmodd.errors import Conflict, Evidence, KmoddError, LimitsExceeded, machine_fault
from kmodd.kernel.ports import Kernel
from kmodd.model import (
    Caller,
    LoadedBy,
    Loaders,
    OperationResult,
    Plan,
    Record,
    Request,
    Result,
    State,
    Step,
    StepAction,
    Verb,
)
from kmodd.names import ModuleName

FRESH_USEC = 20_000
"""Age in microseconds up to which a plan is carried out as it was authorized.

What another program changes in this time it could as well change between planning and the call into the kernel, which
takes about as long; the kernel refuses then, and its refusal is explained.
"""
STUCK_MAX = 4
"""Default for the number of calls that may be stuck in the kernel."""
_ACTIONS = {
    Verb.LOAD: (StepAction.INSERT,),
    Verb.UNLOAD: (StepAction.REMOVE,),
    Verb.RELOAD: (StepAction.REMOVE, StepAction.INSERT),
    Verb.SET_PARAMETER: (StepAction.SET_PARAMETER,),
    Verb.RESET_FAILED: (StepAction.RESET_FAILED,),
}
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
        authorised: Callable[[Step], str] = lambda step: "",
        stuck_max: Callable[[], int] = lambda: STUCK_MAX,
        loader: Callable[[ModuleName], LoadedBy | None] = lambda name: None,
    ) -> None:
        """`capable` tells whether a worker (by process number) holds CAP_SYS_MODULE; called only to explain a refusal.

        `authorised` answers the SHA-256 that the file of a step must have; empty for files that are not the store's.

        `stuck_max` returns how many calls may be stuck in the kernel; beyond that further operations are refused.

        `loader` tells who loaded a module through kmodd; None where that is not how it came.
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
        self._loader = loader
        self._calls = KernelCalls(kernel, capable=capable, authorised=authorised)
        self._live = LiveParameters(kernel.index, planner.values, planner.given)
        self._afterwards = Deferred()
        self._version = 0
        """Rises with every change that a plan may depend on, as far as the daemon knows of it."""
        self._under_way: dict[asyncio.Task[tuple[OperationResult, ...]], Execution] = {}
        self._all_ended = asyncio.Event()
        """Set when nothing is under way any more; looked at by `close` alone."""
        self._stuck = StuckCalls(
            kernel, locks=locks, jobs=jobs, failures=failures, events=events, clock=clock, record=self._record
        )
        self._unsubscribe = events.subscribe(
            self._on_event,
            ModuleAdded,
            ModuleRemoved,
            ModuleChanged,
            ManagerChanged,
            ConfigurationChanged,
            StepSucceeded,
            StepFailed,
        )

    def plan(self, request: Request, look: PlanReadings | None = None) -> Plan:
        """Plan against what is loaded and what is under way now; what is wrong is on the steps. `look` as of `work`."""
        return straight(self.work(request, look))

    def work(self, request: Request, look: PlanReadings | None = None) -> Work[Plan]:
        """The same as `plan`, in slices: for plans that may be large and are requested without authorization.

        With what `look` answered nothing is taken on trust, neither a live parameter nor what goes with a module.
        """
        # Taken before anything is read: what changes while the plan is made may not be in it.
        version, made = self._version, self._clock()
        flight = partial(self._stuck.flight, number=0)
        plan = yield from self._planner.work(request, flight, look=look, version=version, made=made)
        return self._with_loaders(plan)

    def loaders(self, names: Iterable[ModuleName]) -> Loaders:
        """Those of the modules that are there, with who loaded them."""
        return self._loaders(name for name in names if self._kernel.loaded.read(name) is not None)

    def _loaders(self, names: Iterable[ModuleName]) -> Loaders:
        by = [(name, self._loader(name)) for name in sorted(set(names))]
        return tuple((name, None if load is None else load.uid) for name, load in by)

    def _with_loaders(self, plan: Plan) -> Plan:
        inserted: set[ModuleName] = set()
        own: set[ModuleName] = set()
        removed: set[ModuleName] = set()
        for step in plan.steps:
            if step.error is not None:
                continue
            if step.action is StepAction.INSERT:
                inserted.add(step.module)
            elif step.action is StepAction.REMOVE:
                (own if step.module in inserted else removed).add(step.module)
        if not own and not removed:
            return plan
        return replace(plan, loaders=self._loaders(removed), own=tuple(sorted(own)))

    async def look(self, plan: Plan) -> PlanReadings:
        """Read what the plan takes on trust; the answer is for `work`, which makes the plan that counts."""
        since = await self._planner.values.look(plan.unread)
        return PlanReadings(since, await self._kernel.inspection.consequences(plan.unseen) if plan.unseen else {})

    async def run(self, plan: Plan, caller: Caller) -> tuple[ModuleName, ...]:
        """Execute a plan of one operation; answers the modules touched, raises its error."""
        (result,) = await self.execute(plan, caller)
        if result.error is not None:
            raise result.error
        return result.touched

    async def execute(self, plan: Plan, caller: Caller, then: Then | None = None) -> tuple[OperationResult, ...]:
        """Make an authorised plan real; errors of single operations are in their results.

        `then` runs after an atomic plan, under its locks; if it returns false, the plan is rolled back.

        Raises only what concerns the whole request: Conflict when the machine changed so much that the plan would
        touch other modules than were authorised, or when the job was cancelled while it waited; LimitsExceeded when
        too many calls are stuck. On cancellation the call under way is waited for, then an atomic request that is half
        done is undone.
        """
        if plan.request.dry_run:
            return foretold(await self._plan_again(plan.request, 0) if plan.unseen else plan)
        number = self._jobs.add(plan.action, plan.label(None), caller.sender)
        taken = self._locks.take_now(plan.modules, number)
        if taken is None:
            taken = await self._wait(plan, caller, number)
        by = LoadedBy(caller.uid, caller.exe or caller.sender, plan.request.reason, self._clock(), caller.login_uid)
        execution = Execution(
            self._kernel,
            self._calls,
            self._live,
            locks=self._locks,
            owner=number,
            parameters=self._planner.parameters,
            failures=self._failures,
            begin=partial(self._begin, by),
            end=partial(self._end, number, by),
            progress=partial(self._jobs.progress, number),
        )
        # When the caller leaves, the call in the kernel continues, and so must what follows it.
        work = asyncio.get_running_loop().create_task(self._locked(plan, caller, number, taken, execution, then))
        self._under_way[work] = execution
        try:
            return await run_to_completion(work, execution.abort)
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

    async def former(self, name: ModuleName) -> FormerState:
        """The parameters that a module is loaded with, as far as known."""
        return await self._live.remember(name)

    def reset_failed(self, name: ModuleName, caller: Caller | None = None) -> None:
        """Forget the failure of a module; nothing remembered is no error. Stuck while the kernel has not let go."""
        if not self._stuck.forget(name):
            return
        message = f"the failure of {name} was reset"
        record = Record("failure.reset", message, module=name, action="reset-failed", result=Result.CHANGED)
        self._record(replace(record, reason=caller.reason).by(caller) if caller is not None else record)

    def recover(self) -> None:
        """At start: know again what is stuck in the kernel, and forget that about what is not any more."""
        self._stuck.recover()

    async def close(self, grace_period: float = 5.0) -> None:
        """Shut down: running operations stop after their call into the kernel and roll back unfinished work.

        After `grace_period` seconds what is still in the kernel is given up, as if its time were over, and remembered for the next
        daemon; after as many again everything else is broken off.
        """
        self._unsubscribe()
        for execution in self._under_way.values():
            execution.abort()
        given_up = False
        while self._under_way:
            self._all_ended.clear()
            try:
                await asyncio.wait_for(self._all_ended.wait(), grace_period)
            except TimeoutError:
                if given_up:
                    for work in self._under_way:
                        work.cancel()
                else:
                    given_up = True
                    self._kernel.executor.abandon_all()
        self.flush()

    def flush(self) -> None:
        """Write the records and tell the events that wait for a caller's answer to be gone."""
        self._afterwards.flush()
        self._jobs.flush()

    # --- under way ----------------------------------------------------------------------------------------------------

    async def _wait(self, plan: Plan, caller: Caller, number: int) -> tuple[ModuleName, ...]:
        cancelled = Conflict(
            f"the operation on {plan.label(None)} was cancelled while waiting for another one",
            module=plan.label(None),
        )
        self._jobs.wait(number, lambda: self._locks.cancel_wait(number, cancelled))
        try:
            taken = await self._locks.take(plan.modules, number)
        except (asyncio.CancelledError, Conflict) as error:
            self._jobs.finish(number, "cancelled")
            if isinstance(error, Conflict):
                self._record(failure_record(plan, caller, number, None, error))
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
        then: Then | None,
    ) -> tuple[OperationResult, ...]:
        begun = self._clock()
        outcome = "Failed"
        try:
            fresh = plan if self._is_fresh(plan, caller, begun) else await self._plan_again(plan.request, number)
            self._check(plan, fresh, caller)
            results = await execution.run(fresh, then)
            outcome = "done"
            for result in results:
                if result.error is not None:
                    self._failures.share(results, fresh.targets)
                    outcome = result.error.name()
                    break
            took = self._clock() - begun
            self._afterwards.defer(lambda: self._tell_results(fresh, caller, number, results, took))
        except OSError as fault:
            error = machine_fault(fault, plan.label(None))
            outcome = error.name()
            self._record(failure_record(plan, caller, number, None, error))
            raise error from fault
        except KmoddError as error:
            outcome = error.name()
            self._record(failure_record(plan, caller, number, None, error))
            raise
        else:
            return results
        finally:
            self._version += 1
            # What a call of the job or a setter of a parameter hangs in keeps its lock.
            self._locks.release(taken, number, keep_stuck=True)
            if not self._stuck.held(number):
                self._jobs.finish(number, outcome)

    def _is_fresh(self, plan: Plan, caller: Caller, now: int) -> bool:
        """Tell whether to plan again would find the same: nothing was taken on trust, nothing changed, no time went by.

        After a password prompt, which only an interactive call of an ordinary user can have, everything is read again. What
        polkit authorized for an ordinary user is compared also with what other programs can change without an event; what goes
        with a module that is removed is read again for that.
        """
        if plan.version != self._version or not 0 <= now - plan.made <= FRESH_USEC:
            return False
        if plan.unread or plan.unseen:
            return False
        if caller.uid == 0:
            return True
        if caller.interactive or any(step.action is StepAction.REMOVE for step in plan.steps):
            return False
        index = self._kernel.index
        index.refresh()
        return plan.seen == (index.version, self._kernel.loaded.raw())

    async def _plan_again(self, request: Request, number: int) -> Plan:
        """Plan under the locks of an operation, and take nothing on trust."""
        flight = partial(self._stuck.flight, number=number)
        plan = self._planner.plan(request, flight)
        if plan.unread or plan.unseen:
            plan = self._planner.plan(request, flight, look=await self.look(plan))
        return self._with_loaders(plan)

    def _check(self, plan: Plan, fresh: Plan, caller: Caller) -> None:
        if fresh is not plan:
            _check_consent(plan, fresh, caller.uid)
        if self._stuck.count() >= self._stuck_max() and any(step.error is None for step in fresh.steps):
            raise LimitsExceeded(
                f"{self._stuck_max()} operations are stuck in the kernel; further operations are refused until one of them returns",
                module=plan.label(None),
                evidence=Evidence(hint="kmodctl status; plan a reboot"),
            )

    def _begin(self, by: LoadedBy, step: Step) -> None:
        """A call into the kernel is about to be made."""
        self._version += 1
        self._events.publish(StepStarted(step.module, step.action, by))

    def _end(self, number: int, by: LoadedBy, step: Step, called: CallResult) -> None:
        """A call into the kernel was made."""
        took, error = called.outcome.duration_usec, called.error
        if error is None:
            self._events.publish(StepSucceeded(step.module, step.action, by, took, called.changed))
        else:
            stuck = called.outcome.kind == "timed-out"
            self._events.publish(StepFailed(step.module, step.action, error.name(), took, stuck))
        self._stuck.observe(number, step, called, by)

    def _on_event(self, event: Event) -> None:
        self._version += 1
        if not isinstance(event, ModuleAdded | ModuleRemoved):
            return
        if isinstance(event, ModuleRemoved) and self._kernel.loaded.read(event.name) is None:
            self._live.removed(event.name)
        self._stuck.on_event(event)

    def _tell_results(
        self, plan: Plan, caller: Caller, number: int, results: tuple[OperationResult, ...], took: int
    ) -> None:
        for record in result_records(plan, caller, number, results, took, self._secret):
            self._audit.record(record)
        for step in plan.steps:
            if step.action is StepAction.SET_PARAMETER and results[step.operation].touched:
                self._events.publish(ModuleChanged(step.module, ("Parameters",)))
        for refused in refused_steps(plan, results):
            self._events.publish(refused)

    def _secret(self, name: ModuleName) -> set[str]:
        return {p.name.replace("-", "_") for p in self._kernel.loaded.parameter_files(name) if not p.public}

    def _record(self, record: Record) -> None:
        # Writing to the journal takes longer than some calls into the kernel: the caller's answer goes first.
        self._afterwards.defer(lambda: self._audit.record(record))


def check_loaders(shown: Loaders | None, plan: Plan, uid: int | None) -> None:
    """Raise Conflict where the plan removes what another user loaded than polkit's rules saw. `shown` None: they were to see none.

    For root no rule is evaluated. Of a module that was not to be removed then, the rules saw nothing: it may be the user's own.
    """
    if uid == 0 or shown is None:
        return
    names = {name for name, _ in shown}
    for name, by in plan.loaders_for(uid) or ():
        if (name, by) not in shown if name in names else by is None or by != uid:
            raise Conflict(f"{name} was loaded by another user since authorization; try again", module=name)


def _check_consent(plan: Plan, fresh: Plan, uid: int | None) -> None:
    """Raise Conflict where what would be done now is more than was authorized for this user, or something else."""
    allowed = {(step.action, step.module) for step in plan.steps}
    for operation, names in zip(plan.request.operations, plan.targets, strict=True):
        allowed |= {(action, name) for action in _ACTIONS[operation.verb] for name in names}
    begun = [step for step in fresh.steps if step.error is None]
    beyond = {step.module for step in begun if (step.action, step.module) not in allowed}
    beyond |= set(fresh.modules) - set(plan.modules)
    if beyond or set(fresh.overrides) - set(plan.overrides):
        raise Conflict(
            "the set of affected modules changed since authorization and now includes "
            f"{', '.join(sorted(beyond)) or 'modules that other rules disable'}; try again",
            module=plan.label(None),
        )
    shown = {(step.module, row) for step in plan.steps for row in step.consequences}
    for step in begun:
        if not plan.unseen and any(row.live and (step.module, row) not in shown for row in step.consequences):
            raise Conflict(
                f"what goes with {step.module} changed since authorization; try again",
                module=step.module,
                evidence=Evidence(hint=f"kmodctl why {step.module}"),
            )
    check_loaders(plan.loaders_for(uid), fresh, uid)
    paths = {step.module: step.path for step in plan.steps if step.path}
    for step in begun:
        if step.path and step.path != paths.get(step.module, step.path):
            raise Conflict(f"the file of {step.module} changed since authorization: {step.path}", module=step.module)
