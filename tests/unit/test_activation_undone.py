# SPDX-License-Identifier: LGPL-2.1-or-later
"""Switching versions: a fault after the reload is undone in the kernel too."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from kmodd.errors import LimitsExceeded
from kmodd.model import Caller, OperationResult, Plan
from kmodd.model.store import IndexNotMadeError
from kmodd.names import ModuleName
from tests.unit.test_activation import CALLER, FIRST, NAME, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, loaded=True)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
async def test_a_full_disk_after_the_reload_brings_the_former_module_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, loaded: bool, after: bool
) -> None:
    """The last step is saying what is active; where it fails, the new version is loaded already."""
    stage = Stage(tmp_path, loaded=loaded)
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    real = stage.files.set_active
    load = stage.reloader.execute

    async def execute(plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        if not stage.reloader.done:
            stage.kernel.modprobe("dummy")
        return await load(plan, caller)

    def full(name: ModuleName, kernel: str, sha256: str) -> None:
        monkeypatch.setattr(stage.files, "set_active", real)
        if after:
            real(name, kernel, sha256)
        raise OSError(errno.ENOSPC, "full")

    stage.reloader.execute = execute  # type: ignore[method-assign]
    monkeypatch.setattr(stage.files, "set_active", full)
    with pytest.raises(LimitsExceeded):
        await stage.activation.activate(stage.add("2"), CALLER, load=True)
    assert stage.state == FIRST
    undone = ("reload", {"numdummies": "3", "gone": "1"}) if loaded else ("unload", {})
    assert stage.reloader.done == [("reload", {"numdummies": "3"} if loaded else {}), undone]


async def test_where_the_tree_cannot_be_brought_back_nothing_is_loaded_from_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.activation.activate(stage.add("1"), CALLER, load=False)

    def full(*_: object) -> None:
        stage.depmod.error = IndexNotMadeError("depmod failed with status 1")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(stage.files, "set_active", full)
    with pytest.raises(LimitsExceeded):
        await stage.activation.activate(stage.add("2"), CALLER, load=True)
    assert [verb for verb, _ in stage.reloader.done] == ["reload"]
    assert stage.files.changes()  # the next start tries again


async def test_a_mark_that_stays_undoes_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(stage.files, "end_change", full)
        assert await stage.activation.activate(stage.add("1"), CALLER, load=True) == (NAME,)
    assert [verb for verb, _ in stage.reloader.done] == ["reload"]
    await stage.activation.recover()
    assert stage.state == FIRST
