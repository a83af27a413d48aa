# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl notify`: notification endpoints, the state of deliveries, and changes to endpoints."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import ago, clean, counted, moment, wrap
from kmodd.cli.session import Session
from kmodd.client.notifier import NotifierClient
from kmodd.client.replies import Fields
from kmodd.errors import InvalidArgs


async def run(session: Session, arguments: Namespace) -> int:
    """Show endpoints."""
    report = await NotifierClient(session.client.transport).status()
    if session.json:
        session.document(report if arguments.verb == "status" else report["endpoints"])
    elif arguments.verb == "status":
        session.screen.show(status(report, session.screen))
    else:
        session.screen.show(listing(report, session.screen))
    return 0


def listing(report: Mapping[str, Any], screen: Screen) -> list[str]:
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
    for row in map(Fields, report["endpoints"]):
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
    return render(screen, header, rows) if rows else ["No notification endpoints are configured; see notify.toml(5)."]


def status(report: Mapping[str, Any], screen: Screen) -> list[str]:
    """The notifier, then each endpoint with what is wrong with it."""
    paint, facts = screen.paint, Fields(report)
    trouble, bad = clean(facts.text("trouble")), clean(facts.text("configuration-error"))
    mark = paint.bad(screen.glyphs.full) if trouble or bad else paint.good(screen.glyphs.full)
    text = [f"{mark} {paint.bold('kmodd-notifier')}: {paint.bad(trouble) if trouble else 'watching'}"]
    position = facts.number("seen")
    text += [
        paint.dim(
            f"  {counted(facts.number('rules'), 'rule')}, watched until {moment(position) if position else 'now'}"
        )
    ]
    if bad:
        text += [
            paint.bad(f"  {line}")
            for line in wrap(f"previous configuration in effect: {bad}", screen.fits(2) or 10_000)
        ]
    for row in report["endpoints"]:
        text += ["", *_endpoint(Fields(row), screen)]
    return text if report["endpoints"] else [*text, "", "No notification endpoints are configured; see notify.toml(5)."]


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
    counts += [paint.bad(f"{row.number('refused')} of them rejected")] if row.number("refused") else []
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


URL_MAX = 4096


async def run_change(session: Session, arguments: Namespace) -> int:
    """Change something about notifications."""
    notifier = NotifierClient(session.client.transport, interactive=session.client.interactive)
    name = getattr(arguments, "name", "")
    why = session.asking(arguments)
    shown = clean(name)
    session.authorize()
    match arguments.verb:
        case "add":
            return await _add(session, notifier, arguments)
        case "test":
            message = await notifier.test(name, why)
            _say(
                session, {"endpoint": name, "id": message}, f"{shown}: a test message was queued, with the id {message}"
            )
        case "remove":
            await notifier.remove(name, why)
            _say(session, {"endpoint": name}, f"{shown} was removed")
        case "reload":
            await notifier.reload(why)
            _say(session, {}, "notify.toml was reloaded")
        case verb:
            await notifier.set_enabled(name, enabled=verb == "enable", options=why)
            _say(session, {"endpoint": name, "enabled": verb == "enable"}, f"{shown} is {verb}d")
    return 0


async def _add(session: Session, notifier: NotifierClient, arguments: Namespace) -> int:
    rule = {
        "events": arguments.event,
        "errors": arguments.error,
        "modules": arguments.glob,
        "uids": arguments.uid,
        "severity": arguments.severity,
    }
    options: dict[str, object] = {key: value for key, value in rule.items() if value}
    options.update(session.asking(arguments))
    webhook = {"format": arguments.format}
    email = {"digest": arguments.digest, "per-hour": arguments.per_hour}
    targets = list(arguments.target)
    if targets == ["-"]:
        # A chat service's URL is a secret: it has no place in an argument list that everyone can read.
        targets = [session.screen.stdin.readline(URL_MAX).strip()]
    is_webhook = len(targets) == 1 and "://" in targets[0]
    for key, value in (email if is_webhook else webhook).items():
        if value is not None:
            raise InvalidArgs(f"--{key} is not for {'a webhook' if is_webhook else 'mail'}")
    options |= {key: value for key, value in (webhook if is_webhook else email).items() if value is not None}
    shown = clean(arguments.name)
    if is_webhook:
        key = await notifier.add_webhook(arguments.name, targets[0], options)
        text = (
            f"{shown} was added. Its messages are signed; the receiver needs this key, which is not shown again:\n{key}"
        )
        _say(session, {"endpoint": arguments.name, "key": key}, text)
    else:
        await notifier.add_email(arguments.name, targets, options)
        _say(session, {"endpoint": arguments.name}, f"{shown} was added")
    return 0


def _say(session: Session, document: dict[str, object], text: str) -> None:
    if session.json:
        session.document(document)
    else:
        session.screen.tell(text)
