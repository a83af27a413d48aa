# SPDX-License-Identifier: LGPL-2.1-or-later
"""A failure as an administrator wants it: what, why, the evidence, what to do. And the exit status that says so."""

import errno
import os
from collections.abc import Callable

from kmodd import errors
from kmodd.cli.hints import hint_for
from kmodd.cli.screen import Paint, Screen
from kmodd.cli.text import clean, hang, wrap
from kmodd.client import Client
from kmodd.errors import Evidence, KmoddError
from kmodd.model import Explanation
from kmodd.names import is_module_name

LABEL = 9
"""Columns of the label beside each piece of evidence."""
_NO_EVIDENCE = (
    errors.Unavailable,
    errors.InvalidArgs,
    errors.AccessDenied,
    errors.InteractiveAuthorizationRequired,
    errors.LimitsExceeded,
    errors.Failed,
)


async def report(error: KmoddError, client: Client | None, screen: Screen, *, module: str, json: bool) -> int:
    """Show an error with what `Explain` knows about it; the exit status."""
    if not error.module and is_module_name(module):
        error.module = module
    if client is not None and error.module and not isinstance(error, _NO_EVIDENCE):
        error.evidence = await gather(error, client)
    if json:
        from json import dumps  # only with --json

        screen.tell(dumps(document(error), indent=2))
    else:
        screen.complain(lines(error, screen))
    return error.exit_code


async def gather(error: KmoddError, client: Client) -> Evidence:
    """The error's evidence with what the daemon remembers. A failure to find more is no failure of its own."""
    try:
        if isinstance(error, errors.NoSuchModule):
            return await _similar(error, client)
        explanation = await client.explain(error.module)
    except KmoddError:
        return error.evidence
    return merge(error, explanation)


def merge(error: KmoddError, explanation: Explanation) -> Evidence:
    """Evidence for this error out of an explanation: the remembered failure only if it is this one."""
    own = error.evidence
    failure = explanation.failure
    # An earlier failure of the same kind is not this one; what was undone afterwards is told behind the sentence.
    same = failure is not None and failure.error == error.name() and error.message.startswith(failure.message)
    remembered = failure.evidence if failure is not None and same else Evidence()
    busy = isinstance(error, (errors.InUse, errors.NotRemovable))
    policy = explanation.policy if isinstance(error, errors.DisabledByPolicy) else ""
    return Evidence(
        errno=own.errno if own.errno is not None else remembered.errno,
        kernel_log=own.kernel_log or remembered.kernel_log,
        hint=own.hint or remembered.hint,
        holders=own.holders or (explanation.holders if busy else ()),
        users=own.users or (tuple((u.kind, u.name, u.detail) for u in explanation.users) if busy else ()),
        file=own.file,
        line=own.line,
        rule=own.rule or policy,
        symbols=own.symbols,
        parameter=own.parameter,
    )


async def _similar(error: KmoddError, client: Client) -> Evidence:
    from difflib import get_close_matches  # only for a name that was mistyped

    known = [module.name for module in await client.list_modules("all")]
    close = get_close_matches(error.module.replace("-", "_"), known, n=3, cutoff=0.7)
    return Evidence(hint=f"did you mean {' or '.join(close)}?") if close else error.evidence


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
        symbol = errno.errorcode.get(evidence.errno, "?")
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
