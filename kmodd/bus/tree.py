# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which objects there are, and what each has."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kmodd.bus.call import Target
from kmodd.bus.contract import Contract, Interface
from kmodd.names import escape_label, unescape_label

ROOT = "/org/kmodd1"


@dataclass(frozen=True, slots=True)
class Branch:
    """Objects of one kind, by name."""

    labels: Callable[[], Iterable[str]]
    """The names there are now."""
    has: Callable[[str], bool]
    """There is one with this name now."""


class Tree:
    """Resolves paths. Nothing is stored: an object is there exactly while what it stands for is."""

    def __init__(self, contract: Contract, branches: Mapping[str, Branch]) -> None:
        """`branches` by the objects' path up to the slash before their names, such as `/org/kmodd1/module`."""
        self._branches = branches
        self._at = {prefix: contract.at(prefix + "/*") for prefix in branches}
        self._fixed: dict[str, tuple[Interface, ...]] = {ROOT: contract.at(ROOT)}
        self._bare = contract.at("**")
        for prefix in branches:
            self._fixed.setdefault(prefix, self._bare)
        parts = ROOT.split("/")
        for length in range(1, len(parts)):
            self._fixed.setdefault("/".join(parts[:length]) or "/", self._bare)

    def find(self, path: str) -> tuple[Target, tuple[Interface, ...]] | None:
        """The object at a path with its interfaces, or None."""
        interfaces = self._fixed.get(path)
        if interfaces is not None:
            return Target(path), interfaces
        prefix, _, encoded = path.rpartition("/")
        branch = self._branches.get(prefix)
        if branch is None:
            return None
        try:
            label = unescape_label(encoded)
        except ValueError:
            return None
        # One object has one path: other spellings of its name are nothing.
        if escape_label(label) != encoded or not branch.has(label):
            return None
        return Target(path, label), self._at[prefix]

    def children(self, path: str) -> list[str]:
        """The last parts of the paths right below."""
        branch = self._branches.get(path)
        if branch is not None:
            return [escape_label(label) for label in branch.labels()]
        start = path.rstrip("/") + "/"
        return sorted({other[len(start) :].split("/")[0] for other in self._fixed if other.startswith(start) and other != start})

    def objects(self) -> Iterable[tuple[Target, tuple[Interface, ...]]]:
        """Every object with a name of its own, as ObjectManager lists them."""
        for prefix, branch in self._branches.items():
            for label in branch.labels():
                yield Target(f"{prefix}/{escape_label(label)}", label), self._at[prefix]
