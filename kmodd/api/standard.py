# SPDX-License-Identifier: LGPL-2.1-or-later
"""Properties, Introspectable, Peer and ObjectManager of the D-Bus specification."""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from struct import Struct
from typing import Any

from kmodd.core.fair_share import Slices, Work, straight
from kmodd.dbus.call import Body, Call, StandardError, Target
from kmodd.dbus.marshal import ReplyCache, encode
from kmodd.dbus.object_tree import Introspection, PropertyReader
from kmodd.model import Caller, FactsPending


class PropertiesInterface:
    """Members of org.freedesktop.DBus.Properties. Nothing can be set: every change is a method."""

    interface = "org.freedesktop.DBus.Properties"

    def __init__(
        self, reading: PropertyReader, look: Callable[[Target, str, Caller], Awaitable[None] | None] = lambda *_: None
    ) -> None:
        """`look` answers what has to be awaited before a property (empty: all of them) of an object can be read, if anything."""
        self._reading = reading
        self._look = look

    def get(self, target: Target, interface_name: str, property_name: str) -> Call:
        return self._after(
            target, property_name, lambda completed: self._reading.one(interface_name, property_name, completed)
        )

    def get_all(self, target: Target, interface_name: str) -> Call:
        return self._after(target, "", lambda completed: self._reading.all(interface_name, completed))

    def _after(self, target: Target, name: str, read: Callable[[Target], Any]) -> Call:
        async def wait(first: Awaitable[None], completed: Target) -> Any:
            await first
            return read(completed)

        def run(caller: Caller) -> Any:
            extended = replace(target, asker=caller.sender)
            first = self._look(extended, name, caller)
            return read(extended) if first is None else wait(first, extended)

        return Call(run, cancellable=True)

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


_SIGNATURE = "a{oa{sa{sv}}}"
_LENGTH = Struct("<I")
_ENTRIES = 8
"""Where the entries begin: the array's length, and padding up to the alignment of its elements."""
_ROUNDS = 3


class ObjectManagerInterface:
    """Members of org.freedesktop.DBus.ObjectManager."""

    interface = "org.freedesktop.DBus.ObjectManager"

    def __init__(
        self,
        reading: PropertyReader,
        made_of: Callable[[], Hashable],
        look: Callable[[], Awaitable[None]],
        *,
        generation: Callable[[], int],
        slices: Slices,
    ) -> None:
        """`made_of` answers what is different whenever the objects or their properties may be; `look` is awaited first.

        `generation` answers a number that rises when a signal about one of them is to be sent.
        """
        self._reading = reading
        self._look = look
        self._made_of = made_of
        self._generation = generation
        self._slices = slices
        self._answers = ReplyCache(_SIGNATURE, size=1)

    def get_managed_objects(self) -> Call:
        return Call(self._run, cancellable=True)

    async def _run(self, caller: Caller) -> Body:
        made_of = self._made_of()
        body = self._answers.kept("all", made_of)
        if body is None:
            await self._look()
            made_of = self._made_of()
        for _ in range(_ROUNDS):
            if body is not None:
                break
            generation = self._generation()
            body = await self._slices.run(self._objects(), caller.uid)
            if generation != self._generation():
                # A signal about a change went out, or will before this reply: the caller would take the old value for the new.
                body = None
        return self._answers.get("all", made_of, lambda: body or straight(self._objects()))

    def _objects(self) -> Work[Body]:
        out = bytearray(_ENTRIES)
        for target, interfaces in list(self._reading.tree.objects()):
            while True:
                yield ()
                try:
                    values = {
                        interface.name: self._reading.all(interface.name, target)
                        for interface in interfaces
                        if interface.properties
                    }
                except StandardError:  # it went while we were reading: it is not there
                    break
                except FactsPending as pending:
                    yield pending.names
                    continue
                out += bytes(-len(out) % _ENTRIES)
                out += encode(_SIGNATURE, ({target.path: values},))[_ENTRIES:]
                break
        _LENGTH.pack_into(out, 0, len(out) - _ENTRIES)
        return Body(bytes(out))
