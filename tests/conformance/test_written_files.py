# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kmodd's own files mean to modprobe is what kmodd was given to write."""

from pathlib import Path
from random import Random

from kmodd.core.rules.managed_files import Entry, render
from kmodd.errors import InvalidArgs
from kmodd.model import Verb
from kmodd.model.rules import ManagedFile
from kmodd.names import ModuleName, parse_parameter_value, parse_reason
from tests.conformance.answers import Kmodd
from tests.conformance.generate import PARAMETERS
from tests.conformance.oracle import Answer, Modprobe
from tests.conformance.scenario import Configuration, Question, Tree, build, configure
from tests.kernel.fakeroot import FakeModule

SEED = 17
TEXTS = 40
LETTERS = "ab01 \t#\\=,;-_.:/'$`()[]{}*?!~%&|<>"
NAMES = ("a", "b", "c", "d", "e_f")


def _tree() -> Tree:
    return Tree(
        (
            FakeModule("a", aliases=("fs-a",), parameters=PARAMETERS),
            FakeModule("b", depends=("a",), parameters=PARAMETERS),
            FakeModule("c", softdep="pre: a", aliases=("pci:v1*",), parameters=PARAMETERS),
            FakeModule("d", softdep="post: b", parameters=PARAMETERS),
            FakeModule("e-f", depends=("c",), parameters=PARAMETERS),
        )
    )


class _Machine:
    """The tree with files of kmodd's, and the real modprobe."""

    def __init__(self, folder: Path, program: tuple[str, ...], shim: Path) -> None:
        self.tree, self.root = _tree(), folder / "root"
        build(self.tree, self.root)
        self._modprobe = Modprobe(program, shim, self.root, folder / "state", self.tree.needs())

    def write(self, entries: dict[ManagedFile, dict[ModuleName, Entry]]) -> None:
        configure(self.root, {})
        for file, content in entries.items():
            path = self.root / file.removeprefix("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(render(file, content) or b"")

    def load(self, name: str) -> Answer:
        return self._modprobe.ask(Question(Verb.LOAD, name), Configuration())


def _value(random: Random) -> str:
    while True:
        text = "".join(random.choice(LETTERS) for _ in range(random.randint(1, 12)))
        try:
            return parse_parameter_value(text)
        except InvalidArgs:
            continue


def _reason(random: Random) -> str:
    return parse_reason(_value(random) + random.choice(("", "\\", " options a count=9 \\")))


def test_options_reach_the_kernel_as_they_were_given(program: tuple[str, ...], shim: Path, tmp_path: Path) -> None:
    machine, random = _Machine(tmp_path, program, shim), Random(SEED)  # noqa: S311 - to be repeated
    for _ in range(TEXTS):
        given = {
            ModuleName(name): Entry(
                (("count", str(random.randint(0, 99))), ("mode", _value(random))), reason=_reason(random)
            )
            for name in random.sample(NAMES, 2)
        }
        machine.write({ManagedFile.OPTIONS: given})
        for name, entry in given.items():
            steps = {step.name: step.parameters for step in machine.load(name).steps}
            assert steps[name] == tuple((key.encode(), (value or "").encode()) for key, value in entry.parameters)
            for other in steps.keys() - given.keys():
                assert steps[other] == ()


def test_blacklists_are_what_they_are_called(program: tuple[str, ...], shim: Path, tmp_path: Path) -> None:
    machine, random = _Machine(tmp_path, program, shim), Random(SEED)  # noqa: S311 - to be repeated
    for name in NAMES:
        for hard in (False, True):
            machine.write({ManagedFile.BLACKLIST: {ModuleName(name): Entry(hard=hard, reason=_reason(random))}})
            for asked in NAMES:
                loaded = {step.name for step in machine.load(asked).steps if step.kind == "insert"}
                # By name, as a dependency and as a soft dependency.
                assert (name in loaded) <= (not hard)
                assert asked in loaded or hard
        for alias, module in (("fs-a", "a"), ("pci:v1d2", "c")):
            machine.write({ManagedFile.BLACKLIST: {ModuleName(module): Entry()}})
            assert machine.load(alias).done == ()


def test_kmodd_obeys_a_hard_blacklist_as_modprobe_does(program: tuple[str, ...], shim: Path, tmp_path: Path) -> None:
    machine = _Machine(tmp_path, program, shim)
    for name in NAMES:
        machine.write({ManagedFile.BLACKLIST: {ModuleName(name): Entry(hard=True)}})
        kmodd = Kmodd(machine.root, machine.tree, Configuration())
        try:
            for asked in NAMES:
                planned, answer = kmodd.ask(Question(Verb.LOAD, asked)), machine.load(asked)
                if planned.error is None:
                    assert planned.steps == tuple(step for step in answer.steps if step.kind == "insert")
                else:
                    assert answer.status != 0
                    assert asked not in {step.name for step in answer.steps}
        finally:
            kmodd.close()


def test_autoload_names_modules_that_modprobe_knows(program: tuple[str, ...], shim: Path, tmp_path: Path) -> None:
    machine, random = _Machine(tmp_path, program, shim), Random(SEED)  # noqa: S311 - to be repeated
    given = {ModuleName(name): Entry(reason=_reason(random)) for name in NAMES}
    machine.write({ManagedFile.AUTOLOAD: given})
    text = (machine.root / ManagedFile.AUTOLOAD.removeprefix("/")).read_text()
    # modules-load.d(5): one name a line, white space around it and lines that begin with # or ; are ignored.
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] not in "#;"]
    assert lines == list(NAMES)
    for line in lines:
        assert machine.load(line).steps[-1].name in {line, "b"}  # b goes after d
