# SPDX-License-Identifier: LGPL-2.1-or-later
"""What processes have mapped into their memory, from /proc/PID/maps, read by a child that ends when it takes too long.

The kernel waits for the process's mmap_lock, which its owner can have held for any time: by a page fault in a file of FUSE, whose server
does not respond. Only a signal that ends the waiting process ends the wait (mmap_read_lock_killable in fs/proc/task_mmu.c).
"""

import os
import re
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from kmodd.kernel.files import note

_MAPPING = re.compile(
    rb"[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ (?P<on>[0-9a-f]+:[0-9a-f]+) (?P<ino>[0-9]+) +(?P<path>(?:/|anon_inode:).*)"
)
"""A line of maps (proc_pid_maps(5))."""
_ANONYMOUS = b"anon_inode:"
_CHUNK = 1 << 16
_LINE_MAX = 1 << 14
"""Bytes of one line: a path of at most a page, of which a line feed is escaped."""
_ANSWER_MAX = 8 << 20
_END = b"end\n"
_unreaped: list[int] = []
_WAITS, _WAIT = 20, 0.01
"""How often, and how many seconds each time, a child that was killed is waited for."""


def mappings(folder: Path, devices: Collection[bytes], take: Callable[[int, int], bool]) -> Iterator[bytes]:
    """`DEVICE INODE PATH` of each mapping of a file on one of these devices (`fe:01`), or of a file without a path.

    `take` is called with the bytes of each piece and of all so far; no more are read when it answers False.
    """
    marks = (*(b" %s " % device for device in devices), b" " + _ANONYMOUS)
    try:
        with open(f"{folder}/maps", "rb", buffering=0) as file:  # noqa: PTH123 - a plain text, hundreds of times
            rest, size = b"", 0
            while piece := file.read(_CHUNK):
                size += len(piece)
                if not take(len(piece), size) or len(rest) > _LINE_MAX:
                    return
                piece, _, rest = (rest + piece).rpartition(b"\n")
                for line in piece.split(b"\n") if any(mark in piece for mark in marks) else ():
                    row = _MAPPING.fullmatch(line)
                    if row is not None and (row["on"] in devices or row["path"].startswith(_ANONYMOUS)):
                        yield b"%s %s %s" % (row["on"], row["ino"], row["path"])
    except OSError as error:
        note(error)


def from_child(texts: Callable[[], Iterable[bytes]], seconds: float) -> tuple[list[bytes], bool]:
    """The lines of these texts, which a child makes; and whether it came to their end within so many seconds."""
    # One that took long to end counts as a process of the unit until it is waited for.
    _unreaped[:] = [child for child in _unreaped if not os.waitpid(child, os.WNOHANG)[0]]
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        note(error)
        return [], False
    try:
        child = os.fork()
        if child == 0:
            _write(texts, writing, seconds)
    except OSError as error:
        os.close(reading)
        note(error)
        return [], False
    finally:
        os.close(writing)
    lines: list[bytes] = []
    complete = False
    try:
        lines, complete = _read(reading, seconds)
    finally:
        os.close(reading)
        _wait(child, ends=complete)
    return lines, complete


def _write(texts: Callable[[], Iterable[bytes]], file: int, seconds: float) -> NoReturn:
    """In the child: nothing of the parent's may run here, whatever happens."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, seconds)
        for text in texts():
            _write_all(file, text)
        _write_all(file, _END)
    finally:
        os._exit(0)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _read(file: int, seconds: float) -> tuple[list[bytes], bool]:
    answer, end = bytearray(), time.monotonic() + seconds
    readable = select.poll()
    readable.register(file, select.POLLIN)
    while len(answer) < _ANSWER_MAX and (left := end - time.monotonic()) > 0 and readable.poll(left * 1000):
        part = os.read(file, _CHUNK)
        if not part:
            break
        answer += part
    # What is behind the last line feed was cut off.
    lines = bytes(answer).split(b"\n")[:-1]
    complete = lines[-1:] == [_END.strip()]
    return lines[:-1] if complete else lines, complete


def _wait(child: int, *, ends: bool) -> None:
    if not ends:
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)
    for _ in range(_WAITS):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(_WAIT)
    _unreaped.append(child)
