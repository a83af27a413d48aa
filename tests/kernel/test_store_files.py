# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store's folder and module trees: what a crash at any step, a full disk or a hostile name leaves."""

import errno
import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kmodd.kernel import atomic_file
from kmodd.kernel.atomic_file import clear_folder, copy_whole, write_whole
from kmodd.kernel.modules.store_files import StoreFiles
from kmodd.kernel.modules.trees import ModuleTree
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName

NAME, KERNEL = ModuleName("special"), "6.1.0-9"
ENTRY = StoredModule(NAME, "1.0", KERNEL, "ab" * 32, 7, imported_at=5, uid=1000)


class Crash(BaseException):
    """The power failed."""


@pytest.fixture
def files(tmp_path: Path) -> StoreFiles:
    made = StoreFiles(tmp_path / "store")
    made.prepare()
    return made


def add(files: StoreFiles, entry: StoredModule = ENTRY) -> None:
    spool = files.spool()
    try:
        os.write(spool.copy, b"content")
        spool.keep(spool.copy)
        files.add(spool.copy, entry)
    finally:
        spool.remove()


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_an_entry_comes_and_goes(files: StoreFiles, tmp_path: Path) -> None:
    add(files)
    assert files.entries() == [ENTRY]
    assert files.path(ENTRY).read_bytes() == b"content"
    files.set_active(NAME, KERNEL, ENTRY.sha256)
    assert files.entries()[0].active
    files.set_active(NAME, KERNEL, "")
    files.remove(ENTRY)
    assert everything(tmp_path / "store") == set()
    assert not (tmp_path / "store" / NAME).exists()


def test_everything_is_roots_alone(files: StoreFiles, tmp_path: Path) -> None:
    os.umask(0)
    try:
        add(files)
        files.set_active(NAME, KERNEL, ENTRY.sha256)
        files.begin_change(NAME, KERNEL)
    finally:
        os.umask(0o022)
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "store").rglob("*")} == {0}


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "../../../etc/passwd"},
        {"sha256": "cd" * 32},
        {"size": "7"},
        {"name": ["special"]},
        {"signed": 1},
        {"uid": "0"},
        {"unknown": 1},
        {"kernel": "6.1.0-10"},
    ],
)
def test_changed_facts_are_reported_and_not_believed(files: StoreFiles, change: dict[str, Any]) -> None:
    add(files)
    path = files.path(ENTRY).with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert files.entries() == []
    assert files.damaged == (str(path),)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 10_000, '{"name": "special"}'])
def test_invalid_facts_are_reported(files: StoreFiles, text: str) -> None:
    add(files)
    files.path(ENTRY).with_suffix(".json").write_text(text)
    assert files.entries() == []
    assert len(files.damaged) == 1


def test_folders_in_the_way_stop_no_start(files: StoreFiles, tmp_path: Path) -> None:
    add(files)
    (tmp_path / "store/.spool/x/y").mkdir(parents=True)
    (files.path(ENTRY).parent / "odd.ko").mkdir()
    files.prepare()
    assert files.entries() == [ENTRY]
    assert not (tmp_path / "store/.spool").exists()


def test_what_a_read_only_disk_keeps_stops_no_start(
    files: StoreFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(files)
    (tmp_path / "store/.spool").mkdir()
    (tmp_path / "store/.spool/1.copy").write_bytes(b"left behind")
    half = files.path(ENTRY).with_name("cd" * 32 + ".ko")
    half.write_bytes(b"left behind")

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        for name in ("unlink", "rmdir", "rename"):
            patch.setattr(Path, name, read_only)
        files.prepare()
    assert files.entries() == [ENTRY]
    files.prepare()
    assert not half.exists()
    assert not (tmp_path / "store/.spool").exists()


STEPS = ["rename", "fsync", "mkdir", "unlink", "open", "write"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("count", range(8))
def test_a_crash_while_importing_leaves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, count: int
) -> None:
    files = StoreFiles(tmp_path / "store")
    files.prepare()
    left = count
    real = getattr(os, step)

    def call(*arguments: Any, **more: Any) -> Any:
        nonlocal left
        if left == 0:
            raise Crash
        left -= 1
        return real(*arguments, **more)

    monkeypatch.setattr(os, step, call)
    try:
        add(files)
        whole = True
    except Crash:
        whole = False
    monkeypatch.undo()
    again = StoreFiles(tmp_path / "store")
    again.prepare()
    entries = again.entries()
    assert entries in ([], [ENTRY])
    assert not whole or entries == [ENTRY]
    assert everything(tmp_path / "store") == (
        {f"{NAME}/{KERNEL}/{ENTRY.sha256}{suffix}" for suffix in (".ko", ".json")} if entries else set()
    )


def test_an_import_is_in_memory_and_what_was_examined_stays_as_it_is(files: StoreFiles, tmp_path: Path) -> None:
    spool = files.spool()
    os.write(spool.copy, b"packed")
    os.write(spool.plain, b"plain and longer")
    assert spool.size == len(b"packed") + len(b"plain and longer")
    spool.keep(spool.plain)
    assert spool.size == len(b"plain and longer")
    with pytest.raises(PermissionError):
        os.write(spool.plain, b"changed")
    assert files.digest(spool.plain) == (sha256(b"plain and longer").hexdigest(), spool.size)
    assert everything(tmp_path) == set()
    spool.remove()
    spool.remove()
    assert spool.size == 0


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_whole(path, b"old", 0o600)

    def full(_: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(atomic_file, "_write", full)
    with pytest.raises(OSError, match="full"):
        write_whole(path, b"new", 0o600)
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "x").symlink_to("precious")
    (tmp_path / ".x.new").symlink_to("precious")
    write_whole(tmp_path / "x", b"new", 0o600)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "x").is_symlink()
    (tmp_path / "source").symlink_to("precious")
    with pytest.raises(OSError, match=r"symbolic|loop"):
        copy_whole(tmp_path / "source", tmp_path / "y", 0o644)


def test_clearing_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "gone/deep").mkdir(parents=True)
    (tmp_path / "gone/deep/link").symlink_to(tmp_path / "kept")
    clear_folder(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    assert (tmp_path / "kept/file").exists()


def test_odd_names_and_facts_are_left_alone(files: StoreFiles, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name in (".hidden/6.1/x.json", "a b/6.1/x.json", f"{NAME}/../x.json", f"{NAME}/6.1/odd.json"):
        path = store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"name": 1}')
    assert files.entries() == []


def test_trees_and_what_is_in_them(tmp_path: Path) -> None:
    trees = ModuleTree(tmp_path)
    tree = tmp_path / "lib/modules" / KERNEL
    (tree / "kernel").mkdir(parents=True)
    (tree / "modules.dep").write_text("kernel/a/vfat.ko.xz: kernel/a/fat.ko\nextra/snd-special.ko:\n")
    (tree / "modules.builtin").write_text("kernel/drivers/char/random.ko\n")
    (tmp_path / "lib/modules/half").mkdir()
    assert trees.kernels() == (KERNEL,)
    assert trees.another(ModuleName("vfat"), KERNEL) == "kernel/a/vfat.ko.xz"
    assert trees.another(ModuleName("snd_special"), KERNEL) == "extra/snd-special.ko"
    assert trees.another(ModuleName("random"), KERNEL) == "built-in"
    assert trees.another(NAME, KERNEL) == ""
    (tmp_path / "x.ko").write_bytes(b"x")
    old = os.umask(0o077)
    trees.put(NAME, KERNEL, tmp_path / "x.ko")
    os.umask(old)
    assert trees.path(NAME, KERNEL).stat().st_mode & 0o777 == 0o644
    assert trees.path(NAME, KERNEL).parent.stat().st_mode & 0o777 == 0o755
    trees.take_away(NAME, KERNEL)
    trees.take_away(NAME, KERNEL)
    assert not (tree / "updates").exists()
