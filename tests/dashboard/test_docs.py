# SPDX-License-Identifier: LGPL-2.1-or-later
"""`/docs` in Chromium: what a newcomer to the API reads, on a machine that reaches no other host."""

from collections.abc import Iterator

import pytest

from tests.dashboard.browser import Browser, browser
from tests.dashboard.page import DESKTOP, PHONE
from tests.gateway.processes import Gateway, gateway

SHOWN = "return [...document.querySelectorAll('details:not([hidden]) .path')].map((one) => one.textContent)"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with no daemon behind it: its description needs none."""
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(folder, f"unix:path={folder}/nobody", ready=False) as made:
        yield made


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A window."""
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def docs(window: Browser, served: Gateway) -> Browser:
    """The page, loaded anew."""
    window.look_like(*DESKTOP)
    window.complaints()
    window.requests()
    window.go(f"http://127.0.0.1:{served.port}/docs")
    window.see("details")
    return window


def test_it_shows_every_route_and_finds_one(docs: Browser, served: Gateway) -> None:
    openapi = served.ask("GET", "/openapi.json").document
    routes = [path for path, methods in openapi["paths"].items() for _ in methods]
    assert docs.run(SHOWN) == routes
    assert docs.see("h1") == f"kmodd {openapi['info']['version']}: HTTP API"
    assert docs.see("#found") == f"{len(routes)} routes"
    docs.type("#find", "reset-failed")
    docs.see("#found", f"1 of {len(routes)} routes")
    assert docs.run(SHOWN) == ["/v1/modules/{module}/reset-failed"]
    docs.click("details:not([hidden]) summary")
    call = docs.see("details:not([hidden]) .call pre")
    assert call.startswith('curl -X POST -H "Authorization: Bearer $TOKEN" --json ')
    assert call.endswith(f"http://127.0.0.1:{served.port}/v1/modules/loop/reset-failed")
    assert "the token lacks the scope" in docs.see("details:not([hidden]) .errors")
    docs.type("#find", "/v1/events")
    docs.see("#found", "1 of")
    docs.click("details:not([hidden]) summary")
    assert "`" not in docs.see("details:not([hidden])")
    assert "module-added" in docs.texts("details:not([hidden]) .text code")
    docs.type("#find", "no such thing")
    docs.see("#found", f"0 of {len(routes)} routes")
    docs.type("#find", "")
    docs.see("#found", f"{len(routes)} routes")


def test_it_asks_no_other_host_and_for_nothing_that_is_not_there(docs: Browser, served: Gateway) -> None:
    origin = f"http://127.0.0.1:{served.port}"
    asked = dict(docs.requests())
    assert {f"{origin}/docs", f"{origin}/openapi.json", f"{origin}/static/docs.js", f"{origin}/static/docs.css"} <= set(
        asked
    )
    assert [url for url in asked if not url.startswith(f"{origin}/")] == []
    assert {url: status for url, status in asked.items() if status not in {200, 304}} == {}
    assert docs.complaints() == []
    # Headless windows have no tab to put an icon on, and ask for none.
    for icon in docs.run("return [...document.querySelectorAll('link')].map((one) => one.href)"):
        assert docs.wait_for("fetch(arguments[0]).then((answer) => arguments[1](answer.status))", icon) == 200


def test_it_is_read_by_keyboard(docs: Browser) -> None:
    docs.press("Tab")
    while docs.focused().startswith("a "):  # links in what is said about it
        docs.press("Tab")
    assert docs.focused() == "input find"
    docs.press(*"unload")
    docs.until("return document.querySelectorAll('details:not([hidden])').length < 10")
    docs.press("Tab")
    first = docs.run(SHOWN)[0]
    assert docs.focused().startswith("summary ")
    assert first in docs.focused()
    docs.press("Enter")
    docs.see("details[open] .call pre")
    docs.press("Shift+Tab")
    assert docs.focused() == "input find"


def test_nothing_stands_in_the_way_of_a_screen_reader_or_on_a_phone(docs: Browser) -> None:
    docs.run("for (const one of [...document.querySelectorAll('details')].slice(0, 6)) one.open = true")
    for dark in (False, True):
        docs.look_like(*DESKTOP, dark=dark)
        assert docs.violations() == []
    docs.look_like(*PHONE, phone=True)
    assert docs.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
