# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reduces the memory of a mostly idle process. Stand-alone: it is called before anything else is imported."""

import ctypes
from collections.abc import Callable

_PR_SET_THP_DISABLE = 41
"""include/uapi/linux/prctl.h."""


def refuse_huge_pages() -> None:
    """Take pages of 4 KiB only.

    Where transparent huge pages are on for everybody, as by default in Debian, a heap of twenty megabytes is rounded up by one
    or two of 2 MiB each that are never filled.
    """
    _libc().prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def trim_heap(forget: Callable[[], None] = lambda: None) -> None:
    """Return what is free in the heap to the system, after `forget` has made some more free; costs a millisecond."""
    forget()
    trim = getattr(_libc(), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
