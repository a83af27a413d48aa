# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real kernel, assembled for core."""

import time
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import read_text
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.modules.installed import InstalledIndexes
from kmodd.kernel.modules.libkmod import is_newer, load_library
from kmodd.kernel.needs import SystemNeeds
from kmodd.kernel.ports import ModuleIndex
from kmodd.kernel.proc.facts import ProcFacts
from kmodd.kernel.proc.kmsg import Kmsg, SharedKmsg, is_kernel_log
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.proc.uevents import KernelUevents
from kmodd.kernel.users.inspector_client import Inspector
from kmodd.kernel.watcher.watcher_client import Watcher
from kmodd.kernel.worker.executor import WorkerPool


@dataclass(frozen=True, slots=True)
class RealKernel:
    """`ports.Kernel` of the running kernel."""

    index: ModuleIndex
    configuration: ConfigurationFolders
    loaded: ProcModules
    executor: WorkerPool
    log: Kmsg | SharedKmsg
    inspection: Inspector
    facts: ProcFacts
    installed: InstalledIndexes
    needs: SystemNeeds
    uevents: KernelUevents
    requests: Watcher
    boot_id: str
    simulated: bool = False


def real_kernel(
    root: Path,
    release: str,
    index: ModuleIndex,
    *,
    worker_socket: str = "",
    inspector_socket: str = "",
    tables_socket: str = "",
    namespaces_socket: str = "",
    watcher_socket: str = "",
    log_descriptor: int = -1,
    state_directory: str = "",
    devices: str = "",
) -> RealKernel:
    """The parts for the kernel `release` with its files below `root`.

    `worker_socket`, `inspector_socket`, `tables_socket` and `namespaces_socket` are where systemd starts workers and inspectors;
    without them they are children. Without `watcher_socket` requests are not traced. Where `log_descriptor` is an open /dev/kmsg, that
    is used, and no right to open the device is needed.
    `state_directory` keeps what outlives the process; empty for nowhere. `devices` is where the system's /dev can be seen:
    the unit's own has a few nodes only.

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
            newer=is_newer(load_library()),
        ),
        loaded=ProcModules(root),
        executor=WorkerPool(tree=root / "lib/modules" / release, unit_socket=worker_socket),
        log=SharedKmsg(log_descriptor) if is_kernel_log(log_descriptor) else Kmsg(root / "dev/kmsg"),
        inspection=Inspector(
            unit_socket=inspector_socket,
            tables_socket=tables_socket,
            namespaces_socket=namespaces_socket,
            network=root / "proc/net",
            modules=root / "sys/module",
        ),
        facts=facts,
        installed=InstalledIndexes(
            root,
            command_line=facts.read().command_line,
            devices=Path(devices) if devices else None,
            scratch=Path(state_directory) if state_directory else None,
        ),
        needs=SystemNeeds(root),
        uevents=KernelUevents(),
        requests=Watcher(watcher_socket, lambda: time.time_ns() // 1000),
        boot_id=read_text(root / "proc/sys/kernel/random/boot_id") or "",
    )
