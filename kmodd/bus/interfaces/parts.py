# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the interfaces need of core, by shape. `kmodd.daemon` hands over the real parts, tests hand over theirs."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kmodd.core.activation import Activation
from kmodd.core.listing import ListedModule
from kmodd.core.registry import Presence
from kmodd.core.store import Store
from kmodd.errors import KmoddError
from kmodd.model import (
    Attempt,
    Caller,
    Explanation,
    Health,
    HealthStatus,
    HistoryEntry,
    HistoryQuery,
    KernelFacts,
    LoadedModule,
    Metric,
    ModuleInfo,
    OperationResult,
    Plan,
    Request,
)
from kmodd.model.configuration import Drift, RuleChange, ShownRule
from kmodd.model.tunables import Tunables
from kmodd.names import Alias, ModuleName


class Operations(Protocol):
    """Plans and carries out."""

    def plan(self, request: Request) -> Plan:
        """The steps now."""

    async def execute(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """Carry out (or, for a dry run, pretend to) exactly what the plan says; one result for each operation."""

    def reset_failed(self, module: ModuleName, caller: Caller) -> None:
        """Forget a failure."""


class Refusals(Protocol):
    """Tells why a plan cannot be carried out."""

    async def tell(self, plan: Plan, caller: Caller) -> KmoddError:
        """The plan's error, complete; recorded."""

    async def note(self, attempt: Attempt, error: KmoddError, caller: Caller) -> KmoddError:
        """The error of what is no plan; recorded."""


class Parameters(Protocol):
    """Writes live parameters."""

    def prepare(self, module: ModuleName, parameter: str, value: str) -> Any:
        """Check everything that can be known before; the answer is for `write`."""

    async def write(self, prepared: Any, caller: Caller) -> str:
        """Write it, and answer what the kernel holds."""


class Explainer(Protocol):
    """Explains and describes."""

    async def explain(self, name: ModuleName) -> Explanation:
        """Any name."""

    def find(self, name: ModuleName | Alias) -> ModuleName:
        """The module of this name or alias."""

    def stamp(self, name: ModuleName) -> object:
        """Compares equal as long as `info` answers the same."""

    def info(self, name: ModuleName) -> ModuleInfo:
        """Static facts of a module that was found."""

    def writable(self, name: ModuleName) -> frozenset[str]:
        """Parameters that can be written now."""


class Listing(Protocol):
    """Lists modules."""

    def modules(self, selection: str = "loaded", match: str = "") -> Sequence[ListedModule]:
        """A selection."""


class Registry(Protocol):
    """Live modules."""

    def names(self) -> tuple[ModuleName, ...]:
        """Every one."""

    def __contains__(self, name: object) -> bool: ...

    def __len__(self) -> int: ...

    def presence(self, name: ModuleName) -> Presence:
        """How it came to be there."""

    def facts(self) -> KernelFacts:
        """Kernel facts as last seen."""


class Job(Protocol):
    """An operation under way."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def action(self) -> str:
        """`load`, `unload`, `reload` or `batch`."""

    @property
    def module(self) -> str:
        """What it is about, separated by spaces."""

    @property
    def state(self) -> str:
        """`waiting`, `running` or `stuck`."""

    @property
    def started(self) -> int:
        """Microseconds since the epoch."""

    @property
    def sender(self) -> str:
        """Unique name of whoever started it."""

    @property
    def progress(self) -> float:
        """0 to 1."""


class Jobs(Protocol):
    """Operations under way."""

    def all(self) -> Sequence[Job]:
        """Every one."""

    def get(self, number: int) -> Job | None:
        """One of them."""

    def cancel(self, number: int) -> None:
        """Cancel one that only waits; Busy or Stuck otherwise."""


class Loaded(Protocol):
    """What is read of the kernel itself for properties."""

    def raw(self) -> bytes:
        """/proc/modules."""

    def read(self, name: ModuleName) -> LoadedModule | None:
        """One module now."""

    def parameters(self, name: ModuleName, *, private: bool = False) -> Sequence[Any]:
        """Live parameters."""

    def attributes(self, name: ModuleName) -> Mapping[str, str]:
        """`version`, `srcversion` …"""


class Index(Protocol):
    """What is read of module files for properties."""

    def path(self, name: ModuleName) -> str:
        """The file."""

    def dependencies(self, name: ModuleName) -> tuple[ModuleName, ...]:
        """What it needs."""

    def info(self, name: ModuleName) -> ModuleInfo:
        """Static facts."""


class Configuration(Protocol):
    """modprobe.d and modules-load.d: what is in force, and kmodd's own files."""

    def check(self, change: RuleChange) -> None:
        """Raise what public facts say already: no such module, no such parameter."""

    async def write(self, change: RuleChange, caller: Caller) -> None:
        """Bring kmodd's own file in line, or (for a dry run) see whether it could be."""

    async def show(self) -> Sequence[ShownRule]:
        """Every rule, in reading order."""


class Desired(Protocol):
    """The wanted state against the real one."""

    async def drift(self) -> Sequence[Drift]:
        """Every difference."""

    def plan(self, *, dry_run: bool, reason: str) -> Plan:
        """The steps that would bring the machine to it, as one atomic batch."""

    async def apply(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """Carry it out; one result for each operation."""

    async def reload(self, caller: Caller) -> None:
        """Read the files again; Conflict names a bad one, and the old settings stay."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything the interfaces delegate to."""

    operations: Operations
    refusals: Refusals
    parameters: Parameters
    explainer: Explainer
    listing: Listing
    registry: Registry
    jobs: Jobs
    loaded: Loaded
    index: Index
    configuration: Configuration
    desired: Desired
    store: Store
    activation: Activation
    health: Callable[[], Health | Awaitable[Health]]
    """Every check, now."""
    health_status: Callable[[], HealthStatus]
    """The status as last seen, for the property."""
    metrics: Callable[[], Iterable[Metric]]
    history: Callable[[HistoryQuery], Awaitable[Sequence[HistoryEntry]]]
    machine_id: Callable[[], str]
    tunables: Callable[[], Tunables] = Tunables
    """The daemon's settings in force."""
    give_back: Callable[[], None] = lambda: None
    """Returns memory that is free to the system."""
