# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dashboard as a person uses it: sign in, go somewhere, make a change through its dialog."""

from tests.dashboard.browser import Browser

VIEWS = ("modules", "graph", "health", "history", "surface", "store", "config")
DESKTOP = (1280, 800)
PHONE = (390, 844)


class Page:
    """The dashboard in a window."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url

    def open(self, view: str = "modules") -> None:
        """Load the page anew, with nobody signed in."""
        self.browser.go(f"{self.url}/#/{view}")
        self.browser.run("window.old = true; sessionStorage.clear(); location.reload()")
        self.browser.until("return !window.old")
        self.browser.see("dialog.token")

    def sign_in(self, token: str, view: str = "modules") -> None:
        """Open the page and give it a token."""
        self.open(view)
        self.give(token)
        self.browser.gone("dialog")
        self.browser.see("#live", "live")

    def give(self, token: str) -> None:
        """Type a token into the dialog that asks for one."""
        self.browser.type("#token", token)
        self.browser.press("Enter")

    def visit(self, view: str) -> None:
        """Go to a view by its address, and wait until it shows something."""
        self.browser.run("location.hash = arguments[0]", f"#/{view}")
        name = view.rpartition("/")[2]
        self.browser.until(
            "return location.hash === arguments[0] && !document.querySelector('main > .nothing')", f"#/{view}"
        )
        if "/" in view and not view.startswith("graph"):
            self.browser.see("h1", name)
        self.browser.until("return document.querySelector('.view')?.checkVisibility()")

    def ask_for(self, button: str) -> None:
        """Press a button that leads to a dialog, by its data-key, and wait for the plan in it."""
        self.browser.click(f"[data-key='{button}']")
        self.browser.see("dialog .preview")
        self.browser.until("return !document.querySelector('dialog .preview').textContent.startsWith('Loading')")

    def confirm(self, reason: str) -> None:
        """Give the reason and go on."""
        self.browser.type("#change-reason", reason)
        self.browser.press("Enter")

    def change(self, button: str, reason: str) -> str:
        """A change that succeeds; what is said about it."""
        self.ask_for(button)
        self.confirm(reason)
        self.browser.gone("dialog")
        return self.browser.see("#notice")

    def rows(self) -> list[str]:
        """The names in the table of modules, from the top."""
        return self.browser.texts("table.sorted tbody th")
