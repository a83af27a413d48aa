# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Debian 12 ships is what kmodd runs on: the layers that use a library pass with the distribution's too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
# All tests of code that imports a library (tests/architecture/test_imports.py says which may): FastAPI and its kind in the gateway,
# which is a client by dbus-next, pyudev for uevents, structlog and systemd for the log. Everything else is Python alone, the same one in
# both places: it passes here because it passes there.
LAYERS = ["tests/gateway", "tests/kernel/test_uevents.py", "tests/unit/test_journal.py", "tests/unit/test_log.py"]
# Debian 12 has no schemathesis; that file tries both itself.
WITHOUT = ["--ignore=tests/gateway/test_openapi.py"]
# The layer that uses dbus-next alone: where that is the same file by file, a second run is the first one again.
ON_THE_BUS = ["tests/bus", "--ignore=tests/bus/test_fuzz.py", "--ignore=tests/bus/test_endurance.py"]


def library(python: str, name: str) -> dict[str, bytes]:
    """The files of a package as this interpreter would import it, by their paths in it."""
    script = f"import importlib.util as u; print(u.find_spec({name!r}).submodule_search_locations[0])"
    folder = Path(
        subprocess.run([python, "-I", "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py")}


@pytest.mark.timeout(1800)  # hundreds of tests are one here
def test_layers_pass_with_the_distributions_libraries() -> None:
    assert sys.prefix != sys.base_prefix, (
        "this run is in the virtual environment, so the other one is the distribution's"
    )
    # Debian's python3-gi, which its dbus_next loads, is written for an older import system; its pytest-asyncio leaves the
    # event loop it makes after each test to the collector. The run around this one ignores neither.
    warnings = ["-W", "ignore:DynamicImporter:ImportWarning", "-W", "ignore:unclosed:ResourceWarning"]
    layers = [*LAYERS, *WITHOUT]
    if library(sys.executable, "dbus_next") != library(SYSTEM_PYTHON, "dbus_next"):
        layers += ON_THE_BUS
    command = [SYSTEM_PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *warnings, *layers]
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV"))
    }
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
