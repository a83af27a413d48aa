# SPDX-License-Identifier: LGPL-2.1-or-later
"""The desktop program of the documentation, in an X server, used as a person would (drive.py)."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.private_bus import private_bus
from tests.gateway.processes import daemon

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/kmodd-modules.py"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the window showed on the way."""
    with private_bus(tmp_path_factory.mktemp("bus")) as address, daemon(address):
        done = subprocess.run(
            ["xvfb-run", "-a", "/usr/bin/python3", str(ROOT / "tests/desktop/drive.py"), str(EXAMPLE)],
            env=os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": address, "GTK_A11Y": "none", "GSK_RENDERER": "cairo"},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        yield json.loads(done.stdout)


def test_it_lists_loaded_modules_and_explains_one(seen: dict[str, Any]) -> None:
    assert {"snd_pcm", "ext4"} <= set(seen["listed"])
    assert "dummy" not in seen["listed"]
    assert seen["explained"].startswith("Loaded\nBecause: needed by snd_hda_intel\nUsed by: module snd_hda_intel")


def test_it_holds_a_module_while_its_switch_is_on(seen: dict[str, Any]) -> None:
    assert seen["before"] == ["dummy", "Not loaded", False]
    text, on = seen["held"]
    assert on
    assert "Used by: lease python3 pid " in text
    assert seen["unload"] == "org.kmodd1.Error.InUse"


def test_a_module_that_is_not_there_cannot_be_held(seen: dict[str, Any]) -> None:
    text, sensitive = seen["absent"]
    assert "No module no_such_module" in text
    assert not sensitive


def test_it_is_short_enough_to_read() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 200
