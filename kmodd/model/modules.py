# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules as the kernel and their files describe them, differences between the two, and files for the next boot."""

import shlex
from collections.abc import Mapping
from typing import NamedTuple

from kmodd.fast_dataclass import dataclass
from kmodd.model.enums import Remedy, State
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
    """None when it was not read: only root may read it, or it cannot be read."""
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
    """`module`, `mount`, `loop`, `process`, `netdev`, `block`, `device`, `qdisc`, `filter`, `rule`, `configfs`, … or `kernel`."""
    name: str
    detail: str
    command: str = ""
    """What ends this use, to be run by root as it stands; empty where nothing is known that does."""
    pid: int | None = None
    """The process that has it open, where there is one."""
    exe: str = ""
    """That process's executable."""
    unit: str = ""
    """That process's unit of systemd."""
    container: str = ""
    """The id or name of the container or machine that it is in."""
    netns: str = ""
    """The network namespace that it is in, where that is not the system's own: its name, or `pid 812` of one of its processes."""
    mountns: str = ""
    """The mount namespace that it is in, in the same way: `pid 812`."""
    file: str = ""
    """The file of the configuration that has it set up at boot; empty where none is known to."""
    line: int = 0
    """The line of that file."""
    owner: int | None = None
    """The user whose own view of /proc and /sys shows this; None where everybody's does."""
    remedy: Remedy = Remedy.NONE
    """What kind of command ends this use."""
    target: str = ""
    """What that command is about, as the kernel has it, unescaped: a path, an interface, a unit."""
    words: tuple[str, ...] = ()
    """What that command is about, where it takes several words: a table, a chain, a handle."""
    pids: tuple[int, ...] = ()
    """The processes that have to end for it, where the remedy is to end them."""
    level: int = 0
    """How many users it stands on that can end only after it: a process with a file of a mount, a loop device on such a file."""
    entry: str = ""
    """The network namespace that the command has to enter, `/run/netns/NAME` or `/proc/PID/ns/net`; empty for none."""
    sets: tuple[int, ...] = ()
    """Of a rule, the sets of ipset that it names, by their indices; of such a set, its own index."""
    references: int = 0
    """Of a set of ipset, references to it from what is not among the users of the same search."""
    count: int = 0
    """How many users of this kind the row stands for, where the caller may not see them; 0 for a user that is shown."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was found to keep one module busy."""

    users: tuple[User, ...] = ()
    partial: str = ""
    """Why not everything was looked at, as a clause; empty when everything was."""
    crowded: bool = False
    """It has more users than these."""


class Target(NamedTuple):
    """What a name leads to for libkmod."""

    name: ModuleName
    """Canonical name of the module; there may be none of this name."""
    alias: str = ""
    """The alias it was reached by, as libkmod keeps it: the pattern of a line of modprobe.d, or the alias itself."""


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
    log_restricted: bool = True
    """Only CAP_SYSLOG may read the kernel's log (kernel.dmesg_restrict), or it is not known who may."""


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
    data: bytes = b""
    """What the worker adds: after EACCES, in a word, why it did not even make the call."""

    @property
    def refusal(self) -> str:
        """Why the worker did not make the call (`kmodd.kernel.worker.worker.REFUSALS`); empty where the kernel answered."""
        return self.data.decode("ascii", "replace") if self.kind == "done" and self.errno else ""


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A parameter as the module's file declares it."""

    name: str
    type: str
    """As in modinfo's parmtype: `bool`, `int`, `charp`, `array of int` …; empty when not declared."""
    description: str = ""
    own: bool = False
    """Functions of the module's own set it, which may take other values than the type says (nx_huge_pages of kvm is a bool that
    takes `auto`)."""
    shown_as: str = ""
    """Of these: the kind of number it is shown as, where the kernel's own function shows it; empty otherwise."""
    flag: bool | None = None
    """Of these: they take the name without a value; None where that is not known."""


class FactsPending(Exception):
    """Facts of module files are needed that were not read yet. Read them off the event loop, then ask again."""

    def __init__(self, names: tuple[ModuleName, ...]) -> None:
        super().__init__(", ".join(names))
        self.names = names


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
    holds: ModuleName | None = None
    """Name of the module in the file, where the file is called by another."""

    @property
    def module(self) -> ModuleName:
        """What the kernel calls it."""
        return self.holds or self.name


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


def difference(live: Mapping[str, str], info: ModuleInfo) -> str:
    """How the loaded module differs from the file, as a clause; empty where they are the same as far as they tell.

    `live` has `version` and `srcversion` where /sys/module/NAME has them: the kernel makes these files exactly where modinfo has
    the fact (module_modinfo_attrs in kernel/module/sysfs.c), so that one that is missing is a difference too.
    """
    for fact, held in (("srcversion", info.srcversion), ("version", info.version)):
        loaded = live.get(fact, "").strip()
        if loaded != held:
            return f"{fact} {loaded or 'none'} is loaded, {fact} {held or 'none'} is on the disk"
    return ""


@dataclass(frozen=True, slots=True)
class BootImage:
    """The initramfs of a kernel, compared with the files it was made from."""

    release: str
    file: str
    kind: str
    """`initramfs-tools` or `dracut`."""
    differences: tuple[str, ...] = ()
    """Clauses: `/etc/modprobe.d/x.conf has changed`; empty when it is up to date."""
    by_content: bool = False
    """The image itself was read; otherwise only its time was compared with the files'."""

    @property
    def command(self) -> tuple[str, ...]:
        """The words of the command that makes it again."""
        if self.kind == "dracut":
            return "dracut", "-f", self.file, self.release
        return "update-initramfs", "-u", "-k", self.release

    @property
    def refresh(self) -> str:
        """The same as a line to type."""
        return shlex.join(self.command)


@dataclass(frozen=True, slots=True)
class Trees:
    """Module trees below /lib/modules."""

    newer: tuple[str, ...] = ()
    """Releases with an index that are newer than the running kernel, the newest last."""
    replaced: tuple[tuple[str, str], ...] = ()
    """(module, file): modules that take the place of one of the kernel's own."""
