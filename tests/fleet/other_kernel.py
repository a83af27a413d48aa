# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd on a simulated kernel that is not as usual: it forbids things, is another boot, hangs sooner, or refuses files.

Run as a process: `python -m tests.fleet.other_kernel --simulate --address ADDRESS`, with JSON in OTHER_KERNEL.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kmodd.core.desired import state
from kmodd.daemon import daemon as program
from kmodd.dbus.authorizer import InsecureSameUserAuthority
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, FaultKind
from kmodd.model.settings import DaemonSettings
from tests.clock import clock
from tests.gateway.processes import ROOT

VARIABLE = "OTHER_KERNEL"


def _kernel(wanted: dict[str, Any]) -> SimulatedKernel:
    kernel = SimulatedKernel(pace=wanted["pace"])
    kernel.boot_id = wanted["boot_id"]
    kernel.change_facts(**wanted["facts"])
    for name, number in wanted["refused"].items():
        kernel.fail_next(name, Fault(errno=number, before_init=True), times=100)
    for name in wanted["hanging"]:
        kernel.fail_next(name, Fault(FaultKind.HANG, for_ever=True), times=100)
    return kernel


@contextmanager
def other_daemon(
    address: str,
    *,
    boot_id: str = "",
    pace: float = 1.0,
    facts: dict[str, object] | None = None,
    refused: dict[str, int] | None = None,
    hanging: tuple[str, ...] = (),
    denies: bool = False,
    **settings: int,
) -> Iterator[subprocess.Popen[str]]:
    """`refused` are errnos of files by module, `hanging` modules whose init never returns; `denies` refuses every request."""
    wanted = {
        "boot_id": boot_id,
        "pace": pace,
        "facts": facts or {},
        "refused": refused or {},
        "hanging": hanging,
        "denies": denies,
        "settings": settings,
    }
    command = [sys.executable, "-m", "tests.fleet.other_kernel", "--simulate", "--address", address]
    environment = {**os.environ, VARIABLE: json.dumps(wanted)}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert "SIMULATED" in process.stderr.readline()
        clock.watch(process.pid)
        try:
            yield process
        finally:
            process.kill()
            clock.forget(process.pid)


def main() -> int:
    """The daemon's own entry point, on that kernel."""
    wanted = json.loads(os.environ[VARIABLE])
    uid = os.getuid() + wanted["denies"]
    vars(program).update(
        simulated_kernel=lambda: _kernel(wanted),
        InsecureSameUserAuthority=lambda _: InsecureSameUserAuthority(uid),
    )
    vars(state)["read_daemon_settings"] = lambda _: DaemonSettings(**wanted["settings"])
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
