# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the composition root needs of the system: the kernel, real or simulated, and a few files."""

import os
from pathlib import Path

from kmodd.kernel.ports import Kernel
from kmodd.startup.options import Settings
from kmodd.text import shown


def real_kernel(settings: Settings) -> Kernel:
    """The running kernel, with its workers and its log."""
    # Imported here: a simulation needs neither libkmod nor pyudev.
    from kmodd.kernel.modules.index import LibkmodIndex
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
        inspector_socket=settings.inspector_socket,
        tables_socket=settings.tables_socket,
        namespaces_socket=settings.namespaces_socket,
        watcher_socket=settings.watcher_socket,
        log_descriptor=0,
        state_directory=settings.state_directory,
        devices=settings.devices,
    )


def simulated_kernel() -> Kernel:
    """A kernel in memory."""
    # Imported here: a real daemon must not even have it in memory.
    from kmodd.kernel.simulated.kernel import SimulatedKernel

    return SimulatedKernel()


_NAME_MAX = 64
"""Letters; the kernel's own limit is 15 for programs, and longer for its threads."""
_NO_LOGIN = 0xFFFFFFFF
"""What the kernel shows for a process that no login was set for: services, and what they start."""


def login_uid(pid: int, uid: int | None, proc: Path = Path("/proc")) -> int | None:
    """As whom the session of a process logged in (proc_pid_loginuid(5)), which su and sudo keep; None when it cannot be known.

    The process must be of the user `uid`, whom the bus vouches for. A folder of /proc stays that of its process (once that has ended
    every read fails), so what is read is of one process, and not of another that got its number in between.
    """
    if pid <= 0 or uid is None:
        return None
    try:
        folder = os.open(proc / str(pid), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _effective_uid(_read_at(folder, "status")) != uid:
            return None
        number = int(_read_at(folder, "loginuid"))
    except (OSError, ValueError):  # ended meanwhile; a kernel without CONFIG_AUDIT
        return None
    finally:
        os.close(folder)
    return None if number == _NO_LOGIN else number


def identity(pid: int, proc: Path = Path("/proc")) -> tuple[str, int] | None:
    """What a process calls itself, safe to show, and when it began in clock ticks since boot (proc_pid_stat(5)); None when it has ended.

    Every user may read that; both together identify one process, even if its number is reused later.
    """
    if pid <= 0:
        return None
    try:
        text = (proc / str(pid) / "stat").read_bytes()
        # The name is in parentheses, and may have some itself.
        name, fields = text.partition(b"(")[2].rpartition(b")")[::2]
        return shown(name.decode(errors="replace"), _NAME_MAX), int(fields.split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _read_at(folder: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(file, 16384)
    finally:
        os.close(file)


def _effective_uid(status: bytes) -> int | None:
    """The second number of `Uid:` in proc_pid_status(5): what a socket's peer credentials have."""
    line = next((line for line in status.splitlines() if line.startswith(b"Uid:")), b"")
    words = line.split()
    return int(words[2]) if len(words) > 2 else None


def machine_id() -> str:
    """As in machine-id(5); empty where there is none."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            return path.read_text(encoding="ascii").strip()
        except OSError:
            continue
    return ""
