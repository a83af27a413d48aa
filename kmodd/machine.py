# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the composition root takes of the machine it runs on: the kernel, real or simulated, and a few files."""

import os
from pathlib import Path

from kmodd.kernel.ports import Kernel
from kmodd.settings import Settings


def real_kernel(settings: Settings) -> Kernel:
    """The running kernel, with its workers and its log."""
    # Imported here: a simulation needs neither libkmod nor pyudev.
    from kmodd.kernel.index import LibkmodIndex
    from kmodd.kernel.real import real_kernel as put_together

    root, release = Path("/"), os.uname().release
    index = LibkmodIndex(
        root, release, command_line=Path("/proc/cmdline").read_text(encoding="utf-8", errors="replace")
    )
    # systemd opens /dev/kmsg for us as standard input (the unit's StandardInput=) and starts the workers on demand.
    return put_together(
        root,
        release,
        index,
        worker_socket=settings.worker_socket,
        log_descriptor=0,
        state_directory=settings.state_directory,
    )


def simulated_kernel() -> Kernel:
    """A kernel in memory."""
    # Imported here: a real daemon must not even have it in memory.
    from kmodd.kernel.simulated import SimulatedKernel

    return SimulatedKernel()


def executable(pid: int) -> str:
    """Path of a process's program, for the journal alone; empty when it is gone or hides it."""
    try:
        return str(Path(f"/proc/{pid}/exe").readlink()) if pid > 0 else ""
    except OSError:
        return ""


def machine_id() -> str:
    """As in machine-id(5); empty where there is none."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            return path.read_text(encoding="ascii").strip()
        except OSError:
            continue
    return ""
