# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dashboard in Chromium, against the real gateway and daemon on a simulated kernel: what needs no machine."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.kernel.simulated.modules import RELEASE
from tests.cli.private_bus import private_bus
from tests.dashboard.browser import browser
from tests.dashboard.page import DESKTOP, PHONE, VIEWS, Page
from tests.gateway.processes import Gateway, daemon, gateway, wait_for
from tests.kernel.elf import module_file

STRINGS = (
    "name=special",
    "version=1.0",
    "description=Something special",
    f"vermagic={RELEASE} SMP preempt mod_unload modversions ",
    "depends=",
)

# A made-up machine: each module uses up to four of those before it. Answers what is wrong with its picture.
ARRANGED = """
const done = arguments[1];
(async (count) => {
  const {arrange, components} = await import("/static/dashboard/shared/layers.js");
  let seed = count;
  const random = (below) => { seed = (seed * 48271) % 2147483647; return seed % below; };
  const names = Array.from({length: count}, (_, index) => `module_${index}`);
  const edges = new Map();
  names.forEach((name, index) => {
    for (let left = index ? random(5) : 0; left; left -= 1) {
      const used = names[random(index)];
      edges.set(`${name} ${used}`, [name, used]);
    }
  });
  const wrong = [];
  let seen = 0;
  for (const group of components(names, [...edges.values()])) {
    const members = new Set(group);
    const {places, lines, rows} = arrange(group, [...edges.values()].filter(([user]) => members.has(user)));
    seen += places.size;
    for (const {user, used, points} of lines) {
      if (places.get(user).column >= places.get(used).column) wrong.push(`${user} is not left of ${used}`);
      points.slice(1).forEach((point, index) => {
        if (point.column !== points[index].column + 1) wrong.push(`${user} to ${used} leaves a column out`);
      });
    }
    const taken = [...places.values()].sort((one, other) => one.column - other.column || one.row - other.row);
    taken.slice(1).forEach((place, index) => {
      const before = taken[index];
      if (place.column === before.column && place.row - before.row < 0.999) wrong.push("two modules lie on each other");
      if (place.row < 0 || place.row > rows) wrong.push("a module is outside of the picture");
    });
  }
  if (seen !== count) wrong.push(`${seen} of ${count} modules are in the picture`);
  return wrong.slice(0, 5);
})(arguments[0]).then(done, (error) => done([String(error)]));
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bus with nothing on it."""
    with private_bus(tmp_path_factory.mktemp("bus")) as made:
        yield made


@pytest.fixture(scope="module")
def served(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose daemon comes and goes with the tests."""
    with gateway(tmp_path_factory.mktemp("gateway"), address, "[limits]\nrate = 0\n", ready=False) as made:
        yield made


@pytest.fixture(scope="module")
def window(served: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A window on it."""
    with browser(tmp_path_factory.mktemp("browser")) as made:
        made.look_like(*DESKTOP)
        yield Page(made, f"http://127.0.0.1:{served.port}")


@pytest.fixture
def page(window: Page, served: Gateway, address: str) -> Iterator[Page]:
    """The page with kmodd behind it."""
    with daemon(address):
        window.sign_in(served.token)
        window.browser.see("table", "snd_pcm")
        yield window


@pytest.mark.parametrize("count", [2, 40, 150, 400])
def test_a_picture_has_every_module_apart_and_left_of_what_it_needs(page: Page, count: int) -> None:
    assert page.browser.wait_for(ARRANGED, count) == []


def test_in_the_picture_arrow_keys_follow_the_lines(page: Page) -> None:
    page.visit("graph")
    browser = page.browser
    browser.type("#find", "snd_pcm")
    browser.press("Enter")
    browser.see(".box.is-chosen", "snd_pcm")
    assert browser.focused().startswith("a snd_pcm: used by snd_hda_intel; needs ")
    lit = "return [...document.querySelectorAll(`.box.is-${arguments[0]}`)].map((one) => one.querySelector('text').textContent).sort()"
    assert browser.run(lit, "user") == ["snd_hda_intel"]
    assert browser.run(lit, "needed") == ["snd", "snd_timer", "soundcore"]
    browser.press("Left")
    assert browser.focused().startswith("a snd_hda_intel: used by no module; needs snd_pcm")
    assert "and 3 more indirectly" in browser.see("#relations")
    browser.press("Right", "Enter")
    assert browser.run("return location.hash") == "#/graph/snd_pcm"
    browser.press("Enter")
    browser.see("h1", "snd_pcm")
    assert browser.focused() == "h1 snd_pcm"


def test_a_rule_is_written_and_taken_away(page: Page) -> None:
    browser = page.browser
    page.visit("modules/overlay")
    assert page.change("autoload", "containers at boot") == "Rules for module overlay updated"
    browser.see("[data-key=autoload]", "No longer load at boot")
    browser.see("table.rules", "kmodd’s")
    page.visit("config")
    browser.see("table.rules", "overlay")
    browser.see("table.rules", "only an install line with /bin/false keeps it out")
    page.visit("modules/overlay")
    page.change("autoload", "no containers any more")
    browser.see("[data-key=autoload]", "Load at boot")


def test_options_are_written_and_taken_away(page: Page, served: Gateway) -> None:
    """One field for each parameter, filled with what kmodd's own line says; all of them empty takes it away."""
    browser = page.browser

    def lines() -> list[str]:
        rules = served.ask("GET", "/v1/config").document["rules"]
        return [rule["value"] for rule in rules if rule["kind"] == "options" and rule["ours"]]

    def fields() -> dict[str, str]:
        script = "return [...document.querySelectorAll('dialog input[id^=change-parameter-]')].map((one) => [one.name, one.value])"
        return {name.removeprefix("parameter-"): value for name, value in browser.run(script)}

    page.visit("modules/bonding")
    page.ask_for("options")
    parameters = [row["name"] for row in served.ask("GET", "/v1/modules/bonding").document["parameters"]]
    assert fields() == dict.fromkeys(parameters, "")
    assert browser.focused() == f"input change-parameter-{parameters[0]}"
    assert "Nothing to do: " in browser.see("dialog .preview")
    browser.type("#change-parameter-mode", "1 2")
    browser.type("#change-parameter-arp_ip_target", r"C:\x")
    browser.see("dialog .preview code", r'options bonding mode="1 2" arp_ip_target=C:\x')
    assert lines() == []  # it was tried, and not written
    page.confirm("two links")
    browser.gone("dialog")
    browser.see("#notice", "Rules for module bonding updated")
    assert len(lines()) == 1

    # What no file tells of is not lost.
    values = {"mode": "1 2", "arp_ip_target": r"C:\x", "dyndbg": "+p"}
    path = "/v1/config/modules/bonding/options"
    assert served.ask("PUT", path, {"parameters": values}).status == 200
    browser.see("table.rules", "dyndbg")
    page.ask_for("options")
    assert fields() == dict.fromkeys(parameters, "") | values
    browser.type("#change-parameter-mode", "")
    assert "No longer set: mode" in browser.see("dialog .preview", "No longer set")
    browser.type("#change-parameter-mode", 'a "quote"')
    assert "InvalidArgs" in browser.see("dialog .preview .failure")
    for name in values:
        browser.type(f"#change-parameter-{name}", "")
    browser.see("dialog .preview", "line in modprobe.d is removed")
    page.confirm("one link")
    browser.gone("dialog")
    assert lines() == []
    page.visit("modules/printk")
    assert browser.run("return document.querySelector('[data-key=options]')") is None


def test_options_that_not_everyone_may_read_are_not_taken_for_none(page: Page, served: Gateway) -> None:
    path = "/v1/config/modules/bonding/options"
    assert served.ask("PUT", path, {"parameters": {"mode": "1"}}).status == 200
    browser = page.browser
    browser.run(  # as it is of a file that somebody made readable by root alone
        "const whole = window.fetch; window.fetch = async (path, ...rest) => {"
        "const answer = await whole(path, ...rest); if (path !== '/v1/config') return answer;"
        "const found = await answer.json(); for (const one of found.rules) delete one.value;"
        "return new Response(JSON.stringify(found)); }"
    )
    page.visit("modules/bonding")
    browser.see("table.rules", "not readable for this token")
    page.ask_for("options")
    told = browser.see("dialog .preview")
    assert "the values here replace all of it" in told
    assert "line in modprobe.d is removed" in told
    browser.press("Escape")
    assert served.ask("DELETE", path).status == 200


def test_a_dry_run_of_apply_is_not_shown_as_done(page: Page) -> None:
    browser = page.browser
    browser.run(
        "const whole = window.fetch; const answers = {"
        "'/v1/config/drift': {drift: [{module: 'loop', kind: 'presence', wanted: 'loaded', actual: 'absent', hint: ''}]},"
        "'/v1/config/apply': {results: ["
        "{module: 'vfat', action: 'load', result: 'changed', changed: ['fat', 'vfat']},"
        "{module: 'loop', action: 'load', result: 'failed', changed: [], error: 'DisabledByPolicy',"
        " message: 'it is blacklisted', hint: 'change the rule'}]}};"
        "window.fetch = async (path, ...rest) =>"
        " path in answers ? new Response(JSON.stringify(answers[path])) : whole(path, ...rest)"
    )
    page.visit("config")
    page.ask_for("apply")
    assert [text.split() for text in browser.texts("dialog .plan li")] == [
        ["change", "vfat", "fat"],
        ["fail", "loop", "it", "is", "blacklisted", "DisabledByPolicy", "change", "the", "rule"],
    ]
    assert browser.text("dialog button.primary") == "Try anyway"
    browser.press("Escape")


def test_consequences_are_shown_and_confirmed_by_a_checkbox(page: Page, served: Gateway) -> None:
    browser = page.browser
    served.ask("POST", "/v1/modules/wireguard/load", {"reason": "a tunnel"})
    page.visit("modules/wireguard")
    for button in ("reload", "unload"):
        page.ask_for(button)
        assert "Network interface wg0 goes with it: it is up" in browser.see("dialog .preview .consequences")
        assert "This will fail" in browser.text("dialog .preview")
        assert browser.text("dialog button.primary") == "Try anyway"
        browser.click("#change-disconnect")
        browser.until("return !document.querySelector('dialog .preview .fails')")
        assert "wg0" in browser.text("dialog .preview .consequences")
        page.confirm("no tunnel")
        browser.gone("dialog")
    browser.see("#notice", "Module wireguard unloaded successfully")


def test_a_user_is_shown_with_the_line_that_sets_it_up(page: Page, served: Gateway) -> None:
    name = "kmodd_test_mounted"
    assert served.ask("POST", f"/v1/modules/{name}/load", {}).status == 200
    explained = served.ask("GET", f"/v1/modules/{name}/explain").document
    assert [(user["name"], user["file"], user["line"]) for user in explained["users"]] == [("/mnt", "/etc/fstab", 7)]
    page.visit(f"modules/{name}")
    row = page.browser.see("table.users tbody", "umount /mnt")
    assert "Configured in /etc/fstab:7" in row


def test_a_dialog_that_is_left_changes_nothing_and_gives_the_focus_back(page: Page, served: Gateway) -> None:
    rules = served.ask("GET", "/v1/config").document
    page.visit("modules/crc16")
    page.ask_for("blacklist")
    page.browser.see("dialog .preview")
    page.browser.press("Escape")
    page.browser.gone("dialog")
    assert page.browser.focused() == "button Blacklist …"
    assert served.ask("GET", "/v1/config").document == rules


def test_a_file_goes_into_the_store_and_out_again(page: Page, served: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "special.ko"
    file.write_bytes(module_file(STRINGS, this_module="special", versions={"module_layout": 1}))
    browser = page.browser
    page.visit("store")
    browser.see(".nothing", "The store is empty")
    browser.click("main button.primary")
    browser.choose("#change-file", file)
    browser.see("dialog .preview", "special.ko, ")
    page.confirm("a test of the store")
    browser.gone("dialog")
    browser.see("#notice", "special 1.0 is in the store")
    assert "unsigned" in browser.see("table.rules", "special")
    assert page.change(f"Activate-special-1.0-{RELEASE}", "to try it") == "Module special 1.0 is active"
    browser.see(".chip", "active")
    page.change(f"Deactivate-special-1.0-{RELEASE}", "tried")
    assert page.change(f"Remove-special-1.0-{RELEASE}", "a test is over") == "Version 1.0 of module special was removed"
    browser.see(".nothing", "The store is empty")
    for reason in ("a test of the store", "to try it", "tried", "a test is over"):
        wait_for(lambda reason=reason: f"reason={reason}" in served.log.read_text())


def test_every_reason_that_is_entered_is_recorded(page: Page, served: Gateway) -> None:
    page.visit("config")
    assert page.change("reread", "edited by hand") == "Configuration reloaded"
    wait_for(lambda: "reason=edited by hand" in served.log.read_text())
    page.visit("modules/kmodd_test_fail")
    page.ask_for("load")
    page.confirm("to see it fail")
    page.browser.see("dialog .failure", "InitFailed")
    page.browser.press("Escape")
    page.browser.see("[data-key=forget]")
    assert page.change("forget", "seen it") == "Cleared the recorded failure of module kmodd_test_fail"
    wait_for(lambda: "reason=seen it" in served.log.read_text())


def test_a_file_that_is_no_module_says_why(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "text.ko"
    file.write_text("no module")
    page.visit("store")
    page.browser.click("main button.primary")
    page.browser.choose("#change-file", file)
    page.confirm("a try")
    assert "BadModule" in page.browser.see("dialog .failure")
    page.browser.press("Escape")


def test_the_surface_lists_who_can_have_what_loaded(page: Page, served: Gateway) -> None:
    browser = page.browser
    page.visit("surface")
    report = served.ask("GET", "/v1/surface?limit=200").document
    shown = browser.texts("table.numbers td.number")
    assert shown == [str(report[reach]) for reach in ("unprivileged", "userns", "device", "hardware", "root", "none")]
    assert browser.texts("table.sorted tbody th") == [row["module"] for row in report["modules"]]
    browser.run(
        "document.querySelector('#reach').value = 'userns'; document.querySelector('#reach').dispatchEvent(new Event('change'))"
    )
    wanted = served.ask("GET", "/v1/surface?limit=200&reach=userns").document["modules"]
    assert wanted
    browser.until("return document.querySelectorAll('table.sorted tbody tr').length === arguments[0]", len(wanted))
    assert set(browser.texts("table.sorted td.at-reach")) == {"any user who makes a user namespace"}
    browser.type("#filter", "no-such-module")
    browser.see(".nothing", "No such modules")


def test_a_response_is_listed_and_ended(page: Page, served: Gateway) -> None:
    browser = page.browser
    page.visit("surface")
    assert "Responses to vulnerabilities" not in browser.text("main")
    begun = served.ask("POST", "/v1/responses", {"modules": ["overlay"]}).document
    assert (begun["id"], begun["stage"]) == ("module:overlay", "responded")
    page.visit("health")
    page.visit("surface")
    browser.see("table.rules tbody th", "module:overlay")
    page.ask_for("end module:overlay")
    assert "Can be loaded again: overlay." in browser.text("dialog .preview")
    page.confirm("patched")
    browser.gone("dialog")
    assert browser.see("#notice") == "Response module:overlay ended"
    browser.until("return !document.querySelector('main').textContent.includes('Responses to vulnerabilities')")
    assert served.ask("GET", "/v1/responses").document == {"responses": []}


def test_a_modules_page_shows_its_routes_and_what_closes_them(page: Page, served: Gateway) -> None:
    browser = page.browser
    module = served.ask("GET", "/v1/surface?limit=1&reach=userns").document["modules"][0]["module"]
    page.visit(f"modules/{module}")
    assert browser.texts("table.routes") == []
    browser.click("[data-key=routes] summary")
    routes = served.ask("GET", f"/v1/surface/{module}").document["routes"]
    assert "open" in browser.see("table.routes", routes[0]["request"])
    assert len(browser.texts("table.routes tbody tr")) == len(routes)
    page.ask_for("blacklist")
    browser.click("#change-hard")
    page.confirm("not needed here")
    browser.gone("dialog")
    assert "open" not in browser.see("table.routes", "Closed: install rule")
    page.change("blacklist", "needed after all")
    browser.see("table.routes .chip", "open")
    page.visit("modules/printk")
    assert "Who can have it loaded" not in browser.text("main")


def test_on_a_phone_the_view_one_is_in_can_be_read_at_the_top(page: Page) -> None:
    try:
        page.browser.look_like(*PHONE, phone=True)
        for view in VIEWS:
            page.visit(view)
            left, right = page.browser.run(
                "const box = document.querySelector('nav [aria-current]').getBoundingClientRect(); return [box.left, box.right]"
            )
            assert left >= 0, view
            assert right <= PHONE[0], view
        # Also when something beside it becomes wider meanwhile, and when the phone is turned.
        page.browser.run(
            "document.getElementById('status').textContent = 'three words more'; dispatchEvent(new Event('resize'))"
        )
        assert (
            page.browser.run("return document.querySelector('nav [aria-current]').getBoundingClientRect().right")
            <= PHONE[0]
        )
    finally:
        page.browser.look_like(*DESKTOP)


def test_a_look_that_fails_says_so(page: Page) -> None:
    browser = page.browser
    browser.run(
        "window.whole = window.fetch;"
        "window.fetch = (path, ...rest) => path.endsWith('=all') ? Promise.reject(new TypeError()) : whole(path, ...rest)"
    )
    browser.click("label[for=state-all]")
    browser.see(".failure", "The connection to the gateway failed")
    browser.run("window.fetch = window.whole")
    browser.click("label[for=state-builtin]")
    browser.gone(".failure")
    browser.see("table.sorted", "printk")


def test_a_module_that_is_not_loaded_says_what_stands_in_the_way(page: Page) -> None:
    page.visit("modules/overlay")
    page.browser.see("section", "Why it is not loaded\n\nNothing prevents loading it.")
    page.visit("modules/printk")
    page.browser.see("section", "Why it is present\n\nPart of the kernel image.")
    # Its parameters are the kernel command line's: nothing here offers to set them.
    assert "time" in page.browser.see("table.parameters")
    assert not page.browser.texts("table.parameters button")


def test_without_kmodd_it_says_so_and_finds_it_again(window: Page, served: Gateway, address: str) -> None:
    browser = window.browser
    with daemon(address):
        window.sign_in(served.token)
        browser.see("table", "snd_pcm")
    failure = browser.see(".failure")
    assert "Unavailable" in failure
    assert "Hint: " in failure
    browser.see("nav #status", "away")
    with daemon(address):
        browser.gone(".failure")
        browser.see("table", "snd_pcm")
        browser.until("return document.querySelector('#status').textContent !== 'away'")


def test_nothing_of_the_page_is_markup_in_a_string() -> None:
    root = Path(__file__).parents[2]
    files = [path for folder in ("kmodd/gateway/static/dashboard", "cockpit") for path in (root / folder).rglob("*.*")]
    scripts = sorted(path for path in files if path.suffix == ".js")
    assert len(scripts) > 30
    for path in scripts:
        text = path.read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "eval(",
        ):
            assert word not in text, (path.name, word)
        # Cockpit keeps there whether its pages are dark.
        assert "localStorage" not in text.replace('localStorage.getItem("shell:style")', ""), path.name
    for path in [*scripts, *(path for path in files if path.suffix in {".css", ".html"})]:
        text = re.sub(r'url\("\.\./\.\./static/fonts/[A-Za-z-]+\.woff2"\)', "", path.read_text())  # Cockpit's
        addresses = set(re.findall(r"https?://[^\s\"']*|url\(", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name  # a name, which nothing fetches
