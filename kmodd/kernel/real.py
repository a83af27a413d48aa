# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine itself, put together for core."""

from dataclasses import dataclass
from pathlib import Path

from kmodd.kernel.aliastext import AliasText
from kmodd.kernel.executor import WorkerPool
from kmodd.kernel.facts import ProcFacts
from kmodd.kernel.kmsg import Kmsg
from kmodd.kernel.loaded import ProcModules
from kmodd.kernel.ports import ModuleIndex
from kmodd.kernel.uevents import KernelUevents
from kmodd.kernel.usage import ProcUsage


@dataclass(frozen=True, slots=True)
class RealKernel:
    """`ports.Kernel` of the running kernel."""

    index: ModuleIndex
    loaded: ProcModules
    executor: WorkerPool
    log: Kmsg
    usage: ProcUsage
    facts: ProcFacts
    uevents: KernelUevents
    simulated: bool = False


def real_kernel(root: Path, release: str, index: ModuleIndex) -> RealKernel:
    """The parts for the kernel `release` with its files below `root`.

    Opens the event socket, so that nothing that happens from here on is missed; OSError where that is not possible.
    Starts no process: `executor.start()` on the loop keeps a worker warm ahead of the first order.
    """
    return RealKernel(
        index=index,
        loaded=ProcModules(root),
        executor=WorkerPool(),
        log=Kmsg(root / "dev/kmsg"),
        usage=ProcUsage(root, AliasText(root, release)),
        facts=ProcFacts(root, release),
        uevents=KernelUevents(),
    )
