# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads properties, for the Properties interface, for ObjectManager and for signals."""

from collections.abc import Iterable, Mapping
from typing import Any

from kmodd.bus.binding import BoundInterface, read
from kmodd.bus.call import StandardError, Target
from kmodd.bus.tree import Tree

Values = dict[str, tuple[str, Any]]


class Reading:
    """Properties of every object."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._interfaces: Mapping[str, BoundInterface] = {}

    def bind(self, interfaces: Mapping[str, BoundInterface]) -> None:
        """Give it the handlers; they exist only after everything that reads through them."""
        self._interfaces = interfaces

    def one(self, interface: str, name: str, target: Target) -> tuple[str, Any]:
        """A property's value as a variant, or the error the specification has."""
        found = self._at(interface, target).properties.get(name)
        if found is None:
            raise StandardError("UnknownProperty", "the interface does not have this property")
        return read(found, target)

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
        found = self.tree.find(target.path)
        if found is None:
            raise StandardError("UnknownObject", "there is no such object")
        return [one.name for one in found[1]]

    @staticmethod
    def _values(interface: BoundInterface, target: Target) -> Values:
        return {name: read(one, target) for name, one in interface.properties.items()}
