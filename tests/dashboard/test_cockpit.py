# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page in Cockpit, in Chromium, with the bridges of Debian 12 and 13 and the real daemon on a simulated kernel."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.private_bus import private_bus
from tests.dashboard.browser import browser
from tests.dashboard.cockpit import cockpit
from tests.dashboard.page import DESKTOP, PHONE, Page
from tests.gateway.processes import Gateway, daemon, gateway

VIEWS = ("modules", "graph", "health", "history", "surface", "config", "modules/snd_pcm", "modules/overlay")

# What a function of calls.js answers; a failure by its name and facts.
CALL = """
const done = arguments[2];
import("/cockpit/@localhost/kmodd/calls.js")
  .then((calls) => calls[arguments[0]](...arguments[1]))
  .then(done, (problem) => done({name: problem.name, ...problem.facts}));
"""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def suite(request: pytest.FixtureRequest) -> str:
    """Whose Cockpit it is."""
    return str(request.param)


@pytest.fixture(scope="module")
def address(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bus with nothing on it."""
    with private_bus(tmp_path_factory.mktemp(f"bus-{suite}")) as made:
        yield made


@pytest.fixture(scope="module")
def served(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway on the same bus: another client, for comparison and for changes by others."""
    with gateway(tmp_path_factory.mktemp("gateway"), address, "[limits]\nrate = 0\n", ready=False) as made:
        yield made


@pytest.fixture(scope="module")
def window(suite: str, address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A window on Cockpit."""
    with (
        cockpit(tmp_path_factory.mktemp("cockpit"), address, suite) as url,
        browser(tmp_path_factory.mktemp("browser")) as made,
    ):
        made.look_like(*DESKTOP)
        yield Page(made, url)


@pytest.fixture
def page(window: Page, served: Gateway, address: str) -> Iterator[Page]:
    """The page with kmodd behind it; it must not have complained of anything in the end."""
    with daemon(address):
        window.browser.go("about:blank")
        window.browser.go(f"{window.url}#/modules")
        window.browser.see("table", "snd_pcm")
        window.browser.complaints()
        yield window
        assert [text for text in window.browser.complaints() if "favicon" not in text] == []


def answer(page: Page, function: str, *arguments: object) -> Any:
    """What the page's function answers."""
    return page.browser.wait_for(CALL, function, list(arguments))


def without_times(value: object) -> Any:
    """A reply without what differs between two calls."""
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in {"time", "loaded_at"}}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def test_calls_over_the_bus_answer_as_the_gateway_does(page: Page, served: Gateway) -> None:
    """The views are the dashboard's: they have to get the same, key by key."""
    compared = {
        ("modules", "loaded"): ("/v1/modules?state=loaded", "modules"),
        ("modules", "all"): ("/v1/modules?state=all", "modules"),
        ("stored",): ("/v1/store", "versions"),
        ("health",): ("/v1/health", ""),
        ("explain", "snd_pcm"): ("/v1/modules/snd_pcm/explain", ""),
        ("explain", "dccp"): ("/v1/modules/dccp/explain", ""),
        ("describe", "snd_pcm"): ("/v1/modules/snd_pcm", ""),
        ("describe", "snd-pcm"): ("/v1/modules/snd-pcm", ""),
        ("describe", "overlay"): ("/v1/modules/overlay", ""),
        ("describe", "kmodd_test_params"): ("/v1/modules/kmodd_test_params", ""),
        ("rules",): ("/v1/config", "rules"),
        ("drift",): ("/v1/config/drift", "drift"),
        ("routes", "overlay"): ("/v1/surface/overlay", "routes"),
    }
    for (function, *arguments), (path, key) in compared.items():
        document = served.ask("GET", path).document
        expected = without_times(document[key] if key else document)
        assert without_times(answer(page, function, *arguments)) == expected, function
        assert expected or function in {"stored", "drift"}
    surface = answer(page, "surface", {"limit": 200, "reach": "userns"})
    assert surface == served.ask("GET", "/v1/surface?limit=200&reach=userns").document
    operations = [{"action": "unload", "module": "snd", "parameters": {}}]
    for options in ({}, {"dependents": True}):
        expected = served.ask("POST", "/v1/plan", {"operations": operations, **options}).document["steps"]
        shown = answer(page, "plan", "unload", "snd", {}, options)
        # The gateway adds hints of its own to steps that fail.
        assert [{**step, "hint": ""} for step in shown] == [{**step, "hint": ""} for step in expected]


def test_a_failure_has_the_evidence_of_the_gateways_problem_document(page: Page, served: Gateway) -> None:
    """Bridges pass on only the message of an error; the rest is what the daemon answers about the module afterwards."""
    failures = {
        "snd_pcm": ("unload", "/v1/modules/snd_pcm/unload", ["holders"]),
        "kmodd_test_fail": ("load", "/v1/modules/kmodd_test_fail/load", ["kernel_log", "errno"]),
        "dccp": ("load", "/v1/modules/dccp/load", ["policy"]),
        "no_such_module": ("load", "/v1/modules/no_such_module/load", []),
    }
    for module, (function, path, evidence) in failures.items():
        expected = served.ask("POST", path, {}).document
        problem = answer(page, function, module, {"parameters": {}} if function == "load" else {})
        assert problem["name"] == expected["type"].rpartition(":")[2]
        for key in ("title", "detail", "hint", *evidence):
            assert problem[key] == expected[key], (module, key)


def test_what_others_do_is_seen_and_can_be_searched(page: Page, served: Gateway) -> None:
    browser = page.browser
    assert page.rows() == sorted(page.rows())
    assert "loop" not in page.rows()
    browser.run("window.before = document.querySelector('table.sorted')")
    assert served.ask("POST", "/module/load/loop").status == 200
    browser.see("table.sorted tbody th", "loop", 10)
    assert browser.run("return window.before.isConnected")
    browser.type("#filter", "snd_hda")
    browser.until("return document.querySelectorAll('table.sorted tbody tr').length === 2")
    assert page.rows() == ["snd_hda_intel", "snd_pcm"]  # by its user
    browser.click("label[for=state-builtin]")
    browser.type("#filter", "")
    browser.see("table.sorted", "printk")


def test_a_page_behind_another_of_cockpits_asks_for_nothing(page: Page) -> None:
    """The shell keeps a page that was left, and tells it so; the browser's own document is visible all the time."""
    browser = page.browser
    browser.run(
        """
        const send = WebSocket.prototype.send;
        WebSocket.prototype.send = function (...data) { window.sent += 1; return send.apply(this, data); };
        window.show = (hidden) => {
          window.sent = 0;
          cockpit.hidden = hidden;
          cockpit.dispatchEvent("visibilitychange");
          return window.sent;
        };
        """
    )
    browser.until("return window.show(false) > 0")
    # Several times: while an answer is under way, it asks for nothing either.
    sent = """
        const done = arguments[0];
        const counts = [];
        const timer = setInterval(() => {
          counts.push(window.show(true));
          if (counts.length === 20) { clearInterval(timer); done(counts); }
        }, 50);
    """
    assert browser.wait_for(sent) == [0] * 20
    browser.until("return window.show(false) > 0")


def test_a_module_is_explained_loaded_and_unloaded(page: Page, served: Gateway) -> None:
    browser = page.browser
    page.visit("modules/snd_pcm")
    browser.see("section", "Needed by snd_hda_intel")
    assert browser.texts("table.users tbody tr")[0].split()[:2] == ["module", "snd_hda_intel"]
    assert browser.texts("ol.free li") == served.ask("GET", "/v1/modules/snd_pcm/explain").document["free"]
    page.ask_for("unload")
    assert "snd_pcm is used by snd_hda_intel" in browser.see("dialog .why")
    browser.see("dialog button.doubtful", "Try anyway")
    page.confirm("to see it refused")
    failure = browser.see("dialog .failure")
    assert "module is in use InUse" in failure
    assert "Hint: kmodctl" in failure
    browser.click("label[for=change-dependents]")
    browser.until("return document.querySelectorAll('dialog .plan li').length === 2")
    page.confirm("no sound")
    browser.gone("dialog")
    browser.see("#notice", "Module snd_pcm unloaded successfully")
    browser.see(".chip", "not loaded")
    browser.see(".records", "no sound")
    assert page.change("load", "sound again") == "Module snd_pcm loaded successfully"
    browser.see(".chip", "loaded")


def test_a_live_parameter_is_set(page: Page) -> None:
    browser = page.browser
    page.visit("modules/kmodd_test_params")
    page.change("load", "to set it")
    browser.see("[data-key=set-level]")
    page.ask_for("set-level")
    browser.type("#change-value", "7")
    page.confirm("a higher level")
    browser.gone("dialog")
    browser.see("#notice", "level of kmodd_test_params is 6 now")  # it keeps even numbers


def test_rules_and_drift(page: Page, served: Gateway) -> None:
    browser = page.browser
    page.visit("modules/overlay")
    assert page.change("autoload", "containers at boot") == "Rules for module overlay updated"
    browser.see("table.rules", "kmodd’s")
    page.visit("config")
    browser.see("table.rules", "only an install line with /bin/false keeps it out")
    assert json.dumps(answer(page, "drift")) == json.dumps(served.ask("GET", "/v1/config/drift").document["drift"])
    page.visit("modules/overlay")
    page.change("autoload", "no containers any more")
    browser.see("[data-key=autoload]", "Load at boot")


def test_without_kmodd_it_says_so_and_finds_it_again(window: Page, address: str) -> None:
    window.browser.go("about:blank")
    window.browser.go(f"{window.url}#/modules")
    failure = window.browser.see(".failure")
    assert "Unavailable" in failure
    assert "systemctl status kmodd" in failure
    window.browser.see("nav #status", "away")
    with daemon(address):
        window.browser.gone(".failure", 60)
        window.browser.see("table", "snd_pcm")
        window.browser.until("return document.querySelector('#status').textContent !== 'away'")


def test_nothing_stands_in_the_way_of_a_screen_reader_or_on_a_phone(page: Page) -> None:
    browser = page.browser
    faults: list[str] = []
    for style in ("dark", "light"):
        # As the menu of Cockpit's shell does it.
        browser.run("dispatchEvent(new CustomEvent('cockpit-style', {detail: {style: arguments[0]}}))", style)
        assert browser.run("return document.documentElement.classList.contains('dark')") == (style == "dark")
        for view in VIEWS:
            page.visit(view)
            faults += [f"{view}, {style}: {text}" for text in browser.violations()]
            browser.look_like(*PHONE, phone=True)
            if browser.run("return document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                faults.append(f"{view} is wider than a phone")
            browser.look_like(*DESKTOP)
        page.ask_for("load")
        faults += [f"the dialog of a load, {style}: {text}" for text in browser.violations()]
        browser.press("Escape")
    assert not faults
