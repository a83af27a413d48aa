# SPDX-License-Identifier: LGPL-2.1-or-later
"""Named cases: each was a difference between modprobe and kmodd, reduced to what it needs.

A case of cases/*.txt is a paragraph:

    case NAME
    module NAME [needs=A,B] [alias=TEXT]… [softdep=TEXT] [suffix=.ko.xz]    (%20 stands for a space)
    builtin NAME
    file PATH                 the lines below go there; etc/modprobe.d/test.conf without it
    | LINE                    a line of that file (%XX stands for a byte)
    cmdline TEXT
    loaded NAME…              in the order in which they were loaded
    empty PATH                a file of the module tree that is made empty
    load NAME | unload NAME
    modprobe STEPS            as `insert a count=3; insert b`, with `fails` at the end when the exit status is not 0
    kmodd STEPS               `same`, or STEPS, or an error's name and what its message holds
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import pytest

from kmodd.kernel.modprobe.modprobe_d import DIRECTORIES, ModprobeFolders, parse_rules
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.modules.libkmod import is_newer, load_library
from kmodd.model import Verb
from tests.conformance.answers import Kmodd
from tests.conformance.conftest import HOST
from tests.conformance.oracle import Done, Modprobe
from tests.conformance.scenario import FILE, Configuration, Question, Tree, build, configure
from tests.kernel.fakeroot import RELEASE, FakeModule

CASES = Path(__file__).parent / "cases"


@dataclass
class Case:
    """One paragraph."""

    name: str
    modules: list[FakeModule] = field(default_factory=list)
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    command_line: str = ""
    loaded: tuple[str, ...] = ()
    empty: list[str] = field(default_factory=list)
    verb: Verb = Verb.LOAD
    asked: str = ""
    modprobe: str = ""
    kmodd: str = ""


def _read(text: str) -> Case:
    case, file = Case(""), FILE
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        match word:
            case "case":
                case.name = rest
            case "module" | "builtin":
                case.modules.append(_module(rest, builtin=word == "builtin"))
            case "file":
                file = rest
            case "|":
                case.files[file] = (*case.files.get(file, ()), os.fsdecode(unquote_to_bytes(rest)))
            case "cmdline":
                case.command_line = rest
            case "loaded":
                case.loaded = tuple(rest.split())
            case "empty":
                case.empty.append(rest)
            case "load" | "unload":
                case.verb, case.asked = Verb(word), rest
            case "modprobe":
                case.modprobe = rest
            case "kmodd":
                case.kmodd = rest
            case _:
                assert word == "#", line
    return case


def _module(text: str, *, builtin: bool) -> FakeModule:
    name, *words = text.split()
    pairs = [(key, unquote(value)) for key, _, value in (word.partition("=") for word in words)]
    single = dict(pairs)
    return FakeModule(
        name,
        depends=tuple(filter(None, single.get("needs", "").split(","))),
        aliases=tuple(value for key, value in pairs if key == "alias"),
        softdep=single.get("softdep", ""),
        suffix=single.get("suffix", ".ko"),
        parameters=(("count", "int", ""), ("flag", "bool", ""), ("mode", "charp", "")),
        folder=single.get("folder", "kernel/drivers"),
        builtin=builtin,
    )


def _cases() -> list[Case]:
    return [
        _read(paragraph)
        for path in sorted(CASES.glob("*.txt"))
        for paragraph in path.read_text().split("\n\n")
        if "case " in paragraph
    ]


def _shown(steps: tuple[Done, ...]) -> str:
    return "; ".join(
        " ".join(
            [
                "run" if step.kind == "command" else step.kind,
                step.text if step.kind == "command" else step.name,
                *(
                    f"{os.fsdecode(name)}{'' if value is None else '=' + os.fsdecode(value)}"
                    for name, value in step.parameters
                ),
            ]
        )
        for step in steps
    )


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.name)
def test_case(case: Case, program: tuple[str, ...], shim: Path, tmp_path: Path) -> None:
    tree = Tree(tuple(case.modules))
    root = tmp_path / "root"
    fake = build(tree, root)
    for name in case.empty:
        (fake.tree / name).write_bytes(b"")
    configuration = Configuration(case.files, case.command_line, case.loaded)
    configure(root, case.files)
    question = Question(case.verb, case.asked)
    refused = tuple(case.command_line.partition("module_blacklist=")[2].split(","))
    answer = Modprobe(program, shim, root, tmp_path / "state", tree.needs()).ask(question, configuration, refused)
    steps = [step for step in answer.done if not step.refused or step.kind == "command"]
    shown = "; ".join(filter(None, [_shown(tuple(steps)), "fails" if answer.status else ""])) or "nothing"
    assert shown == case.modprobe
    kmodd = Kmodd(root, tree, configuration)
    try:
        planned = kmodd.ask(question)
    finally:
        kmodd.close()
    if planned.error is not None:
        name, _, message = case.kmodd.partition(" ")
        assert type(planned.error).__name__ == name, planned.error
        assert message in planned.error.message
        return
    assert (_shown(planned.steps) or "nothing") == (case.modprobe if case.kmodd == "same" else case.kmodd)


def test_files_that_only_some_versions_read(program: tuple[str, ...], shim: Path, tmp_path: Path) -> None:
    """*.alias, and a file behind a dangling link of its name: kmod 30 reads the first alone, kmod 34 the second alone."""
    tree, root = Tree((_module("loop", builtin=False),)), tmp_path / "root"
    build(tree, root)
    files = {"etc/modprobe.d/a.alias": ("options loop flag=1",), "usr/lib/modprobe.d/b.conf": ("options loop count=2",)}
    configuration = Configuration(files, "", ())
    configure(root, files)
    (root / "etc/modprobe.d/b.conf").symlink_to("nowhere")
    answer = Modprobe(program, shim, root, tmp_path / "state", tree.needs()).ask(
        Question(Verb.LOAD, "loop"), configuration
    )
    newer = is_newer(load_library()) if program == HOST else True
    option = "count=2" if newer else "flag=1"
    assert _shown(answer.steps) == f"insert loop {option}"

    directories = [root / name for name in DIRECTORIES]
    texts = [Path(path) for path in ModprobeFolders(tmp_path, directories, newer=newer).files()]
    rules = [rule for path in texts if path.exists() for rule in parse_rules(path.read_bytes(), str(path))]
    assert [rule.value for rule in rules] == [option]
    listed = ConfigurationFolders(root, RELEASE, newer=newer).files().modprobe
    acting = [file.path for file in listed if file.rules and not file.shadowed_by]
    assert acting == [f"/{'usr/lib/modprobe.d/b.conf' if newer else 'etc/modprobe.d/a.alias'}"]
    assert [file.path for file in listed if file.unread] == (["/etc/modprobe.d/a.alias"] if newer else [])
