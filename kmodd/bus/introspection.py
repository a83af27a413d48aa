# SPDX-License-Identifier: LGPL-2.1-or-later
"""Introspection, from the contract's own text."""

from kmodd.bus.call import StandardError
from kmodd.bus.contract import Interface
from kmodd.bus.tree import Tree

_HEAD = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
"""


class Introspection:
    """Describes objects: their interfaces, and the objects right below them."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._texts: dict[tuple[str, ...], str] = {}

    def text(self, path: str) -> str:
        """The object's description."""
        found = self._tree.find(path)
        if found is None:
            raise StandardError("UnknownObject", "there is no such object")
        children = "".join(f'<node name="{name}"/>\n' for name in self._tree.children(path))
        return f"{_HEAD}{self._interfaces(found[1])}{children}</node>\n"

    def _interfaces(self, interfaces: tuple[Interface, ...]) -> str:
        # A handful of kinds of objects, so a handful of texts.
        key = tuple(one.name for one in interfaces)
        if key not in self._texts:
            self._texts[key] = "".join(f"{one.text}\n" for one in interfaces)
        return self._texts[key]
