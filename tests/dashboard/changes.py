# SPDX-License-Identifier: LGPL-2.1-or-later
"""Longer ways through the dashboard on a real machine: wanted state, rules and store, each there and back again."""

from pathlib import Path

from tests.dashboard.machine import is_loaded
from tests.dashboard.page import Page
from tests.system.service import wait_until
from tests.vm.machine import Machine

PARAMS = "kmodd_test_params"
GOOD = "kmodd_test_good"
WISH = "/etc/kmodd/modules.d/dashboard.toml"
SLOW = 120.0
"""Seconds: depmod, and a look into the initramfs, take their time under emulation."""


def held(vm: Machine, parameter: str) -> str:
    """What the kernel holds of a parameter of the test module."""
    return vm.read_file(f"/sys/module/{PARAMS}/parameters/{parameter}").decode().strip()


def was_told(vm: Machine, event: str, reason: str) -> None:
    """Wait until the journal has the reason, with a record of this kind."""
    wait_until(lambda: reason in vm.journal(f"KMODD_EVENT={event}", "-o", "json"), f"{reason!r} in the journal")


def bring_about(page: Page, vm: Machine) -> None:
    """A wish is written on the machine; its drift is seen, applied and gone."""
    window = page.browser
    page.visit("config")
    window.see(".nothing", "The system matches the desired state", SLOW)
    assert window.run("return document.querySelector('[data-key=apply]').disabled")
    vm.check("mkdir -p /etc/kmodd/modules.d")
    vm.write_file(WISH, f'[module.{PARAMS}]\nstate = "loaded"\nparameters = {{ level = 2 }}\n')
    assert page.change("reread", "a wish by hand") == "Configuration reloaded"
    row = window.see("section:first-of-type table.rules tbody tr", PARAMS, SLOW)
    assert "loaded" in row
    assert not is_loaded(vm, PARAMS)
    page.ask_for("apply")
    assert PARAMS in window.see("dialog .plan li")
    assert not is_loaded(vm, PARAMS)
    page.confirm("as it is wanted")
    window.gone("dialog", SLOW)
    window.see("#notice", "The system matches the desired state.")
    window.see(".nothing", "The system matches the desired state", SLOW)
    assert is_loaded(vm, PARAMS)
    assert held(vm, "level") == "2"
    was_told(vm, "module.loaded", "as it is wanted")
    was_told(vm, "gateway.operation", "a wish by hand")
    # What others unload is drift again, and seen without a hand on the page.
    vm.check(f"rmmod {PARAMS}")
    window.see("section:first-of-type table.rules tbody tr", PARAMS, SLOW)
    vm.check(f"rm {WISH} && systemctl reload kmodd", timeout=90)
    window.see(".nothing", "The system matches the desired state", SLOW)


def write_rules(page: Page, vm: Machine) -> None:
    """Each rule about a module is written, obeyed by modprobe, and lifted again."""
    window = page.browser
    page.visit(f"modules/{PARAMS}")
    page.change("autoload", "at every boot")
    window.see("[data-key=autoload]", "No longer load at boot")
    assert PARAMS in vm.read_file("/etc/modules-load.d/kmodd.conf").decode().split()
    page.ask_for("options")
    window.type("#change-parameter-a_charp", "two words")
    window.type("#change-parameter-level", "6")
    words = {'a_charp="two words"', "level=6"}
    window.until(
        "return arguments[0].every((word) => document.querySelector('.preview').textContent.includes(word))", [*words]
    )
    assert window.see("dialog .preview code").startswith(f"options {PARAMS} ")
    page.confirm("a text and a level")
    window.gone("dialog")
    for word in words:
        window.see("table.rules", word)
    vm.check(f"modprobe {PARAMS}")
    assert [held(vm, name) for name in ("a_charp", "level")] == ["two words", "6"]
    vm.check(f"rmmod {PARAMS}")
    page.ask_for("blacklist")
    window.click("label[for=change-hard]")
    page.confirm("out of the way")
    window.gone("dialog")
    window.see("[data-key=blacklist]", "Lift the blacklist")
    assert vm.run(["modprobe", PARAMS]).code != 0
    window.see(".chip.disabled", "disabled")
    for reason in ("at every boot", "a text and a level", "out of the way"):
        was_told(vm, "configuration.changed", reason)

    page.change("blacklist", "let in again")
    window.see(".chip", "not loaded")
    page.change("autoload", "not at boot")
    page.ask_for("options")
    assert window.run("return document.querySelector('#change-parameter-a_charp').value") == "two words"
    for name in ("a_charp", "level"):
        window.type(f"#change-parameter-{name}", "")
    window.see("dialog .preview", "line in modprobe.d is removed")
    page.confirm("as it was")
    window.gone("dialog")
    window.see(".nothing", "No rules.")
    assert vm.run("ls /etc/modprobe.d/kmodd-* /etc/modules-load.d/kmodd.conf").stdout == ""


def keep_a_module(page: Page, vm: Machine, folder: Path) -> None:
    """A module's file goes into the store, into force, into the kernel, and all the way back."""
    window = page.browser
    kernel = vm.check("uname -r").strip()
    # Of two files below updates/ depmod takes the one that the folder happens to list last; the kernel's own lie elsewhere.
    vm.check(
        f"cd /lib/modules/{kernel} && mkdir -p extra && mv updates/kmodd-test/{GOOD}.ko extra/ && depmod -a",
        timeout=120,
    )
    ours = vm.check(f"modinfo -n {GOOD}").strip()
    file = folder / f"{GOOD}.ko"
    file.write_bytes(vm.read_file(ours))
    page.visit("store")
    window.see(".nothing", "The store is empty")
    window.click("main button.primary")
    window.choose("#change-file", file)
    window.type("#change-version", "9")
    page.confirm("of my own")
    # The kernel has one of this name: that is said, and left to the reader to decide.
    assert "Shadows" in window.see("dialog .failure", seconds=SLOW)
    window.click("label[for=change-shadow]")
    page.confirm("of my own")
    window.gone("dialog", SLOW)
    window.see("#notice", f"{GOOD} 9 is in the store")
    page.ask_for(f"Activate-{GOOD}-9-{kernel}")
    window.click("label[for=change-load]")
    window.see("dialog .preview", "reloaded immediately")
    page.confirm("mine from now on")
    window.gone("dialog", SLOW)
    window.see("#notice", f"Module {GOOD} 9 is active")
    window.see(".chip.good", "active")
    assert is_loaded(vm, GOOD)
    assert "/updates/kmodd/" in vm.check(f"modinfo -n {GOOD}")
    page.visit("modules")
    window.type("#filter", GOOD)
    assert "store" in window.see("table.sorted tbody tr", GOOD)
    page.visit("store")
    page.ask_for(f"Deactivate-{GOOD}-9-{kernel}")
    page.confirm("not mine")
    window.gone("dialog", SLOW)
    assert vm.check(f"modinfo -n {GOOD}").strip() == ours
    page.ask_for(f"Remove-{GOOD}-9-{kernel}")
    page.confirm("done with it")
    window.gone("dialog", SLOW)
    window.see(".nothing", "The store is empty")
    for reason in ("of my own", "mine from now on", "not mine", "done with it"):
        was_told(vm, "gateway.operation", reason)
    vm.check(f"rmmod {GOOD}")
