# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tracks modules stuck in a kernel call, including calls of other programs and of an earlier daemon, and their late results."""

import asyncio
from collections.abc import Callable

from kmodd.core.audit.records import released_record
from kmodd.core.events import Clock, Events, ModuleAdded, ModuleRemoved, StepFailed, StepStarted, StepSucceeded
from kmodd.core.operations.calls import CallResult
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import Jobs
from kmodd.core.operations.locks import ModuleLocks
from kmodd.core.planning.insert import stuck as stuck_error
from kmodd.core.planning.planned_state import InFlight
from kmodd.errors import Evidence, Stuck, TimedOut
from kmodd.kernel.ports import Kernel
from kmodd.model import Failure, LoadedBy, Outcome, Record, State, Step, StepAction
from kmodd.names import ModuleName

_HALF_WAY = (State.COMING, State.GOING)
STUCK_AFTER = 30.0
"""Seconds after which another program's load or unload counts as stuck. The slowest drivers take some seconds, more at boot."""


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
        if self._locks.is_stuck(name):
            return InFlight.STUCK
        failure = self._failures.get(name)
        if failure is not None and failure.stuck and self._is_half_way(name):
            return InFlight.STUCK
        owner = self._locks.owner(name)
        return InFlight.NONE if owner is None or owner == number else InFlight.RUNNING

    def count(self) -> int:
        """How many calls hang, those of another daemon before this one included."""
        # Not what crashed: that holds no worker any more.
        hanging = sum(
            failure.error == TimedOut.name() and self._is_half_way(failure.module) for failure in self._failures.stuck
        )
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
        if called.error is None and step.because != "undone":  # bringing it back does not make good what failed
            self._failures.forget(name)
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
