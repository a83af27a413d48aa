# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the next boot finds: read beside everything else, and waited for by who wants to know it now."""

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from kmodd.core.health_boot import BootHealth
from kmodd.model import HealthStatus
from kmodd.model.boot import BootImage, Trees

if TYPE_CHECKING:
    from collections.abc import Callable

FRESH = BootImage("6.1", "/boot/initrd.img-6.1", "initramfs-tools", (), by_content=True)
STALE = BootImage("6.1", "/boot/initrd.img-6.1", "dracut", ("/etc/modprobe.d/x.conf has changed",), by_content=True)


class Image:
    """An image whose reading takes until the test says so."""

    def __init__(self) -> None:
        self.stamped = 0
        self.answers: list[BootImage | None] = []
        self.looks = 0
        self.go = threading.Event()
        self.go.set()
        self.meanwhile: Callable[[], None] = lambda: None

    def stamp(self) -> object:
        return self.stamped

    def look(self) -> BootImage | None:
        self.looks += 1
        self.meanwhile()
        assert self.go.wait(10)
        return self.answers.pop(0)


@pytest.fixture
def image() -> Image:
    return Image()


def health(image: Image, trees: Trees | None = None) -> tuple[BootHealth, list[str]]:
    news: list[str] = []
    return BootHealth(image, lambda: trees or Trees(), lambda: news.append("news")), news


async def test_who_waits_gets_what_is_true_now(image: Image) -> None:
    boot, news = health(image)
    image.answers = [STALE]
    image.go.clear()
    assert boot.drift() == (), "not known yet, and nobody is held up"
    waiting = asyncio.create_task(boot.settled())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    image.go.set()
    assert await waiting == STALE
    (row,) = boot.drift()
    assert (row.kind, row.hint) == ("initramfs", "dracut -f /boot/initrd.img-6.1 6.1")
    assert await boot.settled() == STALE
    assert (image.looks, news) == (1, ["news"])
    (check, *_) = boot.checks()
    assert (check.status, check.hint) == (HealthStatus.DEGRADED, row.hint)


async def test_a_file_that_changes_while_it_is_read_is_seen(image: Image) -> None:
    boot, _ = health(image)
    image.answers = [FRESH, STALE]

    def change() -> None:
        image.stamped = 1

    image.meanwhile = change
    assert await boot.settled() == STALE
    assert image.looks == 2


async def test_files_that_change_all_the_time_hold_nobody_up_for_ever(image: Image) -> None:
    boot, _ = health(image)
    image.answers = [STALE] * 50

    def change() -> None:
        image.stamped += 1

    image.meanwhile = change
    assert await asyncio.wait_for(boot.settled(), 5) == STALE
    assert image.looks <= 4
    await boot.close()


async def test_trees_are_told(image: Image) -> None:
    boot, _ = health(image, Trees(newer=("6.2", "6.3"), replaced=(("dummy", "/lib/modules/6.1/updates/dummy.ko"),)))
    image.answers = [None]
    await boot.settled()
    assert [(check.name, check.module, check.status) for check in boot.checks()] == [
        ("initramfs", "", HealthStatus.OK),
        ("newer-kernel", "", HealthStatus.OK),
        ("replaced-module", "dummy", HealthStatus.OK),
    ]
