# SPDX-License-Identifier: LGPL-2.1-or-later
"""Properties, Introspectable and Peer of the D-Bus specification, for every object."""

from collections.abc import Callable
from typing import Any

from kmodd.bus.call import Call, StandardError, Target
from kmodd.bus.introspection import Introspection
from kmodd.bus.reading import Reading


class PropertiesInterface:
    """Members of org.freedesktop.DBus.Properties. Nothing can be set: every change is a method."""

    interface = "org.freedesktop.DBus.Properties"

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def get(self, target: Target, interface_name: str, property_name: str) -> Call:
        return Call(lambda _: self._reading.one(interface_name, property_name, target))

    def get_all(self, target: Target, interface_name: str) -> Call:
        return Call(lambda _: self._reading.all(interface_name, target))

    def set(self, target: Target, interface_name: str, property_name: str, value: tuple[str, Any]) -> Call:
        del value
        if not self._reading.exists(interface_name, property_name, target):
            raise StandardError("UnknownProperty", "the interface does not have this property")
        raise StandardError("PropertyReadOnly", "the property is read-only")


class IntrospectableInterface:
    """Members of org.freedesktop.DBus.Introspectable."""

    interface = "org.freedesktop.DBus.Introspectable"

    def __init__(self, introspection: Introspection) -> None:
        self._introspection = introspection

    def introspect(self, target: Target) -> Call:
        return Call(lambda _: self._introspection.text(target.path))


class PeerInterface:
    """Members of org.freedesktop.DBus.Peer."""

    interface = "org.freedesktop.DBus.Peer"

    def __init__(self, machine_id: Callable[[], str]) -> None:
        self._machine_id = machine_id

    def ping(self, _: Target) -> Call:
        return Call(lambda _: None)

    def get_machine_id(self, _: Target) -> Call:
        return Call(lambda _: self._machine_id())
