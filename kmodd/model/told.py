# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is told: explanations, health, metrics, records."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kmodd.errors import Evidence
from kmodd.model.kinds import HealthStatus, State
from kmodd.model.machine import KernelFacts, User
from kmodd.names import ModuleName


@dataclass(frozen=True, slots=True)
class LoadedBy:
    """Who loaded a module, where kmodd knows."""

    uid: int | None
    client: str
    reason: str
    time: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A remembered failure of an operation on a module, until it is reset or the operation succeeds."""

    module: ModuleName
    action: str
    error: str
    """Short error name."""
    message: str
    evidence: Evidence
    time: int
    stuck: bool = False
    """The kernel has not let go of it."""
    by: LoadedBy | None = None
    """Who asked, of a call that was given up: it may do what was asked after all."""
    worker: str = ""
    """The worker that has that call, so that another daemon can find it (`Executor.adopt`)."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a module is, why it is there, what holds it."""

    name: ModuleName
    state: State
    references: int
    holders: tuple[ModuleName, ...] = ()
    users: tuple[User, ...] = ()
    removable: bool = False
    blockers: tuple[str, ...] = ()
    """Sentences: what has to go before it can be removed, or before it can be loaded."""
    loadable: bool = False
    policy: str = ""
    """The rule that decides, as `file:line: text`; empty when there is none."""
    loaded_by: LoadedBy | None = None
    failure: Failure | None = None
    because: str = ""
    """Why it is there: `loaded by uid 0 …`, `needed by …`, `autoloaded for alias …`, where known."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One finding."""

    name: str
    status: HealthStatus
    message: str
    module: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """Every finding with the kernel facts it was made from."""

    status: HealthStatus
    checks: tuple[HealthCheck, ...]
    facts: KernelFacts
    taint_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """One sample in Prometheus naming."""

    name: str
    type: str
    """`counter` or `gauge`."""
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class Record:
    """One structured record for the journal: a decision or a result."""

    event: str
    """Dotted, such as `module.loaded`; each has a stable MESSAGE_ID."""
    message: str
    module: str = ""
    action: str = ""
    result: str = ""
    error: str = ""
    uid: int | None = None
    sender: str = ""
    exe: str = ""
    reason: str = ""
    job: str = ""
    duration_usec: int | None = None
    errno: int | None = None
    kernel_log: tuple[str, ...] = ()
    hint: str = ""
    on_behalf_of: str = ""
    priority: int = 6
    """syslog priority: 3 error, 4 warning, 5 notice, 6 info."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further KMODD_… fields, by name without the prefix."""


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """What to read back from the journal."""

    module: ModuleName | None = None
    since: int = 0
    limit: int = 100
    oldest: bool = False
    """The oldest of what there is since then, where that is more than the limit; otherwise the newest."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A record read back, with the time the journal gave it."""

    time: int
    record: Record
