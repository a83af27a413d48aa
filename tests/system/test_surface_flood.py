# SPDX-License-Identifier: LGPL-2.1-or-later
"""As many attempts in a minute as a user gets done: neither the journal nor the processor is flooded, and no process is started
for one beyond those of modprobe itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.client import Client, soon
from tests.system.service import serves, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

PROCESSORS = 2
RULE = "/etc/modprobe.d/flood.conf"
INSTANCE = "/sys/kernel/tracing/instances/kmodd"
SECONDS = 60
KINDS = 20
"""Different requests of one user that have a record each in a minute."""
FLOOD = """
import os, socket, sys, time
seconds, mark, most = float(sys.argv[1]), sys.argv[2], int(sys.argv[3])
end, alike, others = time.monotonic() + seconds, 0, 0
def attempt(name):
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.bind((name, "none"))
        except OSError:
            pass
while time.monotonic() < end and alike + others < most:
    attempt("rng")
    alike += 1
    if alike % 2:
        attempt(f"{mark}{alike}")
        others += 1
print(alike, others)
"""
"""The kernel asks for `algif-rng`, which a rule refuses, and for a name that is another one each time."""


@dataclass(frozen=True)
class Cost:
    """What some attempts took."""

    attempts: int
    alike: int
    forks: int
    kmodd: float
    """Seconds of processor time of the daemon and the watcher."""
    all: float
    """Of everything."""


def processor(vm: Machine, unit: str) -> float:
    files = vm.check(
        f"cat /sys/fs/cgroup/system.slice/{unit}.service/cpu.stat"
        r" /sys/fs/cgroup/system.slice/system-kmodd\\x2dwatcher.slice/cpu.stat 2>/dev/null; true"
    )
    return sum(int(line.split()[1]) for line in files.splitlines() if line.startswith("usage_usec")) / 1e6


def busy(vm: Machine) -> tuple[float, int]:
    """Seconds that all processors were busy since boot, and processes started."""
    lines = vm.check("cat /proc/stat; getconf CLK_TCK").splitlines()
    user, nice, system, _, _, irq, softirq = map(int, lines[0].split()[1:8])
    started = next(int(line.split()[1]) for line in lines if line.startswith("processes"))
    return (user + nice + system + irq + softirq) / int(lines[-1]), started


def flood(vm: Machine, mark: str, *, seconds: float = SECONDS, most: int = 10_000, programs: int = 4) -> Cost:
    before, kmodd = busy(vm), processor(vm, "kmodd")
    command = " & ".join(f"python3 -c '{FLOOD}' {seconds} {mark}{n} {most // programs}" for n in range(programs))
    counted = vm.run(f"{command} & wait", user="alice", timeout=seconds + 300, check=True).stdout.split()
    after = busy(vm)
    numbers = list(map(int, counted))
    spent = after[0] - before[0]
    return Cost(sum(numbers), sum(numbers[::2]), after[1] - before[1], processor(vm, "kmodd") - kmodd, spent)


@pytest.fixture(autouse=True)
def _refused(vm: Machine) -> Iterator[None]:
    vm.check(f"modprobe -r algif_rng; modprobe af_alg; echo 'install algif_rng /bin/false' > {RULE}")
    yield
    vm.run(f"rm -f {RULE}")


def records(vm: Machine, event: str) -> list[dict[str, Any]]:
    text = vm.journal(f"KMODD_EVENT={event}", "-o", "json")
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.timeout(1500)
def test_attempts_without_end_cost_what_modprobe_costs(vm: Machine) -> None:
    vm.check("systemctl stop kmodd", timeout=90)
    without = flood(vm, "a", most=200, seconds=300)
    print("without kmodd", without)

    vm.check("systemctl start kmodd", timeout=90)
    wait_until(lambda: serves(vm), "the daemon", 60)
    soon(lambda: vm.run(["test", "-d", INSTANCE]).code == 0, "the watcher", 60)
    done = flood(vm, "b")
    print("with kmodd", done)
    assert done.attempts > 200
    # Answers go on.
    assert serves(vm)
    # What was only counted is written now.
    vm.check("systemctl restart kmodd", timeout=90)

    refused, requested = records(vm, "module.refused"), records(vm, "module.requested")
    print(f"{done.attempts} attempts: {len(refused)} and {len(requested)} records")
    minutes = 3  # begun, whole and ended ones
    assert len(refused) <= 2 * minutes
    assert len(requested) <= (2 * KINDS + 1) * minutes
    counts = Client(vm).call("GetRefused", {}, interface="org.kmodd1.Surface", signature="a{sv}")
    counted = sum(row["count"] for row in counts if row["alias"] == "algif-rng")
    print(f"{done.alike} alike, {counted} counted")
    assert 0.9 * done.alike <= counted <= done.alike

    # modprobe, the shell of the install line and what that runs; kmodd starts nothing for one.
    each, before = done.forks / done.attempts, without.forks / without.attempts
    print(
        f"processes for each: {each:.2f} with kmodd, {before:.2f} without; share of kmodd {done.kmodd / done.all:.2f}"
    )
    assert each < before + 0.5
    assert done.kmodd < 0.34 * done.all
