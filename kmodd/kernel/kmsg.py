# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's own words: /dev/kmsg (Documentation/ABI/testing/dev-kmsg).

Each read gives one record, `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];TEXT` and a newline, then lines of properties that
start with a space. The kernel writes everything but plain ASCII as `\\xNN`.
"""

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kmodd.kernel.smallfile import shown

LINES_MAX = 200
LINE_MAX = 1024
RECORD_MAX = 8192
"""CONSOLE_EXT_LOG_MAX; a smaller buffer makes the kernel refuse a long record with EINVAL."""
SKIPPED_MAX = 20_000
"""Records of others that are passed over in one go: a flood of them must not hold up the caller."""
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


class Kmsg:
    """`ports.KernelLog` on a kmsg device. Where it cannot be opened, there are no lines; nothing fails for it."""

    def __init__(self, device: Path) -> None:
        self._device = device

    def mark(self) -> "KmsgMark":
        """Remember this moment: one descriptor of its own at the end of the buffer."""
        try:
            file = os.open(self._device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return KmsgMark(-1)
        try:
            os.lseek(file, 0, os.SEEK_END)
        except OSError:
            os.close(file)
            return KmsgMark(-1)
        return KmsgMark(file)


class KmsgMark:
    """`ports.LogMark`: a descriptor positioned where reading goes on; -1 for none."""

    def __init__(self, file: int, read: Callable[[int, int], bytes] = os.read) -> None:
        self._file = file
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
                    break  # EAGAIN: nothing more. Anything else: the log is not to be had.
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
    """The lines of one record, safe to show; none when user space wrote it or when it is no record."""
    head, separator, body = record.partition(b";")
    priority = head.split(b",", 1)[0]
    # The facility is above the lowest three bits; 0 is the kernel, and the kernel lets nobody else use it.
    if not separator or not priority.isdigit() or int(priority) >> 3:
        return []
    text = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), body.split(b"\n", 1)[0])
    lines = text.decode(errors="replace").split("\n")
    return [shown(line.rstrip("\r"), LINE_MAX) for line in lines if line.strip()]
