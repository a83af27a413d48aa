# SPDX-License-Identifier: LGPL-2.1-or-later
"""Time that passes when a test wants it to."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest


@pytest.fixture
async def virtual_time(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Timers of the event loop come due at once and in their order, however busy the machine is.

    When nothing is ready to run and no thread of the loop works, the clock goes on to the next timer. Not for tests that wait for
    a process: it would take no time on such a clock.
    """
    loop: Any = asyncio.get_running_loop()
    now, select = loop.time(), loop._selector.select

    def advance(timeout: float | None = None) -> Any:
        nonlocal now
        if timeout is None or timeout <= 0:
            return select(timeout)
        if _is_working(loop._default_executor):
            return select(0.001)
        ready = select(0)
        if not ready:
            now += timeout
        return ready

    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: now)
        patch.setattr(loop._selector, "select", advance)
        yield


def _is_working(executor: Any) -> bool:
    """Whether a thread of the loop's executor has something to do."""
    return executor is not None and (
        not executor._work_queue.empty() or len(executor._threads) > executor._idle_semaphore._value
    )
