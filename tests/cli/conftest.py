# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bus, a scripted daemon and kmodctl, in process or as a program."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.cli.arguments import ExitCode
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.private_bus import private_bus
from tests.cli.runner import Program, Runner
from tests.cli.samples import answers


@pytest.fixture(scope="session")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a message bus of our own."""
    with private_bus(tmp_path_factory.mktemp("bus")) as address:
        yield address


@pytest.fixture
def fake(bus: str) -> Iterator[FakeDaemon]:
    """A daemon on that bus that answers as `samples` says."""
    with FakeDaemon(bus, answers()).running() as daemon:
        yield daemon


@pytest.fixture
def kmodctl(bus: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """kmodctl's main() in this process."""
    monkeypatch.setenv("TZ", "UTC")
    return Runner(bus, capsys, monkeypatch)


@pytest.fixture
def program(bus: str) -> Program:
    """kmodctl as a process of its own."""

    def start(*arguments: str, **options: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "kmodd.cli", "--bus", bus, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    return start


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, kmodctl: Runner) -> Iterator[Runner]:
    """kmodctl with a daemon of its own, on a simulated kernel."""
    with private_bus(tmp_path_factory.mktemp("config")) as address:
        command = [sys.executable, "-m", "kmodd.daemon.daemon", "--simulate", "--address", address]
        with subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True) as daemon:
            assert daemon.stderr is not None
            assert "SIMULATED" in daemon.stderr.readline()
            kmodctl.address = address
            deadline = time.monotonic() + 10
            while kmodctl("status").status == ExitCode.UNAVAILABLE:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield kmodctl
            daemon.terminate()
