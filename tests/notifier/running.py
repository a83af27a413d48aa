# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real notifier and the real daemon on a simulated kernel, as processes on a bus of their own."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from kmodd.client import Client
from kmodd.client.notifier import NotifierClient
from kmodd.errors import KmoddError, Unavailable
from tests.cli.private_bus import private_bus
from tests.notifier.receiver import wait_until

ROOT = Path(__file__).parents[2]
KEY = "whsec_" + "QUJD" * 8
T = TypeVar("T")


class Stage:
    """A bus, a daemon, and a notifier that comes and goes."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.state = folder / "state"
        self.config = folder / "notify.toml"
        self.log = folder / "notifier.log"
        self.notifier: subprocess.Popen[str] | None = None
        self._daemon: subprocess.Popen[str] | None = None
        self.state.mkdir()
        (folder / "key").write_text(KEY)
        (folder / "key").chmod(0o600)

    def configure(self, *ports: int, more: str = "", rule: str = "", names: str = "abc") -> None:
        """One webhook for each port, and one rule for all."""
        text = 'allow-networks = ["127.0.0.0/8"]\n'
        for name, port in zip(names, ports, strict=False):
            text += f'[webhook.{name}]\nurl = "http://127.0.0.1:{port}/{name}"\nallow-http = true\n'
            text += f'secret-file = "{self.folder}/key"\n'
        told = json.dumps(list(names[: len(ports)]))
        self.config.write_text(f"{text}{more}\n[[rule]]\n{rule}\nnotify = {told}\n" if ports else text + more)

    def start_daemon(self) -> None:
        """Start it, and wait until it serves."""
        command = [sys.executable, "-m", "kmodd.daemon.daemon", "--simulate", "--address", self.address]
        self._daemon = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, text=True)
        wait_until(lambda: self._answers(self.daemon(lambda client: client.properties())), "the daemon serves")

    def stop_daemon(self) -> None:
        """Stop it."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(20)
            self._daemon = None

    def start(self, *arguments: str, wait: bool = True) -> "subprocess.Popen[str]":
        """Start the notifier, and wait until it watches."""
        command = [
            sys.executable,
            "-m",
            "kmodd.notifier.main",
            "--config",
            str(self.config),
            "--state",
            str(self.state),
        ]
        with self.log.open("a") as log:
            self.notifier = subprocess.Popen(
                [*command, "--address", self.address, *arguments], cwd=ROOT, stderr=log, text=True
            )
        if wait:
            wait_until(
                lambda: self._answers(self.ask(lambda notifier: notifier.status())) and self.status()["seen"] > 0,
                "the notifier watches",
            )
        return self.notifier

    def kill(self) -> None:
        """As the kernel would."""
        if self.notifier is not None:
            self.notifier.kill()
            self.notifier.wait(10)
            self.notifier = None

    def stop(self) -> int:
        """As systemd would; its exit code."""
        assert self.notifier is not None
        self.notifier.terminate()
        code = self.notifier.wait(10)
        self.notifier = None
        return code

    def daemon(self, question: Callable[[Client], Awaitable[T]]) -> Callable[[], T]:
        """A question to the daemon, to be asked by calling this."""

        async def ask() -> T:
            async with await Client.connect(self.address) as client:
                return await question(client)

        return lambda: asyncio.run(ask())

    def ask(self, question: Callable[[NotifierClient], Awaitable[T]]) -> Callable[[], T]:
        """A question to the notifier, to be asked by calling this."""

        async def ask() -> T:
            async with await NotifierClient.connect(self.address) as notifier:
                return await question(notifier)

        return lambda: asyncio.run(ask())

    def load(self, *modules: str) -> None:
        """Load each and unload it again; failures are what is wanted of some."""

        async def each(client: Client) -> None:
            for module in modules:
                with suppress(KmoddError):
                    await client.load(module)
                    await client.unload(module)

        self.daemon(each)()

    def status(self) -> dict[str, Any]:
        """What the notifier says of itself."""
        return self.ask(lambda notifier: notifier.status())()

    def endpoint(self, name: str) -> dict[str, Any]:
        """One row of it."""
        found: dict[str, Any] = next(row for row in self.status()["endpoints"] if row["name"] == name)
        return found

    @staticmethod
    def _answers(question: Callable[[], object]) -> bool:
        try:
            question()
        except Unavailable:
            return False
        return True


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """All of it; nothing is left running."""
    with private_bus(folder) as address:
        made = Stage(folder, address)
        try:
            made.start_daemon()
            yield made
        finally:
            made.kill()
            made.stop_daemon()
