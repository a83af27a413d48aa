# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl surface`: which modules can be loaded by whom, and by which route, and which attempts a rule refused."""

import asyncio
from argparse import Namespace
from collections.abc import Sequence

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, counted, moment, parse_since, user_name
from kmodd.cli.session import Session
from kmodd.client.surface import (
    AttackSurface,
    ExposedModule,
    RefusedRow,
    RouteRow,
    Summary,
    exposed_module,
    refused_row,
    route_row,
    summary,
)
from kmodd.model.surface import Reach
from kmodd.names import parse_module
from kmodd.patterns import is_pattern

TOP = 20
"""Modules that are listed below the numbers."""
WHO = {
    Reach.UNPRIVILEGED: "any user",
    Reach.USERNS: "any user who makes a user namespace",
    Reach.DEVICE: "users who may open a device node",
    Reach.HARDWARE: "devices that are plugged in",
    Reach.ROOT: "root only",
    Reach.NONE: "no one",
}
SETTLE = 0.2
"""Seconds the journal is given to have the record of what a signal tells."""


async def run(session: Session, arguments: Namespace) -> int:
    """Report the surface: in numbers, as a list, or of one module."""
    surface = AttackSurface(session.client)
    kernel = {"kernel": arguments.kernel} if arguments.kernel else {}
    text = arguments.module
    if text and not is_pattern(text):
        data = await surface.data("GetRoutes", parse_module(text), options=kernel)
        if session.json:
            session.document(data)
        else:
            session.screen.show(route_lines([route_row(row) for row in data], session.screen))
        return 0
    options = kernel | {name: value for name, value in (("reach", arguments.reach), ("match", text)) if value}
    narrowed = len(options) > len(kernel)
    numbers = None if narrowed else await surface.data("GetSummary", options=kernel)
    limit = arguments.limit or (0 if narrowed or session.json else TOP)
    listed = await surface.data("Get", options=options | ({"limit": limit} if limit else {}))
    if session.json:
        session.document(listed if numbers is None else {**numbers, "modules": listed})
        return 0
    lines = summary_lines(summary(numbers), session.screen) if numbers is not None else []
    session.screen.show([*lines, *module_lines([exposed_module(row) for row in listed], session.screen)])
    return 0


def summary_lines(report: Summary, screen: Screen) -> list[str]:
    """The numbers, and the settings that decide."""
    paint = screen.paint
    others = [clean(kernel) for kernel in report.kernels if kernel != report.kernel]
    text = [
        f"{paint.bold(clean(report.kernel))}{'' if report.running else ', not running'}"
        + (paint.dim(f" (also installed: {' '.join(others)})") if others else "")
    ]
    rows = [[str(report.counts[reach]), WHO[reach], reach.value] for reach in Reach]
    text += render(screen, [Column("MODULES", right=True), Column("CAN BE LOADED BY"), Column("REACH")], rows)
    text.append("")
    for guard in report.guards:
        if guard.closes or guard.unread or guard.unusual:
            mark = paint.good if guard.closes else paint.warn
            text.append(f"{mark(clean(guard.name))} = {clean(guard.value) or paint.dim('none')}: {clean(guard.says)}")
    text += [paint.warn(f"cannot be read: {clean(each)}") for each in report.unreadable]
    if not report.nodes_known:
        text.append(paint.warn("the modes of device nodes cannot be read: their routes count as open"))
    return [*text, ""] if text[-1] else text


def module_lines(modules: Sequence[ExposedModule], screen: Screen) -> list[str]:
    """The table of modules."""
    if not modules:
        return ["No modules."] if screen.stdout.isatty() else []
    paint = screen.paint
    header = [
        Column("MODULE", paint=paint.name),
        Column("REACH"),
        Column("LOADED"),
        Column("ROUTES", right=True),
        Column("WIDEST ROUTE", stretch=True),
    ]
    rows = [
        [
            clean(row.module),
            clean(row.reach),
            "yes" if row.loaded else "",
            str(row.routes),
            clean(row.request) + (f" (for {clean(row.through)})" if row.through else ""),
        ]
        for row in modules
    ]
    table = render(screen, header, rows)
    return [*table, "", paint.dim(counted(len(modules), "module"))] if screen.stdout.isatty() else table


def route_lines(routes: Sequence[RouteRow], screen: Screen) -> list[str]:
    """The routes to one module, each with what closes it."""
    paint = screen.paint
    text = []
    for row in routes:
        state = paint.warn("open  ") if row.open else paint.good("closed")
        through = f" for {clean(row.through)}, which needs it" if row.through else ""
        more = f" and {row.more} more" if row.more else ""
        text.append(f"{state}  {clean(row.request)}{more}{through}: {paint.dim(clean(row.way))}")
        if row.closed_by:
            text.append(f"        {clean(row.closed_by)}")
        if row.command:
            text.append(f"        {paint.warn('runs a command')}: {clean(row.rule)} ({clean(row.file)}:{row.line})")
    return text


async def run_refused(session: Session, arguments: Namespace) -> int:
    """List the attempts, and with `--follow` those that come."""
    surface = AttackSurface(session.client)
    options = {"since": parse_since(arguments.since, session.screen.now())} if arguments.since else {}
    session.authorize()
    if not arguments.follow:
        data = await surface.data("GetRefused", options=options)
        if session.json:
            session.document(data)
        else:
            session.screen.show(
                refused_lines([refused_row(row) for row in data], session.screen) or ["No refused attempts."]
            )
        return 0
    async with session.client.signals() as stream:  # before reading, so that nothing falls between
        shown = await _tell_refused(session, surface, options.get("since", 0))
        session.client.interactive = False  # one prompt is enough, not one for each event
        async for signal in stream:
            if signal.member == "HistoryChanged":
                await asyncio.sleep(SETTLE)
                shown = await _tell_refused(session, surface, shown)
    return 0


async def _tell_refused(session: Session, surface: AttackSurface, since: int) -> int:
    """Show the attempts from a time on, the oldest first; answers from when on to read the next time."""
    data = await surface.data("GetRefused", options={"since": since} if since else {})
    for row in reversed(data):
        attempts = refused_row(row)
        since = max(since, attempts.last + 1)
        if session.json:
            session.json_line(row)
        else:
            for text in refused_lines([attempts], session.screen):
                session.screen.tell(text)
    return since


def refused_lines(rows: Sequence[RefusedRow], screen: Screen) -> list[str]:
    """For each attempt when, how often, by whom, what, and below it the rule and what allows it."""
    paint = screen.paint
    text = []
    for row in rows:
        program = clean(row.exe or row.comm) or "a process that has ended"
        where = f"container {clean(row.container[:12])}" if row.container else clean(row.unit)
        user = user_name(row.uid) if row.uid is not None else "a user who is not known"
        place = ", ".join(part for part in (user, where) if part)
        modules = " ".join(map(clean, row.modules))
        often = f"{counted(row.count, 'attempt')}, first {moment(row.first)}" if row.count > 1 else "1 attempt"
        text.append(
            f"{paint.dim(moment(row.last))} {program} ({place}): {clean(row.alias)}, {paint.name(modules)}; {often}"
        )
        if row.file:
            line = f":{row.line}" if row.line else ""
            response = f", {clean(row.response)}" if row.response else ""
            text.append(f"    refused by {clean(row.file)}{line}{response}")
        if row.allow:
            text.append(f"    to allow it: {paint.name(clean(row.allow))}")
    return text
