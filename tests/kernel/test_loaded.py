# SPDX-License-Identifier: LGPL-2.1-or-later
"""/proc/modules and /sys/module on a made-up root."""

import os
from pathlib import Path

import pytest

from kmodd.kernel.proc.loaded import ProcModules
from kmodd.model import LoadedModule, ParameterValue, State
from kmodd.names import ModuleName

LINES = """\
vfat 24576 1 - Live 0x0000000000000000
fat 90112 1 vfat, Live 0xffffffffc0400000
kmodd_test_init_hang 16384 1 - Loading 0x0000000000000000 (OE+)
kmodd_test_exit_hang 16384 0 - Unloading 0x0000000000000000 (OE-)
softdog 16384 0 - Live 0x0000000000000000 (POE)
efivarfs 24576 1 [permanent], Live 0x0000000000000000
nls_core 16384 3 fat,vfat,[permanent], Live 0x0000000000000000
frozen 4096 - - Live 0x0000000000000000
"""


def name(text: str) -> ModuleName:
    return ModuleName(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text(LINES)
    for module in ("loop", "softdog"):
        (tmp_path / "sys/module" / module / "parameters").mkdir(parents=True)
    (tmp_path / "sys/module/softdog/initstate").write_text("live\n")
    return tmp_path


@pytest.mark.parametrize(
    "expected",
    [
        LoadedModule(name("vfat"), 24576, 1, (), State.LIVE),
        LoadedModule(name("fat"), 90112, 1, (name("vfat"),), State.LIVE),
        LoadedModule(name("kmodd_test_init_hang"), 16384, 1, (), State.COMING, "OE"),
        LoadedModule(name("kmodd_test_exit_hang"), 16384, 0, (), State.GOING, "OE"),
        LoadedModule(name("softdog"), 16384, 0, (), State.LIVE, "POE"),
        LoadedModule(name("efivarfs"), 24576, 1, (), State.LIVE, permanent=True),
        LoadedModule(name("nls_core"), 16384, 3, (name("fat"), name("vfat")), State.LIVE, permanent=True),
        LoadedModule(name("frozen"), 4096, -1, (), State.LIVE),
    ],
)
def test_line_is_read_alike_alone_and_in_the_snapshot(root: Path, expected: LoadedModule) -> None:
    modules = ProcModules(root)
    assert modules.read(expected.name) == expected
    assert modules.snapshot()[expected.name] == expected


def test_snapshot_keeps_the_kernels_order(root: Path) -> None:
    assert list(ProcModules(root).snapshot()) == [line.split()[0] for line in LINES.splitlines()]


@pytest.mark.parametrize("other", ["vf", "fat_", "at", "Live", "1", ""])
def test_part_of_a_name_is_not_the_name(root: Path, other: str) -> None:
    assert ProcModules(root).read(name(other)) is None


def test_coming_without_taint_has_no_letters(root: Path) -> None:
    (root / "proc/modules").write_text("x 1 0 - Loading 0x0 (+)\n")
    found = ProcModules(root).read(name("x"))
    assert found is not None
    assert (found.taint, found.state) == ("", State.COMING)


@pytest.mark.parametrize("text", ["", "\n", "garbage\n", "a b c d e f\n", "a 1\n", "\xff\xfe 1 2\n"])
def test_text_that_is_no_line_is_passed_over(root: Path, text: str) -> None:
    (root / "proc/modules").write_text(text)
    assert ProcModules(root).snapshot() == {}


def test_long_list_is_read_to_its_end(root: Path) -> None:
    (root / "proc/modules").write_text("".join(f"m{n} 4096 0 - Live 0x0\n" for n in range(20_000)))
    assert len(ProcModules(root).snapshot()) == 20_000


def test_kernel_without_modules_has_none_loaded(tmp_path: Path) -> None:
    modules = ProcModules(tmp_path)
    assert modules.raw() == b""
    assert modules.snapshot() == {}
    assert modules.read(name("loop")) is None
    assert not modules.is_builtin(name("loop"))
    assert modules.parameter_files(name("loop")) == ()
    assert modules.attributes(name("loop")) == {}


def test_builtin_has_a_folder_but_no_initstate(root: Path) -> None:
    modules = ProcModules(root)
    assert modules.is_builtin(name("loop"))
    assert not modules.is_builtin(name("softdog"))
    assert not modules.is_builtin(name("vfat"))


def test_a_module_that_is_just_being_loaded_is_not_built_in(root: Path) -> None:
    """For a moment it has a folder and no initstate; /proc/modules has it then."""
    (root / "sys/module/softdog/initstate").unlink()
    assert not ProcModules(root).is_builtin(name("softdog"))


def test_a_module_that_has_just_gone_is_not_built_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "sys/module/passing"
    folder.mkdir()
    modules = ProcModules(root)
    monkeypatch.setattr(modules, "read", lambda _: folder.rmdir())
    assert not modules.is_builtin(name("passing"))


def test_files_of_parameters_are_listed_without_being_read(root: Path) -> None:
    """Their values are what code of the module answers; a FIFO here would block whoever opened it."""
    folder = root / "sys/module/softdog/parameters"
    for text, mode in (("public", 0o644), ("secret", 0o600), ("writeonly", 0o200)):
        (folder / text).write_text("x")
        (folder / text).chmod(mode)
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    assert ProcModules(root).parameter_files(name("softdog")) == (
        ParameterValue("public", None, 0o644),
        ParameterValue("secret", None, 0o600),
        ParameterValue("writeonly", None, 0o200),
    )


def test_attributes_are_those_that_exist(root: Path) -> None:
    folder = root / "sys/module/softdog"
    for key, value in {"srcversion": "ABC\n", "taint": "\n", "coresize": "16384\n", "refcnt": "0\n"}.items():
        (folder / key).write_text(value)
    assert ProcModules(root).attributes(name("softdog")) == {"srcversion": "ABC", "taint": "", "coresize": "16384"}


@pytest.mark.parametrize("name", ["ab", "b", "last"])
def test_a_module_is_found_in_a_text_wherever_its_line_stands(name: str) -> None:
    text = b"ab 1 0 - Live 0x0\nb 2 1 ab, Live 0x0\nlast 3 0 - Live 0x0"
    module = ProcModules.find(text, ModuleName(name))
    assert module is not None
    assert module.name == name
    assert ProcModules.find(text, ModuleName("a")) is None
    assert ProcModules.find(b"", ModuleName(name)) is None
