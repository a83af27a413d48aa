# SPDX-License-Identifier: LGPL-2.1-or-later
"""Several changes of kmodd's own files at once: all of them are made, or none."""

import errno
import os
from pathlib import Path

import pytest

from kmodd.core.events import ConfigurationChanged
from kmodd.errors import NoSuchModule, NotPermitted
from kmodd.model.rules import ManagedFile, RuleAction, RuleChange
from kmodd.names import ModuleName
from tests.unit.test_configuration import CALLER, Bench

FILES = [file for file in ManagedFile if file not in {ManagedFile.SURFACE, ManagedFile.SURFACE_TRIAL}]
"""The policy for the attack surface writes its own file as a whole."""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def several() -> list[RuleChange]:
    """Changes of all three files, two of one of them."""
    loop, dummy = ModuleName("loop"), ModuleName("dummy")
    return [
        RuleChange(RuleAction.SET_OPTIONS, loop, (("max_loop", "8"),)),
        RuleChange(RuleAction.BLACKLIST, dummy),
        RuleChange(RuleAction.SET_OPTIONS, dummy, (("numdummies", "3"),)),
        RuleChange(RuleAction.ENABLE_AUTOLOAD, loop),
    ]


async def test_several_changes_are_made_together(bench: Bench) -> None:
    assert await bench.configuration.write_all(several(), CALLER) == {}
    assert bench.disk.lines(ManagedFile.OPTIONS) == ["options loop max_loop=8", "options dummy numdummies=3"]
    assert bench.disk.lines(ManagedFile.BLACKLIST) == ["blacklist dummy"]
    assert bench.disk.lines(ManagedFile.AUTOLOAD) == ["loop"]
    assert [(record.module, record.event) for record in bench.journal.records] == [
        (change.module, "configuration.changed") for change in several()
    ]
    told = [event.files for event in bench.hub.published if isinstance(event, ConfigurationChanged)]
    assert told == [(ManagedFile.OPTIONS,), (ManagedFile.BLACKLIST,), (ManagedFile.OPTIONS,), (ManagedFile.AUTOLOAD,)]


@pytest.mark.parametrize("full", FILES)
async def test_of_several_changes_all_are_made_or_none(bench: Bench, full: ManagedFile) -> None:
    await bench.ask(RuleAction.SET_OPTIONS, parameters={"max_loop": "4"}, reason="before")
    before = bench.disk.everything
    bench.disk.faults[full] = errno.ENOSPC
    refused = await bench.configuration.write_all(several(), CALLER)
    concerned = {ManagedFile.OPTIONS: {0, 2}, ManagedFile.BLACKLIST: {1}, ManagedFile.AUTOLOAD: {3}}
    assert refused.keys() == concerned[full]
    assert {type(error) for error in refused.values()} == {NotPermitted}
    assert bench.disk.everything == before
    assert [record.event for record in bench.journal.records[1:]] == ["operation.failed"] * len(refused)


@pytest.mark.parametrize("late", FILES)
async def test_a_file_that_was_replaced_before_its_write_failed_is_put_back_too(
    bench: Bench, late: ManagedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.ask(RuleAction.SET_OPTIONS, parameters={"max_loop": "4"}, reason="before")
    before, real = bench.disk.everything, bench.disk.write
    failed: list[ManagedFile] = []

    def write(file: ManagedFile, text: bytes | None, *, expected: bytes | None) -> None:
        real(file, text, expected=expected)
        if file is late and not failed:
            failed.append(file)
            raise OSError(errno.EIO, os.strerror(errno.EIO))  # the disk is told of the new name, and does not answer

    monkeypatch.setattr(bench.disk, "write", write)
    assert await bench.configuration.write_all(several(), CALLER)
    assert bench.disk.everything == before


async def test_a_failed_rollback_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench.disk.write

    def write(file: ManagedFile, text: bytes | None, *, expected: bytes | None) -> None:
        real(file, text, expected=expected)
        bench.disk.faults = dict.fromkeys(ManagedFile, errno.EIO)

    monkeypatch.setattr(bench.disk, "write", write)
    refused = await bench.configuration.write_all(several()[:2], CALLER)
    assert refused.keys() == {1}
    assert refused[1].message.endswith(f"; {ManagedFile.OPTIONS} stays changed")


async def test_one_bad_change_of_several_is_known_beforehand(bench: Bench) -> None:
    bad = RuleChange(RuleAction.ENABLE_AUTOLOAD, ModuleName("nosuch"))
    refused = await bench.configuration.write_all([*several(), bad], CALLER)
    assert {number: type(error) for number, error in refused.items()} == {4: NoSuchModule}
    assert not bench.disk.everything
