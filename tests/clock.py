# SPDX-License-Identifier: LGPL-2.1-or-later
"""The time that the processes under test had: seconds in which they waited for a processor do not count.

Time-outs say that something hangs. On a host that does other things as well, a process gets a part of a processor, and what
takes longer then does not hang. The kernel counts in `schedstat` how long a runnable thread has waited for a processor
(Documentation/scheduler/sched-stats.rst); one that sleeps, as a process does that hangs, waits for none.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

_PROC = Path("/proc")


class ProcessClock:
    """`time.monotonic()` of the processes that are watched, of the one that waits most where there are several."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._lock = threading.Lock()
        self._waited: dict[int, float] = {}
        self._lost = 0.0

    def watch(self, pid: int) -> None:
        """Count what this process waits for a processor from now on."""
        with self._lock:
            self._waited[pid] = self._waiting(pid)

    def forget(self, pid: int) -> None:
        """The process has ended."""
        with self._lock:
            self._waited.pop(pid, None)

    def __call__(self) -> float:
        """Seconds; never fewer than before."""
        with self._lock:
            lost = 0.0
            for pid, before in self._waited.items():
                now = max(before, self._waiting(pid))
                lost = max(lost, now - before)
                self._waited[pid] = now
            self._lost += lost
            return time.monotonic() - self._lost

    def _waiting(self, pid: int) -> float:
        """Seconds that its thread which has waited longest has waited; of QEMU the one that runs the processor of the machine."""
        waited = 0
        for file in (self._proc / str(pid) / "task").glob("*/schedstat"):
            try:
                waited = max(waited, int(file.read_text().split()[1]))
            except (OSError, ValueError, IndexError):  # the thread has ended, or the kernel does not count
                continue
        return waited / 1e9


clock = ProcessClock()
"""Of the machines, daemons and gateways that this run of tests has started."""
