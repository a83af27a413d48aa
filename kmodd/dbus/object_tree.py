# SPDX-License-Identifier: LGPL-2.1-or-later
"""The object tree: its objects, the handlers bound to their interfaces, introspection from the XML, and reading of properties.

An interface's members are the public methods of one class: `SetParameter` is `set_parameter`, the property `LoadedCount`
is `loaded_count`; a Python keyword gets a `_` (`Import` is `import_`). Where there are many objects of a kind, the first
argument is the `Target`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from keyword import iskeyword
from typing import Any, Protocol

from kmodd.dbus.call import Call, Refusal, StandardError, Target
from kmodd.dbus.interface_xml import Contract, ContractError, Interface, Method, Property
from kmodd.fast_dataclass import dataclass
from kmodd.names import escape_label, unescape_label

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
ROOT = "/org/kmodd1"


class Members(Protocol):
    """An object whose public methods are the members of one interface."""

    @property
    def interface(self) -> str:
        """The interface's name."""


@dataclass(frozen=True, slots=True)
class BoundMethod:
    """A method with its handler."""

    row: Method
    handler: Callable[..., Call | Refusal]
    targeted: bool
    """The handler wants the `Target` first."""


@dataclass(frozen=True, slots=True)
class BoundProperty:
    """A property with what reads it."""

    row: Property
    read: Callable[..., Any]
    targeted: bool


@dataclass(frozen=True, slots=True)
class BoundInterface:
    """An interface with all its handlers."""

    contract: Interface
    methods: Mapping[str, BoundMethod]
    properties: Mapping[str, BoundProperty]


def snake_case(name: str) -> str:
    """`GetMachineId` → `get_machine_id`, `LoadDurationUSec` → `load_duration_usec`."""
    word = _WORD.sub("_", name.replace("USec", "Usec")).lower()
    return f"{word}_" if iskeyword(word) else word


def bind(contract: Contract, implementations: Iterable[Members]) -> Mapping[str, BoundInterface]:
    """Tie them together; ContractError names the member without handler, or the handler without member."""
    by_name = {each.interface: each for each in implementations}
    missing = set(contract.interfaces) ^ set(by_name)
    if missing:
        raise ContractError(f"interfaces only in the XML or only in the code: {', '.join(sorted(missing))}")
    return {name: _bind(contract.interfaces[name], members) for name, members in by_name.items()}


def _bind(interface: Interface, members: Members) -> BoundInterface:
    wanted = {snake_case(name): name for name in (*interface.methods, *interface.properties)}
    present = {name for name in dir(type(members)) if not name.startswith("_")} - {"interface"}
    if len(wanted) != len(interface.methods) + len(interface.properties):
        raise ContractError(f"{interface.name}: a method and a property have the same handler")
    for name in sorted(set(wanted) - present):
        raise ContractError(f"{interface.name}.{wanted[name]} has no handler {name}")
    for name in sorted(present - set(wanted)):
        raise ContractError(f"{interface.name} has no member for the handler {name}")
    targeted = interface.objects.endswith("*")
    return BoundInterface(
        interface,
        {
            name: BoundMethod(row, getattr(members, snake_case(name)), targeted)
            for name, row in interface.methods.items()
        },
        {
            name: BoundProperty(row, getattr(members, snake_case(name)), targeted)
            for name, row in interface.properties.items()
        },
    )


def read(bound: BoundProperty, target: object) -> tuple[str, Any]:
    """A property's value as a variant."""
    return bound.row.signature, bound.read(target) if bound.targeted else bound.read()


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
            self._texts[key] = "".join(f"{interface.text}\n" for interface in interfaces)
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
        for bound in self._present(target):
            values |= self._values(self._interfaces[bound], target)
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
