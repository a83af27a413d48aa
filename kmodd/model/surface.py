# SPDX-License-Identifier: LGPL-2.1-or-later
"""The attack surface: which modules of a kernel can be loaded by whom, the policy about it, and responses to vulnerabilities."""

from collections.abc import Mapping
from dataclasses import field
from datetime import date
from enum import StrEnum

from kmodd.fast_dataclass import dataclass
from kmodd.model.modules import Rule
from kmodd.names import ModuleName

Version = tuple[int, int, int]
"""Of the upstream kernel: 6.1.170."""


class Reach(StrEnum):
    """Who can have a module loaded, the widest first."""

    UNPRIVILEGED = "unprivileged"
    """Any user."""
    USERNS = "userns"
    """Any user who makes a user namespace, in which they have every capability."""
    DEVICE = "device"
    """The users who may open a device node."""
    HARDWARE = "hardware"
    """Anyone who plugs in a device."""
    ROOT = "root"
    """Root alone, by name."""
    NONE = "none"
    """No one: modprobe does not load it."""

    @property
    def rank(self) -> int:
        """Sorts the widest reach first."""
        return list(Reach).index(self)


class Gate(StrEnum):
    """A setting of the system that closes routes; named after the sysctl that decides, where there is one."""

    MODULES_DISABLED = "kernel.modules_disabled"
    MODPROBE = "kernel.modprobe"
    USERNS_CLONE = "kernel.unprivileged_userns_clone"
    USER_NAMESPACES = "user.max_user_namespaces"
    APPARMOR_USERNS = "kernel.apparmor_restrict_unprivileged_userns"
    NET_NAMESPACES = "user.max_net_namespaces"
    MOUNT_NAMESPACES = "user.max_mnt_namespaces"
    LDISC_AUTOLOAD = "dev.tty.ldisc_autoload"


@dataclass(frozen=True, slots=True)
class Guard:
    """One setting as it is now."""

    gate: Gate
    value: str
    """As read; empty where the kernel does not have the setting."""
    closes: bool
    """It closes the routes that pass this gate."""
    says: str
    """What it does, as a clause."""
    unread: bool = False
    """It could not be read, and counts as open."""
    unusual: bool = False
    """Of kernel.modprobe: another program than modprobe."""


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A node that loads a module when it is opened, as depmod lists it in modules.devname."""

    path: str
    """Below /dev."""
    module: ModuleName
    request: str
    """The alias that the kernel asks for, such as `char-major-10-229`."""
    mode: int | None = None
    """Permission bits; None where there is no such node, or where that is not known."""
    group: str = ""
    mode_known: bool = True
    """The node was looked for."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What else of a system decides who can have a module loaded."""

    guards: tuple[Guard, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()

    def closed(self, gate: Gate) -> Guard | None:
        """The guard of this gate, if it closes."""
        return next((guard for guard in self.guards if guard.gate is gate and guard.closes), None)


@dataclass(frozen=True, slots=True)
class Route:
    """One way on which a module is loaded."""

    kind: str
    """Such as `socket-family` or `file-system`; see kmodd.core.surface.kinds."""
    request: str
    """What the kernel or udev asks modprobe for."""
    reach: Reach
    """Who can go this way, if it is open."""
    open: bool
    by_name: bool = False
    """The request is the name of a module, and `blacklist` does not act on names."""
    through: ModuleName | None = None
    """The module that the request stands for, where this one is loaded as what it depends on."""
    gate: Gate | None = None
    """The setting that closes it."""
    rule: Rule | None = None
    """The rule of modprobe.d or of the kernel command line that closes it."""
    missing: str = ""
    """The request that has to come first and that no one can make; also a node that is not there."""
    served: ModuleName | None = None
    """The part of the kernel image that answers the request, so that the kernel asks for no module."""
    command: Rule | None = None
    """An install line by which modprobe runs a command: what that loads is not known, and the route counts as open."""
    node: str = ""
    """The device node that is opened."""
    who: str = ""
    """Who may open the node, as a clause."""
    more: int = 0
    """Further requests of the same kind, which lead the same way."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """Who can have one module loaded."""

    module: ModuleName
    reach: Reach
    """The widest of the routes that are open."""
    without: Reach
    """The same if no rule and no setting closed a route."""
    loaded: bool
    routes: tuple[Route, ...] = ()
    """The open ones first, of these the widest; at least the one by name."""

    @property
    def count(self) -> int:
        """How many routes are open, those that are only counted included."""
        return sum(1 + route.more for route in self.routes if route.open)

    @property
    def rank(self) -> tuple[int, bool, int, str]:
        """Sorts first what the most users reach, of these what is not in use, of these what has the most routes."""
        return self.reach.rank, self.loaded, -self.count, self.module


@dataclass(frozen=True, slots=True)
class Surface:
    """All modules of one kernel, ranked."""

    kernel: str
    running: bool
    """It is the running kernel: what is loaded counts."""
    tables: Tables
    exposures: tuple[Exposure, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Files of modprobe.d that could not be read, and why: a rule in them may close what is counted as open."""

    def find(self, module: ModuleName) -> Exposure | None:
        """One of them."""
        return next((exposure for exposure in self.exposures if exposure.module == module), None)


class Mode(StrEnum):
    """What becomes of the policy."""

    OFF = "off"
    """Nothing; the default."""
    AUDIT = "audit"
    """It is computed and reported; no rule is written."""
    ENFORCE = "enforce"
    """Rules keep out what the policy blocks."""


@dataclass(frozen=True, slots=True)
class Want:
    """A module or alias that something on this system needs."""

    request: str
    """Name or alias, resolved in each installed kernel as modprobe does."""
    evidence: str
    """What needs it, as a clause: `/etc/fstab, line 7`."""
    floor: bool = False
    """The system does not boot, or cannot be reached, without it: nothing blocks it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one source says."""

    source: str
    """Such as `mounts`, `devices`, `units`."""
    wants: tuple[Want, ...] = ()
    fault: str = ""
    """Why not all of it could be read, as a clause. What is needed is not known then."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason why a module is needed."""

    source: str
    evidence: str
    floor: bool = False
    kernels: tuple[str, ...] = ()
    """Releases in which that is so."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The modules that this system needs, and why."""

    reasons: Mapping[ModuleName, tuple[Reason, ...]] = field(default_factory=dict)
    """The first of each decides how it is shown; a floor comes first."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Sources that could not be read, and why as a clause."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One table of a policy file about one module."""

    module: ModuleName
    file: str
    line: int
    written: str = ""
    """The name as it stands there: `usb-storage`."""
    reason: str = ""
    ids: tuple[str, ...] = ()
    """Of the benchmark that asks for it, such as `CIS 1.1.1.1`."""
    until: date | None = None
    """The last day on which it applies."""
    kernel: str = ""
    """The condition `when.kernel`."""
    profile: str = ""
    """The profile that it belongs to; empty for the administrator's own."""

    @property
    def place(self) -> str:
        """As `FILE, line N`."""
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True, slots=True)
class SurfacePolicy:
    """What the files of surface.d say."""

    mode: Mode = Mode.OFF
    scope: tuple[Reach, ...] = (Reach.UNPRIVILEGED, Reach.USERNS, Reach.DEVICE)
    """Reaches whose modules are blocked unless something needs or allows them."""
    profiles: tuple[str, ...] = ()
    allow: Mapping[ModuleName, PolicyRule] = field(default_factory=dict)
    block: Mapping[ModuleName, PolicyRule] = field(default_factory=dict)
    profiled: Mapping[ModuleName, PolicyRule] = field(default_factory=dict)
    """What the chosen profiles block."""


class Because(StrEnum):
    """What decided about a module, the strongest first."""

    FLOOR = "floor"
    BLOCK = "block"
    ALLOW = "allow"
    NEEDED = "needed"
    PROFILE = "profile"
    INITRAMFS = "initramfs"
    UNKNOWN = "unknown"
    """A source of what is needed cannot be read, so that nothing is blocked for not being needed."""
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says about one module."""

    module: ModuleName
    blocked: bool
    because: Because
    reach: Reach
    """The widest over all installed kernels, if no rule and no setting closed a route."""
    detail: str = ""
    """The reason as a clause: a place in a file, or what needs it."""
    reasons: tuple[Reason, ...] = ()
    rule: PolicyRule | None = None
    loaded: bool = False
    breaks: tuple[ModuleName, ...] = ()
    """Needed or allowed modules that cannot be loaded without it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule that does not act, or something else that is not as the policy says."""

    kind: str
    """`not-in-effect`, `undone`, `edited`, `missing`, `superfluous`, `needed`, `loaded`, `expired` or `unreadable`."""
    message: str
    module: ModuleName | None = None
    kernel: str = ""
    file: str = ""
    line: int = 0
    hint: str = ""


@dataclass(frozen=True, slots=True)
class SurfacePlan:
    """The policy, applied to what is known of this system."""

    mode: Mode
    kernels: tuple[str, ...]
    decisions: tuple[Decision, ...]
    """Modules in the scope, and those that a file names; sorted by name."""
    text: bytes | None
    """The rule file as it is to be; None for no file."""
    old: bytes | None
    """The rule file as it is."""
    block: tuple[ModuleName, ...]
    """Modules that a rule keeps out from now on."""
    release: tuple[ModuleName, ...]
    """Modules that no rule keeps out any more."""
    remarks: tuple[Fault, ...] = ()
    """Expired tables, sources that cannot be read."""
    until: int = 0
    """When rules on trial end, in microseconds since the epoch; 0 without a trial."""


@dataclass(frozen=True, slots=True)
class LockPlan:
    """What it means to disable loading and unloading now."""

    locked: bool
    """It is disabled already."""
    pending: tuple[Fault, ...] = ()
    """What has to be settled before."""
    breaks: Needs = field(default_factory=Needs)
    """Modules that are not loaded and that something may need later; a source that cannot be read says so."""


class Verdict(StrEnum):
    """What a vulnerability is to one kernel."""

    FIXED = "fixed"
    """Its version has the correction."""
    UNAFFECTED = "unaffected"
    """Its version is from before the vulnerability."""
    ABSENT = "absent"
    """It has none of the modules, neither as files nor in its image."""
    AFFECTED = "affected"
    UNKNOWN = "unknown"

    @property
    def concerns(self) -> bool:
        """The modules are to be kept out of this kernel."""
        return self in (Verdict.AFFECTED, Verdict.UNKNOWN)


class Placement(StrEnum):
    """Where a kernel has a module."""

    FILE = "file"
    BUILTIN = "builtin"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """A record: which modules to keep out, and which versions of the kernel need that."""

    id: str
    """`CVE-2026-31431`; the name of a response to modules alone is `module:` and their names."""
    modules: tuple[ModuleName, ...]
    title: str = ""
    routes: tuple[str, ...] = ()
    """Requests by which users have the modules loaded; further ones are found in the tables of each kernel."""
    breaks: str = ""
    """What no longer works without the modules, as a sentence."""
    notes: str = ""
    fixed: tuple[Version, ...] = ()
    """The first corrected version of each stable series; other series are not known."""
    unaffected_from: Version | None = None
    """This version and all later ones are not affected."""
    unaffected_before: Version | None = None
    """All earlier versions are not affected."""
    image_files: tuple[str, ...] = ()
    """Source files with the fault that no module is known for: part of the kernel image, or of a module that is not known."""
    initcalls: tuple[str, ...] = ()
    """For initcall_blacklist= where the modules are part of the image."""
    file: str = ""
    """Where it was read."""


@dataclass(frozen=True, slots=True)
class KernelVersion:
    """The version of an installed kernel, as far as its own text says it."""

    text: str = ""
    """`Debian 6.1.192-2`, or the release of kernel.org; empty when unknown."""
    upstream: Version | None = None


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What a vulnerability is to one installed kernel, and whether the modules can be loaded there."""

    release: str
    running: bool
    version: KernelVersion
    verdict: Verdict
    because: str
    """Why, as a clause."""
    placements: Mapping[ModuleName, Placement] = field(default_factory=dict)
    open_requests: Mapping[ModuleName, tuple[str, ...]] = field(default_factory=dict)
    """For each module names and aliases with which modprobe would load it."""
    requests: int = 0
    """How many names and aliases were resolved."""
    dependents: tuple[ModuleName, ...] = ()
    """Modules that cannot be loaded without these."""
    initramfs: tuple[ModuleName, ...] = ()
    """Those of the modules that its initramfs has."""
    initramfs_known: bool = False
    """There is an initramfs, and it could be read."""

    @property
    def blocked(self) -> bool:
        """No name and no alias loads any of the modules."""
        return not self.open_requests


@dataclass(frozen=True, slots=True)
class ModuleUse:
    """What uses one of the modules."""

    module: ModuleName
    loaded: bool = False
    builtin: bool = False
    in_use: bool = False
    """Something uses it, the kernel counts references to it, or something live goes with it."""
    references: int = 0
    holders: tuple[ModuleName, ...] = ()
    users: tuple[str, ...] = ()
    partial: str = ""
    """Why not every user was looked for."""
    free: tuple[str, ...] = ()
    """Commands that end every use and unload it."""
    loads: int = 0
    """How often it was loaded in the last 90 days, as far as the journal goes back."""
    last_load: int = 0
    """When, in microseconds since the epoch; 0 for never."""
    autoload: tuple[str, ...] = ()
    """Lines of modules-load.d that load it at boot, as `FILE:LINE`."""


@dataclass(frozen=True, slots=True)
class OwnedRule:
    """A rule that a response wrote, and the rule about the module that was there before."""

    module: ModuleName
    before: str = ""
    """`blacklist` for a rule that acted on aliases; empty for none."""
    before_reason: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a vulnerability: kept on disk until it is ended."""

    vulnerability: Vulnerability
    rules: tuple[OwnedRule, ...] = ()
    """The rules it wrote. What was hard-blacklisted before is not among them."""
    begun: int = 0
    """Microseconds since the epoch."""
    uid: int | None = None
    reason: str = ""

    @property
    def id(self) -> str:
        """Of the vulnerability."""
        return self.vulnerability.id

    @property
    def modules(self) -> tuple[ModuleName, ...]:
        """All that its end concerns: those of the record, and those whose rules it owns."""
        return tuple(dict.fromkeys((*self.vulnerability.modules, *(rule.module for rule in self.rules))))


@dataclass(frozen=True, slots=True)
class ResponseOutcome:
    """What came of `Respond`."""

    vulnerability: Vulnerability
    stage: str
    """`assessed` (a dry run, or no kernel is affected), `in-use` (it stopped), `responded`."""
    kernels: tuple[KernelReport, ...]
    uses: tuple[ModuleUse, ...]
    unloaded: tuple[ModuleName, ...] = ()
    still_loaded: Mapping[ModuleName, str] = field(default_factory=dict)
    """Modules that could not be unloaded, and why."""
    proven: bool = False
    """No name and no alias loads the modules in any installed kernel that is concerned, and none of them is loaded."""
    history_known: bool = True
    """The journal could be read."""
