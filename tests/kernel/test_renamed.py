# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which module a file holds, whatever it is called."""

from pathlib import Path

import pytest

from kmodd.kernel.modules.module_file import ModuleFile
from kmodd.model import FactsPending
from kmodd.names import ModuleName
from tests.kernel.elf import module_file
from tests.kernel.fakeroot import FakeModule, FakeRoot

ACME, IFB, MII = ModuleName("acme_nic"), ModuleName("ifb"), ModuleName("mii")


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path, [FakeModule("acme-nic", folder="updates", holds="ifb"), FakeModule("mii")]).build()


def test_the_index_tells_the_module_in_a_file(root: FakeRoot) -> None:
    index = root.index()
    assert index.holds(ACME) == IFB
    assert index.info(ACME).holds == IFB
    assert index.info(ACME).module == IFB
    assert index.holds(MII) == MII
    assert index.info(MII).holds is None
    assert index.holds(ModuleName("nobody")) == "nobody"


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz"])
def test_a_compressed_file_is_read_where_that_is_not_deferred(tmp_path: Path, suffix: str) -> None:
    root = FakeRoot(tmp_path, [FakeModule("acme_nic", suffix=suffix, holds="ifb")]).build()
    index = root.index()
    with index.deferred(), pytest.raises(FactsPending):
        index.holds(ACME)
    index.keep_facts(ACME, index.read_facts(ACME))
    with index.deferred():
        assert index.holds(ACME) == IFB


@pytest.mark.parametrize("order", [None, "kernel/drivers/mii.ko\n"])
def test_the_file_of_a_module_is_found_by_what_is_in_it(root: FakeRoot, order: str | None) -> None:
    (root.tree / "modules.order").unlink()
    if order is not None:
        (root.tree / "modules.order").write_text(order)
    index = root.index()
    assert index.file_for(IFB) == ACME
    assert index.file_for(MII) == MII
    assert index.file_for(ModuleName("nobody")) == "nobody"


def test_a_file_of_its_own_goes_first(tmp_path: Path) -> None:
    modules = [FakeModule("acme_nic", folder="updates", holds="ifb"), FakeModule("ifb")]
    assert FakeRoot(tmp_path, modules).build().index().file_for(IFB) == IFB


@pytest.mark.parametrize("bits", [32, 64])
def test_the_name_stands_in_struct_module(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "x.ko"
    path.write_bytes(module_file(["name=said"], bits=bits, this_module="held-one"))
    with ModuleFile(ModuleName("x"), str(path)) as file:
        assert file.module_name(file.modinfo()) == "held_one"


def test_where_its_fields_are_shuffled_modinfo_tells(tmp_path: Path) -> None:
    path = tmp_path / "x.ko"
    strings = ["vermagic=6.1 SMP RANDSTRUCT_abc", "name=said"]
    path.write_bytes(module_file(strings, this_module="held"))
    with ModuleFile(ModuleName("x"), str(path)) as file:
        assert file.module_name(file.modinfo()) == "said"


@pytest.mark.parametrize("name", [b"\xff" * 56, bytes(56), b"../../x".ljust(56, b"\0")])
def test_what_is_no_name_is_none(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "x.ko"
    path.write_bytes(module_file(["license=GPL"], this_module=bytes(24) + name))
    with ModuleFile(ModuleName("x"), str(path)) as file:
        assert file.module_name(file.modinfo()) == ""
