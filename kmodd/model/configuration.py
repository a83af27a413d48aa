# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the machine's files say about modules, what a caller asks to have written, and how far the machine is from it."""

from dataclasses import dataclass
from enum import StrEnum

from kmodd.model.machine import Rule
from kmodd.names import ModuleName


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


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a rule or a file."""

    kind: str
    """As in `Show`: `duplicate`, `shadowed`, `unknown-parameter` …"""
    message: str
    """One sentence."""


@dataclass(frozen=True, slots=True)
class ShownRule:
    """One line about modules, wherever it stands, in force or not."""

    rule: Rule
    """With kind `autoload` for a line of modules-load.d, and `finding` where a file has no line to tell about."""
    ours: bool = False
    """kmodd wrote the file."""
    masks: tuple[str, ...] = ()
    """Files of the same name that its file masks."""
    shadowed_by: str = ""
    """What keeps it from being in force, as `FILE` or `FILE:LINE`."""
    findings: tuple[Finding, ...] = ()
    public: bool = True
    """Everyone may read its file."""


class OwnFile(StrEnum):
    """The files kmodd writes for others to read."""

    AUTOLOAD = "/etc/modules-load.d/kmodd.conf"
    OPTIONS = "/etc/modprobe.d/kmodd-options.conf"
    BLACKLIST = "/etc/modprobe.d/kmodd-blacklist.conf"


def way_out(file: str) -> str:
    """What to do about a line in somebody else's file that overrules what kmodd is to write."""
    if file == "/proc/cmdline":
        return "it is on the kernel's command line: change it in the boot loader"
    if file.startswith("/etc/"):
        return f"change or remove it in {file}"
    own = f"/etc/modprobe.d/{file.rpartition('/')[2]}"
    return f"copy {file} to {own}, which then counts in its place, and change it there"


@dataclass(frozen=True, slots=True)
class RuleFile:
    """One configuration file with its lines about modules."""

    path: str
    rules: tuple[Rule, ...]
    """In their order; with kind `finding` a line that is read over, of which the text is the first word."""
    shadowed_by: str = ""
    """The file of the same name that is read in its place."""
    masks: tuple[str, ...] = ()
    """Files of the same name that are not read because of it."""
    public: bool = True
    """Everyone may read it."""
    read: bool = True
    """False for a file of a name that its readers pass over, such as one without `.conf`."""


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
