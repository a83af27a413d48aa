# SPDX-License-Identifier: LGPL-2.1-or-later
"""One line that says how far our job is, on a terminal only, gone when it is done."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kmodd.cli.screen import Screen
from kmodd.cli.text import clean, shorten
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
        task = asyncio.create_task(_follow(stream, client.unique_name, screen))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, KmoddError):
                await task
            screen.stderr.write("\r\x1b[K")
            screen.stderr.flush()


async def _follow(stream: SignalStream, own_name: str, screen: Screen) -> None:
    job = ""
    last = ""
    async for signal in stream:
        if signal.interface == OBJECTS and signal.member == "InterfacesAdded":
            properties = signal.arguments[1].get(JOB)
            if properties is not None and properties.get("Sender") == own_name:
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
