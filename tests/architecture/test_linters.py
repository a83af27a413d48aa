# SPDX-License-Identifier: LGPL-2.1-or-later
"""The linters are tests: a finding fails the build."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTERS = {
    "ruff check": ["ruff", "check", "--no-fix"],
    "ruff format": ["ruff", "format", "--check"],
    "mypy": ["mypy"],
}


@pytest.mark.parametrize("name", LINTERS)
def test_linter(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", *LINTERS[name]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"
