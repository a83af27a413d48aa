# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl notify status` and `list`: who is told, and how that goes."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from kmodd.cli.screen import Screen
from kmodd.cli.session import Session
from kmodd.cli.table import Column, render
from kmodd.cli.text import ago, clean, counted, moment, wrap
from kmodd.client_answers import Fields
from kmodd.client_notifier import NotifierClient


async def run(session: Session, arguments: Namespace) -> int:
    """Show endpoints."""
    found = await NotifierClient(session.client.transport).status()
    if session.json:
        session.document(found if arguments.verb == "status" else found["endpoints"])
    elif arguments.verb == "status":
        session.screen.show(status(found, session.screen))
    else:
        session.screen.show(listing(found, session.screen))
    return 0


def listing(found: Mapping[str, Any], screen: Screen) -> list[str]:
    """One line for each endpoint."""
    header = (
        Column("NAME"),
        Column("CHANNEL"),
        Column("FROM"),
        Column("STATE"),
        Column("WAITING", right=True),
        Column("TARGET", stretch=True),
    )
    rows = []
    for row in map(Fields, found["endpoints"]):
        state = "enabled" if row.flag("enabled") else "disabled"
        source = "kmodctl" if row.flag("managed") else "file"
        rows.append(
            [
                clean(row.text("name")),
                clean(row.text("channel")),
                source,
                state,
                str(row.number("waiting")),
                clean(row.text("target")),
            ]
        )
    return render(screen, header, rows) if rows else ["Nobody is told anything: see notify.toml(5)."]


def status(found: Mapping[str, Any], screen: Screen) -> list[str]:
    """The notifier, then each endpoint with what is wrong with it."""
    paint, facts = screen.paint, Fields(found)
    trouble, bad = clean(facts.text("trouble")), clean(facts.text("configuration-error"))
    mark = paint.bad(screen.glyphs.full) if trouble or bad else paint.good(screen.glyphs.full)
    text = [f"{mark} {paint.bold('kmodd-notifier')}: {paint.bad(trouble) if trouble else 'watching'}"]
    seen = facts.number("seen")
    text += [paint.dim(f"  {counted(facts.number('rules'), 'rule')}, seen until {moment(seen) if seen else 'now'}")]
    if bad:
        text += [
            paint.bad(f"  {line}") for line in wrap(f"old configuration in force: {bad}", screen.fits(2) or 10_000)
        ]
    for row in found["endpoints"]:
        text += ["", *_endpoint(Fields(row), screen)]
    return text if found["endpoints"] else [*text, "", "Nobody is told anything: see notify.toml(5)."]


def _endpoint(row: Fields, screen: Screen) -> list[str]:
    paint, glyphs, now = screen.paint, screen.glyphs, screen.now()
    failures, waiting = row.number("failures"), row.number("waiting")
    if not row.flag("enabled"):
        mark, state = paint.dim(glyphs.empty), f"disabled: {clean(row.text('why'))}"
    elif failures:
        mark, state = paint.bad(glyphs.no), paint.bad(f"{counted(failures, 'failure')} in a row")
    else:
        mark, state = paint.good(glyphs.yes), "well"
    last = row.number("last-success")
    counts = [
        f"{row.number('delivered')} delivered" + (f", the last {ago(last, now)}" if last else ""),
        f"{waiting} waiting" + (f", the oldest since {moment(row.number('oldest'))}" if waiting else ""),
    ]
    counts += [paint.bad(f"{row.number('refused')} of them refused")] if row.number("refused") else []
    counts += [paint.bad(f"{row.number('dropped')} dropped")] if row.number("dropped") else []
    text = [
        f"{mark} {paint.bold(clean(row.text('name')))} ({clean(row.text('channel'))}, {clean(row.text('target'))}): {state}",
        f"    {'; '.join(counts)}",
    ]
    if row.text("last-error") and waiting:
        text += [f"    {line}" for line in wrap(clean(row.text("last-error")), screen.fits(4) or 10_000)]
    if row.number("next-attempt") > now:
        text.append(paint.dim(f"    next attempt {moment(row.number('next-attempt'))}"))
    return text
