# SPDX-License-Identifier: LGPL-2.1-or-later
"""Core's events and the hub that delivers them to subscribers, and what core needs of the journal.

Every part of core gets its kernel parts (`kmodd.kernel.ports`), its clock and these as constructor arguments.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from kmodd.fast_dataclass import dataclass
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
    """A module became live (loaded by any program)."""

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
    """False if another program had already done it."""


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
class StepRefused:
    """It was known to fail, by a rule or by the state of the system: no call was made. `error` is the short name."""

    module: str
    """Empty where an alias leads to no module."""
    action: StepAction
    error: str


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
    | StepRefused
    | HealthChanged
    | ConfigurationChanged
    | HistoryChanged
)


class Events(Protocol):
    """Publish and subscribe, in order, on the event loop."""

    def publish(self, event: Event) -> None:
        """Tell every subscriber; a subscriber that raises does not stop the others."""

    def subscribe(self, subscriber: Callable[[Event], None], *kinds: type[Event]) -> Callable[[], None]:
        """Receive events of these kinds (of every kind, without any) from now on; the answer ends it."""


Subscriber = Callable[[Event], None]
Complaint = Callable[[Subscriber, Event, Exception], None]


class EventHub:
    """Publishes events in order, on the event loop, to everyone who subscribed.

    An event that a subscriber publishes while it handles one is delivered after the current one has reached
    everybody, so all subscribers see the same order.
    """

    def __init__(self, complain: Complaint) -> None:
        """`complain` is called for a subscriber that raised; it must not raise itself."""
        self._complain = complain
        # A dict keeps the order of subscription and makes ending one cheap; the key is unique even where one function
        # subscribes twice.
        self._subscribers: dict[int, tuple[Subscriber, tuple[type[Event], ...]]] = {}
        self._next = 0
        self._waiting: deque[Event] = deque()
        self._delivering = False

    def subscribe(self, subscriber: Subscriber, *kinds: type[Event]) -> Callable[[], None]:
        """Pass events of these kinds (of every kind, without any) to `subscriber` from now on.

        Calling the answer ends it, a second call does nothing.
        """
        key = self._next
        self._next += 1
        self._subscribers[key] = subscriber, kinds

        def end() -> None:
            self._subscribers.pop(key, None)

        return end

    def publish(self, event: Event) -> None:
        """Tell every subscriber; one that raises is complained about and does not stop the others."""
        self._waiting.append(event)
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._waiting:
                current = self._waiting.popleft()
                for key, (subscriber, kinds) in list(self._subscribers.items()):
                    if kinds and type(current) not in kinds:
                        continue
                    if key not in self._subscribers:
                        continue  # ended by an earlier subscriber of this very event
                    try:
                        subscriber(current)
                    except Exception as error:  # noqa: BLE001 - whatever one does wrong, it has happened and the others have to know
                        self._complain(subscriber, current, error)
        finally:
            self._delivering = False
