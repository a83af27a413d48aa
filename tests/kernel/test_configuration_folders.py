# SPDX-License-Identifier: LGPL-2.1-or-later
"""Folders of configuration are listed again when they changed, whenever that was, and not otherwise."""

import os
from pathlib import Path

import pytest

from kmodd.kernel.modprobe import modprobe_d
from kmodd.kernel.modprobe.modprobe_d import ModprobeFolders


class Listings:
    """Counts listings, and lets folders look settled at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._listdir = os.listdir
        monkeypatch.setattr(os, "listdir", self._list)
        monkeypatch.setattr(modprobe_d, "_SETTLED_NS", -1_000_000_000)

    def _list(self, folder: bytes) -> list[bytes]:
        self.count += 1
        return self._listdir(folder)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> Listings:
    return Listings(monkeypatch)


def names(folders: ModprobeFolders) -> list[str]:
    return [Path(file).name for file in folders.files()]


def test_settled_folder_is_listed_once(tmp_path: Path, listings: Listings) -> None:
    (tmp_path / "a.conf").touch()
    folders = ModprobeFolders(tmp_path / "tree", [tmp_path])
    assert names(folders) == names(folders) == ["a.conf", "modules.softdep"]
    assert listings.count == 1


def test_change_of_a_settled_folder_is_seen(tmp_path: Path, listings: Listings) -> None:
    folders = ModprobeFolders(tmp_path / "tree", [tmp_path / "d"])
    assert names(folders) == ["modules.softdep"]
    (tmp_path / "d").mkdir()
    assert names(folders) == ["modules.softdep"]
    os.utime(tmp_path / "d", ns=(1, 1))
    made = (tmp_path / "d").stat().st_ctime_ns
    (tmp_path / "d/b.conf").touch()
    # The time of the last change as a user sees it can be set at will. The kernel's own has ticks, within which this test may run.
    while (tmp_path / "d").stat().st_ctime_ns == made:
        os.utime(tmp_path / "d", ns=(1, 1))
    assert names(folders) == ["b.conf", "modules.softdep"]
    (tmp_path / "d").rename(tmp_path / "old")
    assert names(folders) == ["modules.softdep"]
    (tmp_path / "old").rename(tmp_path / "d")
    assert names(folders) == ["b.conf", "modules.softdep"]


def test_changes_in_quick_succession_are_all_seen(tmp_path: Path) -> None:
    folders = ModprobeFolders(tmp_path / "tree", [tmp_path])
    for number in range(200):
        (tmp_path / f"{number:03}.conf").touch()
        assert len(folders.files()) == number + 2


def test_folder_named_as_a_file_does_not_mask(tmp_path: Path) -> None:
    (tmp_path / "a/x.conf").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.conf").touch()
    folders = ModprobeFolders(tmp_path / "tree", [tmp_path / "a", tmp_path / "b"])
    assert folders.files() == [str(tmp_path / "tree/modules.softdep"), str(tmp_path / "b/x.conf")]
