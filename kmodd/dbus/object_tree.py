# SPDX-License-Identifier: LGPL-2.1-or-later
"""The object tree: its objects and their interfaces, introspection from the XML, and reading of properties."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kmodd.dbus.binding import BoundInterface, read
from kmodd.dbus.call import StandardError, Target
from kmodd.dbus.interface_xml import Contract, Interface
from kmodd.names import escape_label, unescape_label

ROOT = "/org/kmodd1"


@dataclass(frozen=True, slots=True)
class Node:
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
        """The name for the last element of a path; None if it is not canonical: one object has one path."""
        if not self.escaped:
            return encoded if encoded.isascii() and encoded.isdigit() and not encoded.startswith("0") else None
        try:
            label = unescape_label(encoded)
        except ValueError:
            return None
        return label if escape_label(label) == encoded else None


class ObjectTree:
    """Resolves paths. Nothing is stored: an object is there exactly while what it stands for is."""

    def __init__(self, contract: Contract, branches: Mapping[str, Node], root: str = ROOT) -> None:
        """`branches` by the objects' path up to the slash before their names, such as `/org/kmodd1/module`."""
        self._branches = branches
        self._at = {prefix: contract.at(prefix + "/*") for prefix in branches}
        self._fixed: dict[str, tuple[Interface, ...]] = {root: contract.at(root)}
        self._bare = contract.at("**")
        for prefix in branches:
            self._fixed.setdefault(prefix, self._bare)
        parts = root.split("/")
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
        """Every object with a fixed name, as listed by ObjectManager."""
        for prefix, branch in self._branches.items():
            for label in branch.labels():
                yield Target(f"{prefix}/{branch.encode(label)}", label), self._at[prefix]


_HEAD = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
"""


class Introspection:
    """Describes objects: their interfaces, and the objects right below them."""

    def __init__(self, tree: ObjectTree) -> None:
        self._tree = tree
        self._texts: dict[tuple[str, ...], str] = {}

    def text(self, path: str) -> str:
        """The object's description."""
        node = self._tree.find(path)
        if node is None:
            raise StandardError("UnknownObject", "no such object")
        children = "".join(f'<node name="{name}"/>\n' for name in self._tree.children(path))
        return f"{_HEAD}{self._interfaces(node[1])}{children}</node>\n"

    def _interfaces(self, interfaces: tuple[Interface, ...]) -> str:
        # A handful of kinds of objects, so a handful of texts.
        key = tuple(interface.name for interface in interfaces)
        if key not in self._texts:
            self._texts[key] = "".join(f"{one.text}\n" for one in interfaces)
        return self._texts[key]


Values = dict[str, tuple[str, Any]]


class PropertyReader:
    """Properties of every object."""

    def __init__(self, tree: ObjectTree) -> None:
        self.tree = tree
        self._interfaces: Mapping[str, BoundInterface] = {}

    def bind(self, interfaces: Mapping[str, BoundInterface]) -> None:
        """Give it the handlers; they exist only after everything that reads through them."""
        self._interfaces = interfaces

    def one(self, interface: str, name: str, target: Target) -> tuple[str, Any]:
        """A property's value as a variant, or the error the specification has."""
        bound = self._at(interface, target).properties.get(name)
        if bound is None:
            raise StandardError("UnknownProperty", "the interface does not have this property")
        return read(bound, target)

    def all(self, interface: str, target: Target) -> Values:
        """Every property of one interface of an object, or of all of them for an empty name."""
        if interface:
            return self._values(self._at(interface, target), target)
        values: Values = {}
        for one in self._present(target):
            values |= self._values(self._interfaces[one], target)
        return values

    def some(self, interface: str, names: Iterable[str], target: Target) -> Values:
        """These properties."""
        properties = self._interfaces[interface].properties
        return {name: read(properties[name], target) for name in names if name in properties}

    def exists(self, interface: str, name: str, target: Target) -> bool:
        """The object has this property."""
        return name in self._at(interface, target).properties

    def _at(self, interface: str, target: Target) -> BoundInterface:
        if interface not in self._present(target):
            raise StandardError("UnknownInterface", "the object does not have this interface")
        return self._interfaces[interface]

    def _present(self, target: Target) -> list[str]:
        node = self.tree.find(target.path)
        if node is None:
            raise StandardError("UnknownObject", "no such object")
        return [interface.name for interface in node[1]]

    @staticmethod
    def _values(interface: BoundInterface, target: Target) -> Values:
        return {name: read(each, target) for name, each in interface.properties.items()}
