# SPDX-License-Identifier: LGPL-2.1-or-later
"""Desktop notifications: the real program between the real daemon and a notification service that writes down."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.notifier.channels.desktop import escape
from tests.cli.private_bus import private_bus
from tests.notifier.receiver import wait_until
from tests.notifier.running import ROOT, Stage, stage

# A process of its own: the session's bus is another one, and dbus-next serves from its own loop.
SERVICE = """
import asyncio, json, sys
from dbus_next.aio import MessageBus
from dbus_next.message import Message
from dbus_next.constants import MessageType

async def main():
    bus = await MessageBus(sys.argv[1]).connect()

    def notify(message):
        if message.message_type is MessageType.METHOD_CALL and message.member == "Notify":
            name, replaces, icon, summary, body, actions, hints, timeout = message.body
            print(json.dumps([summary, body, hints["urgency"].value]), flush=True)
            return Message.new_method_return(message, "u", [1])

    bus.add_message_handler(notify)
    await bus.request_name("org.freedesktop.Notifications")
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Shown:
    """What the user saw."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def notifications(self) -> list[Any]:
        return [json.loads(line) for line in self._file.read_text().splitlines() if line.startswith("[")]

    def text(self) -> str:
        return "\n".join(body for _, body, _ in self.notifications)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[tuple[Stage, Shown]]:
    session, system = tmp_path / "session", tmp_path / "system"
    session.mkdir()
    system.mkdir()
    output = tmp_path / "shown"
    with private_bus(session) as session_bus, stage(system) as made, output.open("w") as out:
        environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": session_bus}
        service = subprocess.Popen([sys.executable, "-c", SERVICE, session_bus], stdout=out)
        program = subprocess.Popen(
            [sys.executable, "-m", "kmodd.notifier.main", "--desktop", "--address", made.address],
            cwd=ROOT,
            env=environment,
        )
        try:
            wait_until(lambda: "ready" in output.read_text(), "the notification service")
            # Whether it follows already is only to be seen by what it shows.
            shown = Shown(output)
            for _ in range(100):
                made.load("kmodd_test_fail")
                asyncio.run(asyncio.sleep(0.1))
                if shown.notifications:
                    break
            yield made, shown
            program.terminate()
            assert program.wait(10) == 0
        finally:
            for process in (program, service):
                process.kill()
                process.wait(10)


def test_failures_and_unsigned_modules_are_shown(desk: tuple[Stage, Shown]) -> None:
    made, shown = desk
    assert "load kmodd_test_fail: module failed to initialise" in shown.text()
    assert shown.notifications[0][0] == "Kernel modules"
    made.load("dummy", "kmodd_test_unsigned", "kmodd_test_nodev")
    wait_until(lambda: "kmodd_test_nodev: no device" in shown.text(), "the second failure")
    assert "dummy" not in shown.text(), "nobody wants to see every load"


def test_a_burst_is_one_notification(desk: tuple[Stage, Shown]) -> None:
    made, shown = desk
    before = len(shown.notifications)
    made.load(*["kmodd_test_nodev"] * 24)

    def failures() -> int:
        lines = [line for _, body, _ in shown.notifications[before:] for line in body.splitlines()]
        more = sum(int(line.split()[1]) for line in lines if line.startswith("and "))
        return more + sum("kmodd_test_nodev" in line for line in lines)

    wait_until(lambda: failures() >= 24, "all of them are counted")
    # How many half seconds the burst takes depends on the machine.
    assert len(shown.notifications) - before <= 8
    assert all(len(body.splitlines()) <= 6 for _, body, _ in shown.notifications)


def test_markup_is_text() -> None:
    assert escape("<b>&</b>") == "&lt;b&gt;&amp;&lt;/b&gt;"
