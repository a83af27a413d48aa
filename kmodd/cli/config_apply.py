# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config apply`."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from kmodd.cli import batch, config_drift, initramfs, progress
from kmodd.cli.screen import Screen
from kmodd.cli.session import Session
from kmodd.cli.text import clean, columns, counted
from kmodd.client_answers import operation_result
from kmodd.client_configuration import Configuration
from kmodd.errors import Conflict, Evidence, KmoddError
from kmodd.model import OperationResult, Result
from kmodd.model.configuration import Drift

if TYPE_CHECKING:
    from kmodd.client import Client, Operation

_WORST_FIRST = (Result.FAILED, Result.CHANGED, Result.ROLLED_BACK, Result.UNCHANGED, Result.SKIPPED)
"""Beside a failure, what was changed and stays so is what one has to know."""


async def run(session: Session, arguments: Namespace) -> int:
    """Bring the machine to what the files want, or show what that would take."""
    options: dict[str, object] = {"dry-run": True} if arguments.dry_run else {}
    if arguments.reason:
        options["reason"] = arguments.reason
    if arguments.initramfs and not arguments.dry_run:
        initramfs.check_root()
    session.authorize()
    configuration = Configuration(session.client)
    before = await configuration.drift() if arguments.dry_run and not session.json else []
    async with progress.shown(session.client, session.screen):
        rows = await configuration.data("Apply", options=options)
    results = [operation_result(row) for row in rows]
    code = next((result.error.exit_code for result in results if result.error is not None), 0)
    if session.json:
        keys = ("module", "result", "error", "touched")
        session.document([dict(zip(keys, row, strict=True)) for row in rows])
    elif not results:
        left = await configuration.drift()
        session.screen.show(unchanged(left, session.screen, with_initramfs=arguments.initramfs))
    elif arguments.dry_run and code == 0:
        session.screen.show(foretold(before, results, session.screen))
    else:
        told = by_module(results)
        said = await batch.sentences(told, session.client)
        if arguments.dry_run:
            said = {**await _files_in_the_way(told, configuration), **said}
            session.screen.show(hindered(told, said, session.screen))
        else:
            if code:
                said = {**await _wishes_failed(session.client), **said}
            operations: list[Operation] = [("apply", result.module, {}) for result in told]
            session.screen.show(batch.lines(operations, told, said, session.screen))
    if arguments.initramfs and code == 0:
        await _refresh(session, configuration, changes=bool(results), dry_run=arguments.dry_run)
    elif results and code == 0 and not arguments.dry_run and not session.json:
        # All is done, and what cannot be found out beside it does not make it fail.
        with suppress(KmoddError):
            if await initramfs.stale(configuration):
                _tell(session, "The initramfs is older than the files now: kmodctl config apply --initramfs")
    return code


def unchanged(left: Sequence[Drift], screen: Screen, *, with_initramfs: bool) -> list[str]:
    """That there was nothing to do, and what differs all the same, such as a line in somebody else's file."""
    same = screen.paint.dim(screen.glyphs.same)
    others = [one for one in left if one.kind != initramfs.KIND or not with_initramfs]
    if not others:
        return [f"{same} Everything is as the files want it, nothing to do."]
    return [
        f"{same} There is nothing that kmodd could change. What differs is for you to mend:",
        *config_drift.lines(others, screen),
    ]


def foretold(before: Sequence[Drift], results: Sequence[OperationResult], screen: Screen) -> list[str]:
    """What would become what, for every module that would be touched."""
    paint, glyphs = screen.paint, screen.glyphs
    touched = dict.fromkeys(clean(result.module) for result in results)
    width = max(map(columns, touched))
    text = []
    for name in touched:
        padding = " " * (width - columns(name))
        changes = [one for one in before if clean(one.module) == name and one.kind != initramfs.KIND]
        for one in changes:
            was = paint.dim(f"is {clean(one.actual or 'none')}")
            text.append(
                f"{paint.good(glyphs.arrow)} {paint.name(name)}{padding}  {one.kind} {clean(one.wanted or 'none')}  {was}"
            )
    return [
        *text,
        "",
        f"{paint.good(glyphs.yes)} This would change {counted(len(touched), 'module')}. Nothing was changed.",
    ]


def by_module(results: Sequence[OperationResult]) -> list[OperationResult]:
    """One result for each module, of which version, parameters, presence and rules have one each; the worst counts."""
    found: dict[str, OperationResult] = {}
    for one in results:
        known = found.setdefault(one.module, one)
        worse = min(known, one, key=lambda result: _WORST_FIRST.index(result.result))
        found[one.module] = replace(worse, touched=tuple(dict.fromkeys((*known.touched, *one.touched))))
    return list(found.values())


def hindered(results: Sequence[OperationResult], said: Mapping[str, str], screen: Screen) -> list[str]:
    """What is in the way of applying anything, after a dry run."""
    paint, glyphs = screen.paint, screen.glyphs
    failed = [result for result in results if result.error is not None]
    width = max(columns(clean(result.module)) for result in failed)
    text = []
    for result in failed:
        name = clean(result.module)
        why = clean(said.get(result.module, "")) or (result.error.title if result.error is not None else "")
        text.append(f"{paint.bad(glyphs.no)} {paint.name(name)}{' ' * (width - columns(name))}  {paint.bad(why)}")
    return [*text, "", f"{paint.bad(glyphs.no)} This would fail, and leave everything as it is. Nothing was changed."]


async def _files_in_the_way(results: Sequence[OperationResult], configuration: Configuration) -> dict[str, str]:
    """Which of kmodd's own files cannot be written because of what stands there: only `Show` tells after a dry run."""
    about = [result.module for result in results if isinstance(result.error, Conflict)]
    if not about:
        return {}
    findings = [finding for rule in await configuration.show() for finding in rule.findings]
    said = "; ".join(dict.fromkeys(one.message for one in findings if one.kind in {"edited", "foreign"}))
    return dict.fromkeys(about, said)


async def _wishes_failed(client: "Client") -> dict[str, str]:
    """What health says of wishes that failed: of files and parameters nobody else knows why."""
    checks = (await client.health()).checks
    # Behind "NAME is not as it is wanted to be (ERROR): ".
    return {
        check.module: check.message.partition("): ")[2] or check.message
        for check in checks
        if check.name == "desired-state" and check.module
    }


async def _refresh(session: Session, configuration: Configuration, *, changes: bool, dry_run: bool) -> None:
    """Once, for all that was changed: making an initramfs takes longer than everything else together."""
    command = await initramfs.stale(configuration)
    if dry_run and changes and not command:
        _tell(session, "Afterwards the initramfs would be refreshed if it is older than the files then.")
    elif not command:
        _tell(session, "The initramfs is as the files want it.")
    elif dry_run:
        _tell(session, f"The initramfs is older than the files, to be refreshed by: {clean(command)}")
    else:
        initramfs.refresh(command)
        if await initramfs.stale(configuration):
            raise Conflict(
                "the initramfs still differs from the files after it was refreshed",
                evidence=Evidence(hint="kmodctl config drift"),
            )
        _tell(session, f"The initramfs was refreshed by: {clean(command)}")


def _tell(session: Session, sentence: str) -> None:
    if not session.json:
        session.screen.tell(f"{session.screen.paint.dim(session.screen.glyphs.same)} {sentence}")
