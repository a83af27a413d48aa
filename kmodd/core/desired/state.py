# SPDX-License-Identifier: LGPL-2.1-or-later
"""The desired state in effect: read from its files, and kept when a file becomes invalid."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from kmodd.config.settings import read_daemon_settings
from kmodd.core.desired.files import Aliases, read_desired_modules, unmet
from kmodd.core.events import Audit
from kmodd.errors import Conflict
from kmodd.model import Record
from kmodd.model.desired import DesiredModule
from kmodd.model.settings import DaemonSettings, Document
from kmodd.names import ModuleName


class Documents(Protocol):
    """A settings file with its drop-ins, or a folder of files."""

    def changed(self) -> bool:
        """Something is different from what was last read; cheap."""

    def read(self) -> Sequence[Document]:
        """All documents in effect; Conflict for one that cannot be read or is not valid TOML."""


class DesiredState:
    """What the administrator's files say, as of the last time all of them were right."""

    def __init__(
        self,
        modules: Documents,
        settings: Documents,
        *,
        release: str,
        aliases: Aliases,
        audit: Audit,
        on_reload: Callable[[], None] = lambda: None,
        modules_of: Callable[[ModuleName], Sequence[ModuleName]] = lambda name: (),
    ) -> None:
        """`modules` is modules.d, `settings` the daemon's own kmodd.toml; `aliases` are those of the devices there are.

        `on_reload` is called when files were read again and are valid, by any trigger. `modules_of` returns the modules
        that an alias stands for, and none for the name of a module.
        """
        self._on_reload = on_reload
        self._modules_of = modules_of
        self._modules = modules
        self._settings = settings
        self._release = release
        self._aliases = aliases
        self._present: tuple[str, ...] | None = None
        """The aliases as last read; None when a device came or went since."""
        self._audit = audit
        self._read: Mapping[ModuleName, DesiredModule] = {}
        """By the names in the files."""
        self._desired_modules: Mapping[ModuleName, DesiredModule] = {}
        self._fault: Conflict | None = None
        self.daemon_settings = DaemonSettings()
        """The daemon's own settings in effect."""

    @property
    def desired_modules(self) -> Mapping[ModuleName, DesiredModule]:
        """The desired state in effect, by module, in the order of the files."""
        return self._desired_modules

    def aliases(self) -> Iterator[tuple[DesiredModule, tuple[ModuleName, ...]]]:
        """Tables that name an alias, as written, with the modules it stands for."""
        for name, entry in self._read.items():
            if modules := tuple(self._modules_of(name)):
                yield entry, modules

    def find_modules(self) -> None:
        """See which modules the names in the files stand for; a changed index or alias line may change that.

        A table for an alias of one module is one for that module, unless another table names it.
        """
        desired_modules: dict[ModuleName, DesiredModule] = {}
        for name, entry in self._read.items():
            module = self._module(name)
            if module != name and (module in self._read or module in desired_modules):
                continue
            after = tuple(dict.fromkeys(each for each in map(self._module, entry.after) if each != module))
            written = None if module == name else name
            desired_modules[module] = replace(entry, module=module, after=after, written=written)
        self._desired_modules = desired_modules

    def _module(self, name: ModuleName) -> ModuleName:
        modules = self._modules_of(name)
        return modules[0] if len(modules) == 1 else name

    @property
    def fault(self) -> Conflict | None:
        """Why the files as they are now do not count; None when they do."""
        return self._fault

    def unmet(self, entry: DesiredModule) -> str:
        """Why a table does not apply on this system, as a clause; empty if it does."""
        return unmet(entry, self._release, self._devices)

    def devices_changed(self) -> None:
        """A device came or went: the next condition that asks for one has them read again."""
        self._present = None

    def _devices(self) -> tuple[str, ...]:
        # The kernel tells of a device after /sys has changed, so what is read before its event is never older than that.
        if self._present is None:
            self._present = tuple(self._aliases())
        return self._present

    def reload(self) -> None:
        """Read all files again; Conflict for the first that is bad, and everything stays as it was."""
        try:
            daemon_settings = read_daemon_settings(self._settings.read())
            desired_modules = read_desired_modules(self._modules.read())
        except Conflict as error:
            known, self._fault = self._fault, error
            if known is None or known.message != error.message:
                self._audit.record(
                    Record(
                        "configuration.refused",
                        f"{error.message}; the previous settings stay in effect",
                        error=error.name(),
                        hint=error.evidence.hint,
                        priority=3,
                        extra={"FILE": error.evidence.file, "LINE": str(error.evidence.line)},
                    )
                )
            raise
        self._fault = None
        self.daemon_settings, self._read = daemon_settings, desired_modules
        self.find_modules()
        self._on_reload()

    def refresh(self) -> bool:
        """Read the files again if one changed; True when the settings in effect did. An invalid file is reported and changes nothing."""
        if not (self._modules.changed() or self._settings.changed()):
            return False
        before = self.daemon_settings, self._desired_modules
        try:
            self.reload()
        except Conflict:
            return False  # recorded, and a finding of health
        return before != (self.daemon_settings, self._desired_modules)
