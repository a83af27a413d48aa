# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine itself, put together for core."""

from dataclasses import dataclass
from pathlib import Path

from kmodd.kernel.aliastext import AliasText
from kmodd.kernel.executor import WorkerPool
from kmodd.kernel.facts import ProcFacts
from kmodd.kernel.kmsg import Kmsg
from kmodd.kernel.kmsg_shared import SharedKmsg, is_kernel_log
from kmodd.kernel.loaded import ProcModules
from kmodd.kernel.modprobe_files import ConfigurationFolders
from kmodd.kernel.ports import ModuleIndex
from kmodd.kernel.uevents import KernelUevents
from kmodd.kernel.usage import ProcUsage


@dataclass(frozen=True, slots=True)
class RealKernel:
    """`ports.Kernel` of the running kernel."""

    index: ModuleIndex
    configuration: ConfigurationFolders
    loaded: ProcModules
    executor: WorkerPool
    log: Kmsg | SharedKmsg
    usage: ProcUsage
    facts: ProcFacts
    uevents: KernelUevents
    simulated: bool = False


def real_kernel(
    root: Path,
    release: str,
    index: ModuleIndex,
    *,
    worker_socket: str = "",
    log_descriptor: int = -1,
    state_directory: str = "",
) -> RealKernel:
    """The parts for the kernel `release` with its files below `root`.

    `worker_socket` is where systemd starts workers; without it they are children. Where `log_descriptor` is an open
    /dev/kmsg, that is used, and no right to open the device is needed. `state_directory` keeps what outlives the process;
    empty for nowhere.

    Opens the event socket, so that nothing that happens from here on is missed; OSError where that is not possible.
    Starts no process: `executor.start()` on the loop keeps a worker warm ahead of the first order.
    """
    facts = ProcFacts(root, release)
    return RealKernel(
        index=index,
        configuration=ConfigurationFolders(
            root,
            release,
            command_line=facts.read().command_line,
            memory=Path(state_directory) if state_directory else None,
        ),
        loaded=ProcModules(root),
        executor=WorkerPool(unit_socket=worker_socket),
        log=SharedKmsg(log_descriptor) if is_kernel_log(log_descriptor) else Kmsg(root / "dev/kmsg"),
        usage=ProcUsage(root, AliasText(root, release)),
        facts=facts,
        uevents=KernelUevents(),
    )
