# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy for the attack surface: what this system needs, what the administrator allows and blocks, and what comes of both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum

from kmodd.model.surface import Reach
from kmodd.names import ModuleName


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
