# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl why`: what a module is, why it is there, what holds it, and what to do about it."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass

from kmodd.cli import tree
from kmodd.cli.advice import Advice, to_remove
from kmodd.cli.screen import Screen
from kmodd.cli.session import Session
from kmodd.cli.text import ago, clean, columns, counted, hang, moment, shorten, wrap
from kmodd.cli.who import user_name
from kmodd.client_answers import error_named, explanation
from kmodd.errors import KmoddError
from kmodd.model import Explanation, State
from kmodd.model.configuration import OwnFile
from kmodd.names import parse_module

LABEL = 14
_STATES = {
    State.LIVE: "loaded",
    State.COMING: "being loaded: the kernel has not finished",
    State.GOING: "being removed: the kernel has not finished",
    State.BUILTIN: "built into the kernel",
    State.AVAILABLE: "not loaded",
    State.ABSENT: "this kernel has no such module",
    State.DISABLED: "not loaded, and disabled by policy",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """All that `why` tells about one module."""

    found: Explanation
    description: str
    holders: Mapping[str, Explanation]
    now: int


async def run(session: Session, arguments: Namespace) -> int:
    """Explain one module."""
    name = parse_module(arguments.module)
    data = await session.client.data("Explain", name)
    found = explanation(data)
    holders = await tree.holders_of(found, session.client)
    advice = to_remove(found, holders)
    if session.json:
        session.document({**data, "to-remove": [{"command": step.command, "note": step.words} for step in advice]})
    else:
        description = await _description(session, found)
        session.screen.show(lines(Answer(found, description, holders, session.screen.now()), session.screen))
    if found.state is State.ABSENT:
        return error_named("NoSuchModule", "").exit_code
    return 0


async def _description(session: Session, found: Explanation) -> str:
    if found.state is State.ABSENT:
        return ""
    try:
        return (await session.client.describe(found.name)).description
    except KmoddError:
        return ""  # its file may be damaged or gone; that must not hide what is known of it


def lines(answer: Answer, screen: Screen) -> list[str]:
    """The answer as text."""
    found, paint = answer.found, screen.paint
    title = paint.bold(clean(found.name))
    if answer.description:
        room = screen.fits(columns(found.name) + 5)
        about = clean(answer.description)
        about = shorten(about, room, screen.glyphs.ellipsis) if room else about
        title += f" {screen.glyphs.dash} {about}"
    text = [f"{_dot(found, screen)} {title}", *_field("State", [_state(found, screen)], screen)]
    text += _origin(answer, screen)
    text += _failure(answer, screen)
    held = tree.lines(found, answer.holders, screen)
    if held:
        text += _field("Held by", held, screen)
    if found.state is State.LIVE:
        text += _removal(answer, screen)
    elif found.state in (State.AVAILABLE, State.DISABLED):
        text += _loading(found, screen)
    elif found.state in (State.COMING, State.GOING):
        text += _field("What to do", _stuck(found), screen)
    elif found.state is State.BUILTIN:
        text += _field("Can be removed", ["no: it is part of the kernel image"], screen)
    else:
        text += _field(
            "What to do", _commands([Advice(f"kmodctl list --state all '*{clean(found.name)}*'")], screen), screen
        )
    return text


def _dot(found: Explanation, screen: Screen) -> str:
    glyphs, paint = screen.glyphs, screen.paint
    if found.failure is not None and found.failure.stuck:
        return paint.bad(glyphs.full)
    if found.state in (State.LIVE, State.BUILTIN):
        return paint.good(glyphs.full)
    if found.state in (State.COMING, State.GOING):
        return paint.warn(glyphs.full)
    return paint.bad(glyphs.no) if found.state in (State.ABSENT, State.DISABLED) else paint.dim(glyphs.empty)


def _state(found: Explanation, screen: Screen) -> str:
    text = _STATES[found.state]
    if found.state is not State.LIVE:
        return text
    if found.references < 0:
        return f"{screen.paint.good(text)}; this kernel cannot remove modules"
    return f"{screen.paint.good(text)}, {counted(found.references, 'reference')}"


def _origin(answer: Answer, screen: Screen) -> list[str]:
    found = answer.found
    text: list[str] = []
    if found.loaded_by is not None:
        by = found.loaded_by
        who = user_name(by.uid)
        client = f" with {clean(by.client)}" if by.client else ""
        when = f", {moment(by.time)} ({ago(by.time, answer.now)})" if by.time else ""
        text += _field("Loaded by", [f"{who}{client}{when}"], screen)
        if by.reason:
            text += _field("Reason", [clean(by.reason)], screen)
    if found.because:
        text += _field("Because", wrap(clean(found.because), screen.fits(LABEL + 4) or 200), screen)
    elif found.loaded_by is None and found.state is State.LIVE:
        text += _field(
            "Loaded by", [screen.paint.dim("not by kmodd: it was there before, or something else loaded it")], screen
        )
    return text


def _failure(answer: Answer, screen: Screen) -> list[str]:
    failure, paint = answer.found.failure, screen.paint
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
    found, paint = answer.found, screen.paint
    if found.removable:
        yes = [paint.good("yes")]
        return [
            *_field("Can be removed", yes, screen),
            *_field("To remove it", _commands([Advice(f"kmodctl unload {found.name}")], screen), screen),
        ]
    width = screen.fits(LABEL + 4) or 200
    text = _field("Can be removed", _refusal(found.blockers, width, screen), screen)
    advice = to_remove(found, answer.holders)
    if advice:
        text += _field("To remove it", _commands(advice, screen), screen)
    return text


def _loading(found: Explanation, screen: Screen) -> list[str]:
    paint = screen.paint
    if found.loadable and found.state is State.AVAILABLE:
        load = [Advice(f"kmodctl load {found.name}")]
        return [
            *_field("Can be loaded", [f"{paint.good('yes')}, as far as files and rules say"], screen),
            *_field("To load it", _commands(load, screen), screen),
        ]
    width = screen.fits(LABEL + 4) or 200
    text = _field("Can be loaded", _refusal(found.blockers, width, screen), screen)
    if found.policy:
        text += _field("Rule", [clean(found.policy)], screen)
        advice = _unblock(found)
        text += _field("To load it", _commands(advice, screen), screen)
    return text


def _refusal(blockers: tuple[str, ...], width: int, screen: Screen) -> list[str]:
    reasons = [line for blocker in blockers for line in wrap(clean(blocker), width - 4)]
    no = screen.paint.warn("no")
    return [f"{no}: {reasons[0]}", *(f"    {line}" for line in reasons[1:])] if reasons else [no]


def _unblock(found: Explanation) -> list[Advice]:
    file, _, rest = found.policy.partition(":")
    line, _, rule = rest.partition(":")
    if "module_blacklist" in found.policy:
        return [Advice(words="take it out of module_blacklist= on the kernel command line and reboot")]
    where = f"line {line} of {file}" if line.isdigit() else file
    ours = file == OwnFile.BLACKLIST
    steps = [Advice(f"kmodctl config blacklist {found.name} --off") if ours else Advice(words=f"remove {where}")]
    if rule.strip().startswith("blacklist"):
        steps.append(Advice(f"kmodctl load {found.name} --override-policy --reason '...'", "or, once"))
    return steps


def _stuck(found: Explanation) -> list[str]:
    if found.failure is not None and found.failure.error == "Crashed":
        return ["plan a reboot: nothing else removes what is left of it; everything else keeps working meanwhile"]
    if found.failure is not None and found.failure.stuck:
        return [
            "the call into the kernel does not come back; everything else keeps working",
            f"kmodctl reset-failed {found.name} once the kernel let go; only a reboot forces it",
        ]
    return ["wait a moment and ask again"]


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
