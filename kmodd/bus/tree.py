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
    """There is one with this name now; whatever the name is, it is looked up and nothing else."""
    escaped: bool = True
    """Names are escaped in paths, as sd_bus_path_encode does; False for numbers."""

    def encode(self, label: str) -> str:
        """The last part of the path for a name."""
        return escape_label(label) if self.escaped else label

    def decode(self, encoded: str) -> str | None:
        """The name for a last part of a path; None where it is nobody's: one object has one path."""
        if not self.escaped:
            return encoded if encoded.isascii() and encoded.isdigit() and not encoded.startswith("0") else None
        try:
            label = unescape_label(encoded)
        except ValueError:
            return None
        return label if escape_label(label) == encoded else None


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
        label = branch.decode(encoded)
        if label is None or not branch.has(label):
            return None
        return Target(path, label), self._at[prefix]

    def children(self, path: str) -> list[str]:
        """The last parts of the paths right below."""
        branch = self._branches.get(path)
        if branch is not None:
            return [branch.encode(label) for label in branch.labels()]
        start = path.rstrip("/") + "/"
        return sorted(
            {other[len(start) :].split("/")[0] for other in self._fixed if other.startswith(start) and other != start}
        )

    def path(self, prefix: str, label: str) -> str:
        """The path of an object by its name, whether it is there or not."""
        return f"{prefix}/{self._branches[prefix].encode(label)}"

    def objects(self) -> Iterable[tuple[Target, tuple[Interface, ...]]]:
        """Every object with a name of its own, as ObjectManager lists them."""
        for prefix, branch in self._branches.items():
            for label in branch.labels():
                yield Target(f"{prefix}/{branch.encode(label)}", label), self._at[prefix]
