# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shape of a module of the simulated kernel, and of what can go wrong with it."""

from dataclasses import dataclass, field
from enum import StrEnum

from kmodd.kernel.simulated_parameters import SimulatedParameter
from kmodd.model import User

RELEASE = "6.1.0-simulated-amd64"


class FaultKind(StrEnum):
    """What goes wrong inside init() or exit()."""

    ERROR = "error"
    """It answers an errno."""
    HANG = "hang"
    """It does not come back until the test releases it."""
    OOPS = "oops"
    """The kernel kills the process that made the call."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, with what the kernel logs about it."""

    kind: FaultKind = FaultKind.ERROR
    errno: int = 0
    log: tuple[str, ...] = ()
    before_init: bool = False
    """The file is refused before the module is laid out: a bad file, signature or version."""
    from_parameter: str = ""
    """Answer the negative errno that this parameter holds; 0 is success."""
    for_ever: bool = False
    """A hang that nothing releases."""


@dataclass(frozen=True, slots=True)
class SimulatedModule:
    """A module as its file and its code make it."""

    name: str
    description: str = ""
    folder: str = "drivers/misc"
    """Below /lib/modules/RELEASE/kernel; ignored for a module that is built in."""
    depends: tuple[str, ...] = ()
    softdep_pre: tuple[str, ...] = ()
    softdep_post: tuple[str, ...] = ()
    weakdeps: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parameters: tuple[SimulatedParameter, ...] = ()
    firmware: tuple[str, ...] = ()
    author: str = "Debian Kernel Team"
    license: str = "GPL"
    version: str = ""
    signed: bool = True
    intree: bool = True
    builtin: bool = False
    permanent: bool = False
    """It has init() but no exit()."""
    size: int = 16384
    """Bytes."""
    init: Fault | None = None
    exit: Fault | None = None
    init_seconds: float = 0.004
    exit_seconds: float = 0.010
    init_log: tuple[str, ...] = ()
    """What init() says in the kernel log when it succeeds."""
    users: tuple[User, ...] = field(default=())
    """What in user space takes hold of it as soon as it is live, one reference each."""
    held_by: str = ""
    """A parameter of type bool: while it is true the module holds a reference to itself that nothing explains."""
    slept_in: tuple[str, str] = ("", "")
    """Parameters that say how many milliseconds init() and exit() take, instead of the two figures above."""

    @property
    def path(self) -> str:
        """Absolute path of the file; empty when built in."""
        if self.builtin:
            return ""
        root = "" if self.folder.startswith("updates") else "kernel/"
        return f"/lib/modules/{RELEASE}/{root}{self.folder}/{self.name}.ko"


def parameter(
    name: str, kind: str, value: str = "0", description: str = "", mode: int = 0o444, length: int = 1024
) -> SimulatedParameter:
    """Write one parameter in one line."""
    return SimulatedParameter(name, kind, description, value, mode, length=length)
