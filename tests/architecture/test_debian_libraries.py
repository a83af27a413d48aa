# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Debian 12 ships is what kmodd runs on: the layers that need no virtual machine pass with its libraries too."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
LAYERS = ["tests/unit", "tests/kernel", "tests/bus", "tests/gateway"]
WITHOUT = [
    # Debian 12 has no schemathesis; that file tries both itself.
    "--ignore=tests/gateway/test_openapi.py",
    # A hundred thousand messages more say nothing about a library that is the same version in both places: what is sent is
    # read and answered by our own code. The other tests of this folder use every part of it.
    "--ignore=tests/bus/test_fuzz.py",
    "--ignore=tests/bus/test_endurance.py",
]


def test_layers_pass_with_the_distributions_libraries() -> None:
    assert sys.prefix != sys.base_prefix, (
        "this run is in the virtual environment, so the other one is the distribution's"
    )
    # Debian's python3-gi, which its dbus_next loads, is written for an older import system; its pytest-asyncio leaves the
    # event loop it makes after each test to the collector. The run around this one ignores neither.
    warnings = ["-W", "ignore:DynamicImporter:ImportWarning", "-W", "ignore:unclosed:ResourceWarning"]
    command = [SYSTEM_PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *warnings, *LAYERS, *WITHOUT]
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV"))
    }
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
