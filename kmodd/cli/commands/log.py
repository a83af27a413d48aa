# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl log`: the history from the journal, and new records as they arrive; `kmodctl monitor`: the daemon's signals."""

import asyncio
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, duration, hang, moment, parse_since, user_name
from kmodd.cli.session import Session
from kmodd.client import JOB, NAME, OBJECTS, PROPERTIES, Signal, SignalStream
from kmodd.client.replies import history_entry
from kmodd.errors import AccessDenied, InteractiveAuthorizationRequired, InvalidArgs
from kmodd.model import HistoryEntry, Record, Result
from kmodd.names import parse_module, unescape_label

SETTLE = 0.2
"""Seconds the journal is given to have the record of what a signal tells."""
LINES_MAX = 1000
_WARNINGS = ("module.unsigned",)
"""No failure, but it deserves attention."""
_REQUESTS = ("module.requested", "module.refused")
_WORTH_TELLING = ("ModuleAdded", "ModuleRemoved", "JobFinished")
_WORTH_READING = (*_WORTH_TELLING, "HistoryChanged")


async def run_monitor(session: Session, arguments: Namespace) -> int:
    """Show signals until interrupted."""
    async with session.client.signals() as stream:
        await session.client.properties()  # starts the daemon, or says that it cannot be
        async for signal in stream:
            if session.json:
                session.json_line(signal_document(signal, session.screen.now()))
            else:
                text = signal_line(signal, session.screen.now(), session.screen)
                if text:
                    session.screen.tell(text)
    return 0


def signal_document(signal: Signal, now: int) -> dict[str, object]:
    """A signal as one JSON object."""
    return {
        "time": now,
        "path": signal.path,
        "interface": signal.interface,
        "signal": signal.member,
        "arguments": list(signal.arguments),
    }


def signal_line(signal: Signal, now: int, screen: Screen) -> str:
    """A signal as a line; empty for one that says nothing a person needs (an object that comes with its module)."""
    text = _words(signal, screen)
    stamp = datetime.fromtimestamp(now / 1_000_000, tz=UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    return f"{screen.paint.dim(stamp)} {text}" if text else ""


def _words(signal: Signal, screen: Screen) -> str:
    paint, glyphs = screen.paint, screen.glyphs
    match signal.member, signal.arguments:
        case "ModuleAdded", (name,):
            return f"{paint.good('+')} module {paint.name(clean(name))} is live"
        case "ModuleRemoved", (name,):
            return f"{paint.warn('-')} module {paint.name(clean(name))} is gone"
        case "JobFinished", (job, action, module, result):
            good = result == "done"
            mark = paint.good(glyphs.yes) if good else paint.bad(glyphs.no)
            outcome = paint.good(result) if good else paint.bad(clean(result))
            return f"{mark} job {_last(job)}: {clean(action)} {clean(module)}: {outcome}"
        case "InterfacesAdded", (path, interfaces) if signal.interface == OBJECTS and JOB in interfaces:
            job = interfaces[JOB]
            return f"{paint.dim(glyphs.arrow)} job {_last(path)}: {clean(str(job.get('Action')))} {clean(str(job.get('Module')))}"
        case "PropertiesChanged", (interface, changed, _) if signal.interface == PROPERTIES and changed:
            facts = ", ".join(f"{name}={_value(value)}" for name, value in changed.items())
            return f"{paint.dim(glyphs.same)} {_subject(signal.path, interface)}: {clean(facts)}"
        case "NameOwnerChanged", (name, old, new) if name == NAME:
            if not new:
                return paint.bad(f"{glyphs.no} kmodd disconnected from the bus")
            return paint.good(f"{glyphs.yes} kmodd {'was replaced' if old else 'is on the bus'}")
        case _:
            return ""


def _subject(path: str, interface: str) -> str:
    kind = interface.rsplit(".", 1)[-1].lower()
    return kind if kind == "manager" else f"{kind} {_last(path)}"


def _last(path: object) -> str:
    label = str(path).rsplit("/", 1)[-1]
    try:
        return clean(unescape_label(label))
    except ValueError:
        return clean(label)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0%}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


async def run(session: Session, arguments: Namespace) -> int:
    """Show history, and with `--follow` what comes."""
    if not 1 <= arguments.lines <= LINES_MAX:
        raise InvalidArgs(f"--lines is 1 to {LINES_MAX}")
    options: dict[str, object] = {"limit": arguments.lines}
    if arguments.module:
        options["module"] = parse_module(arguments.module)
    if arguments.since:
        options["since"] = parse_since(arguments.since, session.screen.now())
    if arguments.requests:
        options["requests"] = True
    if not arguments.follow:
        session.authorize()
        data = await session.client.data("GetHistory", options=options)
        if session.json:
            session.document(data)
        else:
            session.screen.show(_text(data, session.screen) or ["No records."])
        return 0
    async with session.client.signals() as stream:  # before reading, so that nothing falls between
        await _follow(session, stream, options)
    return 0


async def _follow(session: Session, stream: SignalStream, options: dict[str, object]) -> None:
    session.authorize()
    try:
        data = await session.client.data("GetHistory", options=options)
    except (AccessDenied, InteractiveAuthorizationRequired) as error:
        note = session.screen.error_paint.warn("note:")
        session.screen.complain([f"{note} {clean(error.message)}; showing only new records"])
        await _follow_signals(session, stream, str(options.get("module", "")))
        return
    session.client.interactive = False  # one prompt is enough, not one for each event
    options["limit"] = LINES_MAX  # --lines is about what was before
    shown = _tell(session, data, 0)
    async for signal in stream:
        if signal.member not in _WORTH_READING:
            continue
        await asyncio.sleep(SETTLE)
        options["since"] = shown + 1
        try:
            data = await session.client.data("GetHistory", options=options)
        except (AccessDenied, InteractiveAuthorizationRequired):
            # The permission was for once (polkit's auth_admin), or was withdrawn.
            if signal.member in _WORTH_TELLING:
                _tell_signal(session, signal)
            await _follow_signals(session, stream, str(options.get("module", "")))
            return
        shown = _tell(session, data, shown)


async def _follow_signals(session: Session, stream: SignalStream, module: str) -> None:
    async for signal in stream:
        if signal.member in _WORTH_TELLING and (not module or module in signal.arguments):
            _tell_signal(session, signal)


def _tell_signal(session: Session, signal: Signal) -> None:
    if session.json:
        session.json_line(signal_document(signal, session.screen.now()))
    else:
        session.screen.tell(signal_line(signal, session.screen.now(), session.screen))


def _tell(session: Session, data: Sequence[Mapping[str, Any]], shown: int) -> int:
    for row in data:
        if session.json:
            session.json_line(row)
        else:
            for text in lines(history_entry(row), session.screen):
                session.screen.tell(text)
        shown = max(shown, history_entry(row).time)
    return shown


def _text(data: Sequence[Mapping[str, Any]], screen: Screen) -> list[str]:
    return [text for row in data for text in lines(history_entry(row), screen)]


def _who(record: Record) -> str:
    # For all others it is a path: what the daemon does for the desired state has no caller.
    if record.exe == "kmodd":
        return "kmodd itself"
    if record.login_uid in (None, record.uid):
        return user_name(record.uid)
    return f"{user_name(record.uid)}, logged in as {user_name(record.login_uid)}"


def lines(entry: HistoryEntry, screen: Screen) -> list[str]:
    """A record as text: when, what, by whom, and beneath it the reason and the evidence."""
    paint, record = screen.paint, entry.record
    failed = record.event not in _REQUESTS and (bool(record.error) or record.result in (Result.FAILED, "denied"))
    mark = paint.good(screen.glyphs.yes) if record.action else paint.dim(screen.glyphs.arrow)
    if failed:
        mark = paint.bad(screen.glyphs.no)
    elif record.result == Result.ROLLED_BACK:
        mark = paint.warn(screen.glyphs.undone)
    elif record.event in (*_WARNINGS, "module.refused"):
        mark = paint.warn(screen.glyphs.warning)
    when = paint.dim(moment(entry.time))
    message = clean(record.message or record.event)
    # The message of a request names the process; it does not follow that its user did anything.
    by = "for" if record.event in _REQUESTS else "by"
    author = "" if record.uid is None else paint.dim(f"  {by} {_who(record)}")
    behalf = paint.dim(f" for {clean(record.on_behalf_of)}") if record.on_behalf_of else ""
    took = paint.dim(f", {duration(record.duration_usec)}") if record.duration_usec else ""
    text = [f"{when} {mark} {message}{author}{behalf}{took}"]
    width = screen.fits(22) or 10_000
    rows = hang(f"reason: {clean(record.reason)}", width) if record.reason else []
    for line in record.kernel_log:
        rows += [paint.dim(row) for row in hang(f"kernel: {clean(line)}", width)]
    if record.hint and failed:
        rows += hang(f"hint: {clean(record.hint)}", width)
    return [*text, *(f"{' ' * 22}{row}" for row in rows)]
