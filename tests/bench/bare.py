# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bare system calls, timed in this process: what no tool can be faster than."""

import ctypes
import os
import time
from pathlib import Path

_SYS_FINIT_MODULE = 313
_SYS_DELETE_MODULE = 176
"""Numbers of x86_64 (arch/x86/entry/syscalls/syscall_64.tbl); the bench runs in the project's own virtual machine."""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> float:
    begin = time.perf_counter()
    answer = _libc.syscall(number, *arguments)
    taken = time.perf_counter() - begin
    if answer != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return taken


def insert(path: Path, arguments: str) -> float:
    """Seconds finit_module took, the file already open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _call(_SYS_FINIT_MODULE, descriptor, arguments.encode(), 0)
    finally:
        os.close(descriptor)


def remove(name: str) -> float:
    """Seconds delete_module took."""
    return _call(_SYS_DELETE_MODULE, name.encode(), os.O_NONBLOCK)
