# SPDX-License-Identifier: LGPL-2.1-or-later
"""Do modprobe and kmodd do the same? Where kmodd refuses, is the line it cites there, and is what it says of modprobe true?"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kmodd.errors import Builtin, Conflict, DisabledByPolicy, InUse, InvalidArgs, KmoddError, NoSuchModule
from kmodd.model import Verb
from tests.conformance.answers import Planned
from tests.conformance.oracle import Answer, Done
from tests.conformance.scenario import Configuration, Question


class Kind(Enum):
    """How two answers stand to each other."""

    AGREE = "agree"
    REFUSED = "refused"
    """kmodd refuses by a rule that it names."""
    BETTER = "better"
    """Where modprobe's own answer is known to be the worse one, and the documentation says so."""
    NO_ORACLE = "no oracle"
    """modprobe crashed."""
    DIVERGE = "diverge"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison."""

    kind: Kind
    difference: str = ""
    """A coarse name of the difference, the same for all divergences of a kind."""


REFUSALS = frozenset({"/bin/true", ":", "exit 0"})
"""Commands that end well and load nothing: on a soft dependency that is leaving it out."""
COMMAND_LINE = "/proc/cmdline"
MODPROBE = "modprobe"
"""The word by which a refusal says what modprobe would do instead."""


def compare(
    question: Question,
    configuration: Configuration,
    answer: Answer,
    planned: Planned,
    without: Callable[[str, int], Answer],
) -> Verdict:
    """`without` asks modprobe again with one line of a file taken away, or with no command line."""
    if answer.status < 0:
        return Verdict(Kind.NO_ORACLE)
    error = planned.error
    if isinstance(error, DisabledByPolicy):
        return _refused(error, answer, configuration, without)
    commands = [
        step
        for step in answer.done
        if step.kind == "command" and not step.refused and step.text.strip() not in REFUSALS
    ]
    if commands and error is None:
        return Verdict(Kind.DIVERGE, "command")
    done = tuple(step for step in answer.steps if step.kind != "command")
    if isinstance(error, InvalidArgs) and not answer.done and answer.status != 0:
        return Verdict(Kind.AGREE)
    if isinstance(error, NoSuchModule):
        if not done and answer.status != 0:
            return Verdict(Kind.AGREE)
        # modprobe succeeds where the name that leads nowhere is blacklisted as well.
        if error.evidence.rule and (answer.status != 0 or not done):
            return Verdict(Kind.REFUSED)
        return Verdict(Kind.DIVERGE, "no such module")
    if question.verb is Verb.UNLOAD:
        return _unload(answer, done, planned)
    if question.parameters and isinstance(error, (Builtin, Conflict)):
        return Verdict(Kind.BETTER)  # modprobe drops parameters of what is loaded or built in without a word
    if error is not None:
        return Verdict(Kind.DIVERGE, type(error).__name__)
    if done == planned.steps:
        if answer.status != 0:
            return Verdict(Kind.DIVERGE, "modprobe fails")
        return Verdict(Kind.AGREE)
    return Verdict(Kind.DIVERGE, _difference(done, planned.steps))


def _unload(answer: Answer, done: tuple[Done, ...], planned: Planned) -> Verdict:
    if isinstance(planned.error, (InUse, Builtin)):
        if answer.status != 0 and not done:
            return Verdict(Kind.AGREE)
        # modprobe takes soft dependencies out, and then finds that the module itself is in use.
        return Verdict(Kind.BETTER if isinstance(planned.error, Builtin) or answer.status else Kind.DIVERGE, "refused")
    if planned.error is not None:
        return Verdict(Kind.DIVERGE, type(planned.error).__name__)
    if done == planned.steps:
        if not answer.status:
            return Verdict(Kind.AGREE)
        # In a circle of soft dependencies modprobe comes to the module twice, and fails as it has gone by then.
        again = [step.name for step in answer.done if step.refused]
        gone = bool(again) and set(again) <= {step.name for step in done}
        return Verdict(Kind.BETTER) if gone else Verdict(Kind.DIVERGE, "modprobe fails")
    names, removed = [step.name for step in planned.steps], [step.name for step in done]
    if removed and set(names) > set(removed):
        # modprobe leaves behind what only another dependency had used, or removes it later, where the alias stands for it as well.
        return Verdict(Kind.BETTER)
    if set(names) == set(removed):
        return Verdict(Kind.DIVERGE, "order")
    return Verdict(Kind.DIVERGE, "fewer" if set(names) < set(removed) else "removed")


def _refused(
    error: KmoddError, answer: Answer, configuration: Configuration, without: Callable[[str, int], Answer]
) -> Verdict:
    evidence = error.evidence
    says = MODPROBE in error.message or MODPROBE in evidence.hint
    if evidence.file == COMMAND_LINE:
        again = without(evidence.file, evidence.line)
        # Where modprobe fails or loads nothing as well, another rule keeps the module out too.
        loads = any(step.kind != "command" for step in answer.done)
        inert = answer.status == 0 and loads and again.done == answer.done
        return Verdict(Kind.DIVERGE, "inert command line") if inert and not says else Verdict(Kind.REFUSED)
    lines = next((lines for path, lines in configuration.files.items() if evidence.file.endswith(path)), ())
    kind = evidence.rule.split()[0]
    # A line that is continued counts as many as it has in the file.
    starts = [1 + sum(1 + line.count("\n") for line in lines[:number]) for number in range(len(lines))]
    place = starts.index(evidence.line) if evidence.line in starts else None
    cited = lines[place].replace("\\\n", " ").split() if place is not None else []
    if place is None or not cited or cited[0] != kind:
        return Verdict(Kind.DIVERGE, "cites no rule")
    again = without(evidence.file, place + 1)
    inert = (again.done, again.status) == (answer.done, answer.status)
    if inert and not says:
        return Verdict(Kind.DIVERGE, f"inert {kind}")
    return Verdict(Kind.REFUSED)


def _difference(done: tuple[Done, ...], planned: tuple[Done, ...]) -> str:
    ours, theirs = [step.name for step in planned], [step.name for step in done]
    if ours == theirs:
        return "parameters"
    if sorted(ours) == sorted(theirs):
        return "order"
    if set(ours) < set(theirs):
        return "left out"
    return "too much" if set(ours) > set(theirs) else "others"
