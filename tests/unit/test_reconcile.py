# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wanted state on a simulated kernel: what is loaded by itself, when, and what `Apply` does about the rest."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pytest

from kmodd.core.converge import Convergence
from kmodd.core.desired import DesiredState
from kmodd.core.drift import WITHHELD, Comparison, Write
from kmodd.core.events import EventHub
from kmodd.core.failures import Failures
from kmodd.core.health_desired import DesiredHealth
from kmodd.core.jobs import Jobs
from kmodd.core.locks import ModuleLocks
from kmodd.core.operations import Operations
from kmodd.core.parameters import Parameters
from kmodd.core.planner import Planner
from kmodd.core.reconcile import Reconciler
from kmodd.core.registry import Registry
from kmodd.errors import Conflict, KmoddError
from kmodd.kernel.simulated_modules import Fault, SimulatedModule, parameter
from kmodd.kernel.toml_file import parse_document
from kmodd.model import Caller, HealthStatus, Result, Uevent
from kmodd.model.configuration import RuleAction, RuleChange
from kmodd.model.document import Document
from kmodd.names import ModuleName
from tests.unit.fakes import Journal, Ticks, machine, rule

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

    def changed(self) -> bool:
        return self.text != self._read

    def read(self) -> list[Document]:
        self._read = self.text
        return [parse_document(self.text, "/etc/kmodd/modules.d/x.toml")]


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
    written: list[RuleChange] = field(default_factory=list)

    async def write(self, change: RuleChange, caller: Caller) -> None:
        if self.refuse is not None:
            raise self.refuse
        if not change.dry_run:
            self.written.append(change)


class Bench:
    """Everything about the wanted state, over a kernel whose events come at once."""

    def __init__(self, text: str, *loaded: str, known: Known | None = None, **options: Any) -> None:
        self.kernel = machine(*MODULES, loaded=loaded, **options)
        self.files, self.settings = Files(text), Files()
        self.journal, self.rules, self.known = Journal(), Rules(), known or Known()
        self.aliases: list[str] = []
        self.autoloaded: set[ModuleName] = set()
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
            self.files, self.settings, release="6.1.0-1-amd64", aliases=lambda: self.aliases, audit=self.journal
        )
        self.comparison = Comparison(
            self.desired,
            kernel.loaded,
            kernel.index,
            autoloaded=lambda: self.autoloaded,
            active_version=lambda name: "",
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
            versions=None,
            index=kernel.index,
            audit=self.journal,
            on_reload=lambda: None,
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


@pytest.fixture
async def bench() -> AsyncIterator[Callable[..., Bench]]:
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


async def test_boot_loads_what_is_wanted_and_unloads_what_is_not(bench: Make) -> None:
    b = bench(wanted("vfat") + wanted("unix") + '[module.c]\nstate = "absent"\n', "c")
    await b.boot()
    assert b.live() == {"fat", "vfat"}
    assert await b.drift() == []


async def test_one_that_fails_stops_no_other_and_is_told(bench: Make) -> None:
    b = bench(wanted("broken") + wanted("nowhere") + wanted("a"))
    await b.boot()
    assert b.live() == {"a"}
    assert {name: error.name() for name, error in b.reconciler.failures.items()} == {
        "broken": "InitFailed",
        "nowhere": "NoSuchModule",
    }
    told = [record for record in b.journal.records if record.event == "desired.failed"]
    assert {record.module for record in told} == {"broken", "nowhere"}
    checks = list(DesiredHealth(b.desired, b.comparison, b.reconciler).checks())
    assert {c.module for c in checks if c.name == "desired-state"} == {"broken", "nowhere"}
    assert all(c.status is HealthStatus.DEGRADED for c in checks if c.name in {"desired-state", "drift"})


async def test_after_is_loaded_once_all_are_live_whoever_loaded_them(bench: Make) -> None:
    b = bench(wanted("c", 'after = ["a", "b", "unix"]'))
    await b.boot()
    assert b.live() == set()
    assert "a, b not being loaded" in b.reconciler.waiting()[ModuleName("c")]
    await b.modprobe("a")
    assert b.live() == {"a"}
    assert await b.drift() == [], "its time has not come"
    await b.modprobe("b")
    assert b.live() == {"a", "b", "c"}
    await b.rmmod("c")
    assert b.live() == {"a", "b"}, "an administrator at the keyboard is right"
    assert await b.drift() == [("c", "presence", "loaded", "absent")]
    await b.rmmod("a")
    await b.modprobe("a")
    assert b.live() == {"a", "b", "c"}, "it came anew"


async def test_chains_load_by_themselves(bench: Make) -> None:
    b = bench(wanted("c", 'after = ["b"]') + wanted("b", 'after = ["a"]'))
    await b.boot()
    await b.modprobe("a")
    assert b.live() == {"a", "b", "c"}


async def test_unload_when_gone(bench: Make) -> None:
    b = bench(wanted("c", 'after = ["a"]', "unload-when-gone = true") + wanted("b", 'after = ["a"]'))
    await b.boot()
    await b.modprobe("a")
    assert b.live() == {"a", "b", "c"}
    await b.rmmod("a")
    assert b.live() == {"b"}


async def test_what_goes_while_the_kernel_is_busy_counts(bench: Make) -> None:
    b = bench(wanted("c", 'after = ["a"]', "unload-when-gone = true"))
    await b.boot()
    b.kernel.modprobe("a")
    b.registry.take(Uevent("add", ModuleName("a")))
    b.registry.look()
    b.reconciler.reconcile()
    b.kernel.rmmod("a")
    b.registry.take(Uevent("remove", ModuleName("a")))
    b.registry.look()
    await b.settle()
    assert b.live() == set()
    assert [call[0] for call in b.kernel.executor.calls] == ["insert", "remove"], "each once"
    await b.modprobe("a")
    assert b.live() == {"a", "c"}


async def test_conditions(bench: Make) -> None:
    text = wanted("a", 'when = { kernel = ">=7" }') + wanted("b", 'when = { alias = "pci:v8086*" }') + wanted("c")
    b = bench(text)
    await b.boot()
    assert b.live() == {"c"}
    assert await b.drift() == []
    b.aliases = ["pci:v8086d1"]
    await b.modprobe("fat")
    assert b.live() == {"b", "c", "fat"}, "a driver that came may have brought the device"


async def test_a_failure_is_retried_when_what_could_help_happens(bench: Make) -> None:
    b = bench(wanted("broken", 'after = ["a"]'), "a")
    await b.boot()
    calls = len(b.kernel.executor.calls)
    await b.modprobe("b")
    assert len(b.kernel.executor.calls) == calls, "nothing to do with it"
    b.convergence.read_again(CALLER)
    await b.settle()
    assert len(b.kernel.executor.calls) == calls + 1
    b.files.text = wanted("broken", 'after = ["a"]', "retry = false")
    b.convergence.read_again(CALLER)
    await b.settle()
    assert len(b.kernel.executor.calls) == calls + 1
    b.files.text = "#"
    b.convergence.read_again(CALLER)
    assert b.reconciler.failures == {}


async def test_a_restart_of_the_daemon_is_no_boot(bench: Make) -> None:
    known = Known()
    b = bench(wanted("a") + wanted("c", 'after = ["b"]'), known=known)
    await b.boot()
    assert known.names == frozenset({"a"})
    again = bench(wanted("a") + wanted("c", 'after = ["b"]'), "b", known=known)
    await again.boot()
    assert again.live() == {"b", "c"}, "a was unloaded by somebody; b came while nobody looked"


async def test_reconciliation_can_be_off(bench: Make) -> None:
    b = bench(wanted("a") + wanted("c", 'after = ["b"]'))
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    await b.modprobe("b")
    assert b.live() == {"b"}
    assert {row[0] for row in await b.drift()} == {"a", "c"}
    assert await b.apply() == {"a": Result.CHANGED, "c": Result.CHANGED}


# --- drift and apply -----------------------------------------------------------------------------------------------------

SETTINGS = """\
[module.tuned]
state = "loaded"
parameters = { level = 2, secret = 5, hidden = 7 }
options = { level = 2 }
autoload = true
[module.a]
blacklist = "hard"
[module.b]
blacklist = "none"
options = {}
"""
OWN = [
    rule("blacklist", "b", file="/etc/modprobe.d/kmodd-blacklist.conf"),
    rule("options", "b", "x=1", file="/etc/modprobe.d/kmodd-options.conf"),
]


async def test_drift_of_every_kind_and_apply(bench: Make) -> None:
    b = bench(SETTINGS, "tuned", rules=OWN)
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    assert await b.drift() == [
        ("tuned", "options", "level=2", ""),
        ("tuned", "autoload", "loaded at boot", "not loaded at boot"),
        ("a", "blacklist", "hard", "none"),
        ("b", "blacklist", "none", "soft"),
        ("b", "options", "", "x=1"),
        ("tuned", "parameter", "level=2", "level=1"),
        ("tuned", "parameter", f"secret={WITHHELD}", f"secret={WITHHELD}"),
    ]
    plan = b.convergence.plan(dry_run=True, reason="")
    assert plan.modules == ("a", "b", "tuned")
    assert await b.apply(dry_run=True) == dict.fromkeys(("tuned", "a", "b"), Result.CHANGED)
    assert b.rules.written == []
    assert await b.apply() == dict.fromkeys(("tuned", "a", "b"), Result.CHANGED)
    assert [(change.module, change.action) for change in b.rules.written] == [
        ("tuned", RuleAction.SET_OPTIONS),
        ("tuned", RuleAction.ENABLE_AUTOLOAD),
        ("a", RuleAction.BLACKLIST_HARD),
        ("b", RuleAction.UNBLACKLIST),
        ("b", RuleAction.SET_OPTIONS),
    ]
    values = {p.name: p.value for p in b.kernel.loaded.parameters(ModuleName("tuned"), private=True)}
    assert (values["level"], values["secret"]) == ("2", "5")
    assert b.journal.events.count("desired.applied") == 1
    assert "5" not in "".join(record.message for record in b.journal.records)


async def test_a_parameter_that_cannot_be_written_means_a_reload(bench: Make) -> None:
    b = bench(wanted("tuned", "parameters = { fixed = 4, level = 3 }"), "tuned")
    await b.boot()
    assert [row[:2] for row in await b.drift()] == [("tuned", "parameter")] * 2
    assert await b.apply() == {"tuned": Result.CHANGED}
    assert await b.drift() == []
    assert b.comparison.find().writes == list[Write]()


async def test_apply_loads_in_the_order_of_after_and_is_atomic(bench: Make) -> None:
    text = wanted("c", 'after = ["b"]') + wanted("b", 'after = ["a"]') + wanted("a")
    b = bench(text)
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    b.files.text = text + wanted("broken")
    assert await b.apply() == {
        "a": Result.ROLLED_BACK,
        "b": Result.ROLLED_BACK,
        "c": Result.ROLLED_BACK,
        "broken": Result.FAILED,
    }
    assert b.live() == set()
    b.files.text = text
    assert list(await b.apply()) == ["a", "b", "c"]
    assert b.live() == {"a", "b", "c"}
    assert await b.apply() == {}


async def test_a_file_that_cannot_be_written_is_known_before_anything_is_done(bench: Make) -> None:
    b = bench(wanted("a") + '[module.b]\nblacklist = "soft"\n')
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    b.rules.refuse = Conflict("edited by hand")
    assert await b.apply() == {"b": Result.FAILED}
    assert b.live() == set()


async def test_own_soft_blacklist_is_no_hindrance_another_one_is(bench: Make) -> None:
    text = wanted("a", 'blacklist = "soft"') + wanted("b", 'blacklist = "soft"')
    own = rule("blacklist", "a", file="/etc/modprobe.d/kmodd-blacklist.conf")
    b = bench(text, rules=[own, rule("blacklist", "b")])
    await b.boot()
    assert b.live() == {"a"}
    assert b.reconciler.failures[ModuleName("b")].name() == "DisabledByPolicy"


async def test_a_bad_file_is_not_applied(bench: Make) -> None:
    b = bench(wanted("a"))
    await b.boot()
    b.files.text = wanted("a", "paramters = {}")
    with pytest.raises(Conflict, match=r"line 3: .* did you mean parameters\?"):
        b.convergence.plan(dry_run=True, reason="")
    with pytest.raises(Conflict):
        await b.convergence.reload(CALLER)
    (settings,) = (c for c in DesiredHealth(b.desired, b.comparison, b.reconciler).checks() if c.name == "settings")
    assert settings.status is HealthStatus.DEGRADED
    assert "did you mean parameters?" in settings.message
