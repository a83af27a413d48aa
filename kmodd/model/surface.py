# SPDX-License-Identifier: LGPL-2.1-or-later
"""The attack surface of a kernel: who can have which module loaded, by which route, and what closes a route."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kmodd.model.modules import Rule
from kmodd.names import ModuleName


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
    known: bool = True
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
