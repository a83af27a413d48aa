# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small machines for tests of core, made of the simulated kernel."""

from collections.abc import Callable, Iterable
from pathlib import Path

from kmodd.core.events import Event
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import ModuleLocks
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.daemon.state_files import StateFile
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import RELEASE, SimulatedModule
from kmodd.model import KernelFacts, Operation, ParameterValue, Record, Request, Rule, Verb
from kmodd.names import ModuleName, parse_module_or_alias

FILE = "/etc/modprobe.d/test.conf"


def machine(
    *modules: SimulatedModule,
    rules: Iterable[Rule] = (),
    loaded: Iterable[str] = (),
    facts: KernelFacts | None = None,
    pace: float = 0.0,
) -> SimulatedKernel:
    """A kernel with these modules, on which calls take no time."""
    return SimulatedKernel(modules, rules_in_force=rules, loaded=loaded, facts=facts, pace=pace)


def rule(kind: str, module: str, value: str = "", line: int = 1, file: str = FILE) -> Rule:
    """A line of modprobe.d."""
    return Rule(kind, module, value, file, line, f"{kind} {module} {value}".rstrip())


def facts(
    *,
    lockdown: str = "none",
    signature_enforced: bool = False,
    modules_disabled: bool = False,
    command_line: str = "",
    tree_present: bool = True,
) -> KernelFacts:
    """Kernel facts that differ from a plain machine's."""
    return KernelFacts(
        RELEASE,
        lockdown=lockdown,
        signature_enforced=signature_enforced,
        modules_disabled=modules_disabled,
        command_line=command_line,
        tree_present=tree_present,
    )


def owner(locks: ModuleLocks, name: ModuleName) -> int | None:
    """The job that holds the lock of a module; None when it is free."""
    lock = locks.find(name)
    return lock.owner if lock is not None else None


def load(module: str, **parameters: str) -> Operation:
    """Ask for a module."""
    return Operation(Verb.LOAD, parse_module_or_alias(module), tuple(parameters.items()))


def unload(module: str, *, dependents: bool = False, unused: bool = False) -> Operation:
    """Ask for a module to go."""
    return Operation(Verb.UNLOAD, parse_module_or_alias(module), dependents=dependents, unused_dependencies=unused)


def reload(module: str, *, dependents: bool = False, **parameters: str) -> Operation:
    """Ask for a module anew."""
    return Operation(Verb.RELOAD, parse_module_or_alias(module), tuple(parameters.items()), dependents=dependents)


def set_parameter(module: str, **parameters: str) -> Operation:
    """Ask for live parameters to be written."""
    return Operation(Verb.SET_PARAMETER, parse_module_or_alias(module), tuple(parameters.items()))


def reset_failed(module: str) -> Operation:
    """Ask for a failure to be forgotten."""
    return Operation(Verb.RESET_FAILED, parse_module_or_alias(module))


def request(
    *operations: Operation,
    atomic: bool = True,
    dry_run: bool = False,
    override_policy: bool = False,
    timeout: float = 5.0,
    reason: str = "",
) -> Request:
    """Put operations together."""
    return Request(
        operations,
        atomic=atomic,
        dry_run=dry_run,
        override_policy=override_policy,
        timeout=timeout,
        reason=reason,
    )


def names(*texts: str) -> tuple[ModuleName, ...]:
    """Canonical names."""
    return tuple(ModuleName(text) for text in texts)


class SeenValues(LiveValues):
    """Live parameters as they are at any time, for plans that are made without an event loop."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        super().__init__(kernel.loaded, kernel.executor, now=lambda: 0.0)
        self._kernel = kernel

    def known(self, name: ModuleName, *, private: bool = False) -> tuple[ParameterValue, ...]:
        return self._kernel.loaded.parameters(name, private=private)

    def is_fresh(self, name: ModuleName, *, private: bool = False, since: float | None = None) -> bool:
        return True


class Journal:
    """An Audit that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        """Keep it."""
        self.records.append(record)

    @property
    def events(self) -> list[str]:
        """The kinds of events, in order."""
        return [record.event for record in self.records]


class Broadcaster:
    """Events that are kept, and told to subscribers."""

    def __init__(self) -> None:
        self.published: list[Event] = []
        self._subscribers: list[tuple[Callable[[Event], None], tuple[type[Event], ...]]] = []

    def publish(self, event: Event) -> None:
        """Keep and tell."""
        self.published.append(event)
        for subscriber, kinds in list(self._subscribers):
            if not kinds or type(event) in kinds:
                subscriber(event)

    def subscribe(self, subscriber: Callable[[Event], None], *kinds: type[Event]) -> Callable[[], None]:
        """Tell from now on."""
        entry = subscriber, kinds
        self._subscribers.append(entry)
        return lambda: self._subscribers.remove(entry)


class Ticks:
    """A clock that moves on by a millisecond each time it is read."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000

    def __call__(self) -> int:
        self.now += 1000
        return self.now


def kept_failures(path: Path, on_trouble: Callable[[OSError], None] = lambda error: None) -> Failures:
    """Failures on a file, as the daemon has them."""
    file = StateFile(path, on_trouble=on_trouble)
    return Failures(file.read(), file.write)


def kept_values(path: Path | None, instance: Callable[[ModuleName], int] = lambda name: 0) -> GivenValues:
    """Values that modules were given, on a file as the daemon has them."""
    file = StateFile(path)
    return GivenValues(file.read(), file.write, instance)
