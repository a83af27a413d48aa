# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl batch`."""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kmodd.cli import failure, own_session
from kmodd.cli.batch_file import SIZE_MAX, parse
from kmodd.cli.commands import plan
from kmodd.cli.output.progress import shown as progress_shown
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, columns, listed
from kmodd.cli.session import Session
from kmodd.client import Operation
from kmodd.client.replies import operation_result
from kmodd.errors import InvalidArgs
from kmodd.model import OperationResult, Result, Verb

_WORDS = {
    Result.CHANGED: "changed",
    Result.UNCHANGED: "unchanged",
    Result.FAILED: "failed",
    Result.ROLLED_BACK: "rolled back",
    Result.SKIPPED: "not tried",
}


async def run(session: Session, arguments: Namespace) -> int:
    """Do a batch, or show what it would take."""
    operations = parse(_read(arguments.file, session.screen))
    options: dict[str, object] = {"atomic": not arguments.no_atomic}
    if arguments.disconnect:
        options["disconnect"] = True
    if arguments.dry_run:
        return await plan.show(session, operations, options)
    if arguments.reason:
        options["reason"] = arguments.reason
    if arguments.disconnect:
        await own_session.confirm(session, operations, {"disconnect": True})
    session.authorize()
    async with progress_shown(session.client, session.screen):
        rows = await session.client.data("Batch", operations, options=options)
    results = [operation_result(row) for row in rows]
    if session.json:
        session.document(rows)
    else:
        session.screen.show(lines(operations, results, session.screen))
    return next((result.error.exit_code for result in results if result.error is not None), 0)


def _read(file: str, screen: Screen) -> str:
    try:
        if file == "-":
            return screen.stdin.read(SIZE_MAX)
        with Path(file).open(encoding="utf-8") as stream:
            return stream.read(SIZE_MAX)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not valid UTF-8"
        raise InvalidArgs(f"cannot read {clean(file)}: {reason}") from error


def lines(operations: Sequence[Operation], results: Sequence[OperationResult], screen: Screen) -> list[str]:
    """One line for each operation, and what it came to; below a failure what to do about it."""
    paint, glyphs = screen.paint, screen.glyphs
    marks = {
        Result.CHANGED: paint.good(glyphs.yes),
        Result.UNCHANGED: paint.dim(glyphs.same),
        Result.FAILED: paint.bad(glyphs.no),
        Result.ROLLED_BACK: paint.warn(glyphs.undone),
        Result.SKIPPED: paint.dim(glyphs.empty),
    }
    width = max(columns(clean(module)) for _, module, _ in operations)
    verbs = max(len(Verb.UNLOAD), *(len(verb) for verb, _, _ in operations))
    text = []
    for (verb, module, _), result in zip(operations, results, strict=True):
        name = clean(module)
        padding = " " * (width - columns(name))
        text.append(
            f"{marks[result.result]} {verb:<{verbs}}  {paint.name(name)}{padding}  {_outcome(result, screen)}".rstrip()
        )
        text += failure.hint_lines(result.error, screen, indent=4)
    counts = Counter(result.result for result in results)
    summary = ", ".join(f"{counts[kind]} {word}" for kind, word in _WORDS.items() if counts[kind])
    return [*text, "", summary]


def _outcome(result: OperationResult, screen: Screen) -> str:
    paint = screen.paint
    if result.error is not None:
        return paint.bad(clean(result.error.message) or result.error.title)
    if result.result is Result.CHANGED:
        return clean(listed(result.touched))
    return paint.dim(_WORDS[result.result])
