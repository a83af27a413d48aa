# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tests themselves run wherever they are started, and end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Needs SIGINT in the program that it starts.
INTERRUPTING = "tests/cli/test_program.py::test_interrupted_while_waiting"


def _ignore() -> None:
    """As a shell does it for what it starts with `&`, and `nohup`."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("workers", [[], ["--numprocesses", "1"]], ids=["alone", "in a worker"])
def test_a_job_in_the_background_runs_them_too(workers: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, INTERRUPTING],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=_ignore,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_none_waits_without_a_limit(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.hasplugin("timeout")
    assert 0 < float(pytestconfig.getini("timeout")) <= 600
