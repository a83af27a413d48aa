# SPDX-License-Identifier: LGPL-2.1-or-later
"""Frozen values that every layer shares. Times are microseconds since the epoch, durations microseconds, sizes bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kmodd.errors import Evidence, KmoddError
from kmodd.names import Alias, ModuleName


class Verb(StrEnum):
    """What a caller asks for."""

    LOAD = "load"
    UNLOAD = "unload"
    RELOAD = "reload"


class StepAction(StrEnum):
    """What one step does to the kernel."""

    INSERT = "insert"
    REMOVE = "remove"


class State(StrEnum):
    """The state of a module as `Explain` answers it."""

    LIVE = "live"
    COMING = "coming"
    GOING = "going"
    BUILTIN = "builtin"
    AVAILABLE = "available"
    ABSENT = "absent"
    DISABLED = "disabled"


class Result(StrEnum):
    """The result of one operation of a batch."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"
    SKIPPED = "skipped"


class Origin(StrEnum):
    """Where a loaded module's file came from."""

    IN_TREE = "in-tree"
    OUT_OF_TREE = "out-of-tree"
    STORE = "store"
    UNKNOWN = "unknown"


class HealthStatus(StrEnum):
    """A check's status; the whole is as bad as its worst check."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILING = "failing"


# --- what a caller asks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Made by the bus from the message, never from anything the caller says about itself."""

    sender: str
    """Unique bus name, such as `:1.42`."""
    uid: int | None
    """None where the bus could not tell; never taken for root."""
    interactive: bool = False
    """The message allows a password prompt."""
    exe: str = ""
    """Path of the caller's executable for the journal, empty when unknown."""
    on_behalf_of: str = ""
    """Whom a gateway speaks for: information for the journal, never identity."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to do, with names already parsed."""

    verb: Verb
    module: ModuleName | Alias
    parameters: tuple[tuple[str, str], ...] = ()
    dependents: bool = False
    """Unload also the modules that use it."""
    unused_dependencies: bool = False
    """Unload also the dependencies nobody needs any more."""


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request: what is authorised, locked, run and rolled back together."""

    operations: tuple[Operation, ...]
    atomic: bool = True
    dry_run: bool = False
    reason: str = ""
    timeout: float = 30.0
    """Seconds for each call into the kernel."""
    override_policy: bool = False


# --- what will be done ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One call into the kernel, or the reason why there will be none."""

    action: StepAction
    module: ModuleName
    path: str = ""
    """The module's file for an insertion, as the index names it."""
    parameters: tuple[tuple[str, str], ...] = ()
    """Parameters in the order the kernel gets them: from configuration, then from the caller."""
    because: str = ""
    """One short clause: `requested`, `dependency of vfat`, `soft dependency of …`, `uses fat`, `not needed any more`."""
    operation: int = 0
    """Index of the operation in the request that this step serves."""
    error: KmoddError | None = None
    """Set on a step that is known to fail; nothing after it in the same operation is planned."""
    optional: bool = False
    """Its failure does not fail the operation: soft dependencies, dependencies that nobody needs any more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The exact steps of a request. The same object feeds `Plan`, a dry run, authorisation and execution."""

    request: Request
    targets: tuple[tuple[ModuleName, ...], ...]
    """For each operation the canonical modules it names (an alias may name several)."""
    steps: tuple[Step, ...]
    overrides: tuple[str, ...] = ()
    """Rules that `override-policy` sets aside, each as `file:line: text`."""

    @property
    def modules(self) -> tuple[ModuleName, ...]:
        """Every module that is named or touched, sorted: what gets locked and what polkit is told."""
        named = {name for names in self.targets for name in names}
        return tuple(sorted(named | {step.module for step in self.steps}))

    @property
    def error(self) -> KmoddError | None:
        """The first known failure, or None."""
        return next((step.error for step in self.steps if step.error is not None), None)


@dataclass(frozen=True, slots=True)
class OperationResult:
    """What became of one operation."""

    module: str
    result: Result
    error: KmoddError | None = None
    touched: tuple[ModuleName, ...] = ()
    """Modules really inserted or removed, in order."""


# --- what the kernel holds --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """One line of /proc/modules, with what /sys/module adds."""

    name: ModuleName
    size: int
    references: int
    """-1 when the kernel was built without unloading."""
    holders: tuple[ModuleName, ...]
    state: State
    taint: str = ""
    """Letters as in /proc/modules, for example `OE`."""
    permanent: bool = False
    """It has init but no exit: never removable."""


@dataclass(frozen=True, slots=True)
class ParameterValue:
    """A live parameter below /sys/module/M/parameters."""

    name: str
    value: str | None
    """None when only root may read it and it was not read."""
    mode: int
    """Permission bits of the file."""

    @property
    def writable(self) -> bool:
        """Root may write it while the module is live."""
        return bool(self.mode & 0o200)

    @property
    def public(self) -> bool:
        """Everyone may read it."""
        return bool(self.mode & 0o004)


@dataclass(frozen=True, slots=True)
class User:
    """Something that keeps a module busy."""

    kind: str
    """`module`, `mount`, `loop`, `process`, `netdev`, `block`, `device` or `kernel`."""
    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """Facts about the running kernel that decide whether modules can be loaded."""

    release: str
    lockdown: str = "none"
    """`none`, `integrity` or `confidentiality`."""
    signature_enforced: bool = False
    modules_disabled: bool = False
    secure_boot: bool = False
    taint: int = 0
    command_line: str = ""
    tree_present: bool = True
    """/lib/modules/RELEASE has an index."""


@dataclass(frozen=True, slots=True)
class Uevent:
    """A module came or went, says the kernel; `overflow` means events were lost and everything must be read again."""

    action: str
    """`add`, `remove` or `overflow`."""
    module: ModuleName | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call into the kernel."""

    kind: str
    """`done` (see errno), `timed-out` (still in the kernel) or `crashed` (the worker was killed in the call)."""
    errno: int = 0
    duration_usec: int = 0
    worker: int = 0
    """Process id of the worker that made the call."""


# --- what the files say -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A parameter as the module's file declares it."""

    name: str
    type: str
    """As in modinfo's parmtype: `bool`, `int`, `charp`, `array of int` …; empty when not declared."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """Static facts from the module's file (or from modules.builtin.modinfo)."""

    name: ModuleName
    filename: str
    """Empty for a module that is built in."""
    description: str = ""
    license: str = ""
    author: str = ""
    version: str = ""
    srcversion: str = ""
    vermagic: str = ""
    signer: str = ""
    signed: bool = False
    intree: bool = False
    firmware: tuple[str, ...] = ()
    depends: tuple[ModuleName, ...] = ()
    softdep_pre: tuple[str, ...] = ()
    softdep_post: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parameters: tuple[ParameterInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of modprobe.d or of the kernel command line that concerns a module."""

    kind: str
    """`blacklist`, `install`, `remove`, `options`, `softdep`, `alias` or `module_blacklist`."""
    module: str
    """Canonical name (or the alias pattern for `alias`)."""
    value: str
    """The rest of the line."""
    file: str
    line: int
    text: str
    """The logical line as written, joined."""


# --- what is told ----------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A record read back, with the time the journal gave it."""

    time: int
    record: Record
