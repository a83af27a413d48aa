# SPDX-License-Identifier: LGPL-2.1-or-later
"""The system's own programs, run to their end. One that is left running fails its test, as a child of any test does."""

import asyncio
import errno
import os

import pytest

from kmodd.kernel.modules.depmod import run


async def test_the_status_is_as_a_shell_counts_it() -> None:
    assert await run(("/bin/sh", "-c", "exit 3"), timeout=10) == 3


async def test_one_that_takes_too_long_is_killed() -> None:
    assert await run(("/bin/sleep", "30"), timeout=0.05) == 128 + 9


async def test_one_that_cannot_be_watched_is_not_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        await run(("/bin/sleep", "30"), timeout=10)


async def test_one_whose_caller_leaves_is_killed() -> None:
    task = asyncio.get_running_loop().create_task(run(("/bin/sleep", "30"), timeout=10))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
