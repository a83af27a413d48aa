# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl monitor`: the daemon's signals as they arrive."""

from argparse import Namespace
from datetime import UTC, datetime

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean
from kmodd.cli.session import Session
from kmodd.client import JOB, NAME, OBJECTS, PROPERTIES, Signal
from kmodd.names import unescape_label


async def run(session: Session, arguments: Namespace) -> int:
    """Show signals until interrupted."""
    async with session.client.signals() as stream:
        await session.client.properties()  # starts the daemon, or says that it cannot be
        async for signal in stream:
            if session.json:
                session.json_line(document(signal, session.screen.now()))
            else:
                text = line(signal, session.screen.now(), session.screen)
                if text:
                    session.screen.tell(text)
    return 0


def document(signal: Signal, now: int) -> dict[str, object]:
    """A signal as one JSON object."""
    return {
        "time": now,
        "path": signal.path,
        "interface": signal.interface,
        "signal": signal.member,
        "arguments": list(signal.arguments),
    }


def line(signal: Signal, now: int, screen: Screen) -> str:
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
