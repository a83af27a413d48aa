# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values of live parameters, and what loaded modules were given.

Reading and writing live parameters runs code of the module, so workers do it, with deadlines.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import field, replace

from kmodd.core.events import Event, Events, ModuleAdded, ModuleChanged, ModuleRemoved
from kmodd.core.planning.parameters import same_setting, same_value
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Executor, LoadedModules
from kmodd.model import Outcome, ParameterValue
from kmodd.model.arguments import Arguments
from kmodd.names import ModuleName, is_module_name

REMEMBERED = 1024
"""Modules, and values of one module that read back in another way, at most."""
READ_TIMEOUT = 3.0
"""Seconds for all parameters of one module. A getter formats a variable; where it takes longer it hangs."""
FRESH = 1.0
"""Seconds for which a reading counts as current: the kernel sends no event when a parameter is written."""
SETTLE = 0.2
"""Seconds until the values of a new module are read: what else is loaded with it goes first."""
HUNG_MAX = 8
"""Workers that may be stuck in getters; beyond that, no more parameters are read."""
Values = tuple[ParameterValue, ...]


@dataclass(slots=True)
class _GivenParameters:
    """What one module was given, as long as it is this one that is loaded."""

    instance: int
    given: Arguments = ()
    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    """(given, what it reads back as), by parameter."""


class GivenValues:
    """Remembers the parameters that modules were inserted with or that were written since, until they go.

    A module may keep another value than it is given: nbd makes 15 of max_part=8, an array reads back longer, and many
    parameters cannot be read at all. Whether the desired value is in effect is then known only from having set it. The value it
    reads back as is recorded at the first comparison, and a different value later is a change by another program.

    All of it is kept over a restart of the daemon, and so is which modules were loaded before the first one started; it is not known
    what those were given.
    """

    def __init__(
        self,
        kept: bytes | None = None,
        keep: Callable[[bytes], None] = lambda data: None,
        instance: Callable[[ModuleName], int] = lambda name: 0,
    ) -> None:
        """`kept` is what `keep` was given last, by an earlier daemon; None for nothing.

        `instance` differs for each load of a module (`LoadedModules.instance`): what is known of a module that
        others have unloaded meanwhile is of the former one.
        """
        self._keep = keep
        self._instance = instance
        self._modules: dict[ModuleName, _GivenParameters] = {}
        self._before: dict[str, int] | None = None
        if kept is not None:
            self._take(kept)

    def begin(self, loaded: Iterable[ModuleName]) -> None:
        """Note, at the first start since the machine booted, what was loaded before."""
        if self._before is None:
            self._before = {name: self._instance(name) for name in loaded}
            self._write()

    def appeared(self, module: ModuleName) -> bool:
        """Tell whether a module that is loaded was loaded since the first start: then what kmodd gave it is known."""
        return self._before is not None and self._before.get(module) != self._instance(module)

    def of(self, module: ModuleName) -> Arguments:
        """With what it was inserted; empty where that is not known."""
        record = self._known(module)
        return record.given if record is not None else ()

    def inserted(self, module: ModuleName, parameters: Arguments) -> None:
        """Note what a module was inserted with."""
        if self._modules.pop(module, None) is None and not parameters:
            return
        if parameters:
            self._new(module).given = parameters
        self._write()

    def written(self, module: ModuleName, parameter: str, value: str, held: str) -> None:
        """Note what a live parameter was set to, and what it holds since."""
        self._note(module, parameter, value, held)

    def removed(self, module: ModuleName) -> None:
        """Forget it."""
        if self._modules.pop(module, None) is not None:
            self._write()

    def is_met(self, module: ModuleName, parameter: str, kind: str, wanted: str, shown: str | None) -> bool:
        """Whether a parameter has the desired value, given that it shows `shown`, or None if it cannot be read."""
        if shown is not None and same_value(kind, wanted, shown):
            return True
        record = self._known(module)
        if record is None:
            return False
        noted = record.held.get(parameter)
        if noted is not None and shown is not None:
            return noted[1] == shown and same_value(kind, wanted, noted[0])
        arguments = dict(record.given)
        if parameter not in arguments or not same_setting(kind, wanted, arguments[parameter]):
            return False
        if shown is not None:
            self._note(module, parameter, wanted, shown)
        return True

    def _known(self, module: ModuleName) -> _GivenParameters | None:
        record = self._modules.get(module)
        return record if record is not None and record.instance == self._instance(module) else None

    def _new(self, module: ModuleName) -> _GivenParameters:
        while len(self._modules) >= REMEMBERED:
            del self._modules[next(iter(self._modules))]
        record = self._modules[module] = _GivenParameters(self._instance(module))
        return record

    def _note(self, module: ModuleName, parameter: str, value: str, held: str) -> None:
        record = self._known(module) or self._new(module)
        if record.held.get(parameter) == (value, held):
            return
        if len(record.held) >= REMEMBERED:
            del record.held[next(iter(record.held))]
        record.held[parameter] = value, held
        self._write()

    def _write(self) -> None:
        modules = {
            name: [record.instance, record.given, [[parameter, *values] for parameter, values in record.held.items()]]
            for name, record in self._modules.items()
        }
        self._keep(json.dumps({"before": self._before, "modules": modules}).encode())

    def _take(self, kept: bytes) -> None:
        """Read what `_write` wrote; nothing of anything else, and of earlier versions what they knew of values that differ."""
        try:
            document = json.loads(kept)
            if isinstance(document, list):
                for module, parameter, given_value, held in document:
                    name = _name(module)
                    record = self._modules.setdefault(name, _GivenParameters(self._instance(name)))
                    record.held[_text(parameter)] = _text(given_value), _text(held)
                return
            modules = {
                _name(name): _GivenParameters(
                    _number(instance),
                    tuple((_text(key), None if value is None else _text(value)) for key, value in arguments),
                    {_text(parameter): (_text(value), _text(held)) for parameter, value, held in noted},
                )
                for name, (instance, arguments, noted) in document["modules"].items()
            }
            before = document["before"]
            self._before = (
                None if before is None else {_name(name): _number(instance) for name, instance in before.items()}
            )
            self._modules = modules
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._modules = {}


def _name(value: object) -> ModuleName:
    if not is_module_name(_text(value)):
        raise ValueError("no module's name")
    return ModuleName(str(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError("not a number")
    return value


@dataclass(frozen=True, slots=True)
class _Reading:
    values: Values
    time: float
    private: bool
    """With those that only root may read."""


class LiveValues:
    """Reads through `Executor`, one order for a module, and remembers what it read for those that cannot wait.

    While a setter or getter of a module hangs, its parameters are not read: the kernel holds one mutex for all of them
    (kernel_param_lock), so that each further reader would hang as well. They have no values then.
    """

    def __init__(
        self,
        loaded: LoadedModules,
        executor: Executor,
        *,
        timeout: float = READ_TIMEOUT,
        settle: float = SETTLE,
        now: Callable[[], float] = lambda: asyncio.get_running_loop().time(),
    ) -> None:
        self._loaded = loaded
        self._executor = executor
        self._timeout = timeout
        self._settle = settle
        self._now = now
        self._readings: dict[ModuleName, _Reading] = {}
        self._under_way: dict[tuple[ModuleName, bool], asyncio.Task[Values]] = {}
        self._writes: dict[ModuleName, asyncio.Future[None]] = {}
        self._hung: set[ModuleName] = set()
        """Modules with an abandoned worker in their getter or setter..."""
        self._crashed: set[ModuleName] = set()
        """...or killed one: the mutex stays locked until the module is gone."""
        self._announcing: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def follow(self, events: Events) -> Callable[[], None]:
        """Read the values of each module that comes, and publish that they are known; the answer stops following."""

        def on_event(event: Event) -> None:
            if isinstance(event, ModuleRemoved):
                self._readings.pop(event.name, None)
                self._crashed.discard(event.name)
            elif isinstance(event, ModuleAdded) and any(
                file.public for file in self._loaded.parameter_files(event.name)
            ):
                task = asyncio.get_running_loop().create_task(self._announce(event.name, events))
                self._announcing.add(task)
                task.add_done_callback(self._announcing.discard)

        unsubscribe = events.subscribe(on_event, ModuleAdded, ModuleRemoved)

        def stop() -> None:
            unsubscribe()
            for task in (*self._announcing, *self._under_way.values()):
                task.cancel()

        return stop

    def is_hung(self, name: ModuleName) -> bool:
        """A getter or setter of the module has not come back, or crashed."""
        return name in self._hung or name in self._crashed

    def files(self, name: ModuleName) -> Values:
        """The parameters that have a file, without values; nothing of the module runs."""
        return self._loaded.parameter_files(name)

    def known(self, name: ModuleName, *, private: bool = False) -> Values:
        """Its parameters with the values that were read last, at any time; None for those that were not."""
        reading = self._readings.get(name)
        values = {} if reading is None else {value.name: value.value for value in reading.values}
        return tuple(
            replace(file, value=values.get(file.name)) if private or file.public else file for file in self.files(name)
        )

    def is_fresh(self, name: ModuleName, *, private: bool = False, since: float | None = None) -> bool:
        """`known` answers what the kernel holds now, or what was read `since` then."""
        reading = self._readings.get(name)
        fresh = (
            reading is not None
            and (self._now() - reading.time < FRESH or (since is not None and reading.time >= since))
            and (reading.private or not private)
        )
        return fresh or not any(_is_readable(file, private=private) for file in self.files(name))

    def forget(self, name: ModuleName) -> None:
        """What was read is of a module that is not there any more."""
        self._readings.pop(name, None)

    async def refresh(self, names: Iterable[ModuleName], *, private: bool = False) -> None:
        """Read what is not fresh, so that `known` is. Never longer than some seconds for all of them together."""
        waiting = [name for name in names if not self.is_fresh(name, private=private)]
        if not waiting:
            return
        deadline = self._now() + self._timeout
        for name in waiting:
            if self._now() >= deadline:
                break  # One of them hangs; the others are read with the next request.
            await self.read(name, private=private)

    async def look(self, names: Iterable[ModuleName]) -> float:
        """The same as `refresh`; answers when it began, for `is_fresh`: many modules take longer than readings stay fresh."""
        since = self._now()
        await self.refresh(names)
        return since

    async def read(self, name: ModuleName, *, private: bool = False) -> Values:
        """Read now; the values that only root may read are left out unless `private`."""
        task = self._under_way.get((name, private))
        if task is None:
            task = asyncio.get_running_loop().create_task(self._read(name, private=private))
            self._under_way[name, private] = task
            task.add_done_callback(lambda _: self._under_way.pop((name, private), None))
        # Shared: that one of those who wait for it leaves does not end it.
        return await asyncio.shield(task)

    async def write(
        self, name: ModuleName, parameter: str, value: str, *, timeout: float, released: Callable[[], None]
    ) -> Outcome:
        """Write one parameter; OSError when there is no worker to be had. The caller holds the module's lock.

        `released` is called once when a write that was given up is out of the kernel after all.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writes[name] = done
        self._readings.pop(name, None)  # Its value is unknown from now on.
        try:
            outcome = await self._executor.write_parameter(name, parameter, value, timeout=timeout)
        finally:
            del self._writes[name]
            done.set_result(None)
            self._readings.pop(name, None)
        self._judge(name, outcome, released)
        return outcome

    async def _announce(self, name: ModuleName, events: Events) -> None:
        await asyncio.sleep(self._settle)
        async with self._turn:  # One at a time: at boot hundreds arrive together, and one worker suffices.
            if any(value.value is not None for value in await self.read(name)):
                events.publish(ModuleChanged(name, ("Parameters",)))

    async def _read(self, name: ModuleName, *, private: bool) -> Values:
        if (write := self._writes.get(name)) is not None:
            await asyncio.wait({write}, timeout=self._timeout)
        files = self.files(name)
        wanted = [file.name for file in files if _is_readable(file, private=private)]
        values: dict[str, str] = {}
        if wanted and not self.is_hung(name) and name not in self._writes and len(self._hung) < HUNG_MAX:
            try:
                outcome, read = await self._executor.read_parameters(name, wanted, timeout=self._timeout)
            except OSError:
                pass  # No worker available: unknown now, and retried the next time.
            else:
                self._judge(name, outcome)
                values.update(read)
        result = tuple(replace(file, value=values.get(file.name)) for file in files)
        self._readings[name] = _Reading(result, self._now(), private)
        return result

    def _judge(self, name: ModuleName, outcome: Outcome, released: Callable[[], None] = lambda: None) -> None:
        if outcome.kind == "crashed":
            self._crashed.add(name)
        elif outcome.kind == "timed-out":
            self._hung.add(name)

            def ended(_: Outcome) -> None:
                self._hung.discard(name)
                released()

            self._executor.on_return(outcome.worker, ended)


def _is_readable(file: ParameterValue, *, private: bool) -> bool:
    return bool(file.mode & 0o004 or (private and file.mode & 0o444))
