# SPDX-License-Identifier: LGPL-2.1-or-later
"""Vulnerabilities of modules, what is known of each installed kernel, and the rules by which kmodd answers one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kmodd.names import ModuleName

Version = tuple[int, int, int]
"""Of the upstream kernel: 6.1.170."""


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
