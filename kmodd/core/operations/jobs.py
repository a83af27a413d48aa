# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations in progress, as the bus exports them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from kmodd.core.events import Clock, Event, Events, JobAdded, JobChanged, JobFinished
from kmodd.core.operations.tasks import Deferred
from kmodd.errors import Busy, Stuck


class JobState(StrEnum):
    """As in the property `State` of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class Job:
    """One operation under way."""

    id: int
    action: str
    """`load`, `unload`, `reload` or `batch`."""
    module: str
    """Canonical names, separated by spaces."""
    state: JobState
    started: int
    """Microseconds since the epoch."""
    sender: str
    """Unique bus name of the caller."""
    progress: float = 0.0
    """0 to 1, of its steps."""


class Jobs:
    """Keeps them and tells what becomes of them, after the caller has the answer."""

    def __init__(self, events: Events, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self._afterwards = Deferred()
        self._jobs: dict[int, Job] = {}
        self._cancels: dict[int, Callable[[], None]] = {}
        self._last = 0

    def add(self, action: str, module: str, sender: str, state: JobState = JobState.RUNNING) -> int:
        """Begin one; answers its number, which is never used again."""
        self._last += 1
        self._jobs[self._last] = Job(self._last, action, module, state, self._clock(), sender)
        self._tell(JobAdded(self._last))
        return self._last

    def all(self) -> tuple[Job, ...]:
        """Every job under way, oldest first."""
        return tuple(self._jobs.values())

    def get(self, number: int) -> Job | None:
        """One job; None when it is over."""
        return self._jobs.get(number)

    def cancel(self, number: int) -> None:
        """End the wait of a job that has not called into the kernel; one that is over already is no error.

        Raises Busy when it runs and Stuck when it is stuck: a call into the kernel cannot be taken back.
        """
        job = self._jobs.get(number)
        if job is None:
            return
        cancel = self._cancels.get(number)
        if cancel is not None:
            cancel()
            return
        if job.state is JobState.STUCK:
            raise Stuck(
                f"the operation on {job.module} is stuck in the kernel and cannot be cancelled", module=job.module
            )
        raise Busy(f"the operation on {job.module} has started and can no longer be cancelled", module=job.module)

    def wait(self, number: int, cancel: Callable[[], None]) -> None:
        """Say that it waits, and how to end that."""
        self._cancels[number] = cancel
        self._change(number, JobState.WAITING)

    def run(self, number: int) -> None:
        """Say that it has its locks."""
        self._cancels.pop(number, None)
        self._change(number, JobState.RUNNING)

    def stick(self, number: int) -> None:
        """Say that the kernel does not come back to it."""
        self._change(number, JobState.STUCK)

    def progress(self, number: int, done: float) -> None:
        """Say how much of it is done, 0 to 1."""
        job = self._jobs.get(number)
        if job is not None and job.progress != done:
            self._jobs[number] = replace(job, progress=done)
            self._tell(JobChanged(number, ("Progress",)))

    def finish(self, number: int, result: str) -> None:
        """End it; `result` is `done`, `cancelled` or the short name of its error."""
        self._cancels.pop(number, None)
        job = self._jobs.pop(number, None)
        if job is not None:
            self._tell(JobFinished(number, job.sender, job.action, job.module, result))

    def flush(self) -> None:
        """Publish what has not been published yet."""
        self._afterwards.flush()

    def _change(self, number: int, state: JobState) -> None:
        job = self._jobs.get(number)
        if job is not None and job.state is not state:
            self._jobs[number] = replace(job, state=state)
            self._tell(JobChanged(number, ("State",)))

    def _tell(self, event: Event) -> None:
        self._afterwards.defer(lambda: self._events.publish(event))
