# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl notify add`, `remove`, `enable`, `disable`, `test` and `reload`."""

from argparse import Namespace

from kmodd.cli.session import Session
from kmodd.cli.text import clean
from kmodd.client_notifier import NotifierClient
from kmodd.errors import InvalidArgs

URL_MAX = 4096


async def run(session: Session, arguments: Namespace) -> int:
    """Change something about notifications."""
    notifier = NotifierClient(session.client.transport, interactive=session.client.interactive)
    name = getattr(arguments, "name", "")
    shown = clean(name)
    session.authorize()
    match arguments.verb:
        case "add":
            return await _add(session, notifier, arguments)
        case "test":
            message = await notifier.test(name)
            _say(session, {"endpoint": name, "id": message}, f"{shown}: a test is on its way, with the id {message}")
        case "remove":
            await notifier.remove(name)
            _say(session, {"endpoint": name}, f"{shown} is removed")
        case "reload":
            await notifier.reload()
            _say(session, {}, "notify.toml was read again")
        case verb:
            await notifier.set_enabled(name, enabled=verb == "enable")
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
            f"{shown} is added. Its messages are signed; the receiver needs this key, which is not shown again:\n{key}"
        )
        _say(session, {"endpoint": arguments.name, "key": key}, text)
    else:
        await notifier.add_email(arguments.name, targets, options)
        _say(session, {"endpoint": arguments.name}, f"{shown} is added")
    return 0


def _say(session: Session, document: dict[str, object], text: str) -> None:
    if session.json:
        session.document(document)
    else:
        session.screen.tell(text)
