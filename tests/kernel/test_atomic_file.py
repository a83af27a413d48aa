# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file is replaced as a whole or not at all, whatever fails and whenever the process dies."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kmodd.kernel import atomic_file
from kmodd.kernel.atomic_file import SIZE_MAX, read_file, remove_file, replace_file
from kmodd.model.rules import ChangedMeanwhileError

OLD, NEW = b"old\n" * 1000, b"new\n" * 3000
CALLS = ("open", "unlink", "write", "read", "fstat", "fchmod", "fsync", "close", "rename")
REFUSALS = (errno.EROFS, errno.ENOSPC, errno.EIO, errno.EPERM, errno.EDQUOT)


def names(folder: Path) -> list[str]:
    """What stands in a folder."""
    return sorted(path.name for path in folder.iterdir())


class Faulty:
    """The `os` module, counting the calls that change something or could fail, and stopping one of them."""

    def __init__(self, stop: Callable[[str, int], None]) -> None:
        self.count = 0
        self._stop = stop

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if name == "close":  # Linux closes a descriptor also when it answers an error
                real(*arguments, **named)
            self._stop(name, self.count)
            return None if name == "close" else real(*arguments, **named)

        return call


def counted(monkeypatch: pytest.MonkeyPatch, stop: Callable[[str, int], None]) -> Faulty:
    faulty = Faulty(stop)
    monkeypatch.setattr(atomic_file, "os", faulty)
    return faulty


def steps(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[str]:
    """The system calls of one replacement, in order."""
    names: list[str] = []
    path.write_bytes(OLD)
    with monkeypatch.context() as patch:
        counted(patch, lambda name, _: names.append(name))
        replace_file(path, NEW, expected=OLD)
    return names


def test_new_file_is_readable_by_everyone(tmp_path: Path) -> None:
    mask = os.umask(0o077)  # as the daemon's unit sets it
    try:
        replace_file(tmp_path / "a.conf", NEW, expected=None)
    finally:
        os.umask(mask)
    assert (tmp_path / "a.conf").read_bytes() == NEW
    assert stat.S_IMODE((tmp_path / "a.conf").stat().st_mode) == 0o644
    assert names(tmp_path) == ["a.conf"]


def test_permissions_of_what_was_there_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_bytes(OLD)
    path.chmod(0o600)
    replace_file(path, NEW, expected=OLD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("number", REFUSALS)
def test_any_call_that_fails_leaves_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "a.conf"
    calls = steps(monkeypatch, path)
    assert {"write", "fsync", "rename"} <= set(calls)
    renamed = calls.index("rename") + 1
    for fatal in range(1, len(calls) + 1):
        path.write_bytes(OLD)

        def stop(_: str, count: int, fatal: int = fatal) -> None:
            if count == fatal:
                raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            counted(patch, stop)
            with pytest.raises(OSError, match=r".*"):
                replace_file(path, NEW, expected=OLD)
        assert path.read_bytes() == (OLD if fatal <= renamed else NEW), calls[fatal - 1]
        assert names(tmp_path) == ["a.conf"], calls[fatal - 1]


def test_dying_at_any_call_leaves_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.conf"
    calls = steps(monkeypatch, path)
    seen = set()
    for fatal in range(1, len(calls) + 1):
        path.write_bytes(OLD)
        child = os.fork()
        if child == 0:
            counted(monkeypatch, lambda _, count, fatal=fatal: os._exit(9) if count == fatal else None)  # type: ignore[misc]
            replace_file(path, NEW, expected=OLD)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        seen.add(path.read_bytes())
        # What is left behind is no configuration file, and the next write clears it away.
        assert set(names(tmp_path)) <= {"a.conf", ".a.conf.new"}
        replace_file(path, b"next\n", expected=path.read_bytes())
        assert names(tmp_path) == ["a.conf"]
    assert seen == {OLD, NEW}


def test_a_write_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = steps(monkeypatch, tmp_path / "a.conf")
    synced = [position for position, name in enumerate(calls) if name == "fsync"]
    assert synced[0] < calls.index("rename") < synced[1]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:7]))
    replace_file(tmp_path / "a.conf", b"x" * 100, expected=None)
    monkeypatch.undo()
    assert (tmp_path / "a.conf").read_bytes() == b"x" * 100


@pytest.mark.parametrize("expected", [None, b"other", b""])
def test_what_another_program_wrote_stays(tmp_path: Path, expected: bytes | None) -> None:
    path = tmp_path / "a.conf"
    path.write_bytes(OLD)
    with pytest.raises(ChangedMeanwhileError):
        replace_file(path, NEW, expected=expected)
    if expected is not None:
        with pytest.raises(ChangedMeanwhileError):
            remove_file(path, expected=expected)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["a.conf"]


def test_what_another_program_removed_stays_away(tmp_path: Path) -> None:
    with pytest.raises(ChangedMeanwhileError):
        replace_file(tmp_path / "a.conf", NEW, expected=OLD)
    with pytest.raises(ChangedMeanwhileError):
        remove_file(tmp_path / "a.conf", expected=OLD)
    assert names(tmp_path) == []


def test_removing_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    replace_file(path, NEW, expected=None)
    remove_file(path, expected=NEW)
    assert names(tmp_path) == []
    assert read_file(path) is None


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(OLD)
    path = tmp_path / "a.conf"
    path.symlink_to(target)
    for expected in (OLD, None):
        with pytest.raises(OSError, match=r".*") as raised:
            replace_file(path, NEW, expected=expected)
        assert raised.value.errno == errno.ELOOP
    with pytest.raises(OSError, match=r".*"):
        read_file(path)
    assert target.read_bytes() == OLD
    assert path.is_symlink()


def test_a_link_in_place_of_the_temporary_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(OLD)
    (tmp_path / ".a.conf.new").symlink_to(target)
    replace_file(tmp_path / "a.conf", NEW, expected=None)
    assert target.read_bytes() == OLD
    assert (tmp_path / "a.conf").read_bytes() == NEW


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(OSError, match=r".*") as raised:
            replace_file(tmp_path / name, NEW, expected=None)
        assert raised.value.errno == errno.EISDIR
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "none/a.conf", NEW, expected=None)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * SIZE_MAX)
    assert read_file(tmp_path / "a") == b"x" * SIZE_MAX
    (tmp_path / "b").write_bytes(b"x" * (SIZE_MAX + 1))
    with pytest.raises(OSError, match=r".*") as raised:
        read_file(tmp_path / "b")
    assert raised.value.errno == errno.EFBIG


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    for _ in range(5):
        with pytest.raises(ChangedMeanwhileError):
            replace_file(tmp_path / "a", NEW, expected=OLD)
        replace_file(tmp_path / "b", NEW, expected=read_file(tmp_path / "b"))
    assert len(names(Path("/proc/self/fd"))) == before
