# SPDX-License-Identifier: LGPL-2.1-or-later
"""The desired state on trial: what `Apply` loads, unloads and sets is taken back unless it is confirmed.

How to take it back is on disk before anything is done, so that a crash changes nothing of that. kmodd's own files are written at the
confirmation only: they would act in the next boot, and a reboot ends a trial. What was taken back is not applied by itself
afterwards, by no boot either, until the next `Apply`.
"""

import asyncio
import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kmodd.core.events import Audit, Clock
from kmodd.core.operations.operations import Operations
from kmodd.core.trial import STOPPED, TRIAL_MAX, TRIAL_RETRY, UNCONFIRMED, TrialDeadline, in_utc
from kmodd.errors import Conflict, Evidence, KmoddError, NotLoaded
from kmodd.fast_dataclass import dataclass
from kmodd.model import (
    KMODD,
    Caller,
    HealthCheck,
    HealthStatus,
    Operation,
    OperationResult,
    Record,
    Request,
    Result,
    Verb,
)
from kmodd.names import ModuleName, parse_module

CONFIRM, REVERT = "apply-confirm", "apply-revert"
_HINT = "kmodctl config confirm, or kmodctl config revert"
_TIMEOUT = 60.0
_SECOND = 1_000_000
_ATTEMPTS = 6
"""To take a trial back, some seconds apart, until an administrator has to do it."""


class _EveryModule(Container[object]):
    """What is held back where the file about it cannot be read."""

    def __contains__(self, name: object) -> bool:
        return True


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
    """What takes it back; after its end, what of that failed."""

    def dump(self) -> bytes:
        """As JSON."""
        undo = [[each.verb.value, each.module, each.parameters] for each in self.undo]
        return json.dumps({"until": self.until, "boot": self.boot, "held": self.held, "undo": undo}).encode()


def load(text: bytes) -> KeptTrial:
    """Read it back; Conflict for what `dump` did not write."""
    try:
        row: dict[str, Any] = json.loads(text)
        until, held = _moment(row["until"]), _modules(row["held"])
        undo = (
            Operation(
                Verb(verb), parse_module(module), tuple((str(key), str(value)) for key, value in given), itself=True
            )
            for verb, module, given in row["undo"]
        )
        return KeptTrial(until, str(row["boot"]), held, tuple(undo))
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError, KmoddError) as error:
        raise Conflict("the file about the trial of the desired state is damaged") from error


def _modules(names: object) -> tuple[ModuleName, ...]:
    if not isinstance(names, list):
        raise TypeError(names)
    return tuple(map(parse_module, names))


def _moment(value: object) -> int:
    """Of a trial's end; an error for what messages could not show."""
    if not isinstance(value, int):
        raise TypeError(value)
    in_utc(value + TRIAL_MAX * _SECOND)
    return value


class ApplyTrial:
    """At most one, over restarts."""

    def __init__(
        self,
        operations: Operations,
        *,
        audit: Audit,
        clock: Clock,
        boot: str,
        read: Callable[[], bytes | None],
        write: Callable[[bytes | None], None],
    ) -> None:
        """`boot` is the running kernel's own id; `write` raises KmoddError where the state cannot be kept."""
        self._operations = operations
        self._audit = audit
        self._clock = clock
        self._boot = boot
        self._read = read
        self._write = write
        self._kept: KeptTrial | None = None
        self._busy = False
        """It is being begun, confirmed or taken back."""
        self._damaged = ""
        """Why it is not known what is held back."""
        self._failed = 0
        """Attempts to take it back."""
        self._deadline = TrialDeadline(clock, self._expire)

    @property
    def until(self) -> int:
        """When it ends; 0 without a trial."""
        return 0 if self._kept is None else self._kept.until

    @property
    def told(self) -> str:
        """The trial as a clause; empty for none."""
        return f"the desired state is on trial until {in_utc(self.until)}" if self.until else ""

    @property
    def kept(self) -> KeptTrial:
        """The trial that can be confirmed or taken back, or whose end failed; Conflict without one."""
        if self._kept is None or not (self._kept.until or self._kept.undo):
            raise no_trial()
        return self._kept

    def held(self) -> Container[object]:
        """Modules that nothing but `Apply` brings to the desired state."""
        if self._damaged:
            return _EveryModule()
        return () if self._kept is None else self._kept.held

    def refuse(self) -> None:
        """Conflict while there is one."""
        if self.until:
            raise Conflict(self.told, evidence=Evidence(hint=_HINT))

    def health(self) -> list[HealthCheck]:
        """That there is one, or one whose end failed."""
        text, hint = "", _HINT
        if self._damaged:
            text, hint = f"No module is brought to the desired state: {self._damaged}.", "kmodctl config apply"
        elif self.until:
            text = f"T{self.told[1:]}."
        elif self._kept is not None and self._kept.undo:
            names = " ".join(dict.fromkeys(operation.module for operation in self._kept.undo))
            text, hint = f"The trial of the desired state was not taken back for {names}.", "kmodctl config revert"
        return [HealthCheck("desired-trial", HealthStatus.DEGRADED, text, "", hint)] if text else []

    # --- beginning and end --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Go on with the trial of an earlier process; one of an earlier boot is over. Before the desired state is applied."""
        try:
            text = self._read()
            self._kept = None if text is None else load(text)
        except (Conflict, OSError) as error:
            self._damaged = str(error)
            self._audit.record(Record("daemon.trouble", f"a trial may not be taken back: {error}", priority=4))
            return
        if self._kept is None or not (self._kept.until or self._kept.undo):
            return
        if self._kept.boot == self._boot:
            self._deadline.set(self._kept.until)
        else:
            self._end(self._kept, KMODD, "the system was rebooted", ())

    async def close(self) -> None:
        """Take it back: nothing would end it while kmodd is stopped. What cannot be ended now, the next daemon ends first."""
        await self._deadline.close()
        if self.until:
            self._persist(replace(self.kept, until=self._clock()))
        await self._take_back(KMODD, STOPPED)

    @contextmanager
    def begun(self, undo: Sequence[Operation], held: Sequence[ModuleName], seconds: int) -> Iterator[None]:
        """Keep how to take back what the block does; Conflict while there is a trial, NotPermitted.

        The time begins when the block ends by `narrow`. If it ends otherwise, what it did was undone, and all is as before.
        """
        self.refuse()
        if self._busy:
            raise Conflict("the trial of the desired state is being taken back", evidence=Evidence(hint=_HINT))
        before = self._kept
        self._deadline.cancel()
        both = tuple(dict.fromkeys((*held, *(before.held if before is not None else ()))))
        trial = KeptTrial(self._clock() + seconds * _SECOND, self._boot, both, tuple(undo))
        self._write(trial.dump())
        self._kept, self._busy, self._failed = trial, True, 0
        try:
            yield
        except asyncio.CancelledError:
            # kmodd is being stopped, and what was done may be done: the next daemon takes it back first.
            self._kept = replace(trial, until=self._clock())
            self._persist(self._kept)
            raise
        finally:
            self._busy = False
            if self._kept is trial:
                self._kept = before
                if before is not None and before.undo:
                    self._deadline.set(self._clock())
                self._write(None if before is None else before.dump())

    def narrow(self, modules: Iterable[str], parameters: Iterable[str], seconds: int) -> None:
        """The block of `begun` is through: of what was to be undone, only these modules and those whose parameters were really changed
        are, so many seconds from now."""
        changed, written = set(modules), set(parameters)
        trial = self.kept
        undo = tuple(
            each for each in trial.undo if each.module in (written if each.verb is Verb.SET_PARAMETER else changed)
        )
        self._kept = replace(trial, undo=undo, until=self._clock() + seconds * _SECOND)
        self._persist(self._kept)
        self._deadline.set(self._kept.until)

    @contextmanager
    def confirmed(self, trial: KeptTrial) -> Iterator[None]:
        """What the block does confirms this trial, which is not taken back meanwhile; Conflict if it has ended since.

        Unless it ends by `forget`, the deadline stays.
        """
        if self._busy or self._kept is not trial:
            raise Conflict(
                "the trial of the desired state ended meanwhile", evidence=Evidence(hint="kmodctl config drift")
            )
        self._busy = True
        self._deadline.cancel()
        try:
            yield
        finally:
            self._busy = False
            if self.until:
                self._deadline.set(self.until)

    def give_up(self) -> None:
        """What an earlier trial left behind stays as it is, and what is applied now is for good; Conflict while there is a trial."""
        self.refuse()
        if self._busy:
            raise Conflict("the trial of the desired state is being taken back", evidence=Evidence(hint=_HINT))
        if self._kept is not None and self._kept.undo:
            self._deadline.cancel()
            self._kept = replace(self._kept, undo=())
            self._persist(self._kept)

    def forget(self) -> None:
        """Nothing is on trial, and nothing held back: it is confirmed or applied; NotPermitted."""
        if self._kept is not None or self._damaged:
            self._write(None)
            self._kept, self._damaged = None, ""
            self._deadline.cancel()

    async def revert(self, trial: KeptTrial, caller: Caller) -> Sequence[OperationResult]:
        """Take it back now; Conflict if it has ended since, or is being confirmed or taken back."""
        if self._kept != trial:
            raise Conflict(
                "the trial of the desired state ended meanwhile", evidence=Evidence(hint="kmodctl config drift")
            )
        results = await self._take_back(caller, caller.reason)
        if results is None:
            raise Conflict("the trial of the desired state is being confirmed or taken back")
        return results

    async def _expire(self) -> None:
        results = await self._take_back(KMODD, UNCONFIRMED)
        failed = next((result.error for result in results or () if result.error is not None), None)
        if failed is not None and self._failed < _ATTEMPTS:
            raise failed  # for another attempt

    async def _take_back(self, caller: Caller, reason: str) -> Sequence[OperationResult] | None:
        kept = self._kept
        if kept is None or not (kept.until or kept.undo) or self._busy:
            return None
        self._busy = True
        self._deadline.cancel()
        try:
            results = [await self._undo(operation, caller, reason) for operation in kept.undo]
        except BaseException:
            # Without descriptors or threads, or broken off: it stays on trial.
            self._deadline.set(max(kept.until, self._clock() + int(TRIAL_RETRY) * _SECOND))
            raise
        finally:
            self._busy = False
        left = tuple(undo for undo, result in zip(kept.undo, results, strict=True) if result.error is not None)
        self._failed = self._failed + 1 if left else 0
        self._end(kept, caller, reason, left)
        return results

    async def _undo(self, operation: Operation, caller: Caller, reason: str) -> OperationResult:
        """One at a time: what another program has changed meanwhile does not keep the rest."""
        # The interfaces that it brought go with it, and what a rule keeps from being loaded was loaded before.
        request = Request((operation,), reason=reason, timeout=_TIMEOUT, disconnect=True, override_policy=True)
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

    def _persist(self, kept: KeptTrial) -> None:
        try:
            self._write(kept.dump())
        except KmoddError as error:
            self._audit.record(Record("daemon.trouble", error.message, priority=4))

    def _end(self, kept: KeptTrial, caller: Caller, reason: str, left: Sequence[Operation]) -> None:
        self._kept = KeptTrial(0, self._boot, kept.held, tuple(left))
        self._persist(self._kept)
        failed = tuple(dict.fromkeys(operation.module for operation in left))
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
