# SPDX-License-Identifier: LGPL-2.1-or-later
"""Takes away from a divergence whatever it does not need."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conformance.compare import Kind
from tests.conformance.run import MEMORY, Bench, Case, Judged
from tests.conformance.scenario import Tree, canonical

RUNS_MAX = 120


def reduce(judged: Judged, program: tuple[str, ...], shim: Path) -> Judged:
    """The smallest case with the same coarse difference that a bounded number of runs finds."""
    runs, progress = 0, True
    while progress and runs < RUNS_MAX:
        progress = False
        for smaller in _smaller(judged.case):
            runs += 1
            again = _judge(smaller, program, shim)
            if (again.verdict.kind, again.verdict.difference) == (Kind.DIVERGE, judged.verdict.difference):
                judged, progress = again, True
                break
            if runs >= RUNS_MAX:
                break
    return judged


def _judge(case: Case, program: tuple[str, ...], shim: Path) -> Judged:
    with TemporaryDirectory(prefix="kmodd-conformance-", dir=MEMORY) as folder:
        (judged,) = Bench(case.tree, Path(folder), program, shim).ask(case.configuration, [case.question])
        return judged


def _smaller(case: Case) -> Iterator[Case]:
    configuration = case.configuration
    for path, lines in configuration.files.items():
        for position in range(len(lines)):
            files = {**configuration.files, path: lines[:position] + lines[position + 1 :]}
            yield replace(case, configuration=replace(configuration, files=files))
    if configuration.command_line:
        yield replace(case, configuration=replace(configuration, command_line=""))
    users = case.tree.needs()
    for name in configuration.loaded:
        if not any(name in users[other] for other in configuration.loaded):
            loaded = tuple(other for other in configuration.loaded if other != name)
            yield replace(case, configuration=replace(configuration, loaded=loaded))
    modules = case.tree.modules
    for position, module in enumerate(modules):
        name = canonical(module.name)
        if name not in configuration.loaded and not any(name in map(canonical, other.depends) for other in modules):
            yield replace(case, tree=Tree(modules[:position] + modules[position + 1 :]))
        for simpler in (replace(module, softdep=""), replace(module, aliases=()), replace(module, depends=())):
            if simpler != module and not (configuration.loaded and simpler.depends != module.depends):
                yield replace(case, tree=Tree((*modules[:position], simpler, *modules[position + 1 :])))
