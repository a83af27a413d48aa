# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page in Debian's Cockpit, in Chromium, against the installed daemon and a real kernel.

One machine, one window and one login for all, in the order of these tests: with limited access first, then with administrative.
With `KMODD_SCREENSHOTS=FOLDER` the pictures of the documentation are taken on the way.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.installation import make
from tests.dashboard.browser import Browser, browser
from tests.dashboard.machine import is_loaded, kernels_modules
from tests.dashboard.page import Page
from tests.gateway.processes import free_port
from tests.system.service import wait_until
from tests.vm import snapshot
from tests.vm.machine import Machine
from tests.vm.qemu import Options

PORT = 9090
SLOW = 90.0
"""Seconds: Cockpit starts a bridge for each login, under emulation."""
PASSWORD = "correct horse battery"  # noqa: S105 - of a throwaway user
# The machine has neither sudo nor pkexec, by which Cockpit gives administrative access: systemd-run stands in for them, and polkit
# decides as it does for pkexec.
BRIDGE = """{"bridges": [{"privileged": true, "label": "systemd", "spawn":
    ["systemd-run", "--quiet", "--pipe", "--wait", "--uid=0", "cockpit-bridge", "--privileged"]}]}
"""
RULE = """polkit.addRule(function (action, subject) {
    if (action.id === "org.freedesktop.systemd1.manage-units" && subject.user === "alice") {
        return polkit.Result.YES;
    }
    return undefined;
});
"""
SET_UP = f"""
dpkg --no-triggers --install /usr/share/kmodd-tests/debs/cockpit/*.deb
printf '[WebService]\\nAllowUnencrypted = true\\n' > /etc/cockpit/cockpit.conf
echo 'alice:{PASSWORD}' | chpasswd
systemctl restart polkit.service
systemctl start cockpit.socket
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, str]]:
    """A machine with Cockpit and the page, and the address of it from here."""
    port, folder = free_port(), tmp_path_factory.mktemp("page")
    make("install-cockpit", folder)
    with snapshot.start_with_kmodd(Options(network=True), forward={port: PORT}) as vm:
        vm.copy_in(folder / "usr/local/share", "/usr/local/share")
        vm.write_file("/etc/cockpit/shell.override.json", BRIDGE)
        vm.write_file("/etc/polkit-1/rules.d/40-cockpit.rules", RULE)
        vm.run(SET_UP, timeout=240, check=True)
        yield vm, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def vm(served: tuple[Machine, str]) -> Machine:
    """The machine."""
    return served[0]


FRAME = "iframe[name='cockpit1:localhost/kmodd']"


@pytest.fixture(scope="module")
def page(served: tuple[Machine, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page, reached by the login and the menu of Cockpit; alice is logged in, with limited access."""
    with browser(tmp_path_factory.mktemp("browser")) as window:
        window.look_like(1280, 800)
        window.go(served[1])
        window.see("#login-user-input", seconds=SLOW)
        window.type("#login-user-input", "alice")
        window.type("#login-password-input", PASSWORD)
        window.click("#login-button")
        window.see("#host-apps a[href='/kmodd']", "Kernel modules", SLOW)
        window.click("#host-apps a[href='/kmodd']")
        window.enter(FRAME)
        window.see("table.sorted", "virtio_blk", SLOW)
        window.complaints()
        yield Page(window, served[1])
        assert window.complaints() == []


def picture(window: Browser, name: str) -> None:
    """A picture for the documentation, when one is asked for."""
    if folder := os.environ.get("KMODD_SCREENSHOTS"):
        window.run("document.getElementById('notice').textContent = ''; document.activeElement.blur()")
        window.leave()
        window.screenshot(Path(folder) / f"{name}.png")
        window.enter(FRAME)


def test_the_list_is_the_kernels_and_follows_it(page: Page, vm: Machine) -> None:
    window = page.browser
    assert sorted(page.rows()) == kernels_modules(vm)
    window.run("window.before = document.querySelector('table.sorted')")
    vm.run(["modprobe", "dummy"], check=True)
    window.see("table.sorted tbody th", "dummy", 10)
    vm.run(["rmmod", "dummy"], check=True)
    window.until(
        "return ![...document.querySelectorAll('table.sorted tbody th')].some((one) => one.textContent === 'dummy')",
        seconds=10,
    )
    assert window.run("return window.before.isConnected")
    window.type("#filter", "virtio_b")
    window.until("return document.querySelectorAll('table.sorted tbody tr').length < 4")
    assert "virtio_blk" in page.rows()
    window.type("#filter", "")


def test_limited_access_shows_what_is_public_and_says_what_a_change_needs(page: Page, vm: Machine) -> None:
    window = page.browser
    window.see("#access", "Limited access")
    vm.run("kmodctl load kmodd_test_good --reason 'not for everyone'", check=True)
    page.visit("modules/kmodd_test_good")
    window.see("section", "Not shown: who loaded it and why. Turn on administrative access")
    assert "not for everyone" not in window.text("main")
    vm.run("kmodctl unload kmodd_test_good", check=True)
    page.visit("modules/dummy")
    page.ask_for("load")
    window.see("dialog .plan", "dummy")
    page.confirm("not allowed")
    failure = window.see("dialog .failure")
    assert "InteractiveAuthorizationRequired" in failure
    assert "Turn on administrative access at the top of the page" in failure
    assert not is_loaded(vm, "dummy")
    window.press("Escape")
    window.gone("dialog")
    window.run("location.hash = '#/history'")
    window.see("h1", "History")
    assert "Turn on administrative access" in window.see("main .failure")
    # Each refusal is a record, after which a view would read the history again, and be refused again.
    vm.run(["modprobe", "dummy"], check=True)
    vm.run(["rmmod", "dummy"], check=True)
    assert vm.journal("KMODD_ACTION=read-history", "KMODD_EVENT=authorization.denied").count("interactive") == 1


def test_administrative_access_is_turned_on_as_in_every_page(page: Page) -> None:
    window = page.browser
    window.leave()
    window.click(".ct-locked")
    window.see(".pf-c-modal-box", "You now have administrative access", SLOW)
    window.click(".pf-c-modal-box .btn-cancel")
    window.enter(FRAME)
    window.until("return document.querySelector('#access')?.textContent === ''", seconds=SLOW)
    window.see(".records", seconds=SLOW)  # it was reloaded, and stays in its view
    page.visit("modules")
    window.see("table.sorted", "virtio_blk")
    picture(window, "cockpit-modules")


def test_why_names_the_use_and_the_commands_that_end_it(page: Page, vm: Machine) -> None:
    vm.run(
        "mkdir -p /srv/lower /srv/upper /srv/work /srv/merged && "
        "mount -t overlay overlay -o lowerdir=/srv/lower,upperdir=/srv/upper,workdir=/srv/work /srv/merged",
        check=True,
    )
    window = page.browser
    page.visit("modules/overlay")
    assert window.see("table.users tbody").split()[:2] == ["mount", "/srv/merged"]
    commands = window.texts("ol.free li")
    assert commands == ["umount /srv/merged", "kmodctl unload overlay"]
    picture(window, "cockpit-module")
    page.ask_for("unload")
    window.see("dialog button.doubtful", "Try anyway")
    page.confirm("no more containers")
    failure = window.see("dialog .failure")
    for part in ("InUse", "overlay is in use by 1 mount", "/srv/merged", "Hint: umount"):
        assert part in failure
    picture(window, "cockpit-busy")
    window.press("Escape")
    window.gone("dialog")
    for command in commands:
        vm.run(command, check=True)
    window.see(".chip", "not loaded")


def test_load_and_unload_with_the_consequences(page: Page, vm: Machine) -> None:
    window = page.browser
    page.visit("modules/dummy")
    page.ask_for("load")
    window.click("dialog summary")
    window.type("#change-parameter-numdummies", "1")
    window.see("dialog .plan code", "numdummies=1")
    page.confirm("an interface for a test")
    window.gone("dialog")
    window.see("#notice", "Module dummy loaded successfully")
    assert is_loaded(vm, "dummy")
    window.see(".chip", "loaded")
    vm.run("ip link set dummy0 up", check=True)
    page.ask_for("unload")
    window.see("dialog .consequences", "dummy0", 30)
    window.see("dialog button.doubtful", "Try anyway")
    window.click("label[for=change-disconnect]")
    window.see("dialog button.primary:not(.doubtful)", "Unload")
    picture(window, "cockpit-unload")
    page.confirm("the test is over")
    window.gone("dialog")
    assert not is_loaded(vm, "dummy")
    window.see(".records", "the test is over")
    record = vm.journal("KMODD_EVENT=module.unloaded", "-o", "json")
    assert "the test is over" in record


def test_a_failure_shows_the_kernels_own_words(page: Page, vm: Machine) -> None:
    window = page.browser
    page.visit("modules/kmodd_test_fail")
    page.ask_for("load")
    page.confirm("to see it fail")
    failure = window.see("dialog .failure")
    assert "InitFailed" in failure
    assert "the flux capacitor is not charged" in failure
    assert not is_loaded(vm, "kmodd_test_fail")
    window.press("Escape")
    page.visit("health")
    window.see("table.checks", "kmodd_test_fail")


def test_drift_is_shown_and_applied(page: Page, vm: Machine) -> None:
    window = page.browser
    vm.run("mkdir -p /etc/kmodd/modules.d", check=True)
    vm.write_file("/etc/kmodd/modules.d/cockpit.toml", '[module.kmodd_test_good]\nstate = "loaded"\n')
    page.visit("config")
    page.change("reread", "a file by hand")
    window.see("section:first-of-type table.rules tbody tr", "kmodd_test_good", SLOW)
    page.ask_for("apply")
    assert "kmodd_test_good" in window.see("dialog .plan li", seconds=SLOW)
    page.confirm("as the file says")
    window.gone("dialog", SLOW)
    window.see(".nothing", "The system matches the desired state", SLOW)
    assert is_loaded(vm, "kmodd_test_good")
    wait_until(
        lambda: "as the file says" in vm.journal("KMODD_EVENT=module.loaded", "-o", "json"), "the reason is kept"
    )
