# SPDX-License-Identifier: LGPL-2.1-or-later
"""The linters are tests: a finding fails the build."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm.cache import cache_root

ROOT = Path(__file__).resolve().parents[2]
LINTERS = {
    "ruff check": ["ruff", "check", "--no-fix"],
    "ruff format": ["ruff", "format", "--check"],
    "mypy": ["mypy"],
}


@pytest.mark.parametrize("name", LINTERS)
def test_linter(name: str) -> None:
    # What mypy found in a file holds for every clone with that file: the next one takes a second in place of twelve.
    environment = {**os.environ, "MYPY_CACHE_DIR": str(cache_root() / "mypy")}
    command = [sys.executable, "-m", *LINTERS[name]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"
