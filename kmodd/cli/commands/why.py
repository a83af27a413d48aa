# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl why`: state of a module, why it is loaded or not, what uses it, and how to load or unload it."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from kmodd.cli.commands.surface import route_lines
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import holder_lines, holders_of
from kmodd.cli.output.text import ago, clean, columns, counted, hang, moment, shorten, user_name, wrap
from kmodd.cli.session import Session
from kmodd.client.replies import error_named, explanation
from kmodd.client.surface import AttackSurface, RouteRow, route_row
from kmodd.errors import KmoddError
from kmodd.fast_dataclass import dataclass
from kmodd.model import Explanation, State
from kmodd.model.rules import ManagedFile
from kmodd.model.surface import Reach
from kmodd.names import parse_module

LABEL = 14
ROUTES_MAX = 8
"""Routes that are listed; `kmodctl surface` has all of them."""
_UNKNOWN_MAX = 4
"""Uses that are named as those without a command."""
_STATES = {
    State.LIVE: "loaded",
    State.COMING: "being loaded, not finished yet",
    State.GOING: "being removed, not finished yet",
    State.BUILTIN: "built into the kernel",
    State.AVAILABLE: "not loaded",
    State.ABSENT: "this kernel has no such module",
    State.DISABLED: "not loaded, and disabled by policy",
}

USERS = "users"
_PARTS = {
    USERS: "details of other users' processes",
    "consequences": "interfaces in other network namespaces",
    "loaded-by": "who loaded it and why",
    "kernel-log": "the kernel's log",
}


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do: a command to copy, or words where there is none."""

    command: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """All that `why` tells about one module."""

    explained: Explanation
    description: str
    holders: Mapping[str, Explanation]
    now: int
    inspected: bool = False
    """Full disclosure was requested."""
    routes: tuple[RouteRow, ...] = ()
    """By which it can be loaded; empty where that is not known."""


async def run(session: Session, arguments: Namespace) -> int:
    """Explain one module."""
    name = parse_module(arguments.module)
    if arguments.inspect:
        session.authorize()
    data = await session.client.data("Explain", name, prompt=arguments.inspect)
    explained = explanation(data)
    holders = await holders_of(explained, session.client)
    routes = await _routes(session, explained)
    if session.json:
        session.document(data | ({"routes": routes} if routes else {}))
    else:
        description = await _description(session, explained)
        answer = Answer(
            explained, description, holders, session.screen.now(), arguments.inspect, tuple(map(route_row, routes))
        )
        session.screen.show(lines(answer, session.screen))
    if explained.state is State.ABSENT:
        return error_named("NoSuchModule", "").exit_code
    return 0


async def _routes(session: Session, explained: Explanation) -> list[dict[str, Any]]:
    if explained.state in (State.ABSENT, State.BUILTIN):
        return []
    try:
        rows: list[dict[str, Any]] = await AttackSurface(session.client).data("GetRoutes", explained.name)
    except KmoddError:
        return []  # it is loaded from elsewhere than the module tree; the explanation stands without
    return rows


async def _description(session: Session, explained: Explanation) -> str:
    if explained.state is State.ABSENT:
        return ""
    try:
        return (await session.client.describe(explained.name)).description
    except KmoddError:
        return ""  # its file may be damaged or gone; that must not hide what is known of it


def lines(answer: Answer, screen: Screen) -> list[str]:
    """The answer as text."""
    explained, paint = answer.explained, screen.paint
    title = paint.bold(clean(explained.name))
    if answer.description:
        room = screen.fits(columns(explained.name) + 5)
        about = clean(answer.description)
        about = shorten(about, room, screen.glyphs.ellipsis) if room else about
        title += f" {screen.glyphs.dash} {about}"
    text = [f"{_dot(explained, screen)} {title}", *_field("State", [_state(explained, screen)], screen)]
    if explained.file:
        text += _field("File", [f"{clean(explained.file)} holds the module {clean(explained.name)}"], screen)
    if explained.differs:
        difference = f"not the loaded one: {clean(explained.differs)}; reload it to use the file"
        text += _field("On disk", wrap(difference, screen.fits(LABEL + 4) or 200), screen)
    text += _origin(answer, screen)
    text += _failure(answer, screen)
    held = holder_lines(explained, answer.holders, screen)
    if held:
        text += _field("Held by", held, screen)
    if explained.withheld:
        text += _field("Withheld", wrap(_withheld(answer), screen.fits(LABEL + 4) or 200), screen)
    if explained.state is State.LIVE:
        text += _removal(answer, screen)
    elif explained.state in (State.AVAILABLE, State.DISABLED):
        text += _loading(explained, screen)
    elif explained.state in (State.COMING, State.GOING):
        text += _field("What to do", _stuck(explained), screen)
    elif explained.state is State.BUILTIN:
        text += _field("Can be removed", ["no: it is part of the kernel image"], screen)
    else:
        if explained.blockers:
            text += _field("Can be loaded", _refusal(explained.blockers, screen.fits(LABEL + 4) or 200, screen), screen)
        text += _field(
            "What to do", _commands([Advice(f"kmodctl list --state all '*{clean(explained.name)}*'")], screen), screen
        )
    return text + _reach(answer, screen)


def _reach(answer: Answer, screen: Screen) -> list[str]:
    """Who can have it loaded: the routes that users have, open and closed; root has its name."""
    routes = [route for route in answer.routes if route.reach != Reach.ROOT]
    if not answer.routes:
        return []
    shown = route_lines(routes[:ROUTES_MAX], screen)
    if len(routes) > ROUTES_MAX:
        shown.append(screen.paint.dim(f"{len(routes) - ROUTES_MAX} more: kmodctl surface {answer.explained.name}"))
    return _field("Routes", shown or ["none: root alone loads it, by name"], screen)


def _withheld(answer: Answer) -> str:
    explained = answer.explained
    parts = [_PARTS.get(part, part) for part in explained.withheld]
    what = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    hint = "polkit does not authorize you" if answer.inspected else f"kmodctl why --inspect {explained.name}"
    return f"{clean(what)}: {hint}"


def _dot(explained: Explanation, screen: Screen) -> str:
    glyphs, paint = screen.glyphs, screen.paint
    if explained.failure is not None and explained.failure.stuck:
        return paint.bad(glyphs.full)
    if explained.state in (State.LIVE, State.BUILTIN):
        return paint.good(glyphs.full)
    if explained.state in (State.COMING, State.GOING):
        return paint.warn(glyphs.full)
    return paint.bad(glyphs.no) if explained.state in (State.ABSENT, State.DISABLED) else paint.dim(glyphs.empty)


def _state(explained: Explanation, screen: Screen) -> str:
    text = _STATES[explained.state]
    if explained.state is not State.LIVE:
        return text
    if explained.references < 0:
        return f"{screen.paint.good(text)}; this kernel cannot unload modules"
    return f"{screen.paint.good(text)}, {counted(explained.references, 'reference')}"


def _origin(answer: Answer, screen: Screen) -> list[str]:
    explained = answer.explained
    text: list[str] = []
    if explained.loaded_by is not None:
        by = explained.loaded_by
        user = user_name(by.uid)
        client = f" with {clean(by.client)}" if by.client else ""
        when = f", {moment(by.time)} ({ago(by.time, answer.now)})" if by.time else ""
        text += _field("Loaded by", [f"{user}{client}{when}"], screen)
        if by.reason:
            text += _field("Reason", [clean(by.reason)], screen)
    if explained.because:
        text += _field("Because", wrap(clean(explained.because), screen.fits(LABEL + 4) or 200), screen)
    elif explained.loaded_by is None and explained.state is State.LIVE:
        text += _field(
            "Loaded by",
            [screen.paint.dim("not by kmodd: it was loaded before kmodd started, or by another program")],
            screen,
        )
    return text


def _failure(answer: Answer, screen: Screen) -> list[str]:
    failure, paint = answer.explained.failure, screen.paint
    if failure is None:
        return []
    error = error_named(failure.error, failure.message)
    width = screen.fits(LABEL + 4) or 200
    when = f", {ago(failure.time, answer.now)}" if failure.time else ""
    rows = [f"{clean(failure.action)}: {paint.bad(error.title)} ({clean(failure.error)}){when}"]
    rows += wrap(clean(failure.message), width)
    for line in failure.evidence.kernel_log:
        rows += [paint.dim(row) for row in hang(f"kernel: {clean(line)}", width)]
    if failure.evidence.hint:
        rows += wrap(f"hint: {clean(failure.evidence.hint)}", width)
    return _field("Last failure", rows, screen)


def _removal(answer: Answer, screen: Screen) -> list[str]:
    explained, paint = answer.explained, screen.paint
    if explained.removable:
        yes = [paint.good("yes")]
        return [
            *_field("Can be removed", yes, screen),
            *_goes(explained, screen),
            *_field("To remove it", _freeing(explained, screen), screen),
        ]
    width = screen.fits(LABEL + 4) or 200
    text = _goes(explained, screen) + _field("Can be removed", _refusal(explained.blockers, width, screen), screen)
    if explained.partial:
        text += _field("Search", wrap(f"incomplete: {clean(explained.partial)}", width), screen)
    # Commands for some of the users would look like commands for all of them.
    return text if USERS in explained.withheld else text + _field("To remove it", _freeing(explained, screen), screen)


def _goes(explained: Explanation, screen: Screen) -> list[str]:
    width = screen.fits(LABEL + 4) or 200
    return _field("Goes with it", [line for text in explained.goes for line in hang(clean(text), width)], screen)


def _freeing(explained: Explanation, screen: Screen) -> list[str]:
    """The commands that end every use and unload it, as the daemon made them."""
    steps = [Advice(command) for command in explained.free]
    return _commands(steps or [Advice(words=_unknown(explained))], screen)


def _unknown(explained: Explanation) -> str:
    """What to know where kmodd has no commands: that does not mean that there are none."""
    unknown = [user.name for user in explained.users if not user.command and user.kind not in ("module", "kernel")]
    if unknown:
        more = ", …" if len(unknown) > _UNKNOWN_MAX else ""
        return f"kmodd knows no command that ends the use by {', '.join(map(clean, unknown[:_UNKNOWN_MAX]))}{more}"
    if any(user.kind == "kernel" for user in explained.users):
        return "kmodd knows no command: what it examined, and what the use may be, is above"
    return "end the uses above first"


def _loading(explained: Explanation, screen: Screen) -> list[str]:
    paint = screen.paint
    if explained.loadable and explained.state is State.AVAILABLE:
        load = [Advice(f"kmodctl load {explained.name}")]
        return [
            *_field("Can be loaded", [f"{paint.good('yes')}, according to files and rules"], screen),
            *_field("To load it", _commands(load, screen), screen),
        ]
    width = screen.fits(LABEL + 4) or 200
    text = _field("Can be loaded", _refusal(explained.blockers, width, screen), screen)
    if explained.policy:
        text += _field("Rule", [clean(explained.policy)], screen)
        advice = _unblock(explained)
        text += _field("To load it", _commands(advice, screen), screen)
    return text


def _refusal(blockers: tuple[str, ...], width: int, screen: Screen) -> list[str]:
    reasons = [line for blocker in blockers for line in wrap(clean(blocker), width - 4)]
    no = screen.paint.warn("no")
    return [f"{no}: {reasons[0]}", *(f"    {line}" for line in reasons[1:])] if reasons else [no]


def _unblock(explained: Explanation) -> list[Advice]:
    rule = explained.rule
    if rule is None:
        return []
    if rule.kind == "module_blacklist":
        return [Advice(words="remove it from module_blacklist= on the kernel command line and reboot")]
    ours = rule.file == ManagedFile.BLACKLIST
    where = f"line {rule.line} of {rule.file}"
    steps = [Advice(f"kmodctl config blacklist {explained.name} --off") if ours else Advice(words=f"remove {where}")]
    if rule.kind == "blacklist":
        steps.append(Advice(f"kmodctl load {explained.name} --override-policy --reason '...'", "or, once"))
    return steps


def _stuck(explained: Explanation) -> list[str]:
    if explained.failure is not None and explained.failure.error == "Crashed":
        return ["plan a reboot: nothing else removes what is left of it; everything else keeps working until then"]
    if explained.failure is not None and explained.failure.stuck:
        return [
            "the call into the kernel does not return; everything else keeps working",
            f"kmodctl reset-failed {explained.name} once the call has returned; only a reboot forces it",
        ]
    return ["wait a moment and try again"]


def _commands(advice: list[Advice], screen: Screen) -> list[str]:
    text = []
    for step in advice:
        if step.command:
            note = screen.paint.dim(f"   # {clean(step.words)}") if step.words else ""
            text.append(f"{screen.paint.name(clean(step.command))}{note}")
        else:
            text.append(clean(step.words))
    return text


def _field(label: str, values: list[str], screen: Screen) -> list[str]:
    head = f"{label:>{LABEL + 1}}: "
    return [f"{screen.paint.dim(head) if n == 0 else ' ' * len(head)}{value}" for n, value in enumerate(values)]
