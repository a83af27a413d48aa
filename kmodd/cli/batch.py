# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl batch`."""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kmodd.cli import plan, progress
from kmodd.cli.batch_file import SIZE_MAX, parse
from kmodd.cli.screen import Screen
from kmodd.cli.session import Session
from kmodd.cli.text import clean, columns, listed
from kmodd.client import Client, Operation
from kmodd.client_answers import operation_result
from kmodd.errors import InvalidArgs, KmoddError
from kmodd.model import OperationResult, Result

_WORDS = {
    Result.CHANGED: "changed",
    Result.UNCHANGED: "as it was",
    Result.FAILED: "failed",
    Result.ROLLED_BACK: "rolled back",
    Result.SKIPPED: "not tried",
}


async def run(session: Session, arguments: Namespace) -> int:
    """Do a batch, or show what it would take."""
    operations = parse(_read(arguments.file, session.screen))
    options: dict[str, object] = {"atomic": not arguments.no_atomic}
    if arguments.dry_run:
        return await plan.show(session, operations, options)
    if arguments.reason:
        options["reason"] = arguments.reason
    session.authorize()
    async with progress.shown(session.client, session.screen):
        rows = await session.client.data("Batch", operations, options=options)
    results = [operation_result(row) for row in rows]
    if session.json:
        session.document([_document(operation, row) for operation, row in zip(operations, rows, strict=True)])
    else:
        session.screen.show(lines(operations, results, await sentences(results, session.client), session.screen))
    return next((result.error.exit_code for result in results if result.error is not None), 0)


def _read(file: str, screen: Screen) -> str:
    try:
        if file == "-":
            return screen.stdin.read(SIZE_MAX)
        with Path(file).open(encoding="utf-8") as stream:
            return stream.read(SIZE_MAX)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidArgs(f"cannot read {clean(file)}: {reason}") from error


def _document(operation: Operation, row: Sequence[object]) -> dict[str, object]:
    module, result, error, touched = row
    return {"action": operation[0], "module": module, "result": result, "error": error, "touched": touched}


async def sentences(results: Sequence[OperationResult], client: Client) -> dict[str, str]:
    """The sentence of each failure, which the answer of `Batch` leaves to `Explain`."""
    found: dict[str, str] = {}
    for result in results:
        if result.error is None:
            continue
        try:
            failure = (await client.explain(result.module)).failure
        except KmoddError:
            continue  # an alias, or gone: the title has to do
        if failure is not None and failure.error == result.error.name():
            found[result.module] = failure.message
    return found


def lines(
    operations: Sequence[Operation], results: Sequence[OperationResult], said: dict[str, str], screen: Screen
) -> list[str]:
    """One line for each operation, and what it came to."""
    paint, glyphs = screen.paint, screen.glyphs
    marks = {
        Result.CHANGED: paint.good(glyphs.yes),
        Result.UNCHANGED: paint.dim(glyphs.same),
        Result.FAILED: paint.bad(glyphs.no),
        Result.ROLLED_BACK: paint.warn(glyphs.undone),
        Result.SKIPPED: paint.dim(glyphs.empty),
    }
    width = max(columns(clean(module)) for _, module, _ in operations)
    text = []
    for (verb, module, _), result in zip(operations, results, strict=True):
        name = clean(module)
        padding = " " * (width - columns(name))
        outcome = _outcome(result, said.get(result.module, ""), screen)
        text.append(f"{marks[result.result]} {verb:<6}  {paint.name(name)}{padding}  {outcome}".rstrip())
    counts = Counter(result.result for result in results)
    summary = ", ".join(f"{counts[kind]} {word}" for kind, word in _WORDS.items() if counts[kind])
    return [*text, "", summary]


def _outcome(result: OperationResult, message: str, screen: Screen) -> str:
    paint = screen.paint
    if result.error is not None:
        return paint.bad(clean(message) or result.error.title)
    if result.result is Result.CHANGED:
        return clean(listed(result.touched))
    return paint.dim(_WORDS[result.result])
