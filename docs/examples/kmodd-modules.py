#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A window with the kernel's modules: which are loaded, why, and one held while its switch is on.

An example of a desktop program on kmodd's D-Bus API, with GLib and nothing of kmodd's own. On Debian it requires
python3-gi and gir1.2-gtk-4.0. polkit asks for a password through the agent of the session.
"""

import os
import sys

import gi

gi.require_version("Gtk", "4.0")
from gi.repository import Gio, GLib, Gtk, Pango  # noqa: E402 - GTK's version is chosen first

NAME, ROOT = "org.kmodd1", "/org/kmodd1"
MANAGER, MODULE = "org.kmodd1.Manager", "org.kmodd1.Module"
PATIENCE = 120_000
"""Milliseconds: someone may have to type a password."""
STATES = {"live": "Loaded", "available": "Not loaded", "builtin": "Built in", "absent": "Not installed"}
WITH_PROMPT = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION


class Modules(Gtk.ApplicationWindow):
    """The window."""

    def __init__(self, application: Gtk.Application) -> None:
        super().__init__(application=application, title="Kernel modules", default_width=860, default_height=560)
        self.bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
        self.leases: dict[str, int] = {}
        """Descriptors by module: each keeps its module loaded until it is closed."""
        self.pending: set[str] = set()
        """Modules that a lease was asked for: someone may be typing a password."""
        self.rows: dict[str, Gtk.ListBoxRow] = {}
        """Loaded modules."""
        self.shown = ""
        self.search = Gtk.SearchEntry(placeholder_text="Name of a module, loaded or not")
        self.list = Gtk.ListBox(vexpand=True)
        self.list.set_filter_func(lambda row: self.search.get_text().strip().replace("-", "_") in row.module)
        self.list.set_sort_func(lambda one, other: (one.module > other.module) - (one.module < other.module))
        self.title = Gtk.Label(xalign=0, hexpand=True, css_classes=["title-2"])
        self.text = Gtk.Label(
            xalign=0, yalign=0, vexpand=True, wrap=True, wrap_mode=Pango.WrapMode.WORD_CHAR, selectable=True
        )
        self.switch = Gtk.Switch(valign=Gtk.Align.CENTER, sensitive=False, tooltip_text="Load it, and keep it loaded")
        self.lay_out()
        self.search.connect("search-changed", lambda _: self.list.invalidate_filter())
        # A name that no row has is that of a module that is not loaded.
        self.search.connect("activate", lambda _: self.show_module(self.search.get_text().strip()))
        self.list.connect("row-selected", lambda _, row: row and self.show_module(row.module))
        self.handler = self.switch.connect("state-set", self.on_switch)
        Gio.DBusObjectManagerClient.new(
            self.bus, Gio.DBusObjectManagerClientFlags.NONE, NAME, ROOT, None, None, None, self.on_manager
        )

    def lay_out(self) -> None:
        """Put the parts where they belong."""
        left = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, spacing=6, width_request=240)
        left.append(self.search)
        left.append(Gtk.ScrolledWindow(child=self.list, hscrollbar_policy=Gtk.PolicyType.NEVER))
        head = Gtk.Box(spacing=12)
        for part in (self.title, Gtk.Label(label="Keep loaded"), self.switch):
            head.append(part)
        right = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, spacing=12, hexpand=True)
        right.append(head)
        right.append(Gtk.ScrolledWindow(child=self.text))
        both = Gtk.Box(spacing=18, margin_top=12, margin_bottom=12, margin_start=12, margin_end=12)
        both.append(left)
        both.append(right)
        self.set_child(both)

    def on_manager(self, _: object, result: Gio.AsyncResult) -> None:
        """The objects are known: follow them from now on."""
        try:
            self.objects = Gio.DBusObjectManagerClient.new_finish(result)
        except GLib.Error as error:
            self.text.set_text(sentence(error))
            return
        self.objects.connect("object-added", lambda _, thing: self.add(thing))
        self.objects.connect("object-removed", lambda _, thing: self.remove(thing))
        self.objects.connect("notify::name-owner", lambda *_: self.explain())
        for thing in self.objects.get_objects():
            self.add(thing)

    def add(self, thing: Gio.DBusObject) -> None:
        """A module was loaded."""
        proxy = thing.get_interface(MODULE)
        name = proxy and proxy.get_cached_property("Name")
        if name is None or name.get_string() in self.rows:
            return
        row = Gtk.ListBoxRow(child=Gtk.Label(label=name.get_string(), xalign=0))
        row.module, row.path = name.get_string(), thing.get_object_path()
        self.rows[row.module] = row
        self.list.append(row)
        if row.module == self.shown:
            self.explain()

    def remove(self, thing: Gio.DBusObject) -> None:
        """A module was unloaded."""
        for row in [row for row in self.rows.values() if row.path == thing.get_object_path()]:
            self.list.remove(self.rows.pop(row.module))
            if row.module == self.shown:
                self.explain()

    def show_module(self, name: str) -> None:
        """Show this one, and follow it."""
        self.shown = name.replace("-", "_")
        self.title.set_text(self.shown)
        self.text.set_text("")
        self.switch.set_sensitive(False)
        self.explain()

    def explain(self) -> None:
        """Ask why the module is loaded, and what uses it."""
        if self.shown:
            arguments = GLib.Variant("(sa{sv})", (self.shown, {}))
            self.call("Explain", arguments, Gio.DBusCallFlags.NONE, self.on_explained, self.shown)

    def on_explained(self, result: Gio.AsyncResult, module: str) -> None:
        """Show what came."""
        if module != self.shown:
            return
        try:
            facts = self.bus.call_finish(result).unpack()[0]
        except GLib.Error as error:
            self.text.set_text(sentence(error))
            return
        lines = [STATES.get(facts["state"], facts["state"])]
        lines += [f"Because: {facts['because']}"] if facts.get("because") else []
        for user in facts.get("users", []):
            lines.append(f"Used by: {user['kind']} {user['name']} {user['detail']}")
            lines += [f"    ends with: {user['command']}"] if user.get("command") else []
        lines += [f"First: {text}" for text in facts.get("blockers", [])]
        self.text.set_text("\n".join(lines))
        self.set_switch(module in self.leases or module in self.pending)
        self.switch.set_sensitive(facts["state"] in ("live", "available") and module not in self.pending)

    def on_switch(self, _: Gtk.Switch, on: bool) -> bool:
        """Take a lease on the module, or let it go."""
        module = self.shown
        if on and module not in self.leases:
            self.pending.add(module)
            self.switch.set_sensitive(False)
            reason = {"reason": GLib.Variant("s", "held by a user in Kernel modules")}
            arguments = GLib.Variant("(sa{ss}a{sv})", (module, {}, reason))
            self.call("Hold", arguments, WITH_PROMPT, self.on_held, module)
        elif not on and module in self.leases:
            os.close(self.leases.pop(module))
            # When the last lease is gone, kmodd unloads what was loaded for leases alone, and tells of it.
            self.explain()
        return False

    def on_held(self, result: Gio.AsyncResult, module: str) -> None:
        """The lease is a descriptor beside the reply."""
        self.pending.discard(module)
        try:
            reply, descriptors = self.bus.call_with_unix_fd_list_finish(result)
            self.leases[module] = descriptors.get(reply.unpack()[0])
        except GLib.Error as error:
            if module == self.shown:
                self.set_switch(False)
                self.switch.set_sensitive(True)
                self.text.set_text(sentence(error))
            return
        self.explain()

    def call(self, member: str, arguments: GLib.Variant, flags: Gio.DBusCallFlags, done, module: str) -> None:
        """Call the manager; `done` is called with the result and the module."""
        self.bus.call_with_unix_fd_list(
            NAME, ROOT, MANAGER, member, arguments, None, flags, PATIENCE, None, None,
            lambda _, result: done(result, module),
        )  # fmt: skip

    def set_switch(self, on: bool) -> None:
        """Show a state that nobody asked for."""
        with self.switch.handler_block(self.handler):
            self.switch.set_active(on)
            self.switch.set_state(on)


def sentence(error: GLib.Error) -> str:
    """kmodd's own sentence, without the name of the error before it."""
    Gio.DBusError.strip_remote_error(error)
    return error.message


def main() -> int:
    """Show the window until it is closed: then every lease is over."""
    application = Gtk.Application(application_id="org.kmodd1.examples.Modules", flags=Gio.ApplicationFlags.NON_UNIQUE)
    application.connect("activate", lambda _: Modules(application).present())
    return application.run(sys.argv)


if __name__ == "__main__":
    sys.exit(main())
