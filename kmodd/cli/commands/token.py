# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl token`: the gateway's tokens.

The only command that works on a file and not over D-Bus: root writes the token file, the gateway reads it, and the daemon
has no access to it.
"""

import grp
import pwd
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kmodd import tokens
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, parse_span
from kmodd.errors import AccessDenied, Conflict, Evidence, InvalidArgs, NotPermitted
from kmodd.tokens import Token, TokenFile

if TYPE_CHECKING:
    from collections.abc import Callable


def run_local(screen: Screen, arguments: Namespace) -> int:
    """Create, list or revoke. The file is given by --file, or is the one the gateway reads."""
    path = Path(arguments.file) if arguments.file else tokens.TOKENS
    file = TokenFile(path, _group)
    steps: dict[str, Callable[[Screen, TokenFile, Namespace], None]] = {
        "create": create,
        "list": show,
        "revoke": revoke,
    }
    try:
        steps[arguments.verb](screen, file, arguments)
    except PermissionError:
        raise AccessDenied("only root may read and write the gateway's tokens") from None
    except OSError as error:
        raise NotPermitted(f"cannot use {path}: {error.strerror}") from error
    return 0


def create(screen: Screen, file: TokenFile, arguments: Namespace) -> None:
    """Make a token and print it, once."""
    scopes = _words(arguments.scope)
    now, span = screen.now() // 1_000_000, parse_span(arguments.expires)
    uid = _uid(arguments.user) if arguments.user else None
    made, text = tokens.make(arguments.name, scopes, _words(arguments.module), now, span, uid)
    with file.changing() as stored:
        if any(token.name == made.name for token in stored.values()):
            raise Conflict(f"a token named {made.name} already exists", evidence=Evidence(hint="revoke it first"))
        stored[made.id] = made
    if arguments.json:
        _document(screen, {**_row(made), "token": text})
        return
    screen.tell(text)
    note = f"scopes {' '.join(made.scopes)}, expires {_day(made.expires)}; the token is not shown again"
    screen.complain([screen.error_paint.dim(note)])


def show(screen: Screen, file: TokenFile, arguments: Namespace) -> None:
    """List what is known of each token."""
    now = screen.now() // 1_000_000
    tokens = sorted(file.read().values(), key=lambda token: token.created)
    if arguments.json:
        _document(screen, [{**_row(token), "expired": token.expires <= now} for token in tokens])
        return
    header = [
        Column("ID", paint=screen.paint.name),
        Column("NAME"),
        Column("EXPIRES"),
        Column("USER"),
        Column("SCOPES"),
        Column("MODULES", stretch=True),
    ]
    rows = [
        [
            token.id,
            clean(token.name),
            "expired" if token.expires <= now else _day(token.expires),
            "any" if token.uid is None else _user(token.uid),
            " ".join(token.scopes),
            " ".join(token.modules) or "all",
        ]
        for token in tokens
    ]
    screen.show(render(screen, header, rows) if rows else ["No tokens."])


def revoke(screen: Screen, file: TokenFile, arguments: Namespace) -> None:
    """Forget a token by its id or name; it counts no more from this moment."""
    with file.changing() as tokens:
        revoked = [token for token in tokens.values() if arguments.token in (token.id, token.name)]
        if not revoked:
            raise InvalidArgs("no token has this id or name", evidence=Evidence(hint="kmodctl token list shows them"))
        for token in revoked:
            del tokens[token.id]
    if arguments.json:
        _document(screen, [_row(token) for token in revoked])
    else:
        screen.tell("\n".join(f"{token.name} ({token.id}) was revoked" for token in revoked))


def _uid(name: str) -> int:
    try:
        return int(name) if name.isascii() and name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise InvalidArgs(f"no such user: {clean(name)}", argument="user") from None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _words(lists: list[str]) -> list[str]:
    return [word for text in lists for word in text.replace(",", " ").split()]


def _group() -> int | None:
    try:
        return grp.getgrnam(tokens.GROUP).gr_gid
    except KeyError:  # the gateway is not installed here
        return None


def _row(token: Token) -> dict[str, object]:
    return {name: getattr(token, name) for name in Token.__slots__ if name != "digest"}


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _document(screen: Screen, value: object) -> None:
    from json import dumps  # only with --json

    screen.tell(dumps(value, indent=2))
