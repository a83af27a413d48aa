# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl respond`: answers a vulnerability; with --module and --dry-run, reports what every user may know about modules."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmodd.cli import probe
from kmodd.cli.arguments import ExitCode
from kmodd.cli.commands.surface import WHO
from kmodd.cli.cve_record import read_file
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, counted, moment
from kmodd.cli.session import Session
from kmodd.client.replies import explanation
from kmodd.client.surface import (
    AttackSurface,
    KernelRow,
    Outcome,
    ResponseRow,
    RouteRow,
    UseRow,
    outcome,
    response_row,
    route_row,
)
from kmodd.errors import Evidence, InvalidArgs, NoSuchModule, NoSuchResponse
from kmodd.fast_dataclass import dataclass
from kmodd.model import Explanation, State
from kmodd.model.surface import Reach
from kmodd.names import ModuleName, parse_module

_STATES = {
    State.LIVE: "loaded",
    State.COMING: "being loaded",
    State.GOING: "being removed",
    State.BUILTIN: "part of the running kernel's image: no rule keeps it out",
}
SHOWN_MAX = 8
_CONCERNED = ("affected", "unknown")
_INDENT = "  "


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
        return await run_respond(session, arguments)
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
        shown = ", ".join(uses[:SHOWN_MAX]) + (f" and {len(uses) - SHOWN_MAX} more" if len(uses) > SHOWN_MAX else "")
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


async def run_respond(session: Session, arguments: Namespace) -> int:
    """Answer a vulnerability."""
    key, options = _request(arguments)
    surface = AttackSurface(session.client)
    session.authorize()
    data = await surface.data("Respond", key, options=options | dict(session.asking(arguments)))
    result = outcome(data)
    attempts = await _probed(surface, result) if arguments.probe else []
    if session.json:
        session.document({**data, "attempts": [asdict(attempt) for attempt in attempts]} if arguments.probe else data)
    else:
        text = outcome_lines(result, session.screen)
        session.screen.show([*text, *(attempt_lines(attempts, session.screen) if arguments.probe else ())])
    return _status(result, attempts)


def _request(arguments: Namespace) -> tuple[str, dict[str, object]]:
    """The arguments of `Respond`."""
    options: dict[str, object] = {"modules": list(arguments.modules)} if arguments.modules else {}
    if arguments.dry_run:
        options["dry-run"] = True
    if arguments.force_in_use:
        options["force-in-use"] = True
    target = arguments.target
    if not target or (target.startswith("CVE-") and "/" not in target and not target.endswith(".json")):
        return target, options
    record = read_file(Path(target))
    options |= {"files": list(record.files[:64]), "fixed": list(record.fixed[:64])}
    if len(record.files) > 64 or len(record.fixed) > 64:
        raise InvalidArgs("the record has more than 64 source files or versions", argument="id")
    if record.unaffected_from:
        options["unaffected-from"] = record.unaffected_from
    if record.unaffected_before:
        options["unaffected-before"] = record.unaffected_before
    return record.id, options


def _status(result: Outcome, attempts: list[probe.Attempt]) -> int:
    if any(attempt.loaded for attempt in attempts):
        return ExitCode.DIFFERS
    if result.stage == "in-use":
        return ExitCode.IN_THE_WAY
    concerned = any(kernel.verdict in _CONCERNED for kernel in result.kernels)
    return ExitCode.DIFFERS if concerned and not result.proven else ExitCode.OK


async def _probed(surface: AttackSurface, result: Outcome) -> list[probe.Attempt]:
    """Try one request of each kind for each module that is not loaded, where all are closed already."""
    requests: dict[tuple[str, str], str] = {}
    running = next((kernel for kernel in result.kernels if kernel.running), None)
    if running is None or result.stage == "in-use" or not running.blocked:
        return []
    for use in result.uses:
        if use.loaded or running.placements.get(use.module) != "file":
            continue
        for route in await surface.routes(use.module):
            if not route.through and probe.attempt_of(route.request) is not None:
                requests.setdefault((use.module, route.kind), route.request)
    return probe.probe([(module, request) for (module, _), request in requests.items()])


def outcome_lines(result: Outcome, screen: Screen) -> list[str]:
    """The kernels, what uses the modules, what was done, and what is left to do."""
    paint = screen.paint
    title = f" {clean(result.title)}" if result.title else ""
    text = [f"{paint.bold(clean(result.id))}{title}: {paint.name(' '.join(map(clean, result.modules)))}"]
    text += [line for kernel in result.kernels for line in _kernel_lines(kernel, result, screen)]
    text += [line for use in result.uses for line in _use_lines(use, result, screen)]
    if not result.history_known:
        text.append(paint.warn("the journal cannot be read: what was loaded before is not known"))
    if result.breaks and result.stage != "responded":
        text.append(f"what breaks: {clean(result.breaks)}")
    text += [
        f"{clean(file)} is part of the kernel image, or of a module that is not known" for file in result.image_files
    ]
    text += [paint.good(f"{clean(module)} is unloaded") for module in result.unloaded]
    text += [
        paint.warn(f"{clean(module)} is still loaded: {clean(why)}") for module, why in result.still_loaded.items()
    ]
    text.append(_conclusion(result, screen))
    return text


def _conclusion(result: Outcome, screen: Screen) -> str:
    paint = screen.paint
    if not any(kernel.verdict in _CONCERNED for kernel in result.kernels):
        return paint.good("no installed kernel is affected")
    if result.stage == "in-use":
        return paint.warn("nothing was changed, since something uses it; to keep it out all the same: --force-in-use")
    requests = sum(kernel.requests for kernel in result.kernels if kernel.verdict in _CONCERNED)
    if result.proven:
        return paint.good(f"proven: {counted(requests, 'request')} resolved, and none loads the modules")
    if result.stage == "assessed":
        return paint.warn("not kept out")
    return paint.bad("not proven: see above")


def _kernel_lines(kernel: KernelRow, result: Outcome, screen: Screen) -> list[str]:
    paint = screen.paint
    mark = paint.warn if kernel.verdict in _CONCERNED else paint.good
    version = f" ({clean(kernel.version)})" if kernel.version else ""
    running = ", running" if kernel.running else ""
    text = [
        f"{_INDENT}{clean(kernel.kernel)}{version}{running}: {mark(clean(kernel.verdict))}, {clean(kernel.because)}"
    ]
    if kernel.verdict not in _CONCERNED:
        return text
    for module, place in kernel.placements.items():
        if place == "builtin":
            initcalls = ",".join(map(clean, result.initcalls))
            way = f": boot with initcall_blacklist={initcalls}" if initcalls else ""
            text.append(paint.warn(f"{_INDENT * 2}{clean(module)} is part of its image, and no rule keeps it out{way}"))
    for module, requests in kernel.open_requests.items():
        shown = ", ".join(map(clean, requests[:SHOWN_MAX])) + (" …" if len(requests) > SHOWN_MAX else "")
        text.append(paint.warn(f"{_INDENT * 2}open: {clean(module)} is loaded for {shown}"))
    if kernel.dependents:
        shown = ", ".join(map(clean, kernel.dependents[:SHOWN_MAX])) + (
            " …" if len(kernel.dependents) > SHOWN_MAX else ""
        )
        text.append(f"{_INDENT * 2}cannot be loaded without: {shown}")
    if kernel.initramfs:
        name = clean(kernel.kernel)
        held = ", ".join(map(clean, kernel.initramfs))
        text.append(paint.warn(f"{_INDENT * 2}its initramfs has {held}: update-initramfs -u -k {name}"))
    return text


def _use_lines(use: UseRow, result: Outcome, screen: Screen) -> list[str]:
    paint, name = screen.paint, clean(use.module)
    uses = [*map(clean, use.users), *(f"module {clean(holder)}" for holder in use.holders)]
    past = f"; loaded {counted(use.loads, 'time')} in 90 days, last {moment(use.last_load)}" if use.loads else ""
    if use.builtin:
        state = "part of the running kernel's image"
    elif not use.loaded:
        state = "not loaded"
    elif uses:
        shown = ", ".join(uses[:SHOWN_MAX]) + (f" and {len(uses) - SHOWN_MAX} more" if len(uses) > SHOWN_MAX else "")
        state = paint.warn(f"in use by {shown}")
    elif use.in_use:
        state = paint.warn(f"in use, {counted(use.references, 'reference')}: kmodctl why {name}")
    else:
        state = "loaded, and nothing uses it"
    text = [f"{_INDENT}{paint.name(name)}: {state}{past}"]
    if use.in_use and (result.stage == "in-use" or use.module in result.still_loaded):
        text += [f"{_INDENT * 2}{clean(command)}" for command in use.free]
    text += [paint.warn(f"{_INDENT * 2}{clean(line)} loads it at boot, which fails then") for line in use.autoload]
    return text


def attempt_lines(attempts: list[probe.Attempt], screen: Screen) -> list[str]:
    """What came of the attempts."""
    if not attempts:
        return ["tried: nothing, for no safe attempt is known"]
    paint = screen.paint
    return [
        paint.bad(f"tried without any right: {clean(each.request)} loaded {clean(each.module)}")
        if each.loaded
        else paint.good(f"tried without any right: {clean(each.request)}, refused")
        for each in attempts
    ]


async def run_list(session: Session, arguments: Namespace) -> int:
    """List the responses."""
    del arguments
    data = await AttackSurface(session.client).data("GetResponses")
    if session.json:
        session.document(data)
    else:
        session.screen.show(response_lines([response_row(row) for row in data], session.screen))
    return ExitCode.OK


def response_lines(responses: list[ResponseRow], screen: Screen) -> list[str]:
    """The table of responses."""
    if not responses:
        return ["No responses."] if screen.stdout.isatty() else []
    header = [
        Column("RESPONSE", paint=screen.paint.name),
        Column("MODULES"),
        Column("BEGUN"),
        Column("ENDS", stretch=True),
    ]
    rows = [
        [
            clean(row.id),
            " ".join(map(clean, row.modules)),
            moment(row.begun),
            f"with {', '.join(map(clean, row.fixed))}" if row.fixed else "by kmodctl respond end",
        ]
        for row in responses
    ]
    return render(screen, header, rows)


async def run_status(session: Session, arguments: Namespace) -> int:
    """Assess responses again: whether each still keeps its modules out."""
    surface = AttackSurface(session.client)
    kept = [row for row in await surface.data("GetResponses") if arguments.id in ("", row["id"])]
    if arguments.id and not kept:
        raise NoSuchResponse(f"there is no response {arguments.id}", evidence=Evidence(hint="kmodctl respond list"))
    session.authorize()
    documents: list[dict[str, Any]] = []
    for row in kept:
        named = ("modules", "fixed", "unaffected-from", "unaffected-before")
        options = {name: row[name] for name in named if row.get(name)}
        key = "" if row["id"].startswith("module:") else row["id"]
        documents.append(await surface.data("Respond", key, options=options | {"dry-run": True}))
    results = [outcome(document) for document in documents]
    if session.json:
        session.document(documents)
    else:
        session.screen.show([line for result in results for line in outcome_lines(result, session.screen)])
    return max((_status(result, []) for result in results), default=int(ExitCode.OK))


async def run_end(session: Session, arguments: Namespace) -> int:
    """End a response."""
    session.authorize()
    surface = AttackSurface(session.client)
    removed = await surface.data("EndResponse", arguments.id, options=dict(session.asking(arguments)))
    if session.json:
        session.document(removed)
        return ExitCode.OK
    rules = (
        f"the rules about {', '.join(map(clean, removed))} are removed" if removed else "it had no rule left to remove"
    )
    session.screen.tell(f"{clean(arguments.id)} has ended: {rules}")
    return ExitCode.OK


_COMMANDS = {"list": run_list, "status": run_status, "end": run_end}
