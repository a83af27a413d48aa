# SPDX-License-Identifier: LGPL-2.1-or-later
"""Health of the next boot: the initramfs, and the module trees of installed kernels."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from kmodd.model import HealthCheck, HealthStatus
from kmodd.model.modules import BootImage, Trees
from kmodd.model.rules import Drift

_OK, _DEGRADED = HealthStatus.OK, HealthStatus.DEGRADED
_LOOKS_MAX = 3
MODULES_MAX = 32
"""Replaced modules listed individually."""


class Image(Protocol):
    """The initramfs of the running kernel."""

    def stamp(self) -> object:
        """Changes when anything does that decides; cheap."""

    def look(self) -> BootImage | None:
        """Compare; blocking, None where there is no initramfs."""


class BootHealth:
    """What is known of the initramfs and the trees. The image is read in a thread, and again only when a file changed."""

    def __init__(
        self,
        image: Image,
        trees: Callable[[], Trees],
        on_news: Callable[[], None],
        *,
        trees_stamp: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_news` is called when a reading finished whose result was not available when it was requested.

        `trees` blocks; `trees_stamp` answers something else when `trees` would.
        """
        self._image = image
        self._trees = trees
        self._trees_stamp = trees_stamp
        self._seen: tuple[object, Trees] | None = None
        self._on_news = on_news
        self._stamp: object = None
        self._found: BootImage | None = None
        self._reading: asyncio.Task[None] | None = None

    def checks(self) -> Iterator[HealthCheck]:
        """Every finding."""
        yield self._initramfs()
        trees = self._seen[1] if self._seen is not None else Trees()
        if trees.newer:
            message = f"Kernel {trees.newer[-1]} is installed and newer than the running one."
            yield HealthCheck("newer-kernel", _OK, message, "", "reboot to use it")
        for name, file in trees.replaced[:MODULES_MAX]:
            yield HealthCheck("replaced-module", _OK, f"{file} replaces the kernel's own {name}.", name)

    def drift(self) -> Sequence[Drift]:
        """One row where the initramfs is older than its files; it has the command that refreshes it."""
        image = self.image()
        if image is None or not image.differences:
            return ()
        return (
            Drift("", "initramfs", "up to date with /etc", "; ".join(image.differences), image.refresh, image.command),
        )

    def image(self) -> BootImage | None:
        """As last seen; begins another look when a file changed since."""
        stamp = self._image.stamp()
        others = self._seen is None or self._seen[0] != self._trees_stamp()
        if (stamp != self._stamp or others) and self._reading is None:
            changed, self._stamp = stamp != self._stamp, stamp
            self._reading = asyncio.get_running_loop().create_task(self._look(image=changed, trees=others))
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

    async def _look(self, *, image: bool, trees: bool) -> None:
        before = self._found, self._seen
        try:
            if trees:
                # The stamp first: what changes while it is read is read again.
                self._seen = self._trees_stamp(), await asyncio.to_thread(self._trees)
            if image:
                self._found = await asyncio.to_thread(self._image.look)
        finally:
            self._reading = None
        if (self._found, self._seen) != before:
            self._on_news()

    def _initramfs(self) -> HealthCheck:
        image = self.image()
        if image is None:
            return HealthCheck("initramfs", _OK, "No initramfs found for the running kernel.")
        if not image.differences:
            return HealthCheck("initramfs", _OK, f"{image.file} is up to date.")
        how = "by its contents" if image.by_content else "by its time; its contents cannot be read"
        message = f"{image.file} is older than the files it was made from ({how}): {'; '.join(image.differences)}."
        return HealthCheck("initramfs", _DEGRADED, message, "", image.refresh)
