# SPDX-License-Identifier: LGPL-2.1-or-later
"""Formats a plan: for each operation its steps in order, their reasons, and the expected result."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kmodd.cli import failure
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, columns, counted, wrap
from kmodd.cli.session import Session
from kmodd.client import Operation
from kmodd.client.replies import step
from kmodd.model import Step, StepAction

_DEEDS = {
    StepAction.INSERT: ("insert", "module"),
    StepAction.REMOVE: ("remove", "module"),
    StepAction.SET_PARAMETER: ("set", "parameter"),
    StepAction.RESET_FAILED: ("reset", "failure"),
}


async def show(session: Session, operations: Sequence[Operation], options: Mapping[str, object]) -> int:
    """Ask for the plan and show it; the exit status is that of its first known failure."""
    data: list[dict[str, Any]] = await session.client.data("Plan", operations, options=options)
    steps = [step(row) for row in data]
    error = next((each.error for each in steps if each.error is not None), None)
    if session.json:
        session.document(data)
    else:
        session.screen.show(lines(operations, steps, session.screen))
    return error.exit_code if error is not None else 0


def lines(operations: Sequence[Operation], steps: Sequence[Step], screen: Screen) -> list[str]:
    """The plan as text, ending with the verdict."""
    paint = screen.paint
    text: list[str] = []
    width = max((columns(clean(each.module)) for each in steps), default=0)
    for number, (verb, module, parameters) in enumerate(operations):
        arguments = "".join(f" {name}={value}" for name, value in parameters.items())
        text.append(paint.bold(f"{verb} {clean(module)}{clean(arguments)}"))
        own = [each for each in steps if each.operation == number]
        if not own:
            text.append(f"  {paint.dim(f'{screen.glyphs.same} nothing to do')}")
        for own_step in own:
            text += _step(own_step, screen, width)
    return [*text, "", _verdict(steps, screen)]


def _step(each: Step, screen: Screen, width: int) -> list[str]:
    paint, glyphs = screen.paint, screen.glyphs
    name = clean(each.module)
    padding = " " * (width - columns(name))
    because = clean(each.because) + (", may fail" if each.optional else "")
    if each.error is not None:
        head = (
            f"  {paint.bad(glyphs.no)} {each.action.value} {paint.name(name)}{padding}  {paint.bad(each.error.title)}"
        )
        room = screen.fits(6) or 100
        why = [f"      {line}" for line in wrap(clean(each.error.message), room)]
        return [head, *why, *_goes(each, screen), *failure.hint_lines(each.error, screen, indent=6)]
    mark = paint.warn(glyphs.arrow) if each.action is StepAction.REMOVE else paint.good(glyphs.arrow)
    head = f"  {mark} {each.action.value} {paint.name(name)}{padding}  {paint.dim(because)}".rstrip()
    arguments = clean(" ".join(value or "" for _, value in each.parameters))
    return [head, *([f"      with {arguments}"] if arguments else []), *_goes(each, screen)]


def _goes(each: Step, screen: Screen) -> list[str]:
    """What goes with a module that is removed."""
    room = screen.fits(6) or 100
    return [f"      {screen.paint.warn(line)}" for text in each.goes for line in wrap(clean(text), room)]


def _verdict(steps: Sequence[Step], screen: Screen) -> str:
    paint, glyphs = screen.paint, screen.glyphs
    error = next((each.error for each in steps if each.error is not None), None)
    if error is not None:
        return f"{paint.bad('This would fail')} ({error.name()}). Nothing was changed."
    if not steps:
        return "Nothing to do."
    counts = Counter(each.action for each in steps)
    parts = [f"{verb} {counted(counts[action], noun)}" for action, (verb, noun) in _DEEDS.items() if counts[action]]
    return f"{paint.good(glyphs.yes)} This would {' and '.join(parts)}. Nothing was changed."
