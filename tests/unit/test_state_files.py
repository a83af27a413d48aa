# SPDX-License-Identifier: LGPL-2.1-or-later
"""An upgrade of the package is no boot: what was kept where an earlier version kept it is found."""

from pathlib import Path

import pytest

from kmodd.daemon.state_files import FILES, DesiredCache, migrate_state
from tests.unit.fakes import kept_failures
from tests.unit.test_failures import FAILURE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "kmodd/state"
    made.mkdir(parents=True)
    return made


def test_the_first_start_after_an_upgrade_knows_what_was_known(folder: Path) -> None:
    DesiredCache(folder.parent / "wishes").write({"a", "b"})
    kept_failures(folder.parent / "failures.json").remember(FAILURE)
    migrate_state(folder)
    assert DesiredCache(folder / "wishes").read() == frozenset({"a", "b"})
    assert kept_failures(folder / "failures.json").all() == (FAILURE,)
    assert {(folder / name).stat().st_mode & 0o777 for name in FILES} == {0o600}


def test_what_was_written_since_counts(folder: Path) -> None:
    DesiredCache(folder.parent / "wishes").write({"old"})
    DesiredCache(folder / "wishes").write({"new"})
    migrate_state(folder)
    assert DesiredCache(folder / "wishes").read() == frozenset({"new"})


def test_nothing_is_found_at_a_boot_and_no_link_is_followed(folder: Path) -> None:
    migrate_state(folder)
    (folder / "elsewhere").write_text("a\n")
    (folder.parent / "wishes").symlink_to(folder / "elsewhere")
    migrate_state(folder)
    migrate_state(folder / "not there")
    assert DesiredCache(folder / "wishes").read() is None
