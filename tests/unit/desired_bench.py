# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wanted state on a simulated kernel, for the tests of what is loaded by itself and of what `Apply` does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from kmodd.config.toml_file import parse_document
from kmodd.core.desired.apply import ApplyPlan, DesiredStateService
from kmodd.core.desired.drift import Comparison
from kmodd.core.desired.reconciler import Reconciler
from kmodd.core.desired.state import DesiredState
from kmodd.core.desired.trial import ApplyTrial
from kmodd.core.events import EventHub
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import Jobs, ModuleLocks
from kmodd.core.operations.live_values import LiveValues
from kmodd.core.operations.operations import Operations
from kmodd.core.operations.parameters import Parameters
from kmodd.core.planning.planner import Planner
from kmodd.core.registry import Registry
from kmodd.core.store.activation import Switch
from kmodd.daemon.desired import KeptTrialFile
from kmodd.errors import KmoddError
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, SimulatedModule, SimulatedParameter, parameter
from kmodd.model import Caller, Result, Rule, Uevent
from kmodd.model.rules import RuleChange
from kmodd.model.settings import Document
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName
from tests.unit.fakes import Journal, Ticks, kept_values, machine

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
            SimulatedParameter("rounded", "int", "", "0", rounds_up_to_mask=True),
            SimulatedParameter("even", "int", "", "0", mode=0o644, multiple_of=2),
        ),
    ),
    SimulatedModule("sound", parameters=(parameter("id", "charp", "(null)", mode=0o444),)),
    SimulatedModule("acme_nic", folder="updates", holds="ifb", parameters=(parameter("number", "int", "1"),)),
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
        self.brings: dict[ModuleName, tuple[str, ...]] = {}

    def active_version(self, name: ModuleName) -> str:
        return self.active.get(name, "")

    def foresee(self, name: ModuleName, version: str) -> Switch:
        entry = StoredModule(name, version, "", version, 0)
        brought = self.brings.get(name, ())
        return Switch(name, "", None, entry, load=True, modules=(*map(ModuleName, brought), name), sha256=(version,))

    async def activate(self, switch: Switch, caller: Caller, *, dry_run: bool) -> tuple[ModuleName, ...]:
        name = switch.name
        assert switch.entry is not None
        version = switch.entry.version
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

    def __init__(
        self,
        text: str,
        *loaded: str,
        known: Known | None = None,
        kernel: SimulatedKernel | None = None,
        remembered: Path | None = None,
        kept_trial: KeptTrialFile | None = None,
        boot: str = "1",
        **options: Any,
    ) -> None:
        """`kernel` and the file `remembered` are those of a daemon before this one."""
        self.now = 1_000_000_000
        self.kernel = kernel or machine(*MODULES, loaded=loaded, **options)
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
        self.given = given = kept_values(remembered, kernel.loaded.instance)
        self.values = values = LiveValues(kernel.loaded, kernel.executor)
        planner = Planner(kernel.index, kernel.loaded, kernel.facts, values, given=given)
        self.operations = Operations(
            planner,
            kernel,
            locks=locks,
            jobs=Jobs(self.hub, clock),
            failures=Failures(),
            audit=self.journal,
            events=self.hub,
            clock=clock,
        )
        self.parameters = Parameters(planner.parameters, locks=locks, audit=self.journal, events=self.hub, clock=clock)
        self.desired = DesiredState(
            self.files,
            self.settings,
            release="6.1.0-1-amd64",
            aliases=lambda: self.aliases,
            audit=self.journal,
            on_reload=lambda: self.taken_over.append(self.desired.daemon_settings.timeout),
            modules_of=lambda name: () if kernel.index.exists(name) else kernel.index.resolve(name),
        )
        self.comparison = Comparison(
            self.desired,
            kernel.loaded,
            kernel.index,
            values,
            autoloaded=lambda: self.autoloaded,
            active_version=self.versions.active_version,
            given=given,
            appeared=lambda name: self.registry.presence(name).loaded_at > 0 or given.appeared(name),
        )
        self.kept_trial = kept_trial or KeptTrialFile(None)
        self.trial = trial = ApplyTrial(
            self.operations,
            audit=self.journal,
            clock=lambda: self.now,
            boot=boot,
            read=self.kept_trial.read,
            write=self.kept_trial.write,
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
            held=trial.held,
        )
        self.convergence = DesiredStateService(
            self.desired,
            self.comparison,
            self.operations,
            self.reconciler,
            rules=cast("Any", self.rules),
            parameters=self.parameters,
            versions=self.versions,
            index=kernel.index,
            audit=self.journal,
            trial=trial,
        )
        self._stop: list[Callable[[], None]] = []

    @staticmethod
    def _complain(_: object, event: object, error: Exception) -> None:
        raise AssertionError(f"a subscriber failed over {event}") from error

    async def boot(self) -> None:
        self._stop = [self.registry.start()]
        self.given.begin(self.registry.names())
        self.desired.reload()
        self.trial.start()
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

    async def plan(self, *, dry_run: bool, reason: str, trial: int = 0, confirm: bool = False) -> ApplyPlan:
        await self.convergence.look()
        return self.convergence.plan(dry_run=dry_run, reason=reason, trial=trial, confirm=confirm)

    async def apply(self, *, dry_run: bool = False, trial: int = 0, confirm: bool = False) -> dict[str, Result]:
        plan = await self.plan(dry_run=dry_run, reason="test", trial=trial, confirm=confirm)
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
