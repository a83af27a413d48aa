# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel holds and what the module files say."""

from dataclasses import dataclass

from kmodd.model.kinds import State
from kmodd.names import ModuleName


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
    public: bool = True
    """Everyone may read its file."""

    @property
    def told(self) -> str:
        """The line as everyone and the journal may have it."""
        if self.public:
            return self.text
        return f"{self.kind} {self.module}{' …' if self.value else ''}"
