# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dashboard in Chromium, against the installed gateway and daemon and a real kernel.

One machine and one window for all. With `KMODD_SCREENSHOTS=FOLDER` the pictures of the README are taken on the way.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard import changes
from tests.dashboard.browser import Browser, browser
from tests.dashboard.machine import HOSTILE, is_loaded, kernels_modules, make_token, serving, spoil
from tests.dashboard.page import DESKTOP, PHONE, VIEWS, Page
from tests.system.service import wait_until
from tests.vm.machine import Machine

RULE = "/etc/modprobe.d/dashboard.conf"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Machine, str]]:
    """A machine with the gateway, and the address of it from here."""
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def vm(served: tuple[Machine, str]) -> Machine:
    """The machine."""
    return served[0]


@pytest.fixture(scope="module")
def token(vm: Machine) -> str:
    """A token good for everything."""
    return make_token(vm, "operator", "admin")


@pytest.fixture(scope="module")
def page(served: tuple[Machine, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The window; nobody is signed in."""
    with browser(tmp_path_factory.mktemp("browser")) as window:
        window.look_like(*DESKTOP)
        yield Page(window, served[1])


@pytest.fixture
def signed_in(page: Page, token: str) -> Iterator[Page]:
    """The page with a good token; it must not have complained of anything in the end."""
    page.sign_in(token)
    page.browser.complaints()
    yield page
    unexpected = [text for text in page.browser.complaints() if "Failed to load resource" not in text]
    assert not unexpected


def picture(window: Browser, name: str) -> None:
    """A picture for the README, when one is asked for."""
    if folder := os.environ.get("KMODD_SCREENSHOTS"):
        window.run("document.getElementById('notice').textContent = ''; document.activeElement.blur()")
        window.screenshot(Path(folder) / f"{name}.png")


def test_without_a_token_it_asks_for_one_and_shows_nothing(page: Page, token: str) -> None:
    page.open()
    window = page.browser
    assert "kmodctl token create" in window.see("dialog.token")
    assert window.focused() == "input token"
    assert not page.rows()
    window.press("Escape")
    window.see("dialog.token")
    page.give("kmodd_000000000000_wrong")
    window.see("#token-told", "unknown, expired")
    assert window.run("return sessionStorage.length + localStorage.length") == 0
    page.give(token)
    window.gone("dialog")
    window.see("table", "virtio_blk")
    kept = window.run(
        "return [sessionStorage.getItem('kmodd-token'), localStorage.length, document.cookie, location.href]"
    )
    assert kept == [token, 0, "", f"{page.url}/#/modules"]
    window.click("#forget")
    window.see("dialog.token")
    assert window.run("return sessionStorage.length") == 0


def test_the_table_is_the_kernels_and_can_be_sorted_and_filtered(signed_in: Page, vm: Machine) -> None:
    window = signed_in.browser
    window.see("table", "virtio_blk")
    assert sorted(signed_in.rows()) == kernels_modules(vm)
    assert signed_in.rows() == sorted(signed_in.rows())
    sizes = {line.split()[0]: int(line.split()[1]) for line in vm.read_file("/proc/modules").decode().splitlines()}
    window.run("document.querySelector('[data-key=sort-size]').focus()")
    window.press("Enter")
    shown = [sizes[name] for name in signed_in.rows()]
    assert shown == sorted(sizes.values(), reverse=True)
    assert window.run("return document.querySelector('[aria-sort]').textContent") == "Size"
    window.press("Space")
    assert [sizes[name] for name in signed_in.rows()] == sorted(sizes.values())
    window.press("/", *"virtio_b")
    window.until("return document.querySelectorAll('table.sorted tbody tr').length < 4")
    assert "virtio_blk" in signed_in.rows()
    assert all("virtio_b" in text for text in window.texts("table.sorted tbody tr"))
    window.type("#filter", "no such thing")
    window.see(".nothing", "No module here matches “no such thing”")


def test_load_and_unload_from_the_page(signed_in: Page, vm: Machine) -> None:
    """Three modules in, by the plan of one; and out again, by the plan of another."""
    window = signed_in.browser
    window.click("label[for=state-available]")
    window.see("table.sorted", "kmodd_test_dep_c")
    window.type("#filter", "dep_c")
    signed_in.ask_for("load-kmodd_test_dep_c")
    assert [text.split()[:2] for text in window.texts("dialog .plan li")] == [
        ["insert", f"kmodd_test_dep_{letter}"] for letter in "abc"
    ]
    assert not is_loaded(vm, "kmodd_test_dep_a")
    window.press("Enter")  # without a reason nothing happens
    assert window.run("return document.querySelector('#change-reason').matches(':invalid')")
    picture(window, "load")
    signed_in.confirm("a tower of three")
    window.gone("dialog")
    window.see("#notice", "Module kmodd_test_dep_c loaded successfully")
    assert is_loaded(vm, "kmodd_test_dep_c")
    wait_until(
        lambda: "a tower of three" in vm.journal("KMODD_EVENT=module.loaded", "-o", "json"), "the record of the load"
    )

    signed_in.visit("graph/kmodd_test_dep_b")
    window.see(".box.is-chosen", "kmodd_test_dep_b")
    assert window.texts(".box.is-user text") == ["kmodd_test_dep_c"]
    assert window.texts(".box.is-needed text") == ["kmodd_test_dep_a"]
    picture(window, "graph")

    signed_in.visit("modules/kmodd_test_dep_a")
    signed_in.ask_for("unload")
    assert "kmodd_test_dep_a is used by kmodd_test_dep_b" in window.see("dialog .why")
    window.click("label[for=change-dependents]")
    window.until("return document.querySelectorAll('dialog .plan li').length === 3")
    signed_in.confirm("the tower goes")
    window.gone("dialog")
    assert not is_loaded(vm, "kmodd_test_dep_a")
    assert not is_loaded(vm, "kmodd_test_dep_c")
    window.see(".chip", "not loaded")
    window.see(".records", "the tower goes")


def test_a_live_parameter_is_edited(signed_in: Page, vm: Machine) -> None:
    vm.run(["modprobe", "kmodd_test_params"], check=True)
    window = signed_in.browser
    signed_in.visit("modules/kmodd_test_params")
    window.see("table.parameters", "a text of any length")
    writable = {
        key[4:]
        for key in window.run("return [...document.querySelectorAll('[data-key^=set-]')].map((one) => one.dataset.key)")
    }
    modes = vm.check("cd /sys/module/kmodd_test_params/parameters && stat -c '%a %n' *").splitlines()
    assert writable == {line.split()[1] for line in modes if int(line.split()[0], 8) & 0o200}
    signed_in.ask_for("set-level")
    assert window.focused() == "input change-value"
    window.type("#change-value", "7")
    window.see("dialog .preview", "from 4 to 7")
    picture(window, "parameter")
    signed_in.confirm("a higher level")
    window.gone("dialog")
    # The kernel keeps even numbers: what is shown is what it holds.
    window.see("#notice", "level of kmodd_test_params is 6 now")
    assert vm.read_file("/sys/module/kmodd_test_params/parameters/level") == b"6\n"
    window.until("return document.querySelector('[data-key=set-level]').closest('tr').textContent.includes('6')")
    wait_until(
        lambda: "a higher level" in vm.journal("KMODD_EVENT=gateway.operation", "-o", "json"), "the reason is kept"
    )
    signed_in.ask_for("set-level")
    window.type("#change-value", "12")
    signed_in.confirm("too high")
    window.see("dialog .failure", "BadParameter")
    assert vm.read_file("/sys/module/kmodd_test_params/parameters/level") == b"6\n"
    window.press("Escape")
    window.gone("dialog")
    assert window.focused() == "button Set … level"
    vm.run(["rmmod", "kmodd_test_params"], check=True)


def test_what_is_wanted_is_brought_about(signed_in: Page, vm: Machine) -> None:
    changes.bring_about(signed_in, vm)


def test_rules_are_written_and_lifted(signed_in: Page, vm: Machine) -> None:
    changes.write_rules(signed_in, vm)


def test_a_module_of_ones_own_is_kept_and_let_go(signed_in: Page, vm: Machine, tmp_path: Path) -> None:
    changes.keep_a_module(signed_in, vm, tmp_path)


def test_a_busy_module_is_explained(signed_in: Page, vm: Machine) -> None:
    vm.run(
        "mkdir -p /srv/lower /srv/upper /srv/work /srv/merged && "
        "mount -t overlay overlay -o lowerdir=/srv/lower,upperdir=/srv/upper,workdir=/srv/work /srv/merged",
        check=True,
    )
    window = signed_in.browser
    signed_in.visit("modules/overlay")
    assert window.see("table.users tbody").split()[:2] == ["mount", "/srv/merged"]
    window.see(".plan", "This will fail")
    picture(window, "module")
    signed_in.ask_for("unload")
    window.see("dialog button.doubtful", "Try anyway")
    signed_in.confirm("no more containers")
    failure = window.see("dialog .failure")
    for part in ("InUse", "overlay is in use by 1 mount", "/srv/merged", "Hint: umount what is mounted with it"):
        assert part in failure
    picture(window, "busy")
    assert is_loaded(vm, "overlay")
    # What stood in the way goes: the dialog is about what is now.
    vm.run(["umount", "/srv/merged"], check=True)
    signed_in.confirm("no more containers, and no mount")
    window.gone("dialog")
    assert not is_loaded(vm, "overlay")


def test_a_failure_shows_the_kernels_own_words(signed_in: Page, vm: Machine) -> None:
    window = signed_in.browser
    signed_in.visit("modules/kmodd_test_fail")
    signed_in.ask_for("load")
    signed_in.confirm("to see it fail")
    failure = window.see("dialog .failure")
    assert "InitFailed" in failure
    assert "the flux capacitor is not charged" in failure
    assert "Hint: " in failure
    assert not is_loaded(vm, "kmodd_test_fail")
    window.press("Escape")
    window.see(".records", "the flux capacitor is not charged")
    signed_in.visit("health")
    window.see("table.checks", "kmodd_test_fail")
    picture(window, "health")


def test_markup_in_a_module_is_text(signed_in: Page, vm: Machine) -> None:
    path = vm.check("modinfo -n kmodd_test_info").strip()
    description = vm.check("modinfo -F description kmodd_test_info").strip()
    before = vm.read_file(path)
    for harmless, hostile in ((description, HOSTILE[: len(description)]), ("Grace Hopper", "<b>Grace</b>")):
        spoil(vm, "kmodd_test_info", harmless, hostile)
    window = signed_in.browser
    signed_in.visit("modules/kmodd_test_info")
    window.see("dl.facts", HOSTILE[: len(description)])
    window.see("dl.facts", "<b>Grace</b>")
    assert "<img src=x" in window.see(".module-head")
    made = window.run("return [document.title, document.querySelectorAll('main :is(img, script, b)').length]")
    assert made == ["kmodd_test_info – kmodd", 0]
    assert (
        signed_in.change("load", "<script>document.title = 'owned'</script>")
        == "Module kmodd_test_info loaded successfully"
    )
    signed_in.visit("history")
    window.see(".records", "<script>document.title = 'owned'</script>")
    assert window.run("return [document.title, document.querySelectorAll('main script').length]") == [
        "History – kmodd",
        0,
    ]
    vm.run(["rmmod", "kmodd_test_info"], check=True)
    vm.write_file(path, before)


def test_what_others_do_is_seen_at_once(signed_in: Page, vm: Machine) -> None:
    window = signed_in.browser
    window.see("table", "virtio_blk")
    window.run("window.before = document.querySelector('table.sorted')")
    vm.run(["modprobe", "dummy"], check=True)
    window.see("table.sorted tbody th", "dummy", 10)
    vm.run(["rmmod", "dummy"], check=True)
    window.until(
        "return ![...document.querySelectorAll('table.sorted tbody th')].some((one) => one.textContent === 'dummy')",
        seconds=10,
    )
    assert window.run("return window.before.isConnected")  # nothing was loaded anew
    signed_in.visit("history")
    vm.run(["modprobe", "dummy"], check=True)
    window.see(".records li:first-child", "dummy was loaded by another program", 20)
    picture(window, "history")
    vm.run(["rmmod", "dummy"], check=True)
    window.see(".records li:first-child", "dummy was removed by another program", 20)


def test_what_the_kernel_requested_names_who_needed_it(signed_in: Page, vm: Machine) -> None:
    window = signed_in.browser
    signed_in.visit("history")
    window.click("label[for=records-requests]")
    vm.write_file(RULE, "install algif_hash /bin/false\n")
    hashing = "import socket; socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).bind(('hash', 'sha256'))"
    try:
        assert vm.run(["python3", "-c", hashing], user="alice").code != 0
        shown = window.see(".records", "needed alias algif-hash: refused by", 60)
    finally:
        vm.run(["rm", RULE])
    alice = vm.check(["id", "-u", "alice"]).strip()
    assert f"for uid {alice}" in shown
    assert f"Rule: {RULE}:1: install algif_hash /bin/false" in shown
    assert "dummy" not in shown
    signed_in.visit("modules/algif_hash")
    window.click("[data-key=routes] summary")
    window.see("table.routes", "algif-hash", 60)


def test_cut_off_it_says_so_and_comes_back(signed_in: Page, vm: Machine) -> None:
    window = signed_in.browser
    window.see("table", "virtio_blk")
    vm.run("systemctl stop kmodd-gateway.socket kmodd-gateway.service", timeout=60, check=True)
    window.see("#live", "reconnecting")
    vm.run(["modprobe", "dummy"], check=True)
    vm.run("systemctl start kmodd-gateway.socket", check=True)
    window.see("#live", "live", 60)
    window.see("table.sorted tbody th", "dummy")
    vm.run(["rmmod", "dummy"], check=True)


def test_a_token_that_ends_is_asked_for_again(page: Page, vm: Machine, token: str) -> None:
    window = page.browser
    page.sign_in(make_token(vm, "passing", "read", "load"))
    window.see("table", "virtio_blk")
    vm.run("kmodctl token revoke passing", check=True)
    page.browser.run("location.hash = '#/health'")
    assert "expired or was revoked" in window.see("dialog.token")
    page.give(token)
    window.gone("dialog")
    window.see("table.checks")  # what was asked for meanwhile goes on
    # The same with one whose time is over, at the first look.
    page.open()
    expired = make_token(vm, "short", "read", more="--expires 1h")
    vm.run("date -s '+2 hours' >/dev/null", check=True)
    page.give(expired)
    window.see("#token-told", "expired or revoked")


def test_a_token_without_the_scope_is_told_so(page: Page, vm: Machine) -> None:
    window = page.browser
    page.sign_in(make_token(vm, "reader", "read"))
    page.visit("modules/dummy")
    page.ask_for("load")
    page.confirm("not allowed")
    failure = window.see("dialog .failure")
    assert "this token lacks the scope 'load'" in failure
    assert "Hint: " in failure
    assert not is_loaded(vm, "dummy")
    page.open()
    page.give(make_token(vm, "blind", "load"))
    window.see("#token-told", "lacks the scope read")


def test_everything_by_keyboard(signed_in: Page, vm: Machine) -> None:
    """From the address bar to a loaded module without a mouse, and the focus is never lost."""
    window = signed_in.browser
    window.see("table", "virtio_blk")
    window.run("document.activeElement.blur(); document.body.focus()")
    window.press("Tab")
    assert window.focused() == "a skip"
    window.press("Enter")
    assert window.focused() == "main main"
    window.press("Tab", "Tab", "Right")
    window.until("return document.activeElement.id === 'state-available'")
    window.see("table.sorted", "kmodd_test_dep_a")
    window.press("/", *"dummy")
    window.until("return document.querySelectorAll('table.sorted tbody tr').length < 4")
    for _ in range(20):
        window.press("Tab")
        if window.focused() == "button Load dummy":
            break
    assert window.focused() == "button Load dummy"
    window.press("Enter")
    window.see("dialog .plan", "dummy")
    assert window.focused() == "input change-reason"
    window.press(*"keys", "Enter")
    window.gone("dialog")
    assert is_loaded(vm, "dummy")
    assert window.focused() not in {"body", "html"}
    vm.run(["rmmod", "dummy"], check=True)


def test_nothing_stands_in_the_way_of_a_screen_reader_or_on_a_phone(signed_in: Page) -> None:
    window = signed_in.browser
    found: list[str] = []

    def look_for_faults(place: str) -> None:
        for dark in (False, True):
            window.look_like(*DESKTOP, dark=dark)
            found.extend(f"{place}, {'dark' if dark else 'light'}: {text}" for text in window.violations())

    for view in (*VIEWS, "modules/virtio_blk", "modules/dummy"):
        signed_in.visit(view)
        look_for_faults(view)
        window.look_like(*PHONE, phone=True)
        if window.run("return document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            found.append(f"{view} is wider than a phone")
    signed_in.ask_for("load")
    look_for_faults("the dialog of a load")
    window.press("Escape")
    signed_in.visit("modules")
    window.see("table", "virtio_blk")
    window.look_like(*PHONE, phone=True, dark=True)
    picture(window, "phone")
    window.look_like(*DESKTOP)
    picture(window, "modules")
    assert not found
