# SPDX-License-Identifier: LGPL-2.1-or-later
"""Uses the window of docs/examples/kmodd-modules.py as a person would, and prints what it shows: `drive.py EXAMPLE [PICTURE]`.

Runs with Debian's Python, whose GTK it needs, in an X server. The kernel behind the bus is simulated; window, bus and daemon are not.
"""

import json
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import gi

gi.require_version("Gtk", "4.0")
from gi.repository import Gio, GLib, Gtk  # noqa: E402 - GTK's version is chosen first

PATIENCE = 30.0
EXAMPLE = runpy.run_path(sys.argv[1], run_name="example")
seen: dict[str, object] = {}


shown: dict[str, Any] = {}


def state() -> object:
    """What the window has, for who looks for a fault."""
    window = shown.get("window")
    return window and (sorted(window.rows), window.text.get_text())


def until(true: Callable[[], object], what: str) -> None:
    """Let the window work until this is so."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}; {seen}; {state()}"
        GLib.MainContext.default().iteration(False)
        time.sleep(0.01)


def drive(window) -> None:  # type: ignore[no-untyped-def]
    """Look, search, hold, let go."""
    shown["window"] = window
    until(lambda: "snd_pcm" in window.rows, "the list has the loaded modules")
    seen["listed"] = sorted(window.rows)
    window.list.select_row(window.rows["snd_pcm"])
    until(window.text.get_text, "snd_pcm is explained")
    seen["explained"] = window.text.get_text()
    window.search.set_text("dummy")
    window.search.emit("activate")
    until(lambda: window.text.get_text() and window.switch.get_sensitive(), "dummy is explained")
    seen["before"] = [window.title.get_text(), window.text.get_text(), window.switch.get_active()]
    window.switch.set_active(True)
    until(lambda: "dummy" in window.rows, "dummy is loaded")
    until(lambda: "lease" in window.text.get_text() and window.switch.get_sensitive(), "the lease is among its users")
    seen["held"] = [window.text.get_text(), window.switch.get_active()]
    if len(sys.argv) > 2:
        drawn = time.monotonic() + 1
        until(lambda: time.monotonic() > drawn, "the window is drawn")
        subprocess.run(["import", "-window", "root", sys.argv[2]], check=True)
    # Someone else may not take it away meanwhile.
    bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
    try:
        bus.call_sync(
            "org.kmodd1", "/org/kmodd1", "org.kmodd1.Manager", "Unload",
            GLib.Variant("(sa{sv})", ("dummy", {})), None, Gio.DBusCallFlags.NONE, 30000,
        )  # fmt: skip
    except GLib.Error as error:
        seen["unload"] = Gio.DBusError.get_remote_error(error)
    window.switch.set_active(False)
    until(lambda: "dummy" not in window.rows, "dummy is unloaded after the grace time")
    until(lambda: window.text.get_text().startswith("Not loaded"), "and the window says so")
    window.search.set_text("no_such_module")
    window.search.emit("activate")
    until(lambda: window.title.get_text() == "no_such_module" and window.text.get_text(), "it is explained")
    seen["absent"] = [window.text.get_text(), window.switch.get_sensitive()]


def main() -> None:
    """Drive it once."""
    application = Gtk.Application(application_id="org.kmodd1.test", flags=Gio.ApplicationFlags.NON_UNIQUE)

    def activate(_: Gtk.Application) -> None:
        window = EXAMPLE["Modules"](application)
        window.present()
        GLib.idle_add(begin, window)

    def begin(window) -> bool:  # type: ignore[no-untyped-def]
        try:
            drive(window)
        finally:
            application.quit()
            print(json.dumps(seen))
        return False

    application.connect("activate", activate)
    application.run([])


main()
