# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs people have at hand see all of the API: busctl and gdbus, as root and as anybody."""

from collections.abc import Iterator

import pytest

from tests.system.client import soon
from tests.system.service import CALL
from tests.vm.machine import Machine

NAME = "org.kmodd1"
PATH = "/org/kmodd1"
DUMMY = f"{PATH}/module/dummy"
BOTH = pytest.mark.parametrize("user", ["root", "alice"])


@pytest.fixture(autouse=True)
def _dummy_is_loaded(vm: Machine) -> Iterator[None]:
    vm.check(f"{CALL} Load 'sa{{ss}}a{{sv}}' dummy 0 0")
    soon(lambda: DUMMY in vm.check(["busctl", "tree", "--list", NAME]), "its object is there")
    yield
    vm.check(f"{CALL} Unload 'sa{{sv}}' dummy 0")


@BOTH
def test_busctl_tree_has_an_object_for_each_module(vm: Machine, user: str) -> None:
    tree = set(vm.check(["busctl", "tree", "--list", NAME], user=user).split())
    loaded = {line.split()[0] for line in vm.check("cat /proc/modules").splitlines()}
    assert PATH in tree
    labels = {path.removeprefix(f"{PATH}/module/") for path in tree if path.startswith(f"{PATH}/module/")}
    assert {label.replace("_5f", "_") for label in labels} == loaded


@BOTH
def test_busctl_introspect_shows_members_and_values(vm: Machine, user: str) -> None:
    shown = vm.check(["busctl", "introspect", NAME, PATH], user=user)
    lines = {tuple(line.split()[:4]) for line in shown.splitlines()}
    assert (".Load", "method", "sa{ss}a{sv}", "as") in lines
    assert (".GetHealth", "method", "a{sv}", "a{sv}") in lines
    assert (".ModuleAdded", "signal", "s", "-") in lines
    assert any(line[:3] == (".LoadedCount", "property", "u") and line[3].isdigit() for line in lines)
    shown = vm.check(["busctl", "introspect", NAME, DUMMY], user=user)
    assert any(line.split()[:4] == [".Name", "property", "s", '"dummy"'] for line in shown.splitlines())


@BOTH
def test_busctl_may_leave_the_options_out(vm: Machine, user: str) -> None:
    call = ["busctl", "call", NAME, PATH, "org.kmodd1.Manager"]
    for words in (
        ["GetHealth"],
        ["GetHealth", "a{sv}", "0"],
        ["Describe", "s", "dummy"],
        ["Describe", "sa{sv}", "dummy", "0"],
    ):
        assert vm.check([*call, *words], user=user).startswith("a{sv} "), words
    refused = vm.run([*call, "GetHealth", "a{sv}", "1", "reason", "s", "x"], user=user)
    assert "unknown option; there are none" in refused.stderr
    assert "takes" in vm.run([*call, "GetHealth", "s", "x"], user=user).stderr


@BOTH
def test_busctl_reads_properties(vm: Machine, user: str) -> None:
    get = ["busctl", "get-property", NAME, DUMMY, "org.kmodd1.Module"]
    assert vm.check([*get, "State", "References"], user=user).splitlines() == ['s "live"', "i 0"]
    set_ = ["busctl", "set-property", NAME, DUMMY, "org.kmodd1.Module", "State", "s", "x"]
    assert vm.run(set_, user=user).code != 0


@BOTH
def test_gdbus_introspects_everything(vm: Machine, user: str) -> None:
    shown = vm.check(["gdbus", "introspect", "--system", "-d", NAME, "-o", PATH, "--recurse"], user=user)
    assert f"node {DUMMY} {{" in shown
    assert "Load(in  s module," in shown
    for interface in ("Manager", "Configuration", "Store", "Module"):
        assert f"interface org.kmodd1.{interface} {{" in shown


@BOTH
def test_gdbus_calls_and_shows_errors_by_name(vm: Machine, user: str) -> None:
    call = ["gdbus", "call", "--system", "-d", NAME, "-o", PATH, "--method"]
    assert "'state': <'live'>" in vm.check([*call, "org.kmodd1.Manager.Explain", "dummy", "{}"], user=user)
    refused = vm.run([*call, "org.kmodd1.Manager.Load", "no_such", "{}", "{}"], user=user)
    # GDBus shows no sentence of an error with a second argument: evidence comes only where it is asked for.
    assert "GDBus.Error:org.kmodd1.Error.NoSuchModule: no module no_such" in refused.stderr
    refused = vm.run([*call, "org.kmodd1.Manager.Load", "no_such", "{}", "{'evidence': <'full'>}"], user=user)
    assert "(sa{sv})" in refused.stderr
    shown = vm.check([*call, "org.freedesktop.DBus.ObjectManager.GetManagedObjects"], user=user)
    assert f"objectpath '{DUMMY}'" in shown or f"'{DUMMY}'" in shown


def test_monitors_show_what_happens(vm: Machine) -> None:
    gdbus = vm.start(["gdbus", "monitor", "--system", "-d", NAME], user="alice")
    busctl = vm.start(["busctl", "monitor", "--json=short", NAME])
    gdbus.wait_for_output("is owned by")
    soon(lambda: b"Monitoring" in busctl.out + busctl.err, "it monitors")
    vm.check(f"{CALL} Load 'sa{{ss}}a{{sv}}' vfat 0 0")
    vm.check(f"{CALL} Unload 'sa{{sv}}' vfat 1 unused-dependencies b true")
    for line in ("ModuleAdded ('fat',)", "ModuleAdded ('vfat',)", "ModuleRemoved ('vfat',)", "ModuleRemoved ('fat',)"):
        gdbus.wait_for_output(line)
    said = gdbus.out.decode()
    assert f"{PATH}/module/fat" in said
    assert "org.freedesktop.DBus.Properties.PropertiesChanged ('org.kmodd1.Manager'" in said
    for member in ("Load", "Unload", "ModuleAdded", "InterfacesAdded", "PropertiesChanged", "JobFinished"):
        busctl.wait_for_output(f'"member":"{member}"')
    for command in (gdbus, busctl):
        command.kill()
        command.wait()
