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


@pytest.fixture
def trial(run: Runner) -> Iterator[Hold]:
    """Starts kmodctl load --try with an input that is open."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "kmodd.cli", "--bus", run.address, "load", "vfat", "--try", *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=20)


def leases(run: Runner) -> list[str]:
    return [user["kind"] for user in run("why", "vfat", "--json").document["users"]]


def test_what_is_confirmed_stays(run: Runner, trial: Hold) -> None:
    process = trial("10m")
    out, err = process.communicate("y\n", timeout=30)
    assert (process.returncode, out) == (0, "vfat stays loaded\n")
    assert err == "vfat is loaded, and goes again in 10m. Keep it? [y/N] "
    assert leases(run) == []
    # It was requested without a lease.
    time.sleep(0.3)
    again = run("load", "vfat", "--try", "10m")
    assert (again.status, again.out) == (0, "vfat is loaded already\n")


@pytest.mark.parametrize(("span", "answer"), [("10m", "n\n"), ("10m", ""), ("1s", None)], ids=["no", "end", "silence"])
def test_what_is_not_confirmed_goes(run: Runner, trial: Hold, span: str, answer: str | None) -> None:
    process = trial(span)
    if answer is None:
        assert process.wait(timeout=30) == 5
        assert process.stderr is not None
        err = process.stderr.read()
    else:
        err = process.communicate(answer, timeout=30)[1]
    assert process.returncode == 5
    assert "vfat was not confirmed, so it is unloaded again" in err
    deadline = time.monotonic() + 30
    while run("show", "vfat", "--json").document["module"] is not None:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_session_that_is_lost_ends_the_trial(run: Runner, trial: Hold) -> None:
    process = trial("10m")
    deadline = time.monotonic() + 20
    while leases(run) != ["lease"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=20)
    while leases(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("words", [("soon",), ("10m", "--override-policy")])
def test_a_trial_that_makes_no_sense_is_refused(run: Runner, words: tuple[str, ...]) -> None:
    assert run("load", "vfat", "--try", *words).status == 2
