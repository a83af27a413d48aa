# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wanted state on a simulated kernel, for the tests of what is loaded by itself and of what `Apply` does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kmodd.core.converge import Convergence
from kmodd.core.desired import DesiredState
from kmodd.core.drift import Comparison
from kmodd.core.events import EventHub
from kmodd.core.failures import Failures
from kmodd.core.jobs import Jobs
from kmodd.core.locks import ModuleLocks
from kmodd.core.operations import Operations
from kmodd.core.parameters import Parameters
from kmodd.core.planner import Planner
from kmodd.core.reconcile import Reconciler
from kmodd.core.registry import Registry
from kmodd.errors import KmoddError
from kmodd.kernel.simulated_modules import Fault, SimulatedModule, parameter
from kmodd.kernel.toml_file import parse_document
from kmodd.model import Caller, Result, Rule, Uevent
from kmodd.model.configuration import RuleChange
from kmodd.model.document import Document
from kmodd.names import ModuleName
from tests.unit.fakes import Journal, Ticks, machine

SETTLE = 0.002
CALLER = Caller(":1.7", 0)
MODULES = (
    SimulatedModule("fat"),
    SimulatedModule("vfat", depends=("fat",)),
    SimulatedModule("a"),
    SimulatedModule("b"),
    SimulatedModule("c"),
    SimulatedModule("broken", init=Fault(errno=5)),
    SimulatedModule(
        "tuned",
        parameters=(
            parameter("level", "int", "1", mode=0o644),
            parameter("fixed", "int", "1", mode=0o444),
            parameter("secret", "int", "1", mode=0o600),
            parameter("hidden", "int", "1", mode=0),
        ),
    ),
    SimulatedModule("unix", builtin=True),
)


@dataclass
class Files:
    """Documents from memory."""

    text: str = ""
    _read: str = ""
    public: bool = True

    def changed(self) -> bool:
        return self.text != self._read

    def read(self) -> list[Document]:
        self._read = self.text
        return [replace(parse_document(self.text, "/etc/kmodd/modules.d/x.toml"), public=self.public)]


@dataclass
class Known:
    """What survives a restart."""

    names: frozenset[str] | None = None

    def read(self) -> frozenset[str] | None:
        return self.names

    def write(self, names: Collection[str]) -> None:
        self.names = frozenset(names)


@dataclass
class Rules:
    """kmodd's own files."""

    refuse: KmoddError | None = None
    full: KmoddError | None = None
    """Known only when it is written for real."""
    written: list[RuleChange] = field(default_factory=list)

    async def write_all(self, changes: Sequence[RuleChange], caller: Caller) -> dict[int, KmoddError]:
        """As the real one: all of them or none."""
        trial = any(change.dry_run for change in changes)
        error = self.refuse or (None if trial else self.full)
        if error is not None:
            return dict.fromkeys(range(len(changes)), error)
        if not trial:
            self.written += changes
        return {}


class Versions:
    """The store, with any version of any module."""

    def __init__(self) -> None:
        self.active: dict[ModuleName, str] = {}
        self.refuse: dict[ModuleName, KmoddError] = {}
        self.done: list[tuple[str, str]] = []

    def active_version(self, name: ModuleName) -> str:
        return self.active.get(name, "")

    async def activate(
        self, name: ModuleName, version: str, caller: Caller, *, dry_run: bool
    ) -> tuple[ModuleName, ...]:
        if name in self.refuse:
            raise self.refuse[name]
        if not dry_run:
            await self.restore(name, version, caller)
        return ()

    async def restore(self, name: ModuleName, version: str, caller: Caller) -> None:
        self.done.append((name, version))
        self.active[name] = version


class Bench:
    """Everything about the wanted state, over a kernel whose events come at once."""

    def __init__(self, text: str, *loaded: str, known: Known | None = None, **options: Any) -> None:
        self.kernel = machine(*MODULES, loaded=loaded, **options)
        self.files, self.settings = Files(text), Files()
        self.journal, self.rules, self.known = Journal(), Rules(), known or Known()
        self.aliases: list[str] = []
        self.taken_over: list[int] = []
        self.autoloaded: list[Rule] = []
        self.versions = Versions()
        self.hub = EventHub(self._complain)
        clock, kernel = Ticks(), self.kernel
        self.registry = Registry(kernel.loaded, kernel.facts, self.hub, self.journal, clock)
        locks = ModuleLocks()
        self.operations = Operations(
            Planner(kernel.index, kernel.loaded, kernel.facts),
            kernel,
            locks=locks,
            jobs=Jobs(self.hub, clock),
            failures=Failures(),
            audit=self.journal,
            events=self.hub,
            clock=clock,
        )
        self.parameters = Parameters(
            kernel.index, kernel.loaded, kernel.facts, locks=locks, audit=self.journal, events=self.hub, clock=clock
        )
        self.desired = DesiredState(
            self.files,
            self.settings,
            release="6.1.0-1-amd64",
            aliases=lambda: self.aliases,
            audit=self.journal,
            on_reload=lambda: self.taken_over.append(self.desired.tunables.timeout),
        )
        self.comparison = Comparison(
            self.desired,
            kernel.loaded,
            kernel.index,
            autoloaded=lambda: self.autoloaded,
            active_version=self.versions.active_version,
        )
        self.reconciler = Reconciler(
            self.desired,
            self.operations,
            loaded=kernel.loaded,
            index=kernel.index,
            events=self.hub,
            audit=self.journal,
            known=self.known,
            changed=lambda: None,
            settle=SETTLE,
        )
        self.convergence = Convergence(
            self.desired,
            self.comparison,
            self.operations,
            self.reconciler,
            rules=self.rules,
            parameters=self.parameters,
            versions=self.versions,
            index=kernel.index,
            audit=self.journal,
        )
        self._stop: list[Callable[[], None]] = []

    @staticmethod
    def _complain(_: object, event: object, error: Exception) -> None:
        raise AssertionError(f"a subscriber failed over {event}") from error

    async def boot(self) -> None:
        self._stop = [self.registry.start()]
        self.desired.reload()
        self._stop.append(self.reconciler.start())
        await self.settle()

    async def settle(self) -> None:
        """The kernel's events arrive, and what follows from them is done."""
        for _ in range(6):
            self.registry.look()
            await asyncio.sleep(SETTLE * 1.3)
        self.operations.flush()

    async def modprobe(self, name: str) -> None:
        self.kernel.modprobe(name)
        self.registry.take(Uevent("add", ModuleName(name)))
        await self.settle()

    async def rmmod(self, name: str) -> None:
        self.kernel.rmmod(name)
        self.registry.take(Uevent("remove", ModuleName(name)))
        await self.settle()

    async def plug(self, alias: str, *actions: str) -> None:
        """A device came, or what is said."""
        for action in actions or ("add",):
            self.reconciler.device_changed(action, alias)
        await self.settle()

    def live(self) -> set[str]:
        return set(self.kernel.loaded.snapshot())

    async def drift(self) -> list[tuple[str, str, str, str]]:
        return [(row.module, row.kind, row.wanted, row.actual) for row in await self.convergence.drift()]

    async def apply(self, *, dry_run: bool = False) -> dict[str, Result]:
        plan = self.convergence.plan(dry_run=dry_run, reason="test")
        results = await self.convergence.apply(plan, CALLER)
        await self.settle()
        return {result.module: result.result for result in results}

    async def close(self) -> None:
        for stop in self._stop:
            stop()
        await self.reconciler.close()
        await self.operations.close()
        self.parameters.flush()


async def benches() -> AsyncIterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(text: str, *loaded: str, **options: Any) -> Bench:
        made.append(Bench(text, *loaded, **options))
        return made[-1]

    yield make
    for each in made:
        await each.close()


Make = Callable[..., Bench]


def wanted(name: str, *lines: str) -> str:
    return "\n".join((f"[module.{name}]", 'state = "loaded"', *lines, ""))
