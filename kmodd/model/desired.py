# SPDX-License-Identifier: LGPL-2.1-or-later
"""The desired state of modules."""

from dataclasses import dataclass
from enum import StrEnum

from kmodd.names import ModuleName

Parameters = tuple[tuple[str, str], ...]


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
