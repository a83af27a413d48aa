# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML files: every key has its line, the right files are in force, and nothing in a file does harm."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd.config.toml_file import FILE_MAX, DropIns, other_writers, parse_document, read_document
from kmodd.errors import Conflict

ODD = '''\
# a comment with [brackets] and "quotes"
top = 1
[module.loop]   # the first
state = "loaded"
"quoted key" = 'a # b'
text = """
[not.a.table]
x = "]"
"""
after = [
  "a", # one
  ["b = 1", { inner = 2 }],
]
when = { alias = "pci:[0-9]*", kernel.release = ">=6" }
date = 1979-05-27 07:32:00

[[many]]
first = 1
[[many]]
first = 2
'a.b'.c = """five quotes"""""
[many.inside]
x = 1
[[many.deep]]
[[many.deep]]
y = 2
'''


def paths(values: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every key of a document and every table of an array, by its path."""
    if isinstance(values, list):
        tables = {(*path, index) for index, each in enumerate(values) if isinstance(each, dict)}
        return tables.union(*(paths(each, (*path, index)) for index, each in enumerate(values)))
    if not isinstance(values, dict):
        return set()
    return {(*path, key) for key in values}.union(*(paths(each, (*path, key)) for key, each in values.items()))


def test_lines_of_keys() -> None:
    document = parse_document(ODD, "f.toml")
    assert document.lines["module", "loop"] == 3
    assert document.lines["module", "loop", "quoted key"] == 5
    assert document.lines["module", "loop", "after"] == 10
    assert document.lines["module", "loop", "after", 1, 1, "inner"] == 12
    assert document.lines["module", "loop", "when", "kernel", "release"] == 14
    assert document.lines["many", 0, "first"] == 18
    assert document.lines["many", 1, "a.b", "c"] == 21
    assert document.lines["many", 1, "inside", "x"] == 23
    assert document.lines["many", 1, "deep", 1, "y"] == 26
    assert document.line("many", 1, "unheard-of") == 19
    assert document.lines.keys() == paths(document.values)
    assert document.line("module", "loop", "unheard-of") == 3
    assert document.line("unheard-of") == 1


def test_windows_line_ends_count_once() -> None:
    assert parse_document("a = 1\r\nb = 2\r\n", "f").lines == {("a",): 1, ("b",): 2}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb =\n", 2),
        ("a = 1\na = 2\n", 2),
        ("[x\n", 1),
        ('a = 1\nb = "', 2),
        ("a = 1979-99-99", 1),
        ("x=" + "[" * 4000, 1),
    ],
)
def test_what_is_no_toml_is_named_by_file_and_line(text: str, line: int) -> None:
    with pytest.raises(Conflict, match=rf"^f\.toml, line {line}: ") as caught:
        parse_document(text, "f.toml")
    assert (caught.value.evidence.file, caught.value.evidence.line) == ("f.toml", line)


def assert_one_line(text: str) -> None:
    assert text.isprintable()


@settings(deadline=None)
@given(st.data())
@example(None)
def test_mutated_files_are_read_or_refused(data: st.DataObject | None) -> None:
    text = ODD
    if data is not None:
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(text)))
            end = min(len(text), at + data.draw(st.integers(0, 12)))
            text = text[:at] + data.draw(st.text("[]{}=\"'\\#,.\n ab1\x00\u202e", max_size=4)) + text[end:]
    try:
        document = parse_document(text, "f.toml")
    except Conflict as error:
        assert_one_line(error.message)
        return
    assert document.values == tomllib.loads(text)
    assert document.lines.keys() == paths(document.values)
    assert all(1 <= line <= text.count("\n") + 1 for line in document.lines.values())


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_that_others_can_write_is_not_roots_word(tmp_path: Path) -> None:
    path = write(tmp_path, "etc/kmodd/a.toml", "a = 1")
    path.chmod(0o664)
    assert read_document(path) is not None
    path.chmod(0o646)
    with pytest.raises(Conflict, match="line 1: file is writable by everybody") as refused:
        read_document(path)
    assert refused.value.evidence.hint == f"chown root {path}; chmod o-w {path}"


def test_the_command_for_a_file_of_others_holds_its_name_as_one_word(tmp_path: Path) -> None:
    path = tmp_path / "a;reboot $(id).toml"
    path.write_text("x = 1\n")
    path.chmod(0o666)
    with pytest.raises(Conflict) as refused:
        read_document(path)
    assert refused.value.evidence.hint == f"chown root '{path}'; chmod o-w '{path}'"


@pytest.mark.parametrize(
    ("mode", "uid", "others"),
    [(0o644, 0, ""), (0o664, 0, ""), (0o600, os.geteuid(), ""), (0o600, 65533, "uid 65533"), (0o602, 0, "everybody")],
)
def test_who_can_write_a_file(mode: int, uid: int, others: str) -> None:
    assert other_writers(os.stat_result((stat.S_IFREG | mode, 1, 1, 1, uid, 0, 1, 0, 0, 0))) == others


def test_drop_ins_mask_and_sort_as_for_systemd(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/kmodd/kmodd.toml", "main = 'vendor'")
    write(tmp_path, "etc/kmodd/kmodd.toml", "main = 'admin'")
    write(tmp_path, "usr/lib/kmodd/kmodd.toml.d/10-a.toml", "a = 'vendor'")
    write(tmp_path, "run/kmodd/kmodd.toml.d/20-b.toml", "b = 'run'")
    write(tmp_path, "etc/kmodd/kmodd.toml.d/10-a.toml", "a = 'admin'")
    write(tmp_path, "etc/kmodd/kmodd.toml.d/README", "not = 'read'")
    write(tmp_path, "usr/lib/kmodd/kmodd.toml.d/30-c.toml", "c = 'vendor'")
    (tmp_path / "etc/kmodd/kmodd.toml.d/30-c.toml").symlink_to("/dev/null")
    files = DropIns(tmp_path, "kmodd.toml.d", main="kmodd.toml")
    assert [dict(document.values) for document in files.read()] == [{"main": "admin"}, {"a": "admin"}, {"b": "run"}]


def test_changes_are_noticed_also_of_a_file_that_is_bad(tmp_path: Path) -> None:
    files = DropIns(tmp_path, "modules.d")
    assert files.changed()
    assert files.read() == ()
    assert not files.changed()
    path = write(tmp_path, "etc/kmodd/modules.d/a.toml", "x = 1")
    assert files.changed()
    assert len(files.read()) == 1
    path.write_text("x = ")
    assert files.changed()
    with pytest.raises(Conflict):
        files.read()
    assert not files.changed(), "a bad file is told once"
    path.unlink()
    assert files.changed()


@pytest.mark.parametrize("kind", ["fifo", "folder", "huge", "latin1", "dangling"])
def test_what_is_no_ordinary_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.toml"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "huge":
            path.write_bytes(b"#" * (FILE_MAX + 1))
        case "latin1":
            path.write_bytes(b"a = 1\nb = '\xe9'\n")
        case _:
            path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(Conflict, match=rf"x\.toml, line {2 if kind == 'latin1' else 1}: "):
        read_document(path)


def test_a_document_says_whether_everyone_may_read_it(tmp_path: Path) -> None:
    path = write(tmp_path, "etc/kmodd/x.toml", "a = 1\n")
    for mode, public in ((0o640, False), (0o644, True)):
        path.chmod(mode)
        found = read_document(path, tmp_path)
        assert found is not None
        assert found.public is public
    path.parent.chmod(0o700)
    found = read_document(path, tmp_path)
    assert found is not None
    assert not found.public
