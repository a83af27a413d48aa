# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module rules of the system, changes of kmodd's own rules, the desired state, and drift."""

from enum import StrEnum

from kmodd.fast_dataclass import dataclass
from kmodd.model.modules import Rule
from kmodd.names import ModuleName

Parameters = tuple[tuple[str, str], ...]


class RuleAction(StrEnum):
    """What is to become of kmodd's own files; polkit's rules see the value as `action`."""

    ENABLE_AUTOLOAD = "enable-autoload"
    DISABLE_AUTOLOAD = "disable-autoload"
    SET_OPTIONS = "set-options"
    BLACKLIST = "blacklist"
    BLACKLIST_HARD = "blacklist-hard"
    UNBLACKLIST = "unblacklist"


@dataclass(frozen=True, slots=True)
class RuleChange:
    """A request to change kmodd's own files, with names and values already parsed."""

    action: RuleAction
    module: ModuleName
    parameters: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    dry_run: bool = False
    on_behalf_of: str = ""
    """As of a Request."""


class Severity(StrEnum):
    """How much a finding matters."""

    NOTE = "note"
    """Worth knowing; part of many a distribution's own files."""
    WARNING = "warning"
    """The line does not do what it was written for."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """A line to write in place of the one that a finding is about."""

    file: str
    """Where it belongs; another file than the finding's where the line itself is in the wrong one."""
    text: str
    """Without line end."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a rule or a file."""

    kind: str
    """As in `Show`: `duplicate`, `shadowed`, `unknown-parameter` …"""
    message: str
    """One sentence, without the place."""
    severity: Severity = Severity.WARNING
    instead: tuple[Replacement, ...] = ()
    """Lines that do what was meant, in their order; empty where kmodd knows none."""
    file: str = ""
    line: int = 0
    names_file: bool = False
    """It is about a whole file, which the message names."""


@dataclass(frozen=True, slots=True)
class ShownRule:
    """One line about modules, from any file, in effect or not."""

    rule: Rule
    """With kind `autoload` for a line of modules-load.d, and `finding` where a file has no line to tell about."""
    ours: bool = False
    """kmodd wrote the file."""
    masks: tuple[str, ...] = ()
    """Files of the same name that its file masks."""
    shadowed_by: str = ""
    """What keeps it from taking effect, as `FILE` or `FILE:LINE`."""
    findings: tuple[Finding, ...] = ()
    public: bool = True
    """Everyone may read its file."""


class ChangedMeanwhileError(Exception):
    """A file is not what was read before: another program wrote it."""


class ManagedFile(StrEnum):
    """The files kmodd writes for others to read."""

    AUTOLOAD = "/etc/modules-load.d/kmodd.conf"
    OPTIONS = "/etc/modprobe.d/kmodd-options.conf"
    BLACKLIST = "/etc/modprobe.d/kmodd-blacklist.conf"
    SURFACE = "/etc/modprobe.d/00-kmodd-surface.conf"
    """Of the policy for the attack surface. It is read before other files: of several `install` lines the first acts."""
    SURFACE_TRIAL = "/run/modprobe.d/00-kmodd-surface-trial.conf"
    """The same on trial; a reboot removes it."""


def way_out(file: str) -> str:
    """What to do about a line in another program's file that overrules what kmodd is to write."""
    if file == "/proc/cmdline":
        return "it is on the kernel command line: change it in the boot loader"
    if file.startswith("/etc/"):
        return f"change or remove it in {file}"
    own = f"/etc/modprobe.d/{file.rpartition('/')[2]}"
    return f"copy {file} to {own}, which then replaces it, and change it there"


@dataclass(frozen=True, slots=True)
class RuleFile:
    """One configuration file with its lines about modules."""

    path: str
    rules: tuple[Rule, ...]
    """In their order; with kind `finding` a line that is read over, of which the text is the line itself."""
    shadowed_by: str = ""
    """The file of the same name that is read in its place."""
    masks: tuple[str, ...] = ()
    """Files of the same name that are not read because of it."""
    public: bool = True
    """Everyone may read it."""
    unread: str = ""
    """Why its readers pass it over, as a clause: its name does not end in `.conf`, or it stands in a folder they do not look into."""
    obstacle: str = ""
    """Why cannot be read, as a clause: it is a FIFO, a device, or too large."""


@dataclass(frozen=True, slots=True)
class RuleFiles:
    """Everything that says something about modules."""

    modprobe: tuple[RuleFile, ...] = ()
    """modprobe.d in reading order, each file before those it masks; depmod's modules.softdep stands among them."""
    autoload: tuple[RuleFile, ...] = ()
    """modules-load.d, likewise."""
    command_line: tuple[Rule, ...] = ()
    """What the kernel's command line says about modules, autoloading included."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference between what the files want and what the machine has."""

    module: str
    """Empty when it is not about one module."""
    kind: str
    """`presence`, `parameter`, `options`, `blacklist`, `autoload`, `store-version` or `initramfs`."""
    wanted: str
    actual: str
    hint: str = ""
    command: tuple[str, ...] = ()
    """The words of the one command that takes the difference away and that kmodctl may run; the hint is the same as a line."""


class Presence(StrEnum):
    """Whether a module is to be there."""

    LOADED = "loaded"
    ABSENT = "absent"
    UNSET = ""


class BlacklistMode(StrEnum):
    """How a module is kept out."""

    SOFT = "soft"
    """`blacklist M`: nothing loads it by an alias; by name it can be loaded."""
    HARD = "hard"
    """And `install M /bin/false`: modprobe does not load it by name either."""
    NONE = "none"
    """kmodd's own files do not ban it."""
    UNSET = ""


@dataclass(frozen=True, slots=True)
class DesiredModule:
    """One `[module.NAME]` table."""

    module: ModuleName
    file: str = ""
    line: int = 0
    state: Presence = Presence.UNSET
    parameters: Parameters = ()
    """Given when kmodd loads it, and what the live values are compared with."""
    options: Parameters | None = None
    """Written to modprobe.d, for all loaders; empty: kmodd's own file has none."""
    blacklist: BlacklistMode = BlacklistMode.UNSET
    autoload: bool | None = None
    """Written to modules-load.d, so that systemd loads it early at boot with kmodd or without."""
    after: tuple[ModuleName, ...] = ()
    """Loaded when all of these are live."""
    unload_when_gone: bool = False
    """Unloaded when one of `after` goes."""
    alias: str = ""
    """A pattern; only where a device has a matching alias."""
    kernel: str = ""
    """A comparison such as `>=6.1, <7`, or a pattern; only on such a kernel release."""
    version: str = ""
    """Version of the module in the store that is to be active."""
    reason: str = ""
    retry: bool = True
    """Try again after a failure when something happens that could help."""
    public: bool = True
    """Everyone may read its file."""
    written: ModuleName | None = None
    """The name in the file, where that is an alias of the module."""

    @property
    def live(self) -> Parameters:
        """Parameters as they should be while it is loaded: `parameters` over `options`."""
        return tuple({**dict(self.options or ()), **dict(self.parameters)}.items())
