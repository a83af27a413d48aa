# SPDX-License-Identifier: LGPL-2.1-or-later
"""Live parameters: what may be written, writing, and reading back what the kernel made of it."""

import asyncio
import errno as codes
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from kmodd.core.afterwards import Afterwards
from kmodd.core.api import Audit, Clock, Events, ModuleChanged
from kmodd.core.arguments import UNSET
from kmodd.core.insertion import check_value, stuck
from kmodd.core.locks import ModuleLocks
from kmodd.core.near import did_you_mean
from kmodd.core.unbroken import unbroken
from kmodd.errors import (
    BadParameter,
    Builtin,
    Busy,
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
from kmodd.kernel.ports import Facts, LoadedModules, ModuleIndex
from kmodd.model import Caller, ParameterValue, Record, State
from kmodd.names import ModuleName

TIMEOUT = 30.0
"""Seconds; setters run code of the module, which may wait for hardware."""
_OWNER = -1
"""Jobs are numbered from one; parameter writes share the locks but are no jobs, and are numbered downwards."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ParameterWrite:
    """A checked request to write one parameter; what is authorised is what is written."""

    module: ModuleName
    parameter: str
    """As the file below /sys/module/M/parameters is called."""
    value: str
    reason: str = ""
    public: bool = False
    """Everyone may read it; other values are kept out of the journal."""


class Parameters:
    """Writes live parameters of loaded modules."""

    def __init__(
        self,
        index: ModuleIndex,
        loaded: LoadedModules,
        facts: Facts,
        *,
        locks: ModuleLocks,
        audit: Audit,
        events: Events,
        clock: Clock,
        timeout: float = TIMEOUT,
    ) -> None:
        """`locks` are those of Operations: a module is not written to while it is loaded or unloaded."""
        self._index = index
        self._loaded = loaded
        self._facts = facts
        self._locks = locks
        self._audit = audit
        self._events = events
        self._clock = clock
        self._timeout = timeout
        self._afterwards = Afterwards()
        self._last = _OWNER

    def prepare(self, module: ModuleName, parameter: str, value: str, *, reason: str = "") -> ParameterWrite:
        """Check a request by public facts only, before anybody is asked for a password.

        Raises Builtin (never settable), NotLoaded, NoSuchModule, NoSuchParameter, ReadOnlyParameter, BadParameter, Busy.
        """
        found = self._find(module, parameter)
        kinds = self._kinds(module)
        check_value(module, parameter, kinds.get(parameter, ""), value)
        return ParameterWrite(module, found.name, value, reason, found.public)

    def opposite(self, write: ParameterWrite) -> ParameterWrite | None:
        """What writes the value that the parameter has now; None when that cannot be read, or not be given back."""
        value = self._read(write)
        return None if value is None or UNSET in value else replace(write, value=value)

    async def write(self, write: ParameterWrite, caller: Caller) -> str:
        """Write it under the module's lock and answer what the kernel holds then.

        Besides the errors of `prepare`, which is asked again: Stuck, Lockdown, NotPermitted, TimedOut. What the setter
        refuses is BadParameter.
        """
        self._last -= 1
        owner = self._last
        taken = await self._locks.take((write.module,), owner)
        # As with operations: when the caller leaves, the setter goes on, and so must what follows it.
        return await unbroken(asyncio.get_running_loop().create_task(self._locked(write, caller, owner, taken)))

    async def _locked(self, write: ParameterWrite, caller: Caller, owner: int, taken: tuple[ModuleName, ...]) -> str:
        begun = self._clock()
        try:
            if not taken:
                raise stuck(write.module)
            held = await self._write(write, owner)
        except KmoddError as error:
            self._record(write, caller, begun, error=error)
            raise
        finally:
            # A setter that hangs keeps the lock; it is marked as stuck and released when the setter ends.
            if not self._locks.is_stuck(write.module):
                self._locks.release(taken, owner)
        self._record(write, caller, begun, held=held)
        return held

    async def _write(self, write: ParameterWrite, owner: int) -> str:
        found = self._find(write.module, write.parameter)
        before = self._read(write)
        try:
            await self._in_thread(
                write, owner, lambda: self._loaded.write_parameter(write.module, found.name, write.value)
            )
        except OSError as error:
            raise self._refused(write, error) from error
        after = self._read(write)
        if after != before or after is None:
            self._afterwards.soon(lambda: self._events.publish(ModuleChanged(write.module, ("Parameters",))))
        return write.value if after is None else after

    def _find(self, module: ModuleName, parameter: str) -> ParameterValue:
        if self._index.is_builtin(module) or self._loaded.is_builtin(module):
            raise Builtin(
                f"{module} is built into the kernel, and parameters of built-ins are not settable", module=module
            )
        state = self._loaded.read(module)
        if state is None:
            if not self._index.exists(module):
                raise NoSuchModule(
                    f"there is no module {module}",
                    module=module,
                    evidence=Evidence(hint=did_you_mean(module, self._index.available())),
                )
            raise NotLoaded(
                f"{module} is not loaded, so it has no live parameters",
                module=module,
                evidence=Evidence(hint=f"kmodctl load {module} {parameter}=…"),
            )
        if state.state is not State.LIVE:
            raise Busy(f"{module} is being loaded or unloaded at this moment, ask again when it is done", module=module)
        live = self._loaded.parameters(module)
        found = next((p for p in live if p.name.replace("-", "_") == parameter.replace("-", "_")), None)
        if found is None:
            raise self._no_parameter(module, parameter, [p.name for p in live])
        if not found.writable:
            raise _read_only(module, parameter)
        return found

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
            return {p.name.replace("-", "_"): p.type for p in self._index.info(module).parameters}
        except KmoddError:
            # Loaded from a file that is not in the tree, or is gone: the kernel judges the values alone.
            return {}

    def _read(self, write: ParameterWrite) -> str | None:
        live = self._loaded.parameters(write.module, private=True)
        return next((p.value for p in live if p.name == write.parameter), None)

    async def _in_thread(self, write: ParameterWrite, owner: int, call: Callable[[], T]) -> T:
        """Run a setter of the module's own where it can hang without anybody else noticing.

        A thread of its own, not the loop's pool: a pool waits for its threads at exit, and one that hangs in the kernel
        would keep a place in it for ever.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()
        late = False

        def finish(result: T | None, error: Exception | None) -> None:
            if late:
                self._locks.release((write.module,), owner)
            elif error is not None and not ended.done():
                ended.set_exception(error)
            elif not ended.done():
                ended.set_result(result)  # type: ignore[arg-type]  # None where T is None

        def run() -> None:
            result, error = None, None
            try:
                result = call()
            except Exception as caught:  # noqa: BLE001 - carried over to the caller's task, whatever it is
                error = caught
            # The loop is closed when the daemon ended before the setter did: nobody waits then.
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, result, error)

        threading.Thread(target=run, name=f"set {write.module}", daemon=True).start()
        try:
            done, _ = await asyncio.wait({ended}, timeout=self._timeout)
        except asyncio.CancelledError:
            # The daemon ends; the setter goes on, and the lock is the module's until it does.
            late = True
            self._locks.mark_stuck(write.module, owner)
            raise
        if not done:
            late = True
            self._locks.mark_stuck(write.module, owner)
            raise TimedOut(
                f"writing parameter {write.parameter} of {write.module} has not come back after {self._timeout:g} s",
                module=write.module,
                evidence=Evidence(parameter=write.parameter, hint="journalctl -k"),
            )
        return ended.result()

    def _refused(self, write: ParameterWrite, error: OSError) -> KmoddError:
        name = errno_name(error.errno or 0)
        evidence = Evidence(errno=error.errno, parameter=write.parameter, hint=f"kmodctl show {write.module}")
        kind: type[KmoddError] = BadParameter
        sentence = f"{write.module} does not accept this value for parameter {write.parameter} ({name})"
        if error.errno in (codes.ENOENT, codes.ENODEV):
            kind, sentence = NotLoaded, f"{write.module} was unloaded meanwhile"
        elif error.errno in (codes.EACCES, codes.EROFS):
            kind, sentence = ReadOnlyParameter, f"parameter {write.parameter} of {write.module} cannot be written"
        elif error.errno == codes.EPERM:
            locked = self._facts.read().lockdown != "none"
            kind = Lockdown if locked else NotPermitted
            why = "the kernel is locked down and" if locked else "the kernel"
            sentence = f"{why} does not let parameter {write.parameter} of {write.module} be written"
        elif error.errno in (codes.EBUSY, codes.EAGAIN):
            kind, sentence = Busy, f"{write.module} cannot change parameter {write.parameter} at this moment"
        return kind(sentence, module=write.module, argument=write.parameter, evidence=evidence)

    def _record(
        self, write: ParameterWrite, caller: Caller, begun: int, *, held: str = "", error: KmoddError | None = None
    ) -> None:
        extra = {"PARAMETER": write.parameter}
        if write.public:
            extra["VALUE"] = write.value
            if error is None:
                extra["HELD"] = held
        record = Record(
            "parameter.set" if error is None else "operation.failed",
            f"parameter {write.parameter} of {write.module} was set" if error is None else error.message,
            module=write.module,
            action="set-parameter",
            result="changed" if error is None else "failed",
            error=error.name() if error is not None else "",
            uid=caller.uid,
            sender=caller.sender,
            exe=caller.exe,
            on_behalf_of=caller.on_behalf_of,
            reason=write.reason,
            duration_usec=self._clock() - begun,
            errno=error.evidence.errno if error is not None else None,
            hint=error.evidence.hint if error is not None else "",
            priority=6 if error is None else 4,
            extra=extra,
        )
        self._afterwards.soon(lambda: self._audit.record(record))

    def flush(self) -> None:
        """Write the records that wait for a caller's answer to be gone."""
        self._afterwards.flush()


def _read_only(module: ModuleName, parameter: str) -> ReadOnlyParameter:
    return ReadOnlyParameter(
        f"parameter {parameter} of {module} can be given when loading only",
        module=module,
        argument=parameter,
        evidence=Evidence(parameter=parameter, hint=f"kmodctl reload {module} {parameter}=…"),
    )
