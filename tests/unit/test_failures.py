# SPDX-License-Identifier: LGPL-2.1-or-later
"""Failures that are remembered, over a restart too."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kmodd.core.operations.failures import REMEMBERED, Failures
from kmodd.errors import Evidence
from kmodd.model import Failure, LoadedBy, User
from kmodd.names import ModuleName
from tests.unit.fakes import kept_failures

EVIDENCE = Evidence(
    errno=5,
    kernel_log=("a: b",),
    hint="do",
    holders=("x",),
    users=(User("process", "cat", "d", command="kill 7", pid=7, exe="/bin/cat", owner=1000),),
    file="/f",
    line=3,
    rule="r",
    rule_kind="blacklist",
    symbols=("s",),
    parameter="p",
)
M = ModuleName("m")
BY = LoadedBy(1000, "/usr/bin/kmodctl", "why not", 16)
FAILURE = Failure(M, "load", "TimedOut", "it hangs", EVIDENCE, 17, stuck=True, by=BY, worker="12:34")


def test_last_failure_of_a_module_counts() -> None:
    failures = Failures()
    failures.remember(FAILURE)
    failures.remember(replace(FAILURE, error="Crashed"))
    assert [f.error for f in failures.all()] == ["Crashed"]
    assert failures.get(ModuleName("other")) is None


def test_letting_go_and_forgetting() -> None:
    failures = Failures()
    failures.remember(FAILURE)
    assert list(failures.stuck) == [FAILURE]
    assert failures.settle(M)
    assert not failures.settle(M)
    assert list(failures.stuck) == []
    assert failures.forget(M)
    assert not failures.forget(M)
    assert not failures.settle(M)


def test_everything_is_known_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "failures.json"
    first = kept_failures(path)
    first.remember(FAILURE)
    first.remember(replace(FAILURE, module=ModuleName("n"), evidence=Evidence(), stuck=False))
    assert kept_failures(path).all() == first.all()
    first.forget(M)
    assert [f.module for f in kept_failures(path).all()] == ["n"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["failures.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "{}", "[1, null, []]", '[{"module": "m"}]', "\x00", "[" * 5000],
)
def test_broken_file_is_no_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "failures.json"
    path.write_text(text)
    failures = kept_failures(path)
    assert failures.all() == ()
    failures.remember(FAILURE)
    assert kept_failures(path).all() == (FAILURE,)


@pytest.mark.parametrize(
    ("field", "value"), [("module", "../x"), ("module", 5), ("time", "now"), ("stuck", 1), ("evidence", None)]
)
def test_entry_that_cannot_be_trusted_is_dropped_and_the_others_stay(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "failures.json"
    first = kept_failures(path)
    first.remember(replace(FAILURE, module=ModuleName("n")))
    first.remember(FAILURE)
    entries = json.loads(path.read_text())
    entries[0][field] = value
    path.write_text(json.dumps(entries))
    assert kept_failures(path).all() == (FAILURE,)


def test_file_that_is_a_link_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    kept_failures(real).remember(FAILURE)
    link.symlink_to(real)
    os.mkfifo(pipe)
    assert kept_failures(link).all() == ()
    assert kept_failures(pipe).all() == ()


def test_link_planted_beside_the_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / ".failures.json.new").symlink_to(victim)
    kept_failures(tmp_path / "failures.json").remember(FAILURE)
    assert victim.read_text() == "whole"


def test_file_that_cannot_be_written_is_reported_and_memory_holds(tmp_path: Path) -> None:
    trouble: list[OSError] = []
    failures = kept_failures(tmp_path / "nowhere" / "failures.json", on_trouble=trouble.append)
    failures.remember(FAILURE)
    assert failures.all() == (FAILURE,)
    assert len(trouble) == 1


def test_oldest_that_is_not_stuck_is_forgotten_first() -> None:
    failures = Failures()
    failures.remember(FAILURE)
    for i in range(REMEMBERED + 5):
        failures.remember(replace(FAILURE, module=ModuleName(f"m{i}"), stuck=False))
    assert len(failures.all()) == REMEMBERED
    assert failures.get(M) == FAILURE
