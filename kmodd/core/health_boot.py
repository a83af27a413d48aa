# SPDX-License-Identifier: LGPL-2.1-or-later
"""Health of what the next boot finds: the initramfs, and the module trees of installed kernels."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from kmodd.model import HealthCheck, HealthStatus
from kmodd.model.boot import BootImage, Trees
from kmodd.model.configuration import Drift

_OK, _DEGRADED = HealthStatus.OK, HealthStatus.DEGRADED
_LOOKS_MAX = 3
MODULES_MAX = 32
"""Replaced modules told one by one."""


class Image(Protocol):
    """The initramfs of the running kernel."""

    def stamp(self) -> object:
        """Changes when anything does that decides; cheap."""

    def look(self) -> BootImage | None:
        """Compare; blocking, None where there is no initramfs."""


class BootHealth:
    """What is known of the initramfs and the trees. The image is read in a thread, and again only when a file changed."""

    def __init__(self, image: Image, trees: Callable[[], Trees], on_news: Callable[[], None]) -> None:
        """`on_news` is called when a reading ended whose result was not known when it was asked for."""
        self._image = image
        self._trees = trees
        self._on_news = on_news
        self._stamp: object = None
        self._found: BootImage | None = None
        self._reading: asyncio.Task[None] | None = None

    def checks(self) -> Iterator[HealthCheck]:
        """Every finding."""
        yield self._initramfs()
        trees = self._trees()
        if trees.newer:
            message = f"Kernel {trees.newer[-1]} is installed and newer than the running one."
            yield HealthCheck("newer-kernel", _OK, message, "", "it runs, with its modules, from the next boot on")
        for name, file in trees.replaced[:MODULES_MAX]:
            yield HealthCheck("replaced-module", _OK, f"{file} takes the place of the kernel's own {name}.", name)

    def drift(self) -> Sequence[Drift]:
        """One row where the initramfs is older than its files; its hint is the command that refreshes it."""
        found = self.image()
        if found is None or not found.differences:
            return ()
        return (Drift("", "initramfs", "as /etc has it", "; ".join(found.differences), found.refresh),)

    def image(self) -> BootImage | None:
        """As last seen; begins another look when a file changed since."""
        stamp = self._image.stamp()
        if stamp != self._stamp and self._reading is None:
            self._stamp = stamp
            self._reading = asyncio.get_running_loop().create_task(self._look())
        return self._found

    async def settled(self) -> BootImage | None:
        """As it is now: waits for a look that is under way, and for one more when a file changed since it began."""
        for _ in range(_LOOKS_MAX):
            self.image()
            if self._reading is None:
                break
            await asyncio.shield(self._reading)
        return self._found

    def reading(self) -> asyncio.Task[None] | None:
        """What is being read."""
        return self._reading

    async def close(self) -> None:
        """Wait for a look that is under way: its thread cannot be stopped."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    async def _look(self) -> None:
        before = self._found
        try:
            self._found = await asyncio.to_thread(self._image.look)
        finally:
            self._reading = None
        if self._found != before:
            self._on_news()

    def _initramfs(self) -> HealthCheck:
        found = self.image()
        if found is None:
            return HealthCheck("initramfs", _OK, "No initramfs is known for the running kernel.")
        if not found.differences:
            return HealthCheck("initramfs", _OK, f"{found.file} is up to date.")
        how = "by its contents" if found.by_content else "by its time; its contents cannot be read"
        message = f"{found.file} is older than the files it was made from ({how}): {'; '.join(found.differences)}."
        return HealthCheck("initramfs", _DEGRADED, message, "", found.refresh)
