# SPDX-License-Identifier: LGPL-2.1-or-later
r"""Reads the kernel log from /dev/kmsg (Documentation/ABI/testing/dev-kmsg) and removes kernel addresses from it.

Each read returns one record, `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];TEXT` and a newline, then lines of properties that
start with a space. The kernel writes everything but printable ASCII as `\xNN`.

systemd can open /dev/kmsg as standard input before it drops CAP_SYSLOG; the kernel checks that capability only on open
(check_syslog_permissions in kernel/printk/printk.c). A descriptor has one position, so all marks share what is read.

Kernel addresses defeat KASLR, and dmesg(1) shows them with CAP_SYSLOG only. An oops prints registers, control registers, raw
stack words and bytes of code (arch/x86/kernel/process_64.c __show_regs, arch/x86/kernel/dumpstack.c show_opcodes,
arch/arm64/kernel/process.c __show_regs). Names with an offset, such as `do_one_initcall+0x56/0x220`, tell where it happened
and nothing about the addresses of the kernel.
"""

import errno
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kmodd.errors import errno_name
from kmodd.text import shown

REMOVED = "(removed)"

_CODE = re.compile(r"(?i)\b(code:) .*")
"""Bytes around the instruction: the operands of a module's relocated code are addresses."""
_TABLES = re.compile(r"(?i)\b((?:PGD|P4D|PUD|PMD|PTE|pgdp?)[ =:]+)(?:0x)?[0-9a-f]{2,}\b")
"""Entries of the page tables: physical addresses of any length."""
_POINTER = re.compile(r"(?i)(?:0x)?ffff[0-9a-f]{8,12}")
"""An address of a 64-bit kernel, whatever stands beside it."""
_REGISTER = re.compile(
    r"(?i)\b((?:[er]?[abcds][xpi]|[re]?ip|pc|lr|sp|fp|[rx]\d{1,2}|cr\d|dr\d)\s*[:=]\s*(?:[0-9a-f]{4}:)?)(?:0x)?[0-9a-f]{8,}"
)
"""A register with a number in it; 32-bit kernels print eight digits."""
_NUMBER = re.compile(r"(?i)(?<![0-9a-z_])(?:0x[0-9a-f]{8,}|(?=[0-9]*[a-f])[0-9a-f]{8,}|[0-9a-f]{12,})(?![0-9a-z_])")
"""Any other number as long as an address: with a prefix, with a letter in it, or of twelve digits and more."""  # fmt: skip


def without_addresses(line: str) -> str:
    """The line with `(removed)` in place of what may be an address. Removes too much rather than too little."""
    line = _CODE.sub(rf"\1 {REMOVED}", line)
    line = _TABLES.sub(rf"\1{REMOVED}", line)
    line = _REGISTER.sub(rf"\1{REMOVED}", line)
    line = _POINTER.sub(REMOVED, line)
    return _NUMBER.sub(REMOVED, line)


LINES_MAX = 200
LINE_MAX = 1024
RECORD_MAX = 8192
"""CONSOLE_EXT_LOG_MAX; a smaller buffer makes the kernel refuse a long record with EINVAL."""
SKIPPED_MAX = 20_000
"""Records of others that are passed over in one go: a flood of them must not hold up the caller."""
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


class Kmsg:
    """`ports.KernelLog` on a kmsg device. Where it cannot be opened, there are no lines, and marks say why; nothing fails for it."""

    def __init__(self, device: Path) -> None:
        self._device = device

    def mark(self) -> "KmsgMark":
        """Mark this moment: a separate descriptor at the end of the buffer."""
        try:
            file = os.open(self._device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return KmsgMark(-1, fault="" if error.errno == errno.ENOENT else errno_name(error.errno or 0))
        try:
            os.lseek(file, 0, os.SEEK_END)
        except OSError as error:
            os.close(file)
            return KmsgMark(-1, fault=errno_name(error.errno or 0))
        return KmsgMark(file)


class KmsgMark:
    """`ports.LogMark`: a descriptor positioned where reading continues; -1 for none."""

    def __init__(self, file: int, read: Callable[[int, int], bytes] = os.read, *, fault: str = "") -> None:
        self._file = file
        self.fault = fault
        """As `ports.LogMark` says; a read that fails sets it."""
        self._read = read
        self._lines: list[str] = []

    def lines(self) -> tuple[str, ...]:
        """What the kernel logged since the mark, oldest first, at most 200 lines of 1 KiB; the first ones are kept."""
        if self._file >= 0:
            for _ in range(SKIPPED_MAX):
                if len(self._lines) >= LINES_MAX:
                    break
                try:
                    record = self._read(self._file, RECORD_MAX)
                except BrokenPipeError:
                    continue  # Records were overwritten before they were read; the next read is the oldest there is.
                except OSError as error:
                    if error.errno == errno.EINTR:
                        continue
                    if error.errno != errno.EAGAIN:  # which means that there is nothing more
                        self.fault = errno_name(error.errno or 0)
                    break
                if not record:
                    break
                self._lines.extend(parse(record)[: LINES_MAX - len(self._lines)])
        return tuple(self._lines)

    def close(self) -> None:
        """Close the descriptor; lines read before stay."""
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
            self._file = -1


def parse(record: bytes) -> list[str]:
    """The lines of one record, safe to show and without addresses; none when user space wrote it or when it is no record."""
    head, separator, body = record.partition(b";")
    priority = head.split(b",", 1)[0]
    # The facility is above the lowest three bits; 0 is the kernel, which the kernel reserves for itself.
    if not separator or not priority.isdigit() or int(priority) >> 3:
        return []
    text = _ESCAPE.sub(lambda escape: bytes([int(escape[1], 16)]), body.split(b"\n", 1)[0])
    lines = text.decode(errors="replace").split("\n")
    # Before a long line is cut: a part of an address says as much.
    return [shown(without_addresses(line.rstrip("\r")), LINE_MAX) for line in lines if line.strip()]


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
                if error.errno != errno.EAGAIN:  # which means that there is nothing more
                    for mark in self._open:
                        mark.fault = errno_name(error.errno or 0)
                return
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
        self.fault = ""
        """As `ports.LogMark` says."""

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
