# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the next boot finds: read beside everything else, and waited for by who wants to know it now."""

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kmodd.core.health.checks import BootHealth
from kmodd.kernel.modules.trees import ModuleTrees
from kmodd.kernel.simulated.modules import RELEASE
from kmodd.model import HealthStatus
from kmodd.model.modules import BootImage, Trees
from tests.bus.loop_meter import READ_MAX, large_files
from tests.unit.test_activation import CALLER, NAME, Stage

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


async def test_files_that_change_all_the_time_do_not_block_a_query(image: Image) -> None:
    boot, _ = health(image)
    image.answers = [STALE] * 50

    def change() -> None:
        image.stamped += 1

    image.meanwhile = change
    assert await asyncio.wait_for(boot.settled(), 5) == STALE
    assert image.looks <= 4
    await boot.close()


async def test_trees_are_reported(image: Image) -> None:
    boot, _ = health(image, Trees(newer=("6.2", "6.3"), replaced=(("dummy", "/lib/modules/6.1/updates/dummy.ko"),)))
    image.answers = [None]
    await boot.settled()
    assert [(check.name, check.module, check.status) for check in boot.checks()] == [
        ("initramfs", "", HealthStatus.OK),
        ("newer-kernel", "", HealthStatus.OK),
        ("replaced-module", "dummy", HealthStatus.OK),
    ]


# --- reads in threads --------------------------------------------------------------------------------------------------

LARGE = "".join(f"kernel/drivers/net/module{number}.ko: kernel/lib/other{number}.ko\n" for number in range(4000))
"""A quarter of a megabyte; modules.dep of a distribution's kernel has twice as much."""


async def test_custom_modules(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    index = stage.tree / "modules.dep"
    (stage.tree / "modules.order").write_text(LARGE)
    other = stage.folder / "lib/modules/9.9.9"
    (other / "kernel").mkdir(parents=True)
    for name in ("modules.dep", "modules.order", "modules.builtin"):
        (other / name).write_text(LARGE)
    stage.files.path(next(iter(stage.catalogue.all()))).write_bytes(b"x" * (READ_MAX * 2))
    index.write_text(LARGE + index.read_text())
    with large_files() as read:
        list(stage.watch.findings())
        reading = stage.watch.reading()
        assert reading is not None
        await reading
        assert stage.names() == ["store-file-changed", "store-version-missing"]
        await stage.activation.recover()
    assert not read
    assert stage.watch.reading() is None
    await stage.watch.close()
    assert NAME in next(iter(stage.watch.findings())).message


async def test_the_next_boot(tmp_path: Path) -> None:
    tree = tmp_path / "lib/modules" / RELEASE
    (tree / "updates/dkms").mkdir(parents=True)
    (tree / "updates/dkms/module7.ko").touch()
    (tree / "modules.order").write_text(LARGE.replace(": kernel/lib/other", "\nkernel/lib/other"))
    trees = ModuleTrees(tmp_path, RELEASE)
    image = Image()
    image.answers = [None]
    boot = BootHealth(image, trees.look, lambda: None, trees_stamp=trees.stamp)

    def names() -> list[str]:
        return [check.module or check.name for check in boot.checks()]

    with large_files() as read:
        assert names() == ["initramfs"]
        reading = boot.reading()
        assert reading is not None
        await reading
        assert names() == ["initramfs", "module7"]
        assert boot.reading() is None, "what did not change is not read again"
        newer = tree.parent / "9.9.9"
        newer.mkdir()
        (newer / "modules.dep.bin").touch()
        names()
        await boot.settled()
        assert names() == ["initramfs", "newer-kernel", "module7"]
    assert not read
    await boot.close()


def test_what_is_read_is_seen(tmp_path: Path) -> None:
    """Or the others could not fail."""
    path = tmp_path / "large"
    path.write_text(LARGE)

    async def here() -> None:
        path.read_bytes()

    async def in_a_thread() -> None:
        await asyncio.to_thread(path.read_bytes)

    with large_files() as read:
        asyncio.run(in_a_thread())
    assert not read
    with large_files() as read:
        asyncio.run(here())
    assert read == [str(path)]
