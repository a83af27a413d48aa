# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl surface refused`: attempts to have a module loaded that a rule refused, with the command that allows each."""

import asyncio
from argparse import Namespace
from collections.abc import Sequence

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, counted, moment, parse_since, user_name
from kmodd.cli.session import Session
from kmodd.client.responses import RefusedRow, refused_row
from kmodd.client.surface import AttackSurface

SETTLE = 0.2
"""Seconds the journal is given to have the record of what a signal tells."""


async def run(session: Session, arguments: Namespace) -> int:
    """List the attempts, and with `--follow` those that come."""
    surface = AttackSurface(session.client)
    options = {"since": parse_since(arguments.since, session.screen.now())} if arguments.since else {}
    session.authorize()
    if not arguments.follow:
        data = await surface.data("GetRefused", options=options)
        if session.json:
            session.document(data)
        else:
            session.screen.show(lines([refused_row(row) for row in data], session.screen) or ["No refused attempts."])
        return 0
    async with session.client.signals() as stream:  # before reading, so that nothing falls between
        shown = await _tell(session, surface, options.get("since", 0))
        session.client.interactive = False  # one prompt is enough, not one for each event
        async for signal in stream:
            if signal.member == "HistoryChanged":
                await asyncio.sleep(SETTLE)
                shown = await _tell(session, surface, shown)
    return 0


async def _tell(session: Session, surface: AttackSurface, since: int) -> int:
    """Show the attempts from a time on, the oldest first; answers from when on to read the next time."""
    data = await surface.data("GetRefused", options={"since": since} if since else {})
    for row in reversed(data):
        attempts = refused_row(row)
        since = max(since, attempts.last + 1)
        if session.json:
            session.json_line(row)
        else:
            for text in lines([attempts], session.screen):
                session.screen.tell(text)
    return since


def lines(rows: Sequence[RefusedRow], screen: Screen) -> list[str]:
    """For each attempt when, how often, by whom, what, and below it the rule and what allows it."""
    paint = screen.paint
    text = []
    for row in rows:
        who = clean(row.exe or row.comm) or "a process that has ended"
        where = f"container {clean(row.container[:12])}" if row.container else clean(row.unit)
        user = user_name(row.uid) if row.uid is not None else "a user who is not known"
        place = ", ".join(part for part in (user, where) if part)
        modules = " ".join(map(clean, row.modules))
        often = f"{counted(row.count, 'attempt')}, first {moment(row.first)}" if row.count > 1 else "1 attempt"
        text.append(
            f"{paint.dim(moment(row.last))} {who} ({place}): {clean(row.alias)}, {paint.name(modules)}; {often}"
        )
        if row.file:
            line = f":{row.line}" if row.line else ""
            response = f", {clean(row.response)}" if row.response else ""
            text.append(f"    refused by {clean(row.file)}{line}{response}")
        if row.allow:
            text.append(f"    to allow it: {paint.name(clean(row.allow))}")
    return text
