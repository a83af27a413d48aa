# SPDX-License-Identifier: LGPL-2.1-or-later
"""The loaded modules as they will be after the steps planned so far."""

from dataclasses import replace
from enum import Enum, auto

from kmodd.kernel.ports import LoadedModules
from kmodd.model import LoadedModule, State
from kmodd.names import ModuleName


class Flight(Enum):
    """What an operation of ours is doing with a module at this moment."""

    NONE = auto()
    RUNNING = auto()
    """An operation is under way and will end; planning waits for its locks anyway."""
    STUCK = auto()
    """A call into the kernel did not come back."""


def nothing_in_flight(name: ModuleName) -> Flight:
    """Answer for a machine where nothing is under way."""
    del name
    return Flight.NONE


class Draft:
    """Reads each module once, when it is first asked for, and computes what steps change from there."""

    def __init__(self, loaded: LoadedModules) -> None:
        self._loaded = loaded
        self._read: dict[ModuleName, LoadedModule | None] = {}
        self._removed: set[ModuleName] = set()
        self._inserted: dict[ModuleName, tuple[ModuleName, ...]] = {}

    def copy(self) -> "Draft":
        """Make a draft that can be thrown away; what was read is shared."""
        other = Draft(self._loaded)
        other._read = self._read
        other._removed = set(self._removed)
        other._inserted = dict(self._inserted)
        return other

    def take(self, other: "Draft") -> None:
        """Continue from what a copy has become."""
        self._removed = other._removed
        self._inserted = other._inserted

    def get(self, name: ModuleName) -> LoadedModule | None:
        """The module as it will be; None when it will not be loaded."""
        users = tuple(user for user, needs in self._inserted.items() if name in needs)
        if name in self._removed or (base := self._base(name)) is None:
            if name not in self._inserted:
                return None
            return LoadedModule(name, 0, len(users), users, State.LIVE)
        if not users and self._removed.isdisjoint(base.holders):
            return base
        staying = tuple(holder for holder in base.holders if holder not in self._removed)
        holders = staying + tuple(user for user in users if user not in staying)
        return replace(base, holders=holders, references=base.references + len(holders) - len(base.holders))

    def insert(self, name: ModuleName, needs: tuple[ModuleName, ...]) -> None:
        """Take the module as live, holding those it needs."""
        if self._base(name) is not None:
            # Whatever is there now (coming, in another's hands) will have gone by then.
            self._removed.add(name)
        self._inserted[name] = needs

    def remove(self, name: ModuleName) -> None:
        """Take the module as gone, letting go of those it held."""
        if name in self._inserted:
            del self._inserted[name]
        else:
            self._removed.add(name)

    def _base(self, name: ModuleName) -> LoadedModule | None:
        if name not in self._read:
            self._read[name] = self._loaded.read(name)
        return self._read[name]
