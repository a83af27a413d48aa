# SPDX-License-Identifier: LGPL-2.1-or-later
"""A headless Chromium, driven through chromedriver by the W3C's WebDriver protocol: JSON over HTTP, nothing more.

Elements are found by CSS selectors, clicked and typed into as a person does it: chromedriver makes real events at real
places, and refuses to click what is covered or not to be seen.
"""

import base64
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import axe_core_python

FLAGS = (
    "--headless",
    "--no-sandbox",  # the tests may run as root, in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)
AXE = Path(axe_core_python.__file__).parent / "axe.min.js"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The protocol's name for a reference to an element."""
KEYS = {"Backspace": "\ue003", "Tab": "\ue004", "Enter": "\ue007", "Shift": "\ue008", "Escape": "\ue00c",
        "Space": "\ue00d", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015"}  # fmt: skip


class BrowserError(AssertionError):
    """The browser says no; the message is its own."""


class Browser:
    """One window."""

    def __init__(self, port: int) -> None:
        """`port` is chromedriver's."""
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._session = ""

    def start(self, profile: Path) -> None:
        """Open the window, with a profile of its own."""
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={profile}"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        found = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{found['sessionId']}"

    def close(self) -> None:
        """Close the window."""
        if self._session:
            self._ask("DELETE", self._session)
        self._connection.close()

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
        self._connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = self._connection.getresponse()
        value = json.loads(answer.read())["value"]
        if answer.status != http.client.OK:
            raise BrowserError(f"{value['error']}: {value['message']}")
        return value

    def _do(self, method: str, path: str, body: object = None) -> Any:
        return self._ask(method, f"{self._session}{path}", body)

    def go(self, url: str) -> None:
        """Load a page."""
        self._do("POST", "/url", {"url": url})

    def enter(self, selector: str) -> None:
        """Look into a frame from now on, as soon as it is there."""
        self.see(selector)
        self._do("POST", "/frame", {"id": {ELEMENT: self.element(selector)}})

    def leave(self) -> None:
        """Look at the whole page again."""
        self._do("POST", "/frame", {"id": None})

    def run(self, script: str, *arguments: object) -> Any:
        """What a script answers; it runs beside the page's content security policy, as an extension's does."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, script: str, *arguments: object) -> Any:
        """The same of a script that gives its answer to a function, its last argument."""
        return self._do("POST", "/execute/async", {"script": script, "args": list(arguments)})

    def protocol(self, command: str, **parameters: object) -> Any:
        """One command of Chromium's own protocol."""
        return self._do("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look_like(
        self, width: int, height: int, *, dark: bool = False, phone: bool = False, motion: bool = False
    ) -> None:
        """A window of this size, with these wishes of whoever sits there."""
        scale = 2 if phone else 1
        self.protocol(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "no-preference" if motion else "reduce"},
        ]
        self.protocol("Emulation.setEmulatedMedia", features=features)

    def element(self, selector: str) -> str:
        """The reference of the first element that fits."""
        return str(self._do("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT])

    def click(self, selector: str) -> None:
        """Click on what fits, as soon as it is there and nothing covers it."""

        def clicked() -> bool:
            try:
                self._do("POST", f"/element/{self.element(selector)}/click")
            except BrowserError as error:
                self._last = str(error)
                return False
            return True

        wait(clicked, lambda: f"cannot click {selector}: {self._last}\n{self.text('body')}")

    def type(self, selector: str, text: str) -> None:
        """Replace what is in a field."""
        self.see(selector)
        element = self.element(selector)
        self._do("POST", f"/element/{element}/clear")
        # Pages hear of keys, and not of the clearing.
        self._do("POST", f"/element/{element}/value", {"text": text or f"x{KEYS['Backspace']}"})

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in a field for one."""
        self.see(selector)
        self._do("POST", f"/element/{self.element(selector)}/value", {"text": str(file)})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, by their names or as letters, wherever the focus is."""
        actions = []
        for key in keys:
            *held, last = key.split("+") if len(key) > 1 else [key]
            codes = [KEYS.get(one, one) for one in (*held, last)]
            actions += [{"type": "keyDown", "value": code} for code in codes]
            actions += [{"type": "keyUp", "value": code} for code in reversed(codes)]
        self._do("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def text(self, selector: str) -> str:
        """What is to be read in the first element that fits; empty when there is none."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        """The same of all that fit."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => (one.innerText ?? one.textContent).trim())"
        return list(self.run(script, selector))

    def focused(self) -> str:
        """What has the focus: its tag and its name or text."""
        return str(
            self.run(
                "const one = document.activeElement;"
                "return `${one.tagName.toLowerCase()} ${one.getAttribute('aria-label') || one.id || one.textContent.trim()}`"
            )
        )

    def see(self, selector: str, text: str = "", seconds: float = 30.0) -> str:
        """Wait until something that fits is to be seen, with this in its text; its text."""
        script = (
            "const text = (one) => one.innerText ?? one.textContent;"  # what is SVG has no innerText
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((one) => one.checkVisibility() && text(one).includes(arguments[1])).map(text)[0]"
        )
        found: list[str] = []

        def seen() -> bool:
            found[:] = [value for value in [self.run(script, selector, text)] if value is not None]
            return bool(found)

        wait(seen, lambda: f"nothing that fits {selector} says {text!r}; the page:\n{self.text('body')}", seconds)
        return found[0]

    def gone(self, selector: str, seconds: float = 30.0) -> None:
        """Wait until nothing fits."""
        script = "return document.querySelector(arguments[0]) === null"
        wait(lambda: self.run(script, selector), lambda: f"{selector} is still there", seconds)

    def until(self, script: str, *arguments: object, seconds: float = 30.0) -> Any:
        """Wait until a script answers something true; what it is."""
        found: list[Any] = []

        def true() -> bool:
            found[:] = [self.run(script, *arguments)]
            return bool(found[0])

        wait(true, lambda: f"never true: {script}; the page:\n{self.text('body')}", seconds)
        return found[0]

    def screenshot(self, file: Path) -> None:
        """What is to be seen, as a PNG."""
        file.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """What the page wrote to the console since last time: errors, and refusals by the content security policy."""
        return [
            entry["message"] for entry in self._do("POST", "/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"
        ]

    def requests(self) -> list[tuple[str, int]]:
        """What the page asked for since last time: each URL, and the status of the answer (0: there was none)."""
        found: dict[str, tuple[str, int]] = {}
        for entry in self._do("POST", "/se/log", {"type": "performance"}):
            event = json.loads(entry["message"])["message"]
            facts = event["params"]
            match event["method"]:
                case "Network.requestWillBeSent":
                    found[facts["requestId"]] = (facts["request"]["url"], 0)
                case "Network.responseReceived":
                    found[facts["requestId"]] = (facts["response"]["url"], facts["response"]["status"])
        return list(found.values())

    def violations(self) -> list[str]:
        """What axe finds wrong for people who do not see, or not well, or have no mouse."""
        if not self.run("return Boolean(window.axe)"):
            self.run(AXE.read_text() + "\n;window.axe = axe;")
        script = (
            "const done = arguments[0];"
            "axe.run(document, {resultTypes: ['violations']}).then((found) => done(found.violations.flatMap((rule) =>"
            " rule.nodes.map((node) => `${rule.id}: ${node.target.join(' ')}: ${node.failureSummary}`))))"
        )
        return list(self.wait_for(script))


def wait(condition: Callable[[], Any], told: Callable[[], str], seconds: float = 30.0) -> None:
    """Until it holds; fails with what `told` says."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BrowserError(told())
        time.sleep(0.05)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A window with a fresh profile in this folder."""
    for attempt in range(5):
        with _driver(folder) as port:
            # It chooses a port of IPv6 that something else may have on IPv4, and ends.
            if port == 0 and attempt < 4:
                continue
            assert port, (folder / "chromedriver.log").read_text()
            with closing(Browser(port)) as made:
                made.start(folder / "profile")
                yield made
            return


@contextmanager
def _driver(folder: Path) -> Iterator[int]:
    """A running chromedriver's port; 0 where it could not start."""
    command = ["chromedriver", "--port=0", f"--log-path={folder / 'chromedriver.log'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if "started successfully on port" in line)
            yield int(next(lines, "0").rstrip(". \n").rpartition(" ")[2])
        finally:
            process.terminate()
