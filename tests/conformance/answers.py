# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kmodd plans for the same question, from the same files."""

from dataclasses import dataclass
from pathlib import Path

from kmodd.core.operations.live_values import LiveValues
from kmodd.core.planning.planner import Planner
from kmodd.errors import KmoddError
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import KernelFacts, Operation, Request, StepAction, Verb
from kmodd.model.arguments import spell
from kmodd.names import parse_module_or_alias
from tests.conformance.kernel_arguments import last_values
from tests.conformance.oracle import Done
from tests.conformance.scenario import Configuration, Question, Tree
from tests.kernel.fakeroot import RELEASE


@dataclass(frozen=True)
class Planned:
    """kmodd's answer."""

    steps: tuple[Done, ...] = ()
    error: KmoddError | None = None


class PlainFacts:
    """A kernel without lockdown."""

    def __init__(self, command_line: str) -> None:
        self._facts = KernelFacts(RELEASE, command_line=command_line)

    def read(self) -> KernelFacts:
        return self._facts

    def taint_flags(self, taint: int) -> tuple[str, ...]:
        del taint
        return ()

    def trusted_keys(self) -> tuple[str, ...]:
        return ()


def unread(root: Path) -> LiveValues:
    """The live parameters of modules that have none."""
    return LiveValues(ProcModules(root), SimulatedKernel([]).executor)


class Kmodd:
    """Plans on the tree and the configuration below `root`."""

    def __init__(self, root: Path, tree: Tree, configuration: Configuration) -> None:
        _write_loaded(root, tree, configuration.loaded)
        self.index = LibkmodIndex(root, RELEASE, command_line=configuration.command_line)
        self._planner = Planner(self.index, ProcModules(root), PlainFacts(configuration.command_line), unread(root))

    def close(self) -> None:
        """Release the index."""
        self.index.close()

    def ask(self, question: Question, *, override: bool = False) -> Planned:
        """Plan it; the error of the door counts as the plan's."""
        try:
            name = parse_module_or_alias(question.name)
        except KmoddError as error:
            return Planned(error=error)
        operation = Operation(
            question.verb, name, question.parameters, unused_dependencies=question.verb is Verb.UNLOAD
        )
        plan = self._planner.plan(Request((operation,), dry_run=True, override_policy=override))
        steps = tuple(
            Done(
                "insert" if step.action is StepAction.INSERT else "remove",
                step.module,
                tuple(last_values(spell(step.parameters).encode("utf-8", "surrogateescape"))),
            )
            for step in plan.steps
            if step.error is None
        )
        return Planned(steps, plan.error)


def _write_loaded(root: Path, tree: Tree, loaded: tuple[str, ...]) -> None:
    needs = tree.needs()
    lines = []
    for name in reversed(loaded):
        users = [user for user in loaded if name in needs.get(user, ())]
        holders = "".join(f"{user}," for user in users) or "-"
        lines.append(f"{name} 16384 {len(users)} {holders} Live 0x0000000000000000\n")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/modules").write_text("".join(lines))
