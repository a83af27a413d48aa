# SPDX-License-Identifier: LGPL-2.1-or-later
"""The set of loaded modules after the steps planned so far, and the order in which modprobe handles modules.

The order follows kmod_module_get_probe_list and __kmod_module_fill_softdep of libkmod (30 and 34), where a module reached by
an alias is another object than the module itself: both may be in the chain, and the second has nothing left to do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import Enum, auto
from types import MappingProxyType
from typing import NamedTuple

from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import LoadedModule, State, Target
from kmodd.names import ModuleName


class InFlight(Enum):
    """What an operation of ours is doing with a module at this moment."""

    NONE = auto()
    RUNNING = auto()
    """An operation is under way and will end; planning waits for its locks anyway."""
    STUCK = auto()
    """A call into the kernel did not return."""


def nothing_in_flight(name: ModuleName) -> InFlight:
    """Answer for a machine where nothing is under way."""
    del name
    return InFlight.NONE


class ReadModules(dict[ModuleName, LoadedModule | None]):
    """The modules of one text of /proc/modules, each taken out of it when it is first looked up; None for one that is not there."""

    def __init__(self, loaded: LoadedModules, text: bytes) -> None:
        """`text` is that of /proc/modules, read once for the whole plan."""
        super().__init__()
        self._loaded = loaded
        self._text = text

    def __missing__(self, name: ModuleName) -> LoadedModule | None:
        module = self[name] = self._loaded.find(self._text, name)
        return module


class PlannedState:
    """Computes what steps change from the modules that were read."""

    def __init__(
        self,
        base: ReadModules,
        removed: Iterable[ModuleName] = (),
        inserted: Mapping[ModuleName, tuple[ModuleName, ...]] = MappingProxyType({}),
    ) -> None:
        """`removed` and `inserted`, each with what it needs, are what steps so far change of `base`."""
        self._base = base
        self._removed = set(removed)
        self._inserted = dict(inserted)

    def copy(self) -> "PlannedState":
        """Make a draft that can be thrown away; what was read is shared."""
        return PlannedState(self._base, self._removed, self._inserted)

    def take(self, other: "PlannedState") -> None:
        """Continue from what a copy has become."""
        self._removed = other._removed
        self._inserted = other._inserted

    def get(self, name: ModuleName) -> LoadedModule | None:
        """The module as it will be; None when it will not be loaded."""
        if not self._inserted and not self._removed:
            return self._base[name]
        users: tuple[ModuleName, ...] = ()
        for user, needs in self._inserted.items():
            if name in needs:
                users += (user,)
        if name in self._removed or (base := self._base[name]) is None:
            if name not in self._inserted:
                return None
            return LoadedModule(name, 0, len(users), users, State.LIVE)
        if not users and self._removed.isdisjoint(base.holders):
            return base
        staying = tuple(holder for holder in base.holders if holder not in self._removed)
        holders = staying + tuple(user for user in users if user not in staying)
        return replace(base, holders=holders, references=base.references + len(holders) - len(base.holders))

    def is_inserted(self, name: ModuleName) -> bool:
        """Tell whether a step so far inserts it: what the kernel shows of it now says nothing."""
        return name in self._inserted

    def insert(self, name: ModuleName, needs: tuple[ModuleName, ...]) -> None:
        """Take the module as live, holding those it needs."""
        if self._base[name] is not None:
            # Whatever is there now (coming, in another's hands) will have gone by then.
            self._removed.add(name)
        self._inserted[name] = needs

    def remove(self, name: ModuleName) -> None:
        """Take the module as gone, letting go of those it held."""
        if name in self._inserted:
            del self._inserted[name]
        else:
            self._removed.add(name)


class Link(NamedTuple):
    """One module of a chain."""

    target: Target
    required: bool
    """Its failure ends the chain; a soft dependency and what only that needs may fail."""
    because: str
    """As of a step."""


def chain(index: ModuleIndex, target: Target, because: str) -> list[Link]:
    """Every module in the order of insertion, live ones included; a module may stand there more than once."""
    required = {target, *map(Target, index.dependencies(target.name))}
    order: list[Link] = []
    visited: set[Target] = set()
    # (what to do, with which module, why), the next one last.
    left: list[tuple[str, Target, str]] = [("visit", target, because)]
    while left:
        what, current, why = left.pop()
        if what == "append":
            order.append(Link(current, current in required, why))
            continue
        if what == "visit":
            if current in visited:
                continue
            visited.add(current)
            left.append(("surround", current, why))
            if needs := index.dependencies(current.name):
                left += [("surround", Target(need), f"dependency of {current.name}") for need in reversed(needs)]
            continue
        before, after = soft_targets(index, current.name)
        soft = f"soft dependency of {current.name}"
        if after:
            left += [("visit", other, soft) for other in reversed(after)]
        left.append(("append", current, why))
        if before:
            left += [("visit", other, soft) for other in reversed(before)]
    return order


def soft_targets(index: ModuleIndex, name: ModuleName) -> tuple[tuple[Target, ...], tuple[Target, ...]]:
    """(pre, post) soft dependencies of a module, looked up as modprobe does; words that lead to nothing are left out."""
    before, after = index.softdeps(name)
    if not before and not after:
        return (), ()
    return (
        tuple(target for word in before for target in index.lookup(word)),
        tuple(target for word in after for target in index.lookup(word)),
    )


def has_soft_targets(index: ModuleIndex, name: ModuleName) -> bool:
    """Tell whether modprobe knows a soft dependency of the module: it then ignores the module's `install` lines."""
    return any(soft_targets(index, name))
