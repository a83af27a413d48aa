# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prints a failure with its evidence and hint, and maps it to an exit status."""

import os
from collections.abc import Callable
from dataclasses import replace

from kmodd import errors
from kmodd.cli.output.screen import Colors, Screen
from kmodd.cli.output.text import clean, hang, wrap
from kmodd.client.replies import about_user, held_by, hint_for
from kmodd.errors import Evidence, KmoddError, errno_name
from kmodd.names import is_module_name
from kmodd.suggestions import file_module

LABEL = 9
"""Columns of the label beside each piece of evidence."""


def report(error: KmoddError, screen: Screen, *, module: str, json: bool) -> int:
    """Show an error with its evidence; the exit status."""
    if not error.module and is_module_name(module):
        error.module = module
    meant = file_module(module)
    if isinstance(error, errors.InvalidArgs) and not error.evidence.hint and meant != module and is_module_name(meant):
        # Most methods take a name only, and do not look for what else it may be.
        error.evidence = replace(error.evidence, hint=f"did you mean {meant}?")
    if json:
        from json import dumps  # only with --json

        screen.tell(dumps(document(error), indent=2))
    else:
        screen.complain(lines(error, screen))
    return error.exit_code


def document(error: KmoddError) -> dict[str, object]:
    """The same as one JSON object, keys as on the bus."""
    evidence = error.evidence
    fields: dict[str, object] = {
        "error": error.name(),
        "title": error.title,
        "message": error.message,
        "exit-code": error.exit_code,
        "module": error.module,
        "kernel-log": list(evidence.kernel_log),
        "holders": list(evidence.holders),
        "users": [about_user(user) for user in held_by(evidence)],
        "policy": evidence.policy,
        "hint": hint_for(error, error.module),
    }
    more = {
        "argument": error.argument,
        "file": evidence.file,
        "line": evidence.line,
        "rule": evidence.rule,
        "rule-kind": evidence.rule_kind,
        "consequences": list(evidence.goes),
        "symbols": list(evidence.symbols),
        "parameter": evidence.parameter,
        "touched": list(error.touched),
    }
    fields |= {name: value for name, value in more.items() if value}
    if evidence.errno is not None:
        fields["errno"] = evidence.errno
    return fields


def lines(error: KmoddError, screen: Screen) -> list[str]:
    """The failure as text: a heading, the sentence, labelled evidence, and what to do."""
    paint = screen.error_paint
    name = clean(error.module)
    message = clean(error.message).strip()
    width = screen.fits(LABEL + 2) or 10_000
    titled = bool(name) and not isinstance(error, (errors.InvalidArgs, errors.Unavailable, errors.Failed))
    if titled:
        heading = f"{paint.bold('kmodctl:')} {paint.bold(name + ':')} {paint.bad(error.title)}"
        text = [heading, *(f"  {line}" for line in wrap(message, width + LABEL) if message)]
    else:
        text = [f"{paint.bold('kmodctl:')} {paint.bad(message or error.title)}"]
    facts = _facts(error.evidence, paint, width)
    if facts:
        text += ["", *facts]
    hint = clean(hint_for(error, error.module))
    if hint:
        text += [*([""] if facts else []), *_labelled("hint:", wrap(hint, width), paint.warn)]
    return text


def hint_lines(error: KmoddError | None, screen: Screen, *, indent: int) -> list[str]:
    """What to do about a failure, below the line that tells of it; nothing where there is nothing to add."""
    hint = clean(hint_for(error, error.module)) if error is not None else ""
    rows = wrap(f"hint: {hint}", screen.fits(indent) or 10_000) if hint else []
    return [f"{' ' * indent}{screen.paint.warn(row)}" for row in rows]


def _facts(evidence: Evidence, paint: Colors, width: int) -> list[str]:
    text: list[str] = []
    if evidence.errno:
        symbol = errno_name(evidence.errno)
        text += _labelled(
            "errno", [f"{paint.bold(symbol)} ({evidence.errno}): {os.strerror(evidence.errno)}"], paint.dim
        )
    if evidence.rule:
        text += _labelled("rule", [clean(evidence.policy)], paint.dim)
    elif evidence.file:
        place = f"{evidence.file}, line {evidence.line}" if evidence.line else evidence.file
        text += _labelled("file", [clean(place)], paint.dim)
    if evidence.symbols:
        text += _labelled("symbols", [clean(symbol) for symbol in evidence.symbols], paint.dim)
    if evidence.kernel_log:
        rows = [row for line in evidence.kernel_log for row in hang(clean(line), width)]
        text += _labelled("kernel", [paint.dim(row) for row in rows], paint.dim)
    if held := [(user.kind, user.name, user.detail) for user in held_by(evidence)]:
        text += _labelled("held by", users(held, paint), paint.dim)
    return text


def users(held: list[tuple[str, str, str]], paint: Colors) -> list[str]:
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
