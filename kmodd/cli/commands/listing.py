# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl list`."""

from argparse import Namespace

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, counted, size
from kmodd.cli.session import Session
from kmodd.client.replies import ListedModule, listed_module
from kmodd.model import State

LOADED = (State.LIVE, State.COMING, State.GOING)


async def run(session: Session, arguments: Namespace) -> int:
    """List modules."""
    options = {"state": arguments.state} | ({"match": arguments.glob} if arguments.glob else {})
    data = await session.client.data("ListModules", options=options)
    if session.json:
        session.document(data)
        return 0
    session.screen.show(lines([listed_module(row) for row in data], session.screen))
    return 0


def lines(modules: list[ListedModule], screen: Screen) -> list[str]:
    """The table; columns that say nothing are left out."""
    if not modules:
        return ["No modules."] if screen.stdout.isatty() else []
    loaded = any(module.state in LOADED for module in modules)
    tainted = any(module.taint for module in modules)
    mixed = any(module.state is not State.LIVE for module in modules)
    paint = screen.paint
    header = [Column("MODULE", paint=paint.name)]
    if loaded:
        header += [Column("SIZE", right=True), Column("REFS", right=True)]
    if mixed:
        header += [Column("STATE", paint=lambda cell: _painted_state(screen, cell))]
    if tainted:
        header += [Column("TAINT", paint=paint.warn)]
    if loaded:
        header += [Column("USED BY", stretch=True)]
    rows = []
    for module in modules:
        live = module.state in LOADED
        row = [clean(module.name)]
        if loaded:
            row += [size(module.size) if live else "", str(module.references) if live else ""]
        if mixed:
            row += [module.state.value]
        if tainted:
            row += [clean(module.taint)]
        if loaded:
            row += [clean(" ".join(module.holders))]
        rows.append(row)
    table = render(screen, header, rows)
    return [*table, "", paint.dim(counted(len(modules), "module"))] if screen.stdout.isatty() else table


def _painted_state(screen: Screen, cell: str) -> str:
    paint = screen.paint
    if cell == State.LIVE:
        return paint.good(cell)
    if cell in (State.COMING, State.GOING, State.DISABLED):
        return paint.warn(cell)
    return paint.dim(cell)
