# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make bench`: a fresh virtual machine with kmodd running, and the guest's side in it."""

import os
import sys
from pathlib import Path

from tests.vm import host, snapshot

FOLDER = Path(__file__).resolve().parent


def main() -> int:
    """The guest's exit code."""
    host.install_missing()
    with snapshot.start_with_kmodd() as machine:
        machine.copy_in(FOLDER, "/usr/src/bench/tests/bench")
        command = machine.start(
            ["/usr/bin/python3", "-m", "tests.bench.guest", *sys.argv[1:]],
            cwd="/usr/src/bench",
            env={"PYTHONPATH": "/usr/src/bench", "PYTHONUNBUFFERED": "1"},
            on_output=_show,
        )
        command.end_input()
        return command.wait(3000).code


def _show(_: str, data: bytes) -> None:
    os.write(sys.stdout.fileno(), data)


if __name__ == "__main__":
    sys.exit(main())
