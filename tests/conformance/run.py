# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks modprobe and kmodd the same random questions, and counts how the answers compare."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.conformance import generate
from tests.conformance.answers import Kmodd, Planned
from tests.conformance.compare import COMMAND_LINE, Kind, Verdict, compare
from tests.conformance.oracle import Answer, Modprobe
from tests.conformance.scenario import Configuration, Question, Tree, build, configure
from tests.kernel.fakeroot import FakeModule

CONFIGURATIONS_A_TREE = 40
QUESTIONS_A_CONFIGURATION = 3
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the trees are made: each question makes and removes some dozens of small files."""


@dataclass(frozen=True)
class Case:
    """One question with everything it is about."""

    tree: Tree
    configuration: Configuration
    question: Question


@dataclass
class Judged:
    """A case and both answers."""

    case: Case
    verdict: Verdict
    answer: Answer
    planned: Planned

    def __str__(self) -> str:
        lines = [_described(module) for module in self.case.tree.modules]
        for path, text in self.case.configuration.files.items():
            lines += [f"{path}:", *(f"    {line!r}" for line in text)]
        lines.append(f"command line {self.case.configuration.command_line!r}, loaded {self.case.configuration.loaded}")
        lines.append(f"{self.case.question.verb} {self.case.question.name!r}: {self.verdict.difference}")
        lines.append(f"modprobe: {_shown(self.answer.done)} status {self.answer.status}")
        lines.append(f"kmodd:    {_shown(self.planned.steps)} {self.planned.error!r}")
        return "\n".join(lines)


@dataclass
class Tally:
    """What a run found."""

    counts: Counter[str] = field(default_factory=Counter)
    divergences: list[Judged] = field(default_factory=list)


def refused_by_kernel(configuration: Configuration) -> tuple[str, ...]:
    """The modules that the kernel refuses: `module_blacklist=` of its command line."""
    refused: tuple[str, ...] = ()
    for word in configuration.command_line.split():
        if word.startswith("module_blacklist="):
            refused = tuple(word.partition("=")[2].split(","))
    return refused


class Bench:
    """One tree on the disk, with modprobe and kmodd to ask about it."""

    def __init__(self, tree: Tree, folder: Path, program: tuple[str, ...], shim: Path) -> None:
        self._tree = tree
        self._root = folder / "root"
        build(tree, self._root)
        self._modprobe = Modprobe(program, shim, self._root, folder / "state", tree.needs())

    def ask(self, configuration: Configuration, questions: Iterable[Question]) -> Iterator[Judged]:
        """Judge the answers to some questions about one configuration."""
        configure(self._root, configuration.files)
        kmodd = Kmodd(self._root, self._tree, configuration)
        try:
            for question in questions:
                planned = kmodd.ask(question)
                answer = self._asked(question, configuration)

                def without(
                    path: str, line: int, question: Question = question, configuration: Configuration = configuration
                ) -> Answer:
                    if path == COMMAND_LINE:
                        return self._asked(question, replace(configuration, command_line=""))
                    files = dict(configuration.files)
                    name = next(name for name in files if path.endswith(name))
                    # A comment keeps the place, for an empty line would not end a line that is continued.
                    files[name] = tuple("#" if at == line else text for at, text in enumerate(files[name], 1))
                    configure(self._root, files)
                    changed = self._asked(question, replace(configuration, files=files))
                    configure(self._root, configuration.files)
                    return changed

                verdict = compare(question, configuration, answer, planned, without)
                yield Judged(Case(self._tree, configuration, question), verdict, answer, planned)
        finally:
            kmodd.close()

    def _asked(self, question: Question, configuration: Configuration) -> Answer:
        return self._modprobe.ask(question, configuration, refused_by_kernel(configuration))


def run(seed: int, questions: int, program: tuple[str, ...], shim: Path, *, unloading: bool = False) -> Tally:
    """Ask so many questions, with `unloading` only what an unload removes and in which order."""
    random = Random(seed)  # noqa: S311 - tests are to be repeated
    tally = Tally()
    left = questions
    while left > 0:
        tree = generate.tree(random)
        with TemporaryDirectory(prefix="kmodd-conformance-", dir=MEMORY) as folder:
            bench = Bench(tree, Path(folder), program, shim)
            for _ in range(min(CONFIGURATIONS_A_TREE, -(-left // QUESTIONS_A_CONFIGURATION))):
                configuration = generate.configuration(random, tree, unloading=unloading)
                asked = [
                    generate.question(random, tree, configuration, unloading=unloading)
                    for _ in range(QUESTIONS_A_CONFIGURATION)
                ]
                for judged in bench.ask(configuration, asked):
                    tally.counts[judged.verdict.kind.value] += 1
                    if judged.verdict.kind is Kind.DIVERGE:
                        tally.divergences.append(judged)
                left -= QUESTIONS_A_CONFIGURATION
    return tally


def _shown(steps: Iterable[object]) -> str:
    return "; ".join(
        f"{step.kind} {step.name} {dict(step.parameters) or ''}{step.text}{' (refused)' if step.refused else ''}"  # type: ignore[attr-defined]
        for step in steps
    )


def _described(module: FakeModule) -> str:
    words = [f"needs={','.join(module.depends)}"] if module.depends else []
    words += [f"alias={alias!r}" for alias in module.aliases]
    words += [f"softdep={module.softdep!r}"] if module.softdep else []
    return " ".join(["builtin" if module.builtin else "module", module.name, *words])
