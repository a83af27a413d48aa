# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wishes in force: read from their files, kept when a file turns bad."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from kmodd.core.api import Audit
from kmodd.core.conditions import Aliases, unmet
from kmodd.core.desired_files import read_wishes
from kmodd.core.tunables import read_tunables
from kmodd.errors import Conflict
from kmodd.model import Record
from kmodd.model.desired import Wish
from kmodd.model.document import Document
from kmodd.model.tunables import Tunables
from kmodd.names import ModuleName


class Documents(Protocol):
    """A settings file with its drop-ins, or a folder of files."""

    def changed(self) -> bool:
        """Something is different from what was last read; cheap."""

    def read(self) -> Sequence[Document]:
        """All in force; Conflict for one that cannot be read or is no TOML."""


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
    ) -> None:
        """`modules` is modules.d, `settings` the daemon's own kmodd.toml; `aliases` are those of the devices there are.

        `on_reload` is called when files were read again and are right, whoever had them read.
        """
        self._on_reload = on_reload
        self._modules = modules
        self._settings = settings
        self._release = release
        self._aliases = aliases
        self._present: tuple[str, ...] | None = None
        """The aliases as last read; None when a device came or went since."""
        self._audit = audit
        self._wishes: Mapping[ModuleName, Wish] = {}
        self._fault: Conflict | None = None
        self.tunables = Tunables()
        """The daemon's own settings in force."""

    @property
    def wishes(self) -> Mapping[ModuleName, Wish]:
        """Every wish in force, by its module, in the order of the files."""
        return self._wishes

    @property
    def fault(self) -> Conflict | None:
        """Why the files as they are now do not count; None when they do."""
        return self._fault

    def unmet(self, wish: Wish) -> str:
        """Say why a wish does not count on this machine, as a clause; empty when it does."""
        return unmet(wish, self._release, self._devices)

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
            tunables = read_tunables(self._settings.read())
            wishes = read_wishes(self._modules.read())
        except Conflict as error:
            known, self._fault = self._fault, error
            if known is None or known.message != error.message:
                self._audit.record(
                    Record(
                        "configuration.refused",
                        f"{error.message}; the settings from before stay in force",
                        error=error.name(),
                        hint=error.evidence.hint,
                        priority=3,
                        extra={"FILE": error.evidence.file, "LINE": str(error.evidence.line)},
                    )
                )
            raise
        self._fault = None
        self.tunables, self._wishes = tunables, wishes
        self._on_reload()

    def refresh(self) -> bool:
        """Read the files again if one changed; True when what is in force did. A bad file is told and changes nothing."""
        if not (self._modules.changed() or self._settings.changed()):
            return False
        before = self.tunables, self._wishes
        try:
            self.reload()
        except Conflict:
            return False  # recorded, and a finding of health
        return before != (self.tunables, self._wishes)
