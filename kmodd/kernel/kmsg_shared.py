# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's log through one descriptor that somebody else opened, for a daemon without the right to open it.

systemd opens /dev/kmsg as standard input before it takes CAP_SYSLOG away; the kernel checks that right on opening alone
(check_syslog_permissions in kernel/printk/printk.c). A descriptor has one position, so all marks share what is read.
"""

import errno
import os
import stat

from kmodd.kernel.kmsg import LINES_MAX, RECORD_MAX, SKIPPED_MAX, parse

KMSG_DEVICE = os.makedev(1, 11)
"""Documentation/admin-guide/devices.txt."""


def is_kernel_log(descriptor: int) -> bool:
    """It is an open /dev/kmsg."""
    try:
        status = os.fstat(descriptor)
    except OSError:  # It is not open at all.
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == KMSG_DEVICE


class SharedKmsg:
    """`ports.KernelLog` on a descriptor open for reading, which stays the caller's. For one thread."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._open: list[SharedMark] = []

    def mark(self) -> "SharedMark":
        """Remember this moment; records before it are passed over."""
        if self._open:
            self.read()  # They belong to the marks that are open already.
        else:
            os.lseek(self._descriptor, 0, os.SEEK_END)
        made = SharedMark(self)
        self._open.append(made)
        return made

    def forget(self, mark: "SharedMark") -> None:
        """The mark wants nothing more; forgetting it again does nothing."""
        if mark in self._open:
            self._open.remove(mark)

    def read(self) -> None:
        """Hand what is new to every open mark."""
        for _ in range(SKIPPED_MAX):
            try:
                record = os.read(self._descriptor, RECORD_MAX)
            except BrokenPipeError:
                continue  # Records were overwritten before they were read; the next read is the oldest there is.
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                return  # EAGAIN: nothing more. Anything else: the log is not to be had.
            if not record:
                return
            lines = parse(record)
            for mark in self._open:
                mark.take(lines)


class SharedMark:
    """`ports.LogMark` of `SharedKmsg`."""

    def __init__(self, log: SharedKmsg) -> None:
        self._log = log
        self._lines: list[str] = []

    def take(self, lines: list[str]) -> None:
        """Keep these, up to 200 in all; the first ones are kept."""
        self._lines.extend(lines[: LINES_MAX - len(self._lines)])

    def lines(self) -> tuple[str, ...]:
        """What the kernel logged since the mark, oldest first, at most 200 lines of 1 KiB."""
        self._log.read()
        return tuple(self._lines)

    def close(self) -> None:
        """Forget the place; lines read before stay."""
        self._log.forget(self)
