# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config apply`."""

from argparse import Namespace
from typing import TYPE_CHECKING

from kmodd.cli import batch, progress
from kmodd.cli.session import Session
from kmodd.client_answers import operation_result
from kmodd.client_configuration import Configuration

if TYPE_CHECKING:
    from kmodd.client import Operation


async def run(session: Session, arguments: Namespace) -> int:
    """Bring the machine to what the files want, or show what that would take."""
    options: dict[str, object] = {"dry-run": True} if arguments.dry_run else {}
    if arguments.reason:
        options["reason"] = arguments.reason
    session.authorize()
    async with progress.shown(session.client, session.screen):
        rows = await Configuration(session.client).data("Apply", options=options)
    results = [operation_result(row) for row in rows]
    if session.json:
        keys = ("module", "result", "error", "touched")
        session.document([dict(zip(keys, row, strict=True)) for row in rows])
    elif not results:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        session.screen.tell(f"{paint.dim(glyphs.same)} Everything is as the files want it, nothing to do.")
    else:
        operations: list[Operation] = [("apply", result.module, {}) for result in results]
        said = await batch.sentences(results, session.client)
        session.screen.show(batch.lines(operations, results, said, session.screen))
    return next((result.error.exit_code for result in results if result.error is not None), 0)
