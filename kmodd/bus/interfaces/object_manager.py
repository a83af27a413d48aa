# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.freedesktop.DBus.ObjectManager."""

from collections.abc import Callable, Hashable
from typing import Any

from kmodd.bus.answers import Answers
from kmodd.bus.call import Body, Call, StandardError
from kmodd.bus.reading import Reading


class ObjectManagerInterface:
    """Members of org.freedesktop.DBus.ObjectManager."""

    interface = "org.freedesktop.DBus.ObjectManager"

    def __init__(self, reading: Reading, made_of: Callable[[], Hashable]) -> None:
        """`made_of` answers what is different whenever the objects or their properties may be."""
        self._reading = reading
        self._made_of = made_of
        self._answers = Answers("a{oa{sa{sv}}}", size=1)

    def get_managed_objects(self) -> Call:
        return Call(self._run)

    def _run(self, _: object) -> Body:
        return self._answers.get("all", self._made_of(), self._objects)

    def _objects(self) -> dict[str, dict[str, Any]]:
        objects = {}
        for target, interfaces in self._reading.tree.objects():
            try:
                objects[target.path] = {
                    one.name: self._reading.all(one.name, target) for one in interfaces if one.properties
                }
            except StandardError:  # it went while we were reading: it is not there
                continue
        return objects
