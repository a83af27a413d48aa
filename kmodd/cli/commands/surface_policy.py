# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl surface learn|plan|apply|confirm|revert|check|lock`: the policy for the attack surface, and the lock."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from kmodd.cli.arguments import ExitCode
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, counted, moment, parse_span
from kmodd.cli.session import Session
from kmodd.client.surface import (
    AttackSurface,
    DecidedModule,
    LockState,
    NeededModule,
    PolicyPlan,
    SurfaceFault,
    lock_state,
    needed_module,
    policy_plan,
    surface_fault,
)
from kmodd.errors import Conflict, InvalidArgs
from kmodd.patterns import matches

NAMED_MAX = 12
"""Modules that a line names."""
LOCKED = "loading and unloading of modules is disabled until reboot"


async def run_learn(session: Session, arguments: Namespace) -> int:
    """List what is needed."""
    session.authorize()
    options = {"kernel": arguments.kernel} if arguments.kernel else {}
    data = await AttackSurface(session.client).data("GetNeeded", options=options)
    kept = [row for row in data if _fits(arguments, row)]
    if session.json:
        session.document(kept)
    else:
        session.screen.show(needed_lines([needed_module(row) for row in kept], session.screen))
    return ExitCode.OK


async def run_plan(session: Session, arguments: Namespace) -> int:
    """Show each decision."""
    session.authorize()
    data = await AttackSurface(session.client).data("Plan")
    data["modules"] = [row for row in data["modules"] if _fits(arguments, row)]
    if session.json:
        session.document(data)
        return ExitCode.OK
    plan = policy_plan(data)
    session.screen.show([*decision_lines(plan.modules, session.screen), *plan_lines(plan, session.screen)])
    return ExitCode.OK


async def run_apply(session: Session, arguments: Namespace) -> int:
    """Write the rules."""
    session.authorize()
    options = {"weaken": arguments.weaken, "dry-run": arguments.dry_run, "reason": arguments.reason}
    if arguments.trial:
        options["try-seconds"] = parse_span(arguments.trial)
    data = await AttackSurface(session.client).data(
        "Apply", options={name: value for name, value in options.items() if value}
    )
    if session.json:
        session.document(data)
    else:
        session.screen.show(plan_lines(policy_plan(data), session.screen, applied=not arguments.dry_run))
    return ExitCode.OK


async def run_confirm(session: Session, arguments: Namespace) -> int:
    """Keep what is on trial."""
    return await _end_trial(session, arguments, "Confirm", "blocked")


async def run_revert(session: Session, arguments: Namespace) -> int:
    """Take it back."""
    return await _end_trial(session, arguments, "Revert", "allowed again")


async def _end_trial(session: Session, arguments: Namespace, member: str, what: str) -> int:
    session.authorize()
    options = {"reason": arguments.reason} if arguments.reason else {}
    modules = await AttackSurface(session.client).data(member, options=options)
    if session.json:
        session.document(modules)
    else:
        session.screen.show([f"{counted(len(modules), 'module')} {what}" + (f": {_named(modules)}" if modules else "")])
    return ExitCode.OK


async def run_check(session: Session, arguments: Namespace) -> int:
    """Exit status 14 when something is not as the policy says."""
    session.authorize()
    options = {"kernel": arguments.kernel} if arguments.kernel else {}
    data = await AttackSurface(session.client).data("Check", options=options)
    if session.json:
        session.document(data)
    else:
        session.screen.show(fault_lines([surface_fault(row) for row in data], session.screen))
    return ExitCode.DIFFERS if data else ExitCode.OK


async def run_lock(session: Session, arguments: Namespace) -> int:
    """Show what it means, and lock if that is confirmed."""
    session.authorize()
    surface, screen = AttackSurface(session.client), session.screen
    data = await surface.data("Lock", options={"dry-run": True})
    plan = lock_state(data)
    if arguments.dry_run:
        if session.json:
            session.document(data)
        else:
            screen.show(lock_lines(plan, screen))
        return ExitCode.DIFFERS if plan.pending else ExitCode.OK
    if not plan.locked:
        if not plan.pending and not arguments.yes:
            _confirm_lock(plan, screen)
        # kmodd refuses what is pending, and says what.
        data = await surface.data("Lock", options=dict(session.asking(arguments)))
    if session.json:
        session.document(data)
    else:
        screen.show([LOCKED])
    return ExitCode.OK


def _confirm_lock(plan: LockState, screen: Screen) -> None:
    """Ask on the terminal; Conflict where the answer is no, InvalidArgs where there is no terminal."""
    if not screen.stdin.isatty() or not screen.stderr.isatty():
        raise InvalidArgs("only a reboot unlocks modules: confirm with --yes")
    for text in lock_lines(plan, screen):
        screen.stderr.write(f"{text}\n")
    screen.stderr.write("Only a reboot takes this back. Disable loading and unloading of modules? [y/N] ")
    screen.stderr.flush()
    if screen.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Conflict("the lock was not confirmed, so nothing was changed")


def lock_lines(plan: LockState, screen: Screen) -> list[str]:
    """What is pending, and below it what each user of modules can load no more."""
    if plan.locked:
        return [LOCKED]
    paint = screen.paint
    text = fault_lines(plan.pending, screen) if plan.pending else ["nothing is pending"]
    text += [paint.warn(f"{clean(row.source)} {clean(row.fault)}") for row in plan.breaks if row.fault]
    needs: dict[str, list[str]] = {}
    for row in plan.breaks:
        if row.module:
            needs.setdefault(f"{row.source}: {row.evidence}", []).append(row.module)
    if needs:
        text.append("until reboot, these cannot be loaded:")
    return [*text, *(f"    {_named(modules)} ({clean(why)})" for why, modules in needs.items())]


def _fits(arguments: Namespace, row: dict[str, Any]) -> bool:
    # A source that cannot be read is of no module, and always shown.
    return not arguments.module or "module" not in row or matches(arguments.module.replace("-", "_"), row["module"])


def needed_lines(modules: Sequence[NeededModule], screen: Screen) -> list[str]:
    """The table of modules, after the sources that cannot be read."""
    paint = screen.paint
    text = [paint.warn(f"{clean(row.source)} {clean(row.fault)}") for row in modules if row.fault]
    rows = [
        [clean(row.module), "floor" if row.floor else "", clean(row.source), clean(row.evidence)]
        for row in modules
        if row.module
    ]
    header = [Column("MODULE", paint=paint.name), Column("FLOOR"), Column("SOURCE"), Column("BECAUSE", stretch=True)]
    text += render(screen, header, rows)
    return [*text, "", paint.dim(counted(len(rows), "module"))] if screen.stdout.isatty() else text


def decision_lines(modules: Sequence[DecidedModule], screen: Screen) -> list[str]:
    """The table of decisions."""
    paint = screen.paint
    rows = [
        [
            clean(row.module),
            "blocked" if row.blocked else "allowed",
            clean(row.because),
            clean(row.reach),
            "yes" if row.loaded else "",
            clean(row.detail),
        ]
        for row in modules
    ]
    header = [
        Column("MODULE", paint=paint.name),
        Column("POLICY"),
        Column("BY"),
        Column("REACH"),
        Column("LOADED"),
        Column("REASON", stretch=True),
    ]
    return [*render(screen, header, rows), ""] if rows else []


def plan_lines(plan: PolicyPlan, screen: Screen, *, applied: bool = False) -> list[str]:
    """What changes, and what is to be known."""
    paint = screen.paint
    text = [f"mode {paint.bold(clean(plan.mode))}, kernels {' '.join(map(clean, plan.kernels))}"]
    for modules, done, to_do in (
        (plan.block, "blocked", "to be blocked"),
        (plan.release, "allowed again", "to be allowed again"),
    ):
        if modules:
            text.append(f"{counted(len(modules), 'module')} {done if applied else to_do}: {_named(modules)}")
    if not plan.block and not plan.release:
        text.append(
            "nothing to change" if plan.mode == "enforce" else f"no rules are written: mode is {clean(plan.mode)}"
        )
    if plan.until:
        text.append(f"on trial until {moment(plan.until)}, unless you run: {paint.bold('kmodctl surface confirm')}")
    return [*text, *(fault_lines(plan.remarks, screen) if plan.remarks else [])]


def fault_lines(faults: Sequence[SurfaceFault], screen: Screen) -> list[str]:
    """One line each, with a hint below it."""
    paint = screen.paint
    text = []
    for fault in faults:
        place = f" ({clean(fault.file)}:{fault.line})" if fault.file and fault.line else ""
        text.append(f"{paint.warn(clean(fault.kind))}: {clean(fault.message)}{place}")
        if fault.hint:
            text.append(f"    {paint.dim(clean(fault.hint))}")
    return text or ["Everything is as the policy says."]


def _named(modules: Sequence[str]) -> str:
    more = len(modules) - NAMED_MAX
    return ", ".join(map(clean, modules[:NAMED_MAX])) + (f" and {more} more" if more > 0 else "")
