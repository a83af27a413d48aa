# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls into the kernel: one for each step, the evidence if it fails, and modules that are stuck in one."""

import asyncio
import errno as codes
from collections.abc import Callable
from dataclasses import replace

from kmodd.core.audit.records import released_record
from kmodd.core.diagnosis.diagnosis import diagnose
from kmodd.core.diagnosis.evidence import StepEvidence
from kmodd.core.events import Clock, Events, ModuleAdded, ModuleRemoved, StepFailed, StepStarted, StepSucceeded
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import Jobs, ModuleLocks
from kmodd.core.planning.insert import stuck as stuck_error
from kmodd.core.planning.planned_state import InFlight
from kmodd.errors import Conflict, Evidence, KmoddError, Stuck, TimedOut, machine_fault, no_worker
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Kernel, LogMark
from kmodd.model import Failure, LoadedBy, Outcome, Record, State, Step, StepAction
from kmodd.model.arguments import spell
from kmodd.names import ModuleName

_TRIES = 3
"""Calls for one insertion where others insert and remove the same module all the while."""
_UNTRUSTED = frozenset({codes.EPERM, codes.ENOKEY, codes.EKEYREJECTED, codes.EKEYEXPIRED, codes.EKEYREVOKED})
"""Answers to a signature, or to none; EPERM under lockdown."""
_HALF_WAY = (State.COMING, State.GOING)
STUCK_AFTER = 30.0
"""Seconds after which another program's load or unload counts as stuck. The slowest drivers take some seconds, more at boot."""


@dataclass(frozen=True, slots=True)
class CallResult:
    """What became of a step."""

    outcome: Outcome
    changed: bool
    """The call did it; false also when it was so already."""
    error: KmoddError | None = None


class KernelCalls:
    """Makes steps real."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        capable: Callable[[int], bool] = lambda worker: True,
        authorised: Callable[[Step], str] = lambda step: "",
    ) -> None:
        """`capable` tells whether a worker, by process number, holds CAP_SYS_MODULE; called only after an EPERM.

        `authorised` answers the SHA-256 that the file of a step must have; empty if the content is not fixed.
        """
        self._kernel = kernel
        self._capable = capable
        self._authorised = authorised

    async def make(self, step: Step, timeout: float, parameters: tuple[str, ...] = ()) -> CallResult:
        """Take the step; `given` names the parameters that the caller, not the configuration, wants set."""
        for tries_left in reversed(range(_TRIES)):
            called = await self._try(step, timeout, parameters, last=not tries_left)
            if called is not None:
                return called
        raise AssertionError("the last try answers")

    async def _try(
        self, step: Step, timeout: float, parameters: tuple[str, ...], *, last: bool = False
    ) -> CallResult | None:
        """Make the call; None if it collided with another call on the same module, and may be repeated."""
        try:
            mark = self._kernel.log.mark()
        except OSError as error:
            return _not_made(step, error)
        try:
            try:
                if step.action is StepAction.REMOVE:
                    outcome = await self._kernel.executor.remove(step.module, timeout=timeout)
                else:
                    outcome = await self._kernel.executor.insert(
                        step.path,
                        spell(step.parameters) if step.parameters else "",
                        sha256=self._authorised(step),
                        timeout=timeout,
                    )
            except OSError as error:
                return _not_made(step, error)
            if outcome.kind == "done" and outcome.errno == 0:
                return CallResult(outcome, changed=True)
            try:
                return await self._judge(step, outcome, mark, parameters, last=last)
            except OSError as error:
                # What became of the call counts, though not all about it can be read.
                return CallResult(outcome, changed=False, error=machine_fault(error, step.module))
        finally:
            mark.close()

    async def _judge(
        self, step: Step, outcome: Outcome, mark: LogMark, parameters: tuple[str, ...], *, last: bool
    ) -> CallResult | None:
        if self._was_so_already(step, outcome):
            return CallResult(outcome, changed=False, error=_ignored_parameters(step) if parameters else None)
        evidence = await self._gather(step, outcome, mark.lines(), parameters)
        if _was_crossed(evidence) and not last:
            return None
        error = diagnose(evidence)
        if mark.fault:
            error.evidence = replace(error.evidence, log_fault=mark.fault)
        return CallResult(outcome, changed=False, error=error)

    def _was_so_already(self, step: Step, outcome: Outcome) -> bool:
        if outcome.kind != "done":
            return False
        if step.action is StepAction.REMOVE:
            return outcome.errno == codes.ENOENT
        if outcome.errno != codes.EEXIST:
            return False
        # An init() may return EEXIST itself: then the module is not loaded.
        module = self._kernel.loaded.read(step.module)
        return module is not None and module.state is State.LIVE

    async def _gather(
        self, step: Step, outcome: Outcome, log: tuple[str, ...], parameters: tuple[str, ...]
    ) -> StepEvidence:
        module = self._kernel.loaded.read(step.module)
        busy = step.action is StepAction.REMOVE and outcome.errno in (codes.EAGAIN, codes.EBUSY)
        users = (await self._kernel.inspection.users(step.module)).users if busy and module is not None else ()
        signed, signer, missing, fault = self._judge_file(step)
        untrusted = step.action is StepAction.INSERT and outcome.errno in _UNTRUSTED
        return StepEvidence(
            step=step,
            outcome=outcome,
            facts=self._kernel.facts.read(),
            log=log,
            module=module,
            users=users,
            options=tuple(rule for rule in self._kernel.index.rules(step.file) if rule.kind == "options"),
            given=parameters,
            signed=signed,
            signer=signer,
            keys=self._kernel.facts.trusted_keys() if untrusted else (),
            file_missing=missing,
            file_fault=fault,
            capable=self._capable(outcome.worker) if outcome.errno == codes.EPERM else True,
        )

    def _judge_file(self, step: Step) -> tuple[bool, str, bool, str]:
        """Whether the file is signed, by whom, whether it is missing, and what is wrong with it."""
        if step.action is StepAction.REMOVE:
            return True, "", False, ""
        try:
            info = self._kernel.index.info(step.file)
        except KmoddError as error:
            # NoSuchModule: the index has no such file any more. BadModule: gone, or one that cannot be parsed, which the
            # kernel's lines tell better where there are any.
            return False, "", error.name() == "NoSuchModule" or error.evidence.errno == codes.ENOENT, error.message
        return info.signed, info.signer, False, ""


def _not_made(step: Step, error: OSError) -> CallResult:
    """The kernel was not called: the executor says so by raising."""
    return CallResult(Outcome("done", error.errno or codes.EIO), changed=False, error=no_worker(error, step.module))


def _was_crossed(evidence: StepEvidence) -> bool:
    """Tell whether the module was there, or going, when the kernel looked for one of its name, and is gone now.

    An init() that returns EEXIST or EBUSY itself, without a message, looks the same the first time.
    """
    inserting = evidence.step.action is StepAction.INSERT and evidence.outcome.kind == "done"
    return inserting and evidence.errno in (codes.EEXIST, codes.EBUSY) and not evidence.init_lines


def _ignored_parameters(step: Step) -> Conflict:
    return Conflict(
        f"{step.module} was loaded concurrently without these parameters; reload it to apply them",
        module=step.module,
        evidence=Evidence(errno=codes.EEXIST, hint=f"kmodctl reload {step.module}"),
    )


class StuckCalls:
    """Tracks modules stuck in a kernel call, of this process, an earlier one or another program."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        locks: ModuleLocks,
        jobs: Jobs,
        failures: Failures,
        events: Events,
        clock: Clock,
        record: Callable[[Record], None],
    ) -> None:
        """`record` writes to the journal."""
        self._kernel = kernel
        self._locks = locks
        self._jobs = jobs
        self._failures = failures
        self._events = events
        self._clock = clock
        self._record = record
        self._held: dict[int, set[ModuleName]] = {}
        """Modules that each job has stuck in the kernel."""
        self._adopted: set[ModuleName] = set()
        """Modules whose call another daemon before this one made; the end of its worker will tell what became of it."""
        self._found: set[ModuleName] = set()
        """Modules that another program was loading or unloading at start, and may be still."""

    def held(self, number: int) -> frozenset[ModuleName]:
        """Modules that a job has stuck in the kernel."""
        return frozenset(self._held.get(number, ()))

    def flight(self, name: ModuleName, number: int) -> InFlight:
        """The operation on a module, queued since job `number` (0: no job)."""
        lock = self._locks.find(name)
        if lock is not None and lock.stuck:
            return InFlight.STUCK
        failure = self._failures.get(name)
        if failure is not None and failure.stuck and self._is_half_way(name):
            return InFlight.STUCK
        return InFlight.NONE if lock is None or lock.owner == number else InFlight.RUNNING

    def count(self) -> int:
        """How many calls hang, those of another daemon before this one included."""
        hanging = 0
        for failure in self._failures.stuck:
            # Not what crashed: that holds no worker any more.
            hanging += failure.error == TimedOut.name() and self._is_half_way(failure.module)
        return max(self._kernel.executor.abandoned, hanging)

    def forget(self, name: ModuleName) -> bool:
        """Forget a failure; False when there was none, Stuck while the kernel has not let go."""
        failure = self._failures.get(name)
        if failure is None:
            return False
        if self._locks.is_stuck(name) or (failure.stuck and self._is_half_way(name)):
            raise stuck_error(name)
        return self._failures.forget(name)

    def recover(self) -> None:
        """At start: know again what is stuck in the kernel, and forget that about what is not any more.

        A module in transition by another program may be loading normally, as many do at boot: it is checked again later.
        """
        for name, module in self._kernel.loaded.snapshot().items():
            if module.state not in _HALF_WAY:
                continue
            recorded = self._failures.get(name)
            if recorded is not None and recorded.stuck:
                self._watch_abandoned(recorded)
                continue
            self._found.add(name)
        if self._found:
            asyncio.get_running_loop().call_later(STUCK_AFTER, self._find)
        for failure in self._failures.stuck:
            if not self._is_half_way(failure.module):
                self._failures.settle(failure.module)
                self._record(released_record(_step(failure), 0, Outcome("done"), still_there=False))

    def _find(self) -> None:
        """Take modules in transition since before the start for stuck: no event reports a call that does not end."""
        for name in sorted(self._found):
            module = self._kernel.loaded.read(name)
            if module is None or module.state not in _HALF_WAY:
                continue
            action = StepAction.INSERT if module.state is State.COMING else StepAction.REMOVE
            doing = "load" if action is StepAction.INSERT else "unload"
            self._failures.remember(
                Failure(
                    module=name,
                    action=doing,
                    error=Stuck.name(),
                    message=f"{name} was partially {doing}ed when kmodd started",
                    evidence=Evidence(hint=f"kmodctl why {name}; once the call returns: kmodctl reset-failed {name}"),
                    time=self._clock(),
                    stuck=True,
                )
            )
            self._events.publish(StepFailed(name, action, Stuck.name(), 0, stuck=True))
        self._found.clear()

    def _watch_abandoned(self, failure: Failure) -> None:
        """Wait for the end of a call that an earlier daemon gave up: what it does after all is its caller's doing."""
        by, name = failure.by, failure.module
        if by is None or not self._kernel.executor.watch_abandoned(
            failure.worker, lambda: self._abandoned_ended(failure, by)
        ):
            return  # its worker is gone: it crashed, and the kernel keeps the module as it is
        self._adopted.add(name)
        self._events.publish(StepStarted(name, _step(failure).action, by))

    def _abandoned_ended(self, failure: Failure, by: LoadedBy) -> None:
        self._adopted.discard(failure.module)
        # The total time, from the start of the operation.
        outcome = Outcome("crashed", 0, max(0, self._clock() - by.time))
        self._end(_step(failure), 0, outcome, by)

    def observe(self, number: int, step: Step, called: CallResult, by: LoadedBy) -> None:
        """Remember what went wrong with a call, and forget what went wrong before when it went well."""
        name = step.module
        if called.error is None and step.because != "undone" and self._failures.get(name) is not None:
            self._failures.forget(name)  # bringing it back, as undoing does, would not make good what failed
        if called.error is None or (step.optional and called.outcome.kind == "done"):
            # A soft dependency without its hardware, a dependency that turned out to be in use: nothing failed.
            return
        stuck = called.outcome.kind == "timed-out"
        self._failures.remember(
            Failure(
                module=name,
                action="load" if step.action is StepAction.INSERT else "unload",
                error=called.error.name(),
                message=called.error.message,
                evidence=called.error.evidence,
                time=self._clock(),
                stuck=stuck or (called.outcome.kind == "crashed" and self._is_half_way(name)),
                by=by if stuck else None,
                worker=self._kernel.executor.identify(called.outcome.worker) if stuck else "",
            )
        )
        if stuck:
            self._held.setdefault(number, set()).add(name)
            self._locks.mark_stuck(name, number)
            self._jobs.stick(number)
            self._kernel.executor.on_return(
                called.outcome.worker, lambda outcome: self._returned(number, step, outcome, by)
            )

    def _returned(self, number: int, step: Step, outcome: Outcome, by: LoadedBy) -> None:
        self._locks.release((step.module,), number)
        self._end(step, number, outcome, by)
        held = self._held.get(number, set())
        held.discard(step.module)
        if not held:
            self._held.pop(number, None)
            self._jobs.finish(number, "TimedOut")

    def _end(self, step: Step, number: int, outcome: Outcome, by: LoadedBy) -> None:
        """A call that was given up has ended."""
        name = step.module
        still_there = self._is_half_way(name)
        if not still_there and self._is_loaded(name) == (step.action is StepAction.INSERT):
            self._events.publish(StepSucceeded(name, step.action, by, outcome.duration_usec))
        else:
            self._events.publish(StepFailed(name, step.action, "TimedOut", outcome.duration_usec, stuck=still_there))
        if not still_there:
            self._failures.settle(name)
        self._record(released_record(step, number, outcome, still_there=still_there))

    def on_event(self, event: ModuleAdded | ModuleRemoved) -> None:
        """A call that kmodd neither made nor waits for (another program's load) ends by a uevent."""
        name = event.name
        if name in self._found and not self._is_half_way(name):
            self._found.discard(name)
        failure = self._failures.get(name)
        if failure is None or not failure.stuck or name in self._adopted:
            return
        if self._locks.is_stuck(name) or self._is_half_way(name):
            return
        if failure.error == Stuck.name():
            # Only ever seen in transition, and now it is through: nothing failed.
            self._failures.forget(name)
        else:
            self._failures.settle(name)
        self._record(released_record(_step(failure), 0, Outcome("done"), still_there=False))

    def _is_loaded(self, name: ModuleName) -> bool | None:
        """None where that cannot be read."""
        try:
            return self._kernel.loaded.read(name) is not None
        except OSError:
            return None

    def _is_half_way(self, name: ModuleName) -> bool:
        try:
            module = self._kernel.loaded.read(name)
        except OSError:
            return True  # not known to be over
        return module is not None and module.state in _HALF_WAY


def _step(failure: Failure) -> Step:
    return Step(StepAction.INSERT if failure.action == "load" else StepAction.REMOVE, failure.module)
