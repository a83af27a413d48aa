# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside the virtual machine: a GLib client of the daemon, as a desktop application would be one.

Takes lines of JSON on standard input, {id, path, interface, member, signature, arguments}, and answers each with a line
{id, value} or {id, error, message}, with the seconds it took. Calls do not wait for each other. Every signal of the daemon
is a line {signal, path, interface, arguments}; what a Gio.DBusObjectManagerClient sees is a line {manager, path} once
{"follow": true} was asked for. {id, hold} takes a lease on a module, {id, release} ends it, and {over} tells that it ended.
One process for all: under emulation, starting one takes longer than most calls.
"""

import json
import os
import sys
import time
from typing import Any

from gi.repository import Gio, GLib

NAME = "org.kmodd1"


def tell(**answer: Any) -> None:
    """One line."""
    sys.stdout.write(json.dumps(answer, default=str) + "\n")
    sys.stdout.flush()


def variants(value: Any) -> Any:
    """What JSON cannot say: a variant is {"variant": [type, value]}."""
    if isinstance(value, dict):
        if set(value) == {"variant"}:
            kind, inner = value["variant"]
            return GLib.Variant(kind, inner)
        return {key: variants(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [variants(inner) for inner in value]
    return value


class Client:
    """Serves standard input."""

    def __init__(self) -> None:
        self.bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
        self.loop = GLib.MainLoop()
        self.manager: Any = None
        self.rest = b""
        self.leases: dict[int, int] = {}
        """Descriptors by the number of the order."""
        self.bus.signal_subscribe(NAME, None, None, None, None, Gio.DBusSignalFlags.NONE, self.on_signal)
        GLib.io_add_watch(GLib.IOChannel.unix_new(0), GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_HUP, self.on_input)
        # The subscription is in force once the bus has answered something that came later.
        self.bus.call_sync(
            "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId", None, None, Gio.DBusCallFlags.NONE, -1
        )
        tell(ready=self.bus.get_unique_name())

    def on_signal(
        self, _bus: Any, _sender: str, path: str, interface: str, member: str, arguments: GLib.Variant
    ) -> None:
        tell(signal=member, path=path, interface=interface, arguments=arguments.unpack(), time=time.time())

    def on_input(self, _channel: Any, _condition: Any) -> bool:
        data = os.read(0, 1 << 20)
        if not data:
            self.loop.quit()
            return False
        *lines, self.rest = (self.rest + data).split(b"\n")
        for order in map(json.loads, lines):
            if "follow" in order:
                self.follow(order["id"])
            elif "hold" in order:
                self.hold(order["id"], order["hold"])
            elif "release" in order:
                os.close(self.leases.pop(order["release"]))
                tell(id=order["id"], value=[None], seconds=0)
            else:
                self.call(order)
        return True

    def call(self, order: dict[str, Any]) -> None:
        begun = time.monotonic()

        def answered(bus: Any, result: Any) -> None:
            took = time.monotonic() - begun
            try:
                value = bus.call_finish(result).unpack()
            except GLib.Error as error:
                name = Gio.DBusError.get_remote_error(error) or ""
                message = error.message.removeprefix(f"GDBus.Error:{name}: ")
                tell(id=order["id"], error=name, message=message, seconds=took)
            else:
                tell(id=order["id"], value=value, seconds=took)

        arguments = GLib.Variant(f"({order['signature']})", tuple(variants(order["arguments"])))
        self.bus.call(
            NAME, order["path"], order["interface"], order["member"], arguments, None, Gio.DBusCallFlags.NONE,
            600_000, None, answered,
        )  # fmt: skip

    def hold(self, number: int, module: str) -> None:
        """Take a lease and keep it; a line {over} tells of its end."""

        def over(_channel: Any, _condition: Any) -> bool:
            tell(over=number)
            return False

        def answered(bus: Any, result: Any) -> None:
            try:
                value, files = bus.call_with_unix_fd_list_finish(result)
            except GLib.Error as error:
                name = Gio.DBusError.get_remote_error(error) or ""
                tell(id=number, error=name, message=error.message.removeprefix(f"GDBus.Error:{name}: "), seconds=0)
                return
            self.leases[number] = files.steal_fds()[value.unpack()[0]]
            channel = GLib.IOChannel.unix_new(self.leases[number])
            GLib.io_add_watch(channel, GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_HUP, over)
            tell(id=number, value=[number], seconds=0)

        self.bus.call_with_unix_fd_list(
            NAME, "/org/kmodd1", "org.kmodd1.Manager", "Hold", GLib.Variant("(sa{ss}a{sv})", (module, {}, {})), None,
            Gio.DBusCallFlags.NONE, 600_000, None, None, answered,
        )  # fmt: skip

    def follow(self, number: int) -> None:
        self.manager = Gio.DBusObjectManagerClient.new_sync(
            self.bus, Gio.DBusObjectManagerClientFlags.NONE, NAME, "/org/kmodd1", None, None, None
        )
        self.manager.connect("object-added", lambda _, one: tell(manager="added", path=one.get_object_path()))
        self.manager.connect("object-removed", lambda _, one: tell(manager="removed", path=one.get_object_path()))
        tell(id=number, value=[[one.get_object_path() for one in self.manager.get_objects()]], seconds=0)


if __name__ == "__main__":
    Client().loop.run()
