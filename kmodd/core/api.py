# SPDX-License-Identifier: LGPL-2.1-or-later
"""The seams of core: what it publishes, and what it asks of the journal.

Everything in core gets its kernel parts (`kmodd.kernel.ports`), its clock and these as constructor arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kmodd.model import HealthStatus, HistoryEntry, HistoryQuery, LoadedBy, Record, StepAction
from kmodd.names import ModuleName

Clock = Callable[[], int]
"""Microseconds since the epoch."""


class Audit(Protocol):
    """Takes one record per decision and per result."""

    def record(self, record: Record) -> None:
        """Write it; never raises, never blocks for long."""


class HistoryReader(Protocol):
    """Reads records back. Blocking: call it in a thread."""

    def read(self, query: HistoryQuery) -> list[HistoryEntry]:
        """Newest last, at most `query.limit`."""


@dataclass(frozen=True, slots=True)
class ModuleAdded:
    """A module became live (whoever loaded it)."""

    name: ModuleName


@dataclass(frozen=True, slots=True)
class ModuleRemoved:
    """A module is gone."""

    name: ModuleName


@dataclass(frozen=True, slots=True)
class ModuleChanged:
    """Properties of a loaded module changed; names as on the bus."""

    name: ModuleName
    properties: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ManagerChanged:
    """Properties of the manager changed; names as on the bus."""

    properties: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobAdded:
    """An operation came under way."""

    id: int


@dataclass(frozen=True, slots=True)
class JobChanged:
    """Its state or progress changed."""

    id: int
    properties: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobFinished:
    """It ended; `result` is `done`, `cancelled` or the short name of its error."""

    id: int
    sender: str
    action: str
    module: str
    result: str


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A call into the kernel is about to be made for a caller: what appears or disappears now is his doing."""

    module: ModuleName
    action: StepAction
    by: LoadedBy


@dataclass(frozen=True, slots=True)
class StepSucceeded:
    """The kernel did it. Published before the reply is sent, and also when an abandoned call ended well after all."""

    module: ModuleName
    action: StepAction
    by: LoadedBy
    duration_usec: int
    changed: bool = True
    """False when it was so already, by somebody else's doing."""


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The kernel refused it, or has not answered; `error` is the short name."""

    module: ModuleName
    action: StepAction
    error: str
    duration_usec: int
    stuck: bool = False
    """The kernel still has it; StepSucceeded or another StepFailed follows when it lets go."""


@dataclass(frozen=True, slots=True)
class HealthChanged:
    """The whole status changed."""

    status: HealthStatus


@dataclass(frozen=True, slots=True)
class ConfigurationChanged:
    """kmodd wrote its own rules about a module."""

    module: ModuleName
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HistoryChanged:
    """Records were written; which, is for those who may read them."""


Event = (
    ModuleAdded
    | ModuleRemoved
    | ModuleChanged
    | ManagerChanged
    | JobAdded
    | JobChanged
    | JobFinished
    | StepStarted
    | StepSucceeded
    | StepFailed
    | HealthChanged
    | ConfigurationChanged
    | HistoryChanged
)


class Events(Protocol):
    """Publish and subscribe, in order, on the event loop."""

    def publish(self, event: Event) -> None:
        """Tell every subscriber; a subscriber that raises does not stop the others."""

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Be told from now on; the answer ends it."""
