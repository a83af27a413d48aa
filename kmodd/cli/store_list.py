# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store list`."""

from argparse import Namespace
from collections.abc import Sequence

from kmodd.cli.screen import Screen
from kmodd.cli.session import Session
from kmodd.cli.table import Column, render
from kmodd.cli.text import clean, counted, size
from kmodd.client_store import Store, stored_module
from kmodd.model.store import StoredModule

SHORT = 12


async def run(session: Session, arguments: Namespace) -> int:
    """Show every version."""
    wanted = arguments.module.replace("-", "_")
    data = [row for row in await Store(session.client).data("List") if not wanted or row["name"] == wanted]
    if session.json:
        session.document(data)
    else:
        session.screen.show(lines([stored_module(row) for row in data], session.screen))
    return 0


def lines(versions: Sequence[StoredModule], screen: Screen) -> list[str]:
    """The table."""
    if not versions:
        return ["No custom modules."] if screen.stdout.isatty() else []
    paint, glyphs = screen.paint, screen.glyphs
    header = [
        Column("", paint=paint.good),
        Column("MODULE", paint=paint.name),
        Column("VERSION"),
        Column("KERNEL"),
        Column("SIZE", right=True),
        Column("SHA256", paint=paint.dim),
        Column("SIGNED BY"),
        Column("DESCRIPTION", stretch=True),
    ]
    rows = [
        [
            glyphs.full if one.active else "",
            clean(one.name),
            clean(one.version),
            clean(one.kernel),
            size(one.size),
            one.sha256[:SHORT],
            clean(one.signer or ("unknown" if one.signed else "nobody")),
            clean(one.description),
        ]
        for one in versions
    ]
    table = render(screen, header, rows)
    summary = f"{counted(len(versions), 'version')}, {glyphs.full} is active"
    return [*table, "", paint.dim(summary)] if screen.stdout.isatty() else table
