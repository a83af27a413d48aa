# SPDX-License-Identifier: LGPL-2.1-or-later
"""Live parameters: which may be written, writing, and reading back the value that the kernel stored."""

import asyncio
import errno as codes
from dataclasses import replace

from kmodd.core.audit.records import failed_record
from kmodd.core.events import Audit, Clock, Events, ModuleChanged
from kmodd.core.operations.jobs import Deferred, ModuleLocks, run_to_completion
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.planning.insert import stuck
from kmodd.core.planning.parameters import UNSET, check_value, checked_type, declared
from kmodd.errors import (
    BadParameter,
    Builtin,
    Busy,
    Crashed,
    Evidence,
    KmoddError,
    Lockdown,
    NoSuchModule,
    NoSuchParameter,
    NotLoaded,
    NotPermitted,
    ReadOnlyParameter,
    TimedOut,
    errno_name,
)
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Facts, LoadedModules, ModuleIndex
from kmodd.model import Caller, Outcome, ParameterValue, Record, Result, State
from kmodd.model.arguments import key
from kmodd.names import ModuleName
from kmodd.suggestions import did_you_mean, which_module

TIMEOUT = 30.0
"""Seconds; setters run code of the module, which may wait for hardware."""
_OWNER = -1
"""Jobs are numbered from one; parameter writes share the locks but are no jobs, and are numbered downwards."""


@dataclass(frozen=True, slots=True)
class ParameterWrite:
    """A checked request to write one parameter; exactly this is authorized and written."""

    module: ModuleName
    parameter: str
    """As the file below /sys/module/M/parameters is called."""
    value: str
    reason: str = ""
    public: bool = False
    """Everyone may read it; other values are kept out of the journal."""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a parameter that was written."""

    held: str
    """What the kernel holds now; what was written where that cannot be read."""
    changed: bool
    """It is another value than before, or one of the two cannot be read."""


class ParameterCalls:
    """Checks and makes the calls that write live parameters. The caller holds the module's lock."""

    def __init__(
        self,
        index: ModuleIndex,
        loaded: LoadedModules,
        facts: Facts,
        values: LiveValues,
        *,
        given: GivenValues,
        timeout: float = TIMEOUT,
    ) -> None:
        self._index = index
        self._loaded = loaded
        self._facts = facts
        self._values = values
        self._given = given
        self._timeout = timeout

    def prepare(self, module: ModuleName, parameter: str, value: str, *, reason: str = "") -> ParameterWrite:
        """As of `Parameters`."""
        parameter_info = self._find(module, parameter)
        kinds = self._kinds(module)
        check_value(module, parameter, kinds.get(parameter, ""), value)
        return ParameterWrite(module, parameter_info.name, value, reason, parameter_info.public)

    async def opposite(self, write: ParameterWrite) -> ParameterWrite | None:
        """As of `Parameters`."""
        value = await self._read(write)
        return None if value is None or UNSET in value else replace(write, value=value)

    async def make(self, write: ParameterWrite, locks: ModuleLocks, owner: int) -> WriteResult:
        """Write it under the lock of `owner`; a setter that hangs keeps the lock, marked as stuck, until it ends.

        Raises the errors of `Parameters.write`.
        """
        parameter_info = self._find(write.module, write.parameter)
        before = await self._read(write)
        # A setter of another program may hang, or one from before a restart: the reader has just found out.
        if self._values.is_hung(write.module):
            raise stuck(write.module)
        outcome = await self._values.write(
            write.module,
            parameter_info.name,
            write.value,
            timeout=self._timeout,
            released=lambda: locks.release((write.module,), owner),
        )
        if outcome.kind == "timed-out":
            locks.mark_stuck(write.module, owner)
        if outcome.kind != "done" or outcome.errno:
            raise self._failed(write, outcome)
        after = await self._read(write)
        if after is not None:
            self._given.written(write.module, key(parameter_info.name), write.value, after)
        return WriteResult(write.value if after is None else after, after is None or after != before)

    def _find(self, module: ModuleName, parameter: str) -> ParameterValue:
        if self._index.is_builtin(module) or self._loaded.is_builtin(module):
            raise Builtin(
                f"{module} is built into the kernel, parameters of built-in modules cannot be set", module=module
            )
        state = self._loaded.read(module)
        if state is None:
            if not self._index.exists(module):
                raise NoSuchModule(
                    f"no such module: {module}",
                    module=module,
                    evidence=Evidence(hint=which_module(module, (*self._index.available(), *self._index.builtins()))),
                )
            raise not_loaded(module, parameter)
        if state.state is not State.LIVE:
            raise Busy(f"{module} is currently being loaded or unloaded; try again", module=module)
        live = self._values.files(module)
        match = next((p for p in live if p.name.replace("-", "_") == parameter.replace("-", "_")), None)
        if match is None:
            raise self._no_parameter(module, parameter, [p.name for p in live])
        if not match.writable:
            raise _read_only(module, parameter)
        return match

    def _no_parameter(self, module: ModuleName, parameter: str, names: list[str]) -> KmoddError:
        if parameter in self._kinds(module):
            return _read_only(module, parameter)
        return NoSuchParameter(
            f"{module} has no parameter {parameter}",
            module=module,
            argument=parameter,
            evidence=Evidence(
                parameter=parameter,
                hint=did_you_mean(parameter, names) or f"kmodctl show {module} lists its parameters",
            ),
        )

    def _kinds(self, module: ModuleName) -> dict[str, str]:
        try:
            return {name: checked_type(info) for name, info in declared(self._index.info(module)).items()}
        except KmoddError:
            # Loaded from a file that is not in the tree, or is gone: the kernel judges the values alone.
            return {}

    async def value(self, module: ModuleName, parameter: str) -> str | None:
        """What the kernel holds now; None where that cannot be read."""
        live = await self._values.read(module, private=True)
        return next((p.value for p in live if key(p.name) == key(parameter)), None)

    async def _read(self, write: ParameterWrite) -> str | None:
        return await self.value(write.module, write.parameter)

    def _failed(self, write: ParameterWrite, outcome: Outcome) -> KmoddError:
        if outcome.kind == "done":
            return self._refused(write, outcome.errno)
        setter = f"the setter of parameter {write.parameter} of {write.module}"
        if outcome.kind == "timed-out":
            seconds = max(1, round(outcome.duration_usec / 1_000_000))
            return TimedOut(
                f"{setter} has not returned after {seconds} s; {write.module} stays locked until it does",
                module=write.module,
                evidence=Evidence(
                    parameter=write.parameter,
                    hint=f"journalctl -k; cat /proc/{outcome.worker}/stack shows where it waits",
                ),
            )
        return Crashed(
            f"{setter} crashed the kernel; no parameter of {write.module} can be read or set until it is unloaded",
            module=write.module,
            evidence=Evidence(
                parameter=write.parameter,
                hint="journalctl -k has the oops; reboot soon, and report it to the module's author",
            ),
        )

    def _refused(self, write: ParameterWrite, code: int) -> KmoddError:
        name = errno_name(code)
        evidence = Evidence(errno=code, parameter=write.parameter, hint=f"kmodctl show {write.module}")
        kind: type[KmoddError] = BadParameter
        sentence = f"{write.module} does not accept this value for parameter {write.parameter} ({name})"
        if code in (codes.ENOENT, codes.ENODEV):
            kind, sentence = NotLoaded, f"{write.module} was unloaded in the meantime"
        elif code in (codes.EACCES, codes.EROFS):
            kind, sentence = ReadOnlyParameter, f"parameter {write.parameter} of {write.module} cannot be written"
        elif code == codes.EPERM:
            locked = self._facts.read().lockdown != "none"
            kind = Lockdown if locked else NotPermitted
            why = "the kernel is locked down and" if locked else "the kernel"
            sentence = f"{why} does not let parameter {write.parameter} of {write.module} be written"
        elif code in (codes.EBUSY, codes.EAGAIN):
            kind, sentence = Busy, f"{write.module} cannot change parameter {write.parameter} now"
        return kind(sentence, module=write.module, argument=write.parameter, evidence=evidence)


class Parameters:
    """Writes live parameters of loaded modules."""

    def __init__(
        self,
        calls: ParameterCalls,
        *,
        locks: ModuleLocks,
        audit: Audit,
        events: Events,
        clock: Clock,
    ) -> None:
        """`calls` and `locks` are those of Operations: a module is not written to while it is loaded or unloaded."""
        self._calls = calls
        self._locks = locks
        self._audit = audit
        self._events = events
        self._clock = clock
        self._afterwards = Deferred()
        self._last = _OWNER

    def prepare(self, module: ModuleName, parameter: str, value: str, *, reason: str = "") -> ParameterWrite:
        """Check a request by public facts only, before the caller is prompted for a password.

        Raises Builtin (never settable), NotLoaded, NoSuchModule, NoSuchParameter, ReadOnlyParameter, BadParameter, Busy.
        """
        return self._calls.prepare(module, parameter, value, reason=reason)

    async def opposite(self, write: ParameterWrite) -> ParameterWrite | None:
        """What writes the value that the parameter has now; None when that cannot be read, or not be given back."""
        return await self._calls.opposite(write)

    async def write(self, write: ParameterWrite, caller: Caller) -> str:
        """Write it under the module's lock and answer what the kernel holds then.

        Besides the errors of `prepare`, which are checked again: Stuck, Lockdown, NotPermitted, TimedOut. What the setter
        refuses is BadParameter.
        """
        self._last -= 1
        owner = self._last
        taken = await self._locks.take((write.module,), owner)
        # As with operations: when the caller leaves, the setter continues, and so must what follows it.
        return await run_to_completion(
            asyncio.get_running_loop().create_task(self._locked(write, caller, owner, taken))
        )

    async def _locked(self, write: ParameterWrite, caller: Caller, owner: int, taken: tuple[ModuleName, ...]) -> str:
        begun = self._clock()
        try:
            if not taken:
                raise stuck(write.module)
            written = await self._calls.make(write, self._locks, owner)
        except KmoddError as error:
            self._record(write, caller, begun, error=error)
            raise
        finally:
            # A setter that hangs keeps the lock; it is marked as stuck and released when the setter ends.
            if not self._locks.is_stuck(write.module):
                self._locks.release(taken, owner)
        self._record(write, caller, begun, held=written.held)
        if written.changed:
            self._afterwards.defer(lambda: self._events.publish(ModuleChanged(write.module, ("Parameters",))))
        return written.held

    def _record(
        self, write: ParameterWrite, caller: Caller, begun: int, *, held: str = "", error: KmoddError | None = None
    ) -> None:
        extra = {"PARAMETER": write.parameter}
        if write.public:
            extra["VALUE"] = write.value
            if error is None:
                extra["HELD"] = held
        record = Record(
            "parameter.set",
            f"parameter {write.parameter} of {write.module} was set",
            module=write.module,
            action="set-parameter",
            result=Result.CHANGED,
            reason=write.reason,
            duration_usec=self._clock() - begun,
            extra=extra,
        ).by(caller)
        if error is not None:
            record = failed_record(record, error)
        self._afterwards.defer(lambda: self._audit.record(record))

    def flush(self) -> None:
        """Write the records that wait for a caller's answer to be gone."""
        self._afterwards.flush()


def not_loaded(module: ModuleName, parameter: str) -> NotLoaded:
    """Make the error for a parameter of a module that is not there."""
    return NotLoaded(
        f"{module} is not loaded, so it has no live parameters",
        module=module,
        evidence=Evidence(hint=f"kmodctl load {module} {parameter}=…"),
    )


def _read_only(module: ModuleName, parameter: str) -> ReadOnlyParameter:
    return ReadOnlyParameter(
        f"parameter {parameter} of {module} can be set only when loading",
        module=module,
        argument=parameter,
        evidence=Evidence(parameter=parameter, hint=f"kmodctl reload {module} {parameter}=…"),
    )
