# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config`: module rules, the desired state, and drift; and the command that refreshes the initramfs."""

import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from kmodd.cli import failure
from kmodd.cli.commands import batch
from kmodd.cli.commands.batch import progress_shown
from kmodd.cli.commands.module import parse_pairs
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, columns, counted, hang, parse_span
from kmodd.cli.session import Session, confirm_disconnect, is_remote_terminal
from kmodd.client.configuration import Configuration, drift, shown_rule
from kmodd.client.replies import operation_result
from kmodd.errors import AccessDenied, Conflict, Evidence, InvalidArgs, KmoddError
from kmodd.model import HealthStatus, OperationResult, Result
from kmodd.model.rules import Drift, Finding, ManagedFile, Severity, ShownRule
from kmodd.names import BATCH_MAX, is_module_name

if TYPE_CHECKING:
    from kmodd.client import Operation


_INDENT = 6
INITRAMFS = "initramfs"
"""Kind of the row in `GetDrift` that has the command."""
_RELEASE = r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}"
_REFRESH_COMMANDS = (
    ("update-initramfs", "-u", "-k", _RELEASE),
    ("dracut", "-f", rf"/boot/initr[a-z.-]+{_RELEASE}", _RELEASE),
)
"""What each word has to be."""
_REFRESH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def run_show(session: Session, arguments: Namespace) -> int:
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
    """The rules file by file, each with its line, what keeps it from taking effect, and its findings."""
    if not rules:
        return ["No rules."] if screen.stdout.isatty() else []
    paint = screen.paint
    text: list[str] = []
    for file, group in groupby(rules, key=lambda shown: shown.rule.file):
        own = list(group)
        mark = paint.good("  written by kmodd") if own[0].ours else ""
        masks = paint.dim(f"  masks {' '.join(map(clean, own[0].masks))}") if own[0].masks else ""
        text += [*([""] if text else []), f"{paint.bold(clean(file))}{mark}{masks}"]
        width = max(columns(_words(shown)) for shown in own)
        # Many lines of one kind about a module have the same finding each.
        for findings, alike in groupby(own, key=_said):
            text += [line for each in alike if (line := _rule(each, screen, width))]
            text += _findings(findings, screen)
    if screen.stdout.isatty():
        count = sum(len(shown.findings) for shown in rules)
        text += ["", paint.dim(f"{counted(len(rules), 'rule')}, {counted(count, 'finding')}")]
    return text


def _said(shown: ShownRule) -> tuple[Finding, ...]:
    return tuple(replace(finding, line=0) for finding in shown.findings)


def _rule(shown: ShownRule, screen: Screen, width: int) -> str:
    """One line of a file; empty for a finding about the whole file."""
    if shown.rule.kind == "finding":
        return ""
    paint = screen.paint
    words = _words(shown)
    shadow = ""
    if shown.shadowed_by:
        padding = " " * (width - columns(words))
        words = paint.dim(words)
        shadow = f"{padding}  {paint.warn(f'not in effect: {clean(shown.shadowed_by)}')}"
    return f"{shown.rule.line:>4}  {words}{shadow}".rstrip()


def _findings(findings: Sequence[Finding], screen: Screen) -> list[str]:
    text = []
    room = (screen.fits(_INDENT + 2) or 10_000) - 2
    for finding in findings:
        first, *rest = hang(clean(finding.message), room)
        note = finding.severity is Severity.NOTE
        mark = screen.paint.dim(screen.glyphs.warning) if note else screen.paint.warn(screen.glyphs.no)
        text.append(f"{' ' * _INDENT}{mark} {first}")
        text += [f"{' ' * _INDENT}  {line}" for line in rest]
        if finding.instead:
            text.append(f"{' ' * _INDENT}  write instead:")
        for replacement in finding.instead:
            elsewhere = f"   in {clean(replacement.file)}" if replacement.file != finding.file else ""
            text.append(f"{' ' * _INDENT}    {screen.paint.good(clean(replacement.text))}{screen.paint.dim(elsewhere)}")
    return text


def _words(shown: ShownRule) -> str:
    value = shown.rule.value if shown.public else "(for root only)"
    return clean(f"{shown.rule.kind} {shown.rule.module} {value}".rstrip())


_FILES = {"autoload": ManagedFile.AUTOLOAD, "options": ManagedFile.OPTIONS, "blacklist": ManagedFile.BLACKLIST}


async def run_change(session: Session, arguments: Namespace) -> int:
    """Change one of kmodd's own files."""
    member, values, options = _request(arguments)
    if arguments.reason:
        options["reason"] = arguments.reason
    if arguments.dry_run:
        options["dry-run"] = True
    configuration = Configuration(session.client)
    session.authorize()
    await configuration.data(member, *values, options=options)
    if session.json:
        session.document({"module": arguments.module, "action": arguments.verb, "dry-run": arguments.dry_run})
    else:
        session.screen.tell(_sentence(session, arguments))
    return 0


def _request(arguments: Namespace) -> tuple[str, tuple[object, ...], dict[str, object]]:
    """(member, arguments, options); InvalidArgs for what makes no sense together."""
    module, off = arguments.module, arguments.off
    if arguments.verb == "blacklist":
        return "SetBlacklisted", (module, not off), {"hard": True} if arguments.hard else {}
    parameters = parse_pairs(arguments.parameters)
    if off and parameters:
        raise InvalidArgs("--off takes no parameters", argument="parameters")
    if arguments.verb == "autoload":
        return "SetAutoload", (module, not off, parameters), {}
    if not parameters and not off:
        raise InvalidArgs(
            "the parameters are missing",
            evidence=Evidence(hint=f"kmodctl config options {clean(module)} --off removes the existing ones"),
        )
    return "SetOptions", (module, parameters), {}


def _sentence(session: Session, arguments: Namespace) -> str:
    paint, glyphs = session.screen.paint, session.screen.glyphs
    module, file = paint.name(clean(arguments.module)), _FILES[arguments.verb]
    if arguments.verb == "autoload":
        what = "is no longer loaded at boot by" if arguments.off else "is loaded at boot by"
    elif arguments.verb == "options":
        what = "has no options in" if arguments.off else "has its options in"
    else:
        hard = " hard" if arguments.hard else ""
        what = "is no longer blacklisted by" if arguments.off else f"is blacklisted{hard} by"
    verdict = " (dry run, nothing was changed)" if arguments.dry_run else ""
    return f"{paint.good(glyphs.yes)} {module} {what} {file}{paint.dim(verdict)}"


async def run_drift(session: Session, _: Namespace) -> int:
    """Show the drift from the desired state."""
    data = await Configuration(session.client).data("GetDrift")
    if session.json:
        session.document(data)
    else:
        for check in (await session.client.health()).checks:
            if check.name == "settings" and check.status is not HealthStatus.OK:
                session.screen.complain([f"{session.screen.error_paint.warn('note:')} {clean(check.message)}"])
        session.screen.show(drift_lines([drift(row) for row in data], session.screen))
    return 0


def drift_lines(drift: Sequence[Drift], screen: Screen) -> list[str]:
    """One row for each difference, and hints to resolve them."""
    paint = screen.paint
    if not drift:
        return [f"{paint.good(screen.glyphs.yes)} The system matches the desired state."]
    header = [
        Column("MODULE", paint=paint.name),
        Column("WHAT"),
        Column("DESIRED", paint=paint.good),
        Column("ACTUAL", stretch=True, paint=paint.warn),
    ]
    rows = [
        [clean(text) for text in (row.module, row.kind, row.wanted or "none", row.actual or "none")] for row in drift
    ]
    hints = list(dict.fromkeys(clean(row.hint) for row in drift if row.hint))
    text = render(screen, header, rows)
    if hints:
        text += ["", *(f"{paint.warn('hint:')} {hint}" for hint in hints)]
    return [*text, "", paint.dim(counted(len(drift), "difference"))] if screen.stdout.isatty() else text


_WORST_FIRST = (Result.FAILED, Result.CHANGED, Result.ROLLED_BACK, Result.UNCHANGED, Result.SKIPPED)
"""Beside a failure, the changes that remain are listed."""


async def run_apply(session: Session, arguments: Namespace) -> int:
    """Bring the machine to what the files want, or show what that would take."""
    options: dict[str, object] = {"dry-run": True} if arguments.dry_run else {}
    if arguments.reason:
        options["reason"] = arguments.reason
    if arguments.initramfs and not arguments.dry_run:
        check_root()
    if arguments.trial:
        if arguments.initramfs:
            raise InvalidArgs("--initramfs takes files, which --try does not write")
        options["try-seconds"] = parse_span(arguments.trial)
    configuration = Configuration(session.client)
    if arguments.disconnect:
        options["disconnect"] = True
        if not arguments.dry_run and is_remote_terminal(session):
            # What would be unloaded or reloaded is among these; that some of it stays costs a question at most.
            modules = dict.fromkeys(row.module for row in await configuration.drift() if is_module_name(row.module))
            operations: list[Operation] = [("unload", module, {}) for module in list(modules)[:BATCH_MAX]]
            await confirm_disconnect(session, operations, {"disconnect": True, "dependents": True})
    session.authorize()
    before = await configuration.drift() if arguments.dry_run and not session.json else []
    async with progress_shown(session.client, session.screen):
        rows = await configuration.data("Apply", options=options)
    results = [operation_result(row) for row in rows]
    code = next((result.error.exit_code for result in results if result.error is not None), 0)
    if session.json:
        session.document(rows)
    elif not results:
        left = await configuration.drift()
        session.screen.show(unchanged(left, session.screen, with_initramfs=arguments.initramfs))
    elif arguments.dry_run and code == 0:
        session.screen.show(foretold(before, results, session.screen))
    else:
        by_name = by_module(results)
        if arguments.dry_run:
            session.screen.show(hindered(by_name, session.screen))
        else:
            operations = [("apply", result.module, {}) for result in by_name]
            session.screen.show(batch.lines(operations, by_name, session.screen))
            if arguments.trial and code == 0:
                bold = session.screen.paint.bold("kmodctl config confirm")
                session.screen.show([f"on trial for {clean(arguments.trial)}, unless you run: {bold}"])
    if arguments.initramfs and code == 0:
        await _refresh(session, configuration, changes=bool(results), dry_run=arguments.dry_run)
    elif results and code == 0 and not arguments.dry_run and not session.json:
        # All is done, and what cannot be found out beside it does not make it fail.
        with suppress(KmoddError):
            if await stale_initramfs(configuration):
                _tell(session, "The initramfs is now older than the files: kmodctl config apply --initramfs")
    return code


async def run_end_trial(session: Session, arguments: Namespace) -> int:
    """Keep what is on trial, or take it back."""
    session.authorize()
    member = {"confirm": "Confirm", "revert": "Revert"}[arguments.verb]
    rows = await Configuration(session.client).data(member, options=dict(session.asking(arguments)))
    results = [operation_result(row) for row in rows]
    if session.json:
        session.document(rows)
    elif results:
        by_name = by_module(results)
        operations: list[Operation] = [(arguments.verb, result.module, {}) for result in by_name]
        session.screen.show(batch.lines(operations, by_name, session.screen))
    return next((result.error.exit_code for result in results if result.error is not None), 0)


def unchanged(left: Sequence[Drift], screen: Screen, *, with_initramfs: bool) -> list[str]:
    """That there was nothing to do, and remaining differences, such as a line in another program's file."""
    same = screen.paint.dim(screen.glyphs.same)
    others = [row for row in left if row.kind != INITRAMFS or not with_initramfs]
    if not others:
        return [f"{same} Nothing to do: the system matches the desired state."]
    return [
        f"{same} kmodd cannot resolve the remaining differences:",
        *drift_lines(others, screen),
    ]


def foretold(before: Sequence[Drift], results: Sequence[OperationResult], screen: Screen) -> list[str]:
    """What would become what, for every module that would be touched."""
    paint, glyphs = screen.paint, screen.glyphs
    touched = dict.fromkeys(clean(result.module) for result in results)
    width = max(map(columns, touched))
    text = []
    for name in touched:
        padding = " " * (width - columns(name))
        changes = [row for row in before if clean(row.module) == name and row.kind != INITRAMFS]
        for change in changes:
            was = paint.dim(f"is {clean(change.actual or 'none')}")
            text.append(
                f"{paint.good(glyphs.arrow)} {paint.name(name)}{padding}  {change.kind} {clean(change.wanted or 'none')}  {was}"
            )
    return [
        *text,
        "",
        f"{paint.good(glyphs.yes)} This would change {counted(len(touched), 'module')}. Nothing was changed.",
    ]


def by_module(results: Sequence[OperationResult]) -> list[OperationResult]:
    """One result for each module, of which version, parameters, presence and rules have one each; the worst counts."""
    merged: dict[str, OperationResult] = {}
    for row in results:
        earlier = merged.setdefault(row.module, row)
        worse = min(earlier, row, key=lambda result: _WORST_FIRST.index(result.result))
        merged[row.module] = replace(worse, touched=tuple(dict.fromkeys((*earlier.touched, *row.touched))))
    return list(merged.values())


def hindered(results: Sequence[OperationResult], screen: Screen) -> list[str]:
    """What is in the way of applying anything, after a dry run."""
    paint, glyphs = screen.paint, screen.glyphs
    failed = [result for result in results if result.error is not None]
    width = max(columns(clean(result.module)) for result in failed)
    text = []
    for result in failed:
        name = clean(result.module)
        why = clean(result.error.message) or result.error.title if result.error is not None else ""
        text.append(f"{paint.bad(glyphs.no)} {paint.name(name)}{' ' * (width - columns(name))}  {paint.bad(why)}")
        text += failure.hint_lines(result.error, screen, indent=4)
    return [*text, "", f"{paint.bad(glyphs.no)} This would fail and change nothing. Nothing was changed."]


async def _refresh(session: Session, configuration: Configuration, *, changes: bool, dry_run: bool) -> None:
    """Once, for all that was changed: making an initramfs takes longer than everything else together."""
    command = await stale_initramfs(configuration)
    if dry_run and changes and not command:
        _tell(session, "The initramfs would then be refreshed if it is older than the files.")
    elif not command:
        _tell(session, "The initramfs is up to date.")
    elif dry_run:
        _tell(session, f"The initramfs is older than the files; refresh it with: {clean(shlex.join(command))}")
    else:
        refresh_initramfs(command)
        if await stale_initramfs(configuration):
            raise Conflict(
                "the initramfs still differs from the files after it was refreshed",
                evidence=Evidence(hint="kmodctl config drift"),
            )
        _tell(session, f"The initramfs was refreshed with: {clean(shlex.join(command))}")


def _tell(session: Session, sentence: str) -> None:
    if not session.json:
        session.screen.tell(f"{session.screen.paint.dim(session.screen.glyphs.same)} {sentence}")


async def run_reload(session: Session, arguments: Namespace) -> int:
    """Have kmodd read its files again."""
    session.authorize()
    await Configuration(session.client).reload(**session.asking(arguments))
    if session.json:
        session.document({"reloaded": True})
    else:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        session.screen.tell(f"{paint.good(glyphs.yes)} kmodd reloaded its configuration files")
    return 0


async def stale_initramfs(configuration: Configuration) -> tuple[str, ...]:
    """The command that would refresh it, in words; empty when it is up to date or there is none."""
    return next((row.command for row in await configuration.drift() if row.kind == INITRAMFS), ())


def check_root(user: Callable[[], int] = os.geteuid) -> None:
    """Raise AccessDenied before anything is changed for who could not refresh it afterwards."""
    if user() != 0:
        raise AccessDenied(
            "only root can refresh the initramfs", evidence=Evidence(hint="sudo kmodctl config apply --initramfs")
        )


def refresh_initramfs(command: Sequence[str], *, path: str = _REFRESH_PATH) -> None:
    """Run it and wait; what it says goes to standard error. Conflict when it fails or is not one of those we know."""
    # It runs as root: no other word may be among them.
    if not any(
        len(allowed) == len(command) and all(map(re.fullmatch, allowed, command)) for allowed in _REFRESH_COMMANDS
    ):
        raise Conflict("kmodd names an unknown command for the initramfs")
    _run_refresh(command, {"PATH": path, "LANG": os.environ.get("LANG", "C.UTF-8")})


def _run_refresh(words: Sequence[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=environment)
    except OSError as error:
        raise Conflict(
            f"the initramfs was not refreshed: cannot run {words[0]} ({error.strerror})",
            evidence=Evidence(hint=" ".join(words)),
        ) from error
    if done.returncode != 0:
        raise Conflict(
            f"the initramfs was not refreshed: {words[0]} exited with status {done.returncode}",
            evidence=Evidence(hint=" ".join(words)),
        )
