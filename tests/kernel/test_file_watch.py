# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that change are noticed without looking."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmodd.kernel.file_watch import FileWatch

SETTLE = 0.02


class Seen:
    """A watch and how often it told."""

    def __init__(self, *folders: Path) -> None:
        self.times = 0
        self.watch = FileWatch(folders, self._tell, settle=SETTLE)

    def _tell(self) -> None:
        self.times += 1

    async def taken(self) -> int:
        await asyncio.sleep(SETTLE * 4)
        times, self.times = self.times, 0
        return times


@pytest.fixture
async def seen(tmp_path: Path) -> AsyncIterator[Seen]:
    (tmp_path / "a").mkdir()
    made = Seen(tmp_path, tmp_path / "a", tmp_path / "later")
    made.watch.start()
    yield made
    made.watch.close()
    made.watch.close()


async def test_every_way_of_changing_a_file_is_noticed(seen: Seen, tmp_path: Path) -> None:
    file, other = tmp_path / "a/x.toml", tmp_path / "a/y.toml"
    file.write_text("1")
    assert await seen.taken() == 1
    file.write_text("2")
    assert await seen.taken() == 1
    file.rename(other)
    assert await seen.taken() == 1
    other.unlink()
    assert await seen.taken() == 1
    other.symlink_to("/dev/null")
    assert await seen.taken() == 1
    other.read_text()
    assert await seen.taken() == 0, "reading is no change"


async def test_a_burst_is_reported_once(seen: Seen, tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / f"a/{number}").write_text("x")
    assert await seen.taken() == 1
    assert await seen.taken() == 0


async def test_a_folder_that_comes_later_is_watched_then(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "later").mkdir()
    assert await seen.taken() == 1
    (tmp_path / "later/x").write_text("x")
    assert await seen.taken() == 1


async def test_nothing_is_reported_after_the_end(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "a/x").write_text("x")
    await asyncio.sleep(0)
    seen.watch.close()
    assert await seen.taken() == 0


async def test_a_folder_that_is_replaced_is_watched_in_its_place(tmp_path: Path) -> None:
    folder, old = tmp_path / "a", tmp_path / "old"
    folder.mkdir()
    seen = Seen(folder)
    seen.watch.start()
    try:
        folder.rename(old)
        folder.mkdir()
        assert await seen.taken() == 1
        (folder / "x.toml").write_text("1")
        assert await seen.taken() == 1
    finally:
        seen.watch.close()
