# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodctl hold, as a program, against the real daemon on a simulated kernel."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.runner import Runner

ROOT = Path(__file__).parents[2]
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold(run: Runner) -> Iterator[Hold]:
    """Starts kmodctl hold, which is ended with the test; `run` is kmodctl beside it."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "kmodd.cli", "--bus", run.address, "hold", *arguments]
        process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()  # and its command, which it passes that on to
            process.communicate(timeout=20)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_for(text: str, process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == text


def test_the_module_is_there_while_the_command_runs(run: Runner, hold: Hold) -> None:
    process = hold("vfat", "--reason", "a stick", "--", "sh", "-c", "echo ready; exec sleep 600")
    wait_for("ready\n", process)
    users = run("why", "vfat", "--json").document["users"]
    assert [(user["kind"], user["pid"]) for user in users] == [("lease", process.pid)]
    busy = run("unload", "vfat")
    assert busy.status == 5
    assert "vfat is in use by 1 lease" in busy.err
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=20)
    assert (process.returncode, complaint) == (128 + signal.SIGTERM, "")
    deadline = time.monotonic() + 10
    while run("unload", "vfat").status == 5:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(("command", "status"), [(["true"], 0), (["sh", "-c", "exit 7"], 7)])
def test_the_status_is_the_commands(hold: Hold, command: list[str], status: int) -> None:
    process = hold("vfat", "--", *command)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == status


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["vfat", "--", "no-such-command"], 127, "kmodctl: no-such-command: command not found\n"),
        (["vfat"], 2, "hold needs a command behind --"),
        (["vfat", "--"], 2, "hold needs a command behind --"),
        (["nosuch", "--", "true"], 3, "no module nosuch for kernel"),
        (["vfat", "x", "--", "true"], 2, "'x' is not a parameter"),
    ],
)
def test_what_cannot_be_held_runs_nothing(hold: Hold, arguments: list[str], status: int, said: str) -> None:
    process = hold(*arguments)
    out, complaint = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, "")
    assert said in complaint


def test_when_the_module_goes_all_the_same_that_is_said(run: Runner, hold: Hold) -> None:
    process = hold("vfat", "--", "sh", "-c", "echo ready; exec sleep 600")
    wait_for("ready\n", process)
    daemon = next(
        child
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        if b"kmodd.daemon" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    os.kill(int(daemon), signal.SIGTERM)
    assert process.stderr is not None
    assert process.stderr.readline() == "kmodctl: the lease is over: vfat may be unloaded\n"
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
