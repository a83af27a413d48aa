# SPDX-License-Identifier: LGPL-2.1-or-later
"""A progress line for the caller's own job, shown on terminals only and erased at the end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, shorten
from kmodd.client import JOB, OBJECTS, PROPERTIES, Client, Signal, SignalStream
from kmodd.errors import KmoddError

BAR = 24


@asynccontextmanager
async def shown(client: Client, screen: Screen) -> AsyncIterator[None]:
    """Show the progress of the job this connection starts, while the block runs."""
    if not screen.stderr.isatty() or screen.environment.get("TERM", "dumb") == "dumb":
        yield
        return
    async with client.signals() as stream:
        task = asyncio.create_task(_follow(stream, client, screen))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, KmoddError):
                await task
            screen.stderr.write("\r\x1b[K")
            screen.stderr.flush()


async def _follow(stream: SignalStream, client: Client, screen: Screen) -> None:
    job = ""
    last = ""
    async for signal in stream:
        if signal.interface == OBJECTS and signal.member == "InterfacesAdded":
            # Whose job it is stands in no signal: the daemon tells it to the one who started it.
            if JOB in signal.arguments[1] and await client.started_by_us(str(signal.arguments[0])):
                job = str(signal.arguments[0])
        elif signal.member == "ModuleAdded":
            last = f"inserted {clean(signal.arguments[0])}"
        elif signal.member == "ModuleRemoved":
            last = f"removed {clean(signal.arguments[0])}"
        elif job and signal.path == job:
            _draw(signal, last, screen)


def _draw(signal: Signal, last: str, screen: Screen) -> None:
    if signal.interface != PROPERTIES or "Progress" not in signal.arguments[1]:
        return
    line = f"\r\x1b[K{bar(signal.arguments[1]['Progress'], last, screen)}"
    screen.stderr.write(line)
    screen.stderr.flush()


def bar(progress: float, last: str, screen: Screen) -> str:
    """The line itself, narrower than the terminal."""
    done = round(min(max(progress, 0.0), 1.0) * BAR)
    full, empty = ("━", "─") if screen.glyphs.arrow == "→" else ("#", ".")
    text = f"{full * done}{empty * (BAR - done)} {progress:4.0%}"
    return shorten(f"{text}  {last}".rstrip(), (screen.width or 80) - 1, screen.glyphs.ellipsis)
