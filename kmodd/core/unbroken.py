# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work that goes on to its end when the task that waits for it is cancelled: a caller left, or the daemon is to end."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


async def unbroken(work: asyncio.Task[Answer], left: Callable[[], None] = lambda: None) -> Answer:
    """Wait for a task, and answer or raise what it does.

    A cancellation of the waiting task is told to `left`, as often as it comes, and raised when the work has ended. Only
    cancelling `work` itself breaks it off.
    """
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
            left()
    if not cancelled:
        return work.result()
    if not work.cancelled():
        work.exception()  # nobody waits for it any more; asyncio complains about those never looked at
    raise asyncio.CancelledError
