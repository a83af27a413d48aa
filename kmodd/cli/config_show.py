# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config show`."""

from argparse import Namespace
from collections.abc import Sequence
from itertools import groupby

from kmodd.cli.screen import Screen
from kmodd.cli.session import Session
from kmodd.cli.text import clean, columns, counted, hang
from kmodd.client_configuration import Configuration, shown_rule
from kmodd.model.configuration import Finding, ShownRule

_INDENT = 6


async def run(session: Session, arguments: Namespace) -> int:
    """Show the rules there are."""
    data = await Configuration(session.client).data("Show")
    module = arguments.module.replace("-", "_")
    kept = [
        row
        for row in data
        if (not module or row.get("module") == module) and (not arguments.findings or row.get("findings"))
    ]
    if session.json:
        session.document(kept)
    else:
        session.screen.show(lines([shown_rule(row) for row in kept], session.screen))
    return 0


def lines(rules: Sequence[ShownRule], screen: Screen) -> list[str]:
    """The rules file by file, each with its line, what keeps it from being in force, and what is wrong with it."""
    if not rules:
        return ["No rules."] if screen.stdout.isatty() else []
    paint = screen.paint
    text: list[str] = []
    for file, group in groupby(rules, key=lambda one: one.rule.file):
        own = list(group)
        mark = paint.good("  written by kmodd") if own[0].ours else ""
        masks = paint.dim(f"  masks {' '.join(map(clean, own[0].masks))}") if own[0].masks else ""
        text += [*([""] if text else []), f"{paint.bold(clean(file))}{mark}{masks}"]
        width = max(columns(_words(one)) for one in own)
        # A module with many lines of one kind has the same said about each of them.
        for findings, alike in groupby(own, key=lambda one: one.findings):
            text += [line for one in alike if (line := _rule(one, screen, width))]
            text += _findings(findings, screen)
    if screen.stdout.isatty():
        found = sum(len(one.findings) for one in rules)
        text += ["", paint.dim(f"{counted(len(rules), 'rule')}, {counted(found, 'finding')}")]
    return text


def _rule(one: ShownRule, screen: Screen, width: int) -> str:
    """One line of a file; empty for what is told about the whole file."""
    if one.rule.kind == "finding":
        return ""
    paint = screen.paint
    words = _words(one)
    shadow = ""
    if one.shadowed_by:
        padding = " " * (width - columns(words))
        words = paint.dim(words)
        shadow = f"{padding}  {paint.warn(f'not in force: {clean(one.shadowed_by)}')}"
    return f"{one.rule.line:>4}  {words}{shadow}".rstrip()


def _findings(findings: Sequence[Finding], screen: Screen) -> list[str]:
    text = []
    room = (screen.fits(_INDENT + 2) or 10_000) - 2
    for finding in findings:
        first, *rest = hang(clean(finding.message), room)
        text.append(f"{' ' * _INDENT}{screen.paint.warn(screen.glyphs.no)} {first}")
        text += [f"{' ' * _INDENT}  {line}" for line in rest]
    return text


def _words(one: ShownRule) -> str:
    value = one.rule.value if one.public else "(for root only)"
    return clean(f"{one.rule.kind} {one.rule.module} {value}".rstrip())
