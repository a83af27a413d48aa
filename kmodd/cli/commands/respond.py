# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl respond`: answers a vulnerability; with --module and --dry-run, reports what every user may know about modules."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from kmodd.cli.commands import responses
from kmodd.cli.commands.surface import WHO
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, counted
from kmodd.cli.session import Session
from kmodd.client.replies import explanation
from kmodd.client.surface import AttackSurface, RouteRow, route_row
from kmodd.errors import Evidence, InvalidArgs, NoSuchModule
from kmodd.model import Explanation, State
from kmodd.model.surface import Reach
from kmodd.names import ModuleName, parse_module

USERS_MAX = 8
_COMMANDS = {"list": responses.run_list, "status": responses.run_status, "end": responses.run_end}
_STATES = {
    State.LIVE: "loaded",
    State.COMING: "being loaded",
    State.GOING: "being removed",
    State.BUILTIN: "part of the running kernel's image: no rule keeps it out",
}


@dataclass(frozen=True, slots=True)
class Assessment:
    """All that is known about one module."""

    module: ModuleName
    explained: Explanation
    data: dict[str, Any]
    kernels: dict[str, list[dict[str, Any]] | None]
    """Routes by kernel; None for one that does not have it as a module."""


async def run(session: Session, arguments: Namespace) -> int:
    """Answer a vulnerability, or list, assess or end responses."""
    target = arguments.target
    if target in _COMMANDS:
        if arguments.modules or arguments.dry_run or arguments.force_in_use or arguments.probe:
            raise InvalidArgs(f"respond {target} takes no options but --reason", argument="options")
        if target == "list" and arguments.id:
            raise InvalidArgs("respond list takes no ID", argument="id")
        if target == "end" and not arguments.id:
            raise InvalidArgs(
                "respond end needs the ID of a response", argument="id", evidence=Evidence(hint="kmodctl respond list")
            )
        return await _COMMANDS[target](session, arguments)
    if arguments.id:
        raise InvalidArgs("only respond status and respond end take an ID", argument="id")
    if not target and not arguments.modules:
        raise InvalidArgs("name a CVE, a file, or modules with --module", argument="id")
    if target or not arguments.dry_run:
        return await responses.run_respond(session, arguments)
    return await _run_assessment(session, arguments)


async def _run_assessment(session: Session, arguments: Namespace) -> int:
    """Assess each module, and change nothing."""
    surface = AttackSurface(session.client)
    kernels = (await surface.summary()).kernels
    assessments = [await _assess(session, surface, parse_module(name), kernels) for name in arguments.modules]
    if session.json:
        session.document([_document(each) for each in assessments])
        return 0
    lines: list[str] = []
    for each in assessments:
        lines += [*([""] if lines else []), *assessment_lines(each, session.screen)]
    session.screen.show(lines)
    return 0


async def _assess(session: Session, surface: AttackSurface, module: ModuleName, kernels: tuple[str, ...]) -> Assessment:
    data = await session.client.data("Explain", module)
    routes: dict[str, list[dict[str, Any]] | None] = {}
    for kernel in kernels:
        try:
            routes[kernel] = await surface.data("GetRoutes", module, options={"kernel": kernel})
        except NoSuchModule:
            routes[kernel] = None
    return Assessment(module, explanation(data), data, routes)


def _document(assessment: Assessment) -> dict[str, Any]:
    kept = ("state", "users", "holders", "references", "free")
    return {
        "module": assessment.module,
        **{name: assessment.data[name] for name in kept if name in assessment.data},
        "kernels": [
            {"kernel": kernel, "present": routes is not None, "reach": widest(routes).value, "routes": routes or []}
            for kernel, routes in assessment.kernels.items()
        ],
    }


def widest(routes: list[dict[str, Any]] | None) -> Reach:
    """The widest reach of the routes that are open."""
    reaches = (Reach(row["reach"]) for row in routes or () if row["open"])
    return min(reaches, key=lambda reach: reach.rank, default=Reach.NONE)


def assessment_lines(assessment: Assessment, screen: Screen) -> list[str]:
    """Who uses it now, which kernels have it, by which routes it is loaded, and the command that closes them."""
    paint, explained = screen.paint, assessment.explained
    text = [paint.bold(clean(assessment.module))]
    state = _STATES.get(explained.state, "not loaded")
    uses = [f"{clean(user.kind)} {clean(user.name)}" for user in explained.users]
    uses += [f"module {clean(holder)}" for holder in explained.holders]
    if uses:
        shown = ", ".join(uses[:USERS_MAX]) + (f" and {len(uses) - USERS_MAX} more" if len(uses) > USERS_MAX else "")
        text.append(f"  now: {paint.warn(state)}, used by {shown}")
        text.append(f"       kmodctl why {assessment.module}")
    elif explained.state is State.LIVE and (explained.references or explained.partial):
        why = explained.partial or "what uses it is not known"
        text.append(f"  now: {paint.warn(state)}, {counted(explained.references, 'reference')}: {clean(why)}")
    else:
        text.append(f"  now: {state}{', and nothing uses it' if explained.state is State.LIVE else ''}")
    for kernel, rows in assessment.kernels.items():
        if rows is None:
            text.append(f"  {clean(kernel)}: has no such module, or has it in its image")
            continue
        reach = widest(rows)
        routes = [route_row(row) for row in rows]
        text.append(f"  {clean(kernel)}: can be loaded by {_painted(reach, screen)}")
        text += [f"    {line}" for line in _listed(routes, screen)]
    if any(rows is not None and widest(rows) is not Reach.NONE for rows in assessment.kernels.values()):
        text.append(f"  to close all routes: {paint.name(f'kmodctl config blacklist --hard {assessment.module}')}")
    return text


def _painted(reach: Reach, screen: Screen) -> str:
    return screen.paint.good(WHO[reach]) if reach in (Reach.ROOT, Reach.NONE) else screen.paint.warn(WHO[reach])


def _listed(routes: list[RouteRow], screen: Screen) -> list[str]:
    opened = [row for row in routes if row.open and row.reach != Reach.ROOT]
    lines = [f"{clean(row.request)}{f' (for {clean(row.through)})' if row.through else ''}" for row in opened]
    closed = sum(not row.open for row in routes)
    return [*lines, *([screen.paint.dim(f"{counted(closed, 'route')} closed")] if closed else [])]
