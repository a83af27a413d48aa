# SPDX-License-Identifier: LGPL-2.1-or-later
"""Versions the kernel would refuse are not put into force; a switch that went well is nothing health complains of."""

from pathlib import Path

import pytest

from kmodd.errors import BadSignature, Lockdown
from kmodd.kernel.simulated.modules import RELEASE
from tests.unit.test_activation import CALLER, FIRST, NAME, NONE, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, loaded=True)


async def test_an_unsigned_version_is_not_put_where_the_kernel_would_refuse_it(stage: Stage) -> None:
    """It was imported, and another one activated, before the kernel was locked down."""
    first, second = stage.add("1"), stage.add("2")
    await stage.activation.activate(first, CALLER, load=False)
    for change, error in (({"lockdown": "integrity"}, Lockdown), ({"signature_enforced": True}, BadSignature)):
        stage.kernel.change_facts(lockdown="none")
        stage.kernel.change_facts(**change)
        for load, dry_run in ((False, False), (True, False), (True, True), (False, True)):
            with pytest.raises(error) as refused:
                await stage.activation.activate(second, CALLER, load=load, dry_run=dry_run)
            assert "mokutil --import" in refused.value.evidence.hint
        assert stage.state == FIRST
        assert await stage.activation.activate(first, CALLER, load=False) == ()
    assert await stage.activation.deactivate(first, CALLER, load=False) == ()
    assert stage.state == NONE


async def test_a_switch_is_no_foreign_change(stage: Stage) -> None:
    """The file in the tree is hashed later than the other version is the active one."""
    first, second = stage.add("1"), stage.add("2")
    for entry in (first, second, first):
        await stage.activation.activate(entry, CALLER, load=False)
        assert stage.names() == ["store"]
        await stage.watch.read()
        assert stage.names() == ["store"]
    for text in ("of another", "of a third"):
        stage.trees.path(NAME, RELEASE).write_text(text)
        await stage.watch.read()
        assert stage.names() == ["store-file-changed"]
    await stage.activation.activate(second, CALLER, load=False)
    await stage.watch.read()
    assert stage.names() == ["store"]
    stage.files.path(second).write_text("rot")
    await stage.watch.read()
    (found,) = stage.watch.findings()
    assert found.hint.startswith(f"kmodctl store deactivate dummy --kernel {RELEASE}; kmodctl store remove dummy 2;")
    await stage.watch.close()
