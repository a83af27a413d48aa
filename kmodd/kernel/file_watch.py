# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reports changes in a few directories, by inotify(7)."""

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterable
from pathlib import Path

SETTLE = 0.5
"""Seconds between the first event and the report of it: an editor and depmod write many files in a row."""
_EVENTS = (
    0x0000_0008  # IN_CLOSE_WRITE
    | 0x0000_0040  # IN_MOVED_FROM
    | 0x0000_0080  # IN_MOVED_TO
    | 0x0000_0100  # IN_CREATE: links and folders
    | 0x0000_0200  # IN_DELETE
    | 0x0000_0400  # IN_DELETE_SELF, and
    | 0x0000_0800  # IN_MOVE_SELF: another folder may stand in its place by now
    | 0x0100_0000  # IN_ONLYDIR
)
_READ = 1 << 16


class FileWatch:
    """One watch for a few directories. Changes in their subdirectories are not reported."""

    def __init__(self, folders: Iterable[Path], on_change: Callable[[], None], *, settle: float = SETTLE) -> None:
        """Folders that do not exist are watched from when something in one of the others changes and they do."""
        self._folders = tuple(folders)
        self._on_change = on_change
        self._settle = settle
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = -1
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running loop; OSError where the system has no more watches to give."""
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._handle < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._add()
        asyncio.get_running_loop().add_reader(self._handle, self._read)

    def close(self) -> None:
        """Stop; may be called again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._handle >= 0:
            asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)
            self._handle = -1

    def _add(self) -> None:
        for folder in self._folders:
            # A second watch of the same folder is the first; one that does not exist is no error.
            self._libc.inotify_add_watch(self._handle, os.fsencode(folder), ctypes.c_uint32(_EVENTS))

    def _read(self) -> None:
        # Which file it was does not matter, nor does it that some events were lost (IN_Q_OVERFLOW is one of them).
        os.read(self._handle, _READ)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._settle, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._add()
        self._on_change()
