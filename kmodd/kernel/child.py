# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs one of the system's own programs to its end, without a shell, and without asyncio's watching of every child."""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


async def run(program: Sequence[str], *, timeout: float) -> int:
    """Run it and answer its exit status, as a shell counts them; OSError when it cannot be started.

    What it says goes to our stderr, that is to the journal. After `timeout` seconds, and when the caller is cancelled, it is
    killed.
    """
    loop = asyncio.get_running_loop()
    pid = _start(program)
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        _kill(pid)
        _reap(pid)
        raise
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(handle, end)
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), timeout)
    finally:
        loop.remove_reader(handle)
        os.close(handle)
        if not ended.done():
            _kill(pid)
        status = _reap(pid)
    return status


def _start(program: Sequence[str]) -> int:
    return os.posix_spawn(
        program[0],
        list(program),
        _ENVIRONMENT,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ],
        setpgroup=0,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD],
    )


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own


def _reap(pid: int) -> int:
    # It has ended, or has just been killed and waits for nothing: this does not block.
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
