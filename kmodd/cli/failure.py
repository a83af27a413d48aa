# SPDX-License-Identifier: LGPL-2.1-or-later
"""A failure as an administrator wants it: what, why, the evidence, what to do. And the exit status that says so."""

import os
from collections.abc import Callable

from kmodd import errors
from kmodd.cli.screen import Paint, Screen
from kmodd.cli.text import clean, hang, wrap
from kmodd.client import Client
from kmodd.client_evidence import explicable, gather
from kmodd.client_hints import hint_for
from kmodd.errors import Evidence, KmoddError, errno_name
from kmodd.names import is_module_name

LABEL = 9
"""Columns of the label beside each piece of evidence."""


async def report(error: KmoddError, client: Client | None, screen: Screen, *, module: str, json: bool) -> int:
    """Show an error with what `Explain` knows about it; the exit status."""
    if not error.module and is_module_name(module):
        error.module = module
    if client is not None and explicable(error):
        error.evidence = await gather(error, client)
    if json:
        from json import dumps  # only with --json

        screen.tell(dumps(document(error), indent=2))
    else:
        screen.complain(lines(error, screen))
    return error.exit_code


def document(error: KmoddError) -> dict[str, object]:
    """The same as one JSON object, keys as on the bus."""
    evidence = error.evidence
    found: dict[str, object] = {
        "error": error.name(),
        "title": error.title,
        "message": error.message,
        "exit-code": error.exit_code,
        "module": error.module,
        "kernel-log": list(evidence.kernel_log),
        "holders": list(evidence.holders),
        "users": [list(user) for user in evidence.users],
        "policy": evidence.rule,
        "hint": hint_for(error, error.module),
    }
    if evidence.errno is not None:
        found["errno"] = evidence.errno
    return found


def lines(error: KmoddError, screen: Screen) -> list[str]:
    """The failure as text: a heading, the sentence, labelled evidence, and what to do."""
    paint = screen.error_paint
    name = clean(error.module)
    message = clean(error.message).strip()
    width = screen.fits(LABEL + 2) or 10_000
    titled = bool(name) and not isinstance(error, (errors.InvalidArgs, errors.Unavailable, errors.Failed))
    if titled:
        heading = f"{paint.bold('kmodctl:')} {paint.bold(name + ':')} {paint.bad(error.title)}"
        text = [heading, *(f"  {line}" for line in wrap(message, width + LABEL) if _says_more(message, error, name))]
    else:
        text = [f"{paint.bold('kmodctl:')} {paint.bad(message or error.title)}"]
    facts = _facts(error.evidence, paint, width)
    if facts:
        text += ["", *facts]
    hint = clean(hint_for(error, error.module))
    if hint:
        text += [*([""] if facts else []), *_labelled("hint:", wrap(hint, width), paint.warn)]
    return text


def _says_more(message: str, error: KmoddError, name: str) -> bool:
    bare = message.lower().rstrip(".").replace(name.lower(), "").strip(" :")
    return bare not in ("", error.title.lower(), error.title.lower().removeprefix("module "))


def _facts(evidence: Evidence, paint: Paint, width: int) -> list[str]:
    text: list[str] = []
    if evidence.errno:
        symbol = errno_name(evidence.errno)
        text += _labelled(
            "errno", [f"{paint.bold(symbol)} ({evidence.errno}): {os.strerror(evidence.errno)}"], paint.dim
        )
    if evidence.rule:
        text += _labelled("rule", [clean(evidence.rule)], paint.dim)
    if evidence.symbols:
        text += _labelled("symbols", [clean(symbol) for symbol in evidence.symbols], paint.dim)
    if evidence.kernel_log:
        rows = [row for line in evidence.kernel_log for row in hang(clean(line), width)]
        text += _labelled("kernel", [paint.dim(row) for row in rows], paint.dim)
    held = [*evidence.users]
    named = {name for kind, name, _ in held if kind == "module"}
    held = [*(("module", holder, "") for holder in evidence.holders if holder not in named), *held]
    if held:
        text += _labelled("held by", users(held, paint), paint.dim)
    return text


def users(held: list[tuple[str, str, str]], paint: Paint) -> list[str]:
    """What holds a module, as aligned rows."""
    first = max(len(kind) for kind, _, _ in held)
    second = max(len(clean(name)) for _, name, _ in held)
    return [
        f"{kind:<{first}}  {paint.name(clean(name))}{' ' * (second - len(clean(name)))}  {clean(detail)}".rstrip()
        for kind, name, detail in held
    ]


def _labelled(label: str, values: list[str], paint: Callable[[str], str]) -> list[str]:
    painted = paint(f"{label:<{LABEL}}")
    return [f"  {painted if n == 0 else ' ' * LABEL}{value}" for n, value in enumerate(values)]
