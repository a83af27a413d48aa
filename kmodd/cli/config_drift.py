# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config drift`."""

from argparse import Namespace
from collections.abc import Sequence

from kmodd.cli.screen import Screen
from kmodd.cli.session import Session
from kmodd.cli.table import Column, render
from kmodd.cli.text import clean, counted
from kmodd.client_configuration import Configuration, drift
from kmodd.model import HealthStatus
from kmodd.model.configuration import Drift


async def run(session: Session, _: Namespace) -> int:
    """Show what is not as it is wanted."""
    data = await Configuration(session.client).data("GetDrift")
    if session.json:
        session.document(data)
    else:
        for check in (await session.client.health()).checks:
            if check.name == "settings" and check.status is not HealthStatus.OK:
                session.screen.complain([f"{session.screen.error_paint.warn('note:')} {clean(check.message)}"])
        session.screen.show(lines([drift(row) for row in data], session.screen))
    return 0


def lines(found: Sequence[Drift], screen: Screen) -> list[str]:
    """One row for each difference, and what would mend them."""
    paint = screen.paint
    if not found:
        return [f"{paint.good(screen.glyphs.yes)} Everything is as the files want it."]
    header = [
        Column("MODULE", paint=paint.name),
        Column("WHAT"),
        Column("WANTED", paint=paint.good),
        Column("IS", stretch=True, paint=paint.warn),
    ]
    rows = [
        [clean(text) for text in (one.module, one.kind, one.wanted or "none", one.actual or "none")] for one in found
    ]
    hints = list(dict.fromkeys(clean(one.hint) for one in found if one.hint))
    text = render(screen, header, rows)
    if hints:
        text += ["", *(f"{paint.warn('hint:')} {hint}" for hint in hints)]
    return [*text, "", paint.dim(counted(len(found), "difference"))] if screen.stdout.isatty() else text
