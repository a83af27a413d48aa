# SPDX-License-Identifier: LGPL-2.1-or-later
"""As whom a caller's session logged in is read of the process the bus named, or is not known."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kmodd.journal.fields import from_fields, to_lines
from kmodd.model import Record
from kmodd.startup.machine import login_uid


def process(proc: Path, *, uid: int = 0, login: str = "1000") -> Path:
    folder = proc / "42"
    folder.mkdir()
    (folder / "status").write_text(f"Name:\tkmodctl\nUid:\t1\t{uid}\t2\t3\nGid:\t0\t0\t0\t0\n")
    (folder / "loginuid").write_text(login)
    return folder


def test_of_the_process_of_that_user(tmp_path: Path) -> None:
    process(tmp_path)
    assert login_uid(42, 0, tmp_path) == 1000


def test_a_number_that_another_users_process_has_by_now_is_not_believed(tmp_path: Path) -> None:
    process(tmp_path, uid=1001)
    assert login_uid(42, 0, tmp_path) is None


@pytest.mark.parametrize("login", ["4294967295", "", "root"])
def test_what_is_not_set_is_not_known(tmp_path: Path, login: str) -> None:
    process(tmp_path, login=login)
    assert login_uid(42, 0, tmp_path) is None


@pytest.mark.parametrize(("pid", "uid"), [(0, 0), (-1, 0), (42, None), (43, 0)])
def test_who_is_not_known_has_none(tmp_path: Path, pid: int, uid: int | None) -> None:
    process(tmp_path)
    assert login_uid(pid, uid, tmp_path) is None


def test_a_kernel_without_audit_has_none(tmp_path: Path) -> None:
    (process(tmp_path) / "loginuid").unlink()
    assert login_uid(42, 0, tmp_path) is None


def test_of_a_real_process_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    shown = int(Path(f"/proc/{child.pid}/loginuid").read_text())
    assert login_uid(child.pid, os.geteuid()) == (None if shown == 0xFFFFFFFF else shown)
    child.communicate(b"\n")
    assert login_uid(child.pid, os.geteuid()) is None


def test_records_carry_it_to_the_journal_and_back() -> None:
    record = Record("module.loaded", "m", uid=0, login_uid=1000)
    lines = to_lines(record)
    assert "KMODD_LOGINUID=1000" in lines
    fields = dict(line.split("=", 1) for line in lines)
    assert from_fields(fields, 1).record == replace(record, priority=6)
    assert not [line for line in to_lines(replace(record, login_uid=None)) if "LOGINUID" in line]
