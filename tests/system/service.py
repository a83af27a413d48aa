# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of the installed service ask the machine."""

import time
from collections.abc import Callable

from tests.clock import clock
from tests.vm.machine import Machine

# busctl itself waits 25 seconds, which says how busy this machine is.
CALL = "busctl --system --timeout=120 call org.kmodd1 /org/kmodd1 org.kmodd1.Manager"


def show(vm: Machine, name: str, unit: str = "kmodd.service") -> str:
    """One property of a unit, as systemd has it."""
    return vm.check(["systemctl", "show", "--value", "-p", name, unit]).strip()


def main_pid(vm: Machine) -> int:
    """The daemon's process; 0 when there is none."""
    return int(show(vm, "MainPID"))


def serves(vm: Machine) -> bool:
    """It answers a question from memory."""
    return vm.run(f"{CALL} ListModules 'a{{sv}}' 0 >/dev/null", timeout=30).code == 0


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Look again until it holds; AssertionError after so many seconds."""
    deadline = clock() + seconds
    while not condition():
        assert clock() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.3)


def workers(vm: Machine) -> list[int]:
    """The processes of the workers' units."""
    return [int(pid) for pid in vm.run(["pgrep", "-f", "kernel/worker/worker.py"]).stdout.split()]


def resident(vm: Machine, pid: int) -> int:
    """Kilobytes of memory in use by a process."""
    return int(vm.check(f"awk '/^VmRSS/ {{ print $2 }}' /proc/{pid}/status"))
