# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make bench`: what needs no kernel on this machine, then a fresh virtual machine with kmodd running, and the guest's side in it.

`python3 -m tests.bench [ROUNDS [PART …]]`, parts being native (the daemon's loop and the HTTP gateway outside emulation),
gateway (in the virtual machine, beside a server that runs modprobe) and those of tests/bench/guest.py.
"""

import os
import sys
from pathlib import Path

from tests.bench import compressed, gateway_native, load_native, surface_native
from tests.vm import host, snapshot
from tests.vm.machine import Machine

FOLDER = Path(__file__).resolve().parent


def main() -> int:
    """The first exit code that is not 0."""
    rounds, parts = sys.argv[1:2], sys.argv[2:]
    if not parts or "native" in parts:
        compressed.main()
        load_native.main()
        gateway_native.main()
        surface_native.main()
    rest = [part for part in parts if part not in {"native", "gateway"}]
    if parts == ["native"]:
        return 0
    host.install_missing()
    with snapshot.start_with_kmodd() as machine:
        machine.copy_in(FOLDER, "/usr/src/bench/tests/bench")
        code = _run(machine, "tests.bench.guest", *rounds, *rest) if rest or not parts else 0
        if not parts or "gateway" in parts:
            code = _run(machine, "tests.bench.gateway_guest", *rounds) or code
        return code


def _run(machine: Machine, module: str, *arguments: str) -> int:
    command = machine.start(
        ["/usr/bin/python3", "-m", module, *arguments],
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
