# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long one public call holds the daemon's loop on a tree of compressed modules, natively.

Nothing here passes or fails (tests/bus/test_bounds.py does): it prints what was measured, and what is aimed at.
"""

import asyncio
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.bus.bench import bench
from tests.bus.loop_meter import metered
from tests.bus.questions import MODULES, Question, ask, compressed_root

_BATCH = "a(ssa{ss})a{sv}"


def _plan(parameters: dict[str, str]) -> tuple[Any, ...]:
    return [["load", f"m{number}", parameters] for number in range(256)], {}


QUESTIONS = {
    "Plan of 256 loads": Question("org.kmodd1.Manager", "Plan", _BATCH, _plan({})),
    "Plan of 256 loads with parameters, files not read yet": Question(
        "org.kmodd1.Manager", "Plan", _BATCH, _plan({"alpha": "1"})
    ),
    "the same again": Question("org.kmodd1.Manager", "Plan", _BATCH, _plan({"alpha": "1"})),
    "GetManagedObjects of 201 loaded modules": Question("org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
}


async def _measure(folder: Path) -> None:
    (folder / "root").mkdir()
    root = compressed_root(folder / "root")
    async with bench(folder, root=root) as service:
        await ask(service, Question("org.freedesktop.DBus.Peer", "Ping"))
        for name, question in QUESTIONS.items():
            begin = time.perf_counter()
            with metered() as meter:
                await ask(service, question)
            took, held = time.perf_counter() - begin, meter.longest
            sys.stdout.write(f"  {name}: loop held {held * 1e3:.1f} ms (aim: 20), answered in {took * 1e3:.0f} ms\n")


def main() -> None:
    """Print the rows."""
    sys.stdout.write(f"Loop on {MODULES} modules .ko.xz:\n")
    with TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder)))
