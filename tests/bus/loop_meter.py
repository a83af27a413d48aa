# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long an event loop was held: the processor time of each callback, which a busy machine does not change; and what it read."""

import asyncio
import builtins
import gc
import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


class LoopMeter:
    """The longest callback of the loop of the thread that made this."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds of the processor."""
        self.callback = ""

    def note(self, seconds: float, handle: asyncio.Handle) -> None:
        """A callback ended."""
        if seconds > self.longest:
            self.longest, self.callback = seconds, repr(handle)


READ_MAX = 64 << 10
"""Bytes of a file that the loop's thread may read."""
_HEADS = (".bin",)
"""Indexes of depmod's, of which kmodd itself reads the header and the root node (kernel/modules/index.py); libkmod maps them."""


@contextmanager
def large_files() -> Iterator[list[str]]:
    """Files larger than that which this thread opens in the block, by whatever Python opens files with."""
    found: list[str] = []
    thread = threading.get_ident()

    def watched(real: Any) -> Any:
        def opened(path: Any, *arguments: Any, **named: Any) -> Any:
            if threading.get_ident() == thread and not isinstance(path, int):
                # Nothing is there where it is about to be made, and none is opened here that is below a descriptor.
                with suppress(OSError):
                    if Path(os.fsdecode(path)).stat().st_size > READ_MAX and not os.fsdecode(path).endswith(_HEADS):
                        found.append(os.fsdecode(path))
            return real(path, *arguments, **named)

        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", watched(os.open))
        made = watched(io.open)
        patch.setattr(io, "open", made)
        patch.setattr(builtins, "open", made)
        yield found


@contextmanager
def metered() -> Iterator[LoopMeter]:
    """Measure every callback of this thread's loop in the block."""
    meter, thread = LoopMeter(), threading.get_ident()
    run = asyncio.Handle._run

    def timed(handle: Any) -> None:
        if threading.get_ident() != thread:
            run(handle)
            return
        begin = time.thread_time()
        run(handle)
        meter.note(time.thread_time() - begin, handle)

    # Everything the tests before this one left is not looked through for garbage in a callback of ours.
    gc.collect()
    gc.freeze()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.Handle, "_run", timed)
            yield meter
    finally:
        gc.unfreeze()
