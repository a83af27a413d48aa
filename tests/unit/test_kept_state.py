# SPDX-License-Identifier: LGPL-2.1-or-later
"""An upgrade of the package is no boot: what was kept where an earlier version kept it is found."""

from pathlib import Path

import pytest

from kmodd.core.failures import Failures
from kmodd.kept_state import FILES, adopt
from kmodd.known_wishes import KnownWishes
from tests.unit.test_failures import FAILURE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "kmodd/state"
    made.mkdir(parents=True)
    return made


def test_the_first_start_after_an_upgrade_knows_what_was_known(folder: Path) -> None:
    KnownWishes(folder.parent / "wishes").write({"a", "b"})
    Failures(folder.parent / "failures.json").remember(FAILURE)
    adopt(folder)
    assert KnownWishes(folder / "wishes").read() == frozenset({"a", "b"})
    assert Failures(folder / "failures.json").all() == (FAILURE,)
    assert {(folder / name).stat().st_mode & 0o777 for name in FILES} == {0o600}


def test_what_was_written_since_counts(folder: Path) -> None:
    KnownWishes(folder.parent / "wishes").write({"old"})
    KnownWishes(folder / "wishes").write({"new"})
    adopt(folder)
    assert KnownWishes(folder / "wishes").read() == frozenset({"new"})


def test_nothing_is_found_at_a_boot_and_no_link_is_followed(folder: Path) -> None:
    adopt(folder)
    (folder / "elsewhere").write_text("a\n")
    (folder.parent / "wishes").symlink_to(folder / "elsewhere")
    adopt(folder)
    adopt(folder / "not there")
    assert KnownWishes(folder / "wishes").read() is None
