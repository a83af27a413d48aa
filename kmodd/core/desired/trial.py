# SPDX-License-Identifier: LGPL-2.1-or-later
"""The desired state on trial: what `Apply` loads, unloads and sets is taken back unless it is confirmed.

How to take it back is on disk before anything is done, so that a crash changes nothing of that. kmodd's own files are written at the
confirmation only: they would act in the next boot, and a reboot ends a trial. What was taken back is not applied by itself
afterwards, by no boot either, until the next `Apply`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kmodd.core.events import Audit, Clock
from kmodd.core.operations.operations import Operations
from kmodd.core.trial import STOPPED, UNCONFIRMED, TrialDeadline, in_utc
from kmodd.errors import Conflict, Evidence, KmoddError, NotLoaded
from kmodd.fast_dataclass import dataclass
from kmodd.model import Caller, HealthCheck, HealthStatus, Operation, OperationResult, Record, Request, Result, Verb
from kmodd.names import ModuleName, parse_module

CONFIRM, REVERT = "apply-confirm", "apply-revert"
KMODD = Caller("", 0, exe="kmodd")
"""Who ends a trial that is not confirmed."""
_HINT = "kmodctl config confirm, or kmodctl config revert"
_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class KeptTrial:
    """What is on disk of a trial."""

    until: int
    """When it ends, in microseconds since the epoch; 0 for one that ended without a confirmation."""
    boot: str
    """In which boot it was begun."""
    held: tuple[ModuleName, ...]
    """Modules that are not loaded and unloaded by the desired state alone."""
    undo: tuple[Operation, ...] = ()

    def dump(self) -> bytes:
        """As JSON."""
        undo = [[each.verb.value, each.module, each.parameters] for each in self.undo]
        return json.dumps({"until": self.until, "boot": self.boot, "held": self.held, "undo": undo}).encode()


def load(text: bytes) -> KeptTrial:
    """Read it back; Conflict for what `dump` did not write."""
    try:
        row: dict[str, Any] = json.loads(text)
        undo = (
            Operation(
                Verb(verb), parse_module(module), tuple((str(key), str(value)) for key, value in given), itself=True
            )
            for verb, module, given in row["undo"]
        )
        return KeptTrial(int(row["until"]), str(row["boot"]), tuple(map(parse_module, row["held"])), tuple(undo))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, KmoddError) as error:
        raise Conflict("the file about the trial of the desired state is damaged") from error


class ApplyTrial:
    """At most one, over restarts."""

    def __init__(
        self,
        operations: Operations,
        *,
        audit: Audit,
        clock: Clock,
        boot: str = "",
        read: Callable[[], bytes | None] = lambda: None,
        write: Callable[[bytes | None], None] = lambda data: None,
    ) -> None:
        """`boot` is the running kernel's own id; `write` raises KmoddError where the state cannot be kept."""
        self._operations = operations
        self._audit = audit
        self._clock = clock
        self._boot = boot
        self._read = read
        self._write = write
        self._kept: KeptTrial | None = None
        self._before: KeptTrial | None = None
        """What was kept when the trial was begun."""
        self._busy = False
        self._deadline = TrialDeadline(clock, lambda: self._take_back(KMODD, UNCONFIRMED))

    @property
    def until(self) -> int:
        """When it ends; 0 without a trial."""
        return 0 if self._kept is None else self._kept.until

    @property
    def told(self) -> str:
        """The trial as a clause; empty for none."""
        return f"the desired state is on trial until {in_utc(self.until)}" if self.until else ""

    def held(self) -> Sequence[ModuleName]:
        """Modules that nothing but `Apply` brings to the desired state."""
        return () if self._kept is None else self._kept.held

    def refuse(self) -> None:
        """Conflict while there is one."""
        if self.until:
            raise Conflict(self.told, evidence=Evidence(hint=_HINT))

    def health(self) -> list[HealthCheck]:
        """That there is one."""
        if not self.until:
            return []
        return [HealthCheck("desired-trial", HealthStatus.DEGRADED, f"T{self.told[1:]}.", "", _HINT)]

    # --- beginning and end --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Go on with the trial of an earlier process; one of an earlier boot is over. Before the desired state is applied."""
        try:
            text = self._read()
            self._kept = None if text is None else load(text)
        except (Conflict, OSError) as error:
            self._audit.record(Record("daemon.trouble", f"a trial may not be taken back: {error}", priority=4))
            return
        if self._kept is None or not self._kept.until:
            return
        if self._kept.boot == self._boot:
            self._deadline.set(self._kept.until)
        else:
            self._end(self._kept, KMODD, "the system was rebooted", failed=())

    async def close(self) -> None:
        """Take it back: nothing would end it while kmodd is stopped."""
        await self._deadline.close()
        await self._take_back(KMODD, STOPPED)

    def begin(self, undo: Sequence[Operation], held: Sequence[ModuleName], seconds: int) -> None:
        """Keep how to take back what is about to be done; NotPermitted."""
        before = self._kept
        both = tuple(dict.fromkeys((*held, *self.held())))
        trial = KeptTrial(self._clock() + seconds * 1_000_000, self._boot, both, tuple(undo))
        self._write(trial.dump())
        self._before, self._kept = before, trial
        self._deadline.set(trial.until)

    def cancel(self) -> None:
        """It came to nothing: all is as before `begin`; NotPermitted."""
        if self.until:
            self._write(None if self._before is None else self._before.dump())
            self._kept = self._before
            self._deadline.cancel()

    def forget(self) -> None:
        """Nothing is on trial, and nothing held back: it is confirmed or applied; NotPermitted."""
        if self._kept is not None:
            self._write(None)
            self._kept = None
            self._deadline.cancel()

    async def revert(self, caller: Caller) -> Sequence[OperationResult]:
        """Take it back now; Conflict without a trial."""
        results = await self._take_back(caller, caller.reason)
        if results is None:
            raise no_trial()
        return results

    async def _take_back(self, caller: Caller, reason: str) -> Sequence[OperationResult] | None:
        kept = self._kept
        if kept is None or not kept.until or self._busy:
            return None
        self._busy = True
        self._deadline.cancel()
        try:
            results = [await self._undo(operation, caller, reason) for operation in kept.undo]
        finally:
            self._busy = False
        self._end(kept, caller, reason, failed=[result.module for result in results if result.error is not None])
        return results

    async def _undo(self, operation: Operation, caller: Caller, reason: str) -> OperationResult:
        """One at a time: what another program has changed meanwhile does not keep the rest."""
        # The interfaces that it brought go with it.
        request = Request((operation,), reason=reason, timeout=_TIMEOUT, disconnect=True)
        try:
            plan = self._operations.plan(request)
            if plan.unread or plan.unseen:
                plan = self._operations.plan(request, await self._operations.look(plan))
            (result,) = await self._operations.execute(plan, caller)
        except KmoddError as error:
            result = OperationResult(str(operation.module), Result.FAILED, error, action=operation.verb.value)
        if isinstance(result.error, NotLoaded):
            return replace(result, result=Result.UNCHANGED, error=None)
        return result

    def _end(self, kept: KeptTrial, caller: Caller, reason: str, failed: Sequence[str]) -> None:
        self._kept = KeptTrial(0, kept.boot, kept.held)
        try:
            self._write(self._kept.dump())
        except KmoddError as error:
            self._audit.record(Record("daemon.trouble", error.message, priority=4))
        state = f"was not taken back for {' '.join(failed)}" if failed else "was taken back"
        record = Record(
            "desired.applied",
            f"the desired state {state}, after a trial",
            action=REVERT,
            result=Result.FAILED if failed else Result.CHANGED,
            reason=reason,
            priority=4 if failed else 5,
        )
        self._audit.record(record.by(caller).about(kept.held))


def no_trial() -> Conflict:
    """There is nothing to confirm or to take back."""
    return Conflict("no desired state is on trial", evidence=Evidence(hint="kmodctl config apply --try 10m"))
