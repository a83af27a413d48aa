# SPDX-License-Identifier: LGPL-2.1-or-later
"""A plan as people read it: for each change its steps in order, why each, and how it would end."""

from collections.abc import Mapping, Sequence
from typing import Any

from kmodd.cli.screen import Screen
from kmodd.cli.session import Session
from kmodd.cli.text import clean, columns, counted, wrap
from kmodd.client import Operation
from kmodd.client_answers import step
from kmodd.model import Step, StepAction


async def show(session: Session, operations: Sequence[Operation], options: Mapping[str, object]) -> int:
    """Ask for the plan and show it; the exit status is that of its first known failure."""
    data: list[dict[str, Any]] = await session.client.data("Plan", operations, options=options)
    steps = [step(row) for row in data]
    error = next((found.error for found in steps if found.error is not None), None)
    if session.json:
        session.document(data)
    else:
        session.screen.show(lines(operations, steps, session.screen))
    return error.exit_code if error is not None else 0


def lines(operations: Sequence[Operation], steps: Sequence[Step], screen: Screen) -> list[str]:
    """The plan as text, ending with the verdict."""
    paint = screen.paint
    text: list[str] = []
    width = max((columns(clean(found.module)) for found in steps), default=0)
    for number, (verb, module, parameters) in enumerate(operations):
        given = "".join(f" {name}={value}" for name, value in parameters.items())
        text.append(paint.bold(f"{verb} {clean(module)}{clean(given)}"))
        own = [found for found in steps if found.operation == number]
        if not own:
            text.append(f"  {paint.dim(f'{screen.glyphs.same} nothing to do')}")
        for found in own:
            text += _step(found, screen, width)
    return [*text, "", _verdict(steps, screen)]


def _step(found: Step, screen: Screen, width: int) -> list[str]:
    paint, glyphs = screen.paint, screen.glyphs
    name = clean(found.module)
    padding = " " * (width - columns(name))
    because = clean(found.because) + (", may fail" if found.optional else "")
    if found.error is not None:
        head = (
            f"  {paint.bad(glyphs.no)} {found.action.value} {paint.name(name)}{padding}  {paint.bad(found.error.title)}"
        )
        room = screen.fits(6) or 100
        return [head, *(f"      {line}" for line in wrap(clean(found.error.message), room))]
    mark = paint.good(glyphs.arrow) if found.action is StepAction.INSERT else paint.warn(glyphs.arrow)
    head = f"  {mark} {found.action.value} {paint.name(name)}{padding}  {paint.dim(because)}".rstrip()
    arguments = clean(" ".join(value for _, value in found.parameters))
    return [head, f"      with {arguments}"] if arguments else [head]


def _verdict(steps: Sequence[Step], screen: Screen) -> str:
    paint, glyphs = screen.paint, screen.glyphs
    error = next((found.error for found in steps if found.error is not None), None)
    if error is not None:
        return f"{paint.bad('This would fail')} ({error.name()}). Nothing was changed."
    if not steps:
        return "Nothing to do: everything is already as asked."
    inserted = sum(found.action is StepAction.INSERT for found in steps)
    removed = len(steps) - inserted
    parts = [f"insert {counted(inserted, 'module')}"] if inserted else []
    parts += [f"remove {counted(removed, 'module')}"] if removed else []
    return f"{paint.good(glyphs.yes)} This would {' and '.join(parts)}. Nothing was changed."
