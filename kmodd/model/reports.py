# SPDX-License-Identifier: LGPL-2.1-or-later
"""Explanations, consequences of a removal, health, metrics and records."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from kmodd.errors import Evidence
from kmodd.fast_dataclass import dataclass
from kmodd.model.enums import HealthStatus, State
from kmodd.model.modules import KernelFacts, Rule, User
from kmodd.model.rules import Finding
from kmodd.names import ModuleName

if TYPE_CHECKING:  # it has consequences
    from kmodd.model.requests import Caller


class ConsequenceKind(StrEnum):
    """What it is."""

    INTERFACE = "interface"
    DISK = "disk"
    INPUT = "input"
    SCREEN = "screen"
    CONSOLE = "console"
    SERIAL = "serial"
    """A terminal device that is no console."""
    SOUND = "sound"
    WATCHDOG = "watchdog"
    DEVICE = "device"
    """Another device bound to a driver of the module; /sys does not show whether it is needed."""
    UNKNOWN = "unknown"
    """There may be more: `detail` says what could not be looked at."""


@dataclass(frozen=True, slots=True)
class Consequence:
    """Something that the kernel removes together with the module, without a prompt (`bus_remove_driver`, `rtnl_link_unregister`)."""

    kind: ConsequenceKind
    name: str
    """The interface, the device node, the device; as the kernel calls it, printable."""
    detail: str = ""
    """The driver of a device, the label of an input device, what could not be looked at."""
    uses: tuple[str, ...] = ()
    """Why it is in use beside what the fields below say, as what follows "it": `is mounted at /mnt`, `holds ext4`, `is active`."""
    up: bool = False
    """Of an interface: administratively up."""
    addresses: tuple[str, ...] = ()
    """Of an interface, and of those that are stacked on it: `192.0.2.7/24`; without those of the link alone (fe80::/10)."""
    default_route: bool = False
    """It, or one that is stacked on it, is where a default route leads."""
    carries: tuple[str, ...] = ()
    """Interfaces that are stacked on it: VLANs, and the bridge or bond that it is a port of."""
    ports: tuple[str, ...] = ()
    """Interfaces that are ports of it."""
    netns: str = ""
    """The network namespace it is in; empty for the system's own. A name below /run/netns, or `pid 1234`."""
    automatic: bool = False
    """The kernel itself makes one in every network namespace, such as `tunl0`."""
    owner: int | None = None
    """The user whose own view of /proc and /sys shows it; None where everybody's does."""
    count: int = 0
    """How many of this kind the row stands for, where the caller may not see them; 0 for one that is shown."""

    @property
    def live(self) -> bool:
        """Something is lost with it: it is not taken away unless the caller says so."""
        if self.kind in (ConsequenceKind.DEVICE, ConsequenceKind.UNKNOWN):
            return True
        elsewhere = bool(self.netns) and not self.automatic
        return bool(
            elsewhere or self.up or self.addresses or self.default_route or self.carries or self.ports or self.uses
        )


@dataclass(frozen=True, slots=True)
class Requester:
    """A process that needs a module or loads one, as /proc showed it while it waited; what could not be read is empty."""

    pid: int
    uid: int | None = None
    name: str = ""
    """What it calls itself (comm)."""
    exe: str = ""
    unit: str = ""
    """Its systemd unit or session scope."""
    container: str = ""
    """Identifier of its container."""
    device: str = ""
    """Of a process of udev that waits, the device node that it has open: the disk that it examines."""


@dataclass(frozen=True, slots=True)
class ModuleRequest:
    """The kernel asks for a module by an alias or a name, because a process needs it (`request_module`)."""

    alias: str
    by: Requester
    site: str = ""
    """The function of the kernel that asks."""
    time: int = 0


@dataclass(frozen=True, slots=True)
class ModuleLoad:
    """A module that some process loaded: for a request of the kernel, or on its own."""

    module: ModuleName
    by: Requester
    """Who called finit_module(2); for a request of the kernel that is its modprobe."""
    request: ModuleRequest | None = None
    alias: str = ""
    """What the kernel's modprobe was started for; empty for other processes."""
    time: int = 0
    devices: tuple[str, ...] = ()
    """The devices for which udev may have loaded it: the one that its process had open, or those with such an alias that came
    or changed shortly before."""


@dataclass(frozen=True, slots=True)
class LoadedBy:
    """Who loaded a module, where kmodd knows."""

    uid: int | None
    client: str
    reason: str
    time: int
    login_uid: int | None = None
    alias: str = ""
    """The alias that the kernel requested it for; `uid`, `client` and what follows are of the process that needed it then."""
    pid: int | None = None
    """Of a process that loaded it, or needed it, without kmodd."""
    unit: str = ""
    container: str = ""
    devices: tuple[str, ...] = ()
    """As of a ModuleLoad."""


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
    """The caller of an abandoned call: it may take effect after all."""
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
    rule: Rule | None = None
    """The same rule; a client knows kind, file, line and text of it."""
    loaded_by: LoadedBy | None = None
    load: ModuleLoad | None = None
    """Who loaded it without kmodd; `loaded_by` and `because` are made from it."""
    failure: Failure | None = None
    because: str = ""
    """Why it is there: `loaded by uid 0 …`, `needed by …`, `autoloaded for alias …`, where known."""
    driven: bool = False
    """`because` names interfaces and devices that the module drives."""
    free: tuple[str, ...] = ()
    """Commands that end every use and unload it, in order; empty where a use is left that no command is known for."""
    consequences: tuple[Consequence, ...] = ()
    """What goes with it, and with the modules that hold it, when it is removed."""
    goes: tuple[str, ...] = ()
    """The same in sentences, as a client is answered it."""
    disconnects: bool = False
    """Something live goes with it: unloading it takes `disconnect`."""
    freed: tuple[User, ...] = ()
    """The users that these commands end: its own, and those of the modules that hold it."""
    partial: str = ""
    """Why not every user was looked for, as a clause; empty when all were."""
    file: str = ""
    """Base name of the requested file, if it contains a module of another name: everything else is about that module."""
    differs: str = ""
    """How what is loaded differs from the file on the disk, as a clause; empty when it does not, as far as is known."""
    withheld: tuple[str, ...] = ()
    """Parts that the caller may not see: `users`, `consequences`, `loaded-by`, `kernel-log`."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One finding."""

    name: str
    status: HealthStatus
    message: str
    module: str = ""
    hint: str = ""
    finding: Finding | None = None
    """What it is made from, where it is about a line of a configuration file."""
    error: str = ""
    """Short name of the error, where something failed."""
    cause: str = ""
    """That error's message."""


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
    """The module, or the requested alias, which may contain spaces; of several modules use `modules`."""
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
    login_uid: int | None = None
    """As whom the caller's session logged in; None when unknown."""
    priority: int = 6
    """syslog priority: 3 error, 4 warning, 5 notice, 6 info."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further KMODD_… fields, by name without the prefix."""
    modules: tuple[str, ...] = ()
    """The modules, of a record about several."""

    def by(self, caller: "Caller") -> Self:
        """The same record with who caused it."""
        return replace(
            self,
            uid=caller.uid,
            sender=caller.sender,
            exe=caller.exe,
            login_uid=caller.login_uid,
            on_behalf_of=caller.on_behalf_of,
        )

    def about(self, names: Sequence[str]) -> Self:
        """The same record about these modules, or the requested alias."""
        single = len(names) == 1
        return replace(self, module=names[0] if single else "", modules=() if single else tuple(names))

    @property
    def names(self) -> tuple[str, ...]:
        """Every module that it is about, or the alias: one KMODD_MODULE= each."""
        return self.modules or ((self.module,) if self.module else ())

    @property
    def label(self) -> str:
        """The names, separated by spaces, for people."""
        return " ".join(self.names)


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """What to read back from the journal."""

    module: ModuleName | None = None
    events: tuple[str, ...] = ()
    """Only these events; all where it is empty."""
    since: int = 0
    limit: int = 100
    oldest: bool = False
    """The oldest of what there is since then, where that is more than the limit; otherwise the newest."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A record read back, with the time the journal gave it."""

    time: int
    record: Record
