# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl status`."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, counted, wrap
from kmodd.cli.session import Session
from kmodd.client.replies import Fields, health
from kmodd.model import Health, HealthCheck, HealthStatus

LABEL = 12


async def run(session: Session, arguments: Namespace) -> int:
    """Show how kmodd and the machine's modules are."""
    data = await session.client.data("GetHealth")
    properties = await session.client.properties()
    if session.json:
        session.document({"health": data, "manager": properties})
    else:
        session.screen.show(lines(health(data), properties, session.screen))
    return 0


def lines(report: Health, properties: Mapping[str, Any], screen: Screen) -> list[str]:
    """The status as text: the verdict, the kernel's facts, then every check that is not well before the others."""
    paint, glyphs, facts = screen.paint, screen.glyphs, report.facts
    manager = Fields(properties)
    version = clean(manager.text("Version"))
    text = [
        f"{_painted(report.status, glyphs.full, screen)} {paint.bold('kmodd')} {version}: {_word(report.status, screen)}"
    ]
    if "simulated" in facts.release:  # the simulated kernel's release says so, to everyone who asks
        text.append(paint.bad("  SIMULATED KERNEL: loading and unloading here is not real"))
    enforced = "only signed modules are accepted" if facts.signature_enforced else "not enforced"
    taint = "no" if not facts.taint else str(facts.taint)
    rows = [
        ("Kernel", [clean(facts.release)]),
        (
            "Modules",
            [
                f"{manager.number('LoadedCount')} loaded"
                + (paint.bad(", loading and unloading disabled until reboot") if facts.modules_disabled else "")
            ],
        ),
        ("Signatures", [enforced]),
        ("Lockdown", [clean(facts.lockdown)]),
        ("Secure boot", ["yes" if facts.secure_boot else "no"]),
        ("Tainted", [taint, *(clean(flag) for flag in report.taint_flags)]),
    ]
    for label, values in rows:
        head = f"{label:>{LABEL}}: "
        text += [f"{paint.dim(head) if n == 0 else ' ' * len(head)}{value}" for n, value in enumerate(values)]
    order = {HealthStatus.FAILING: 0, HealthStatus.DEGRADED: 1, HealthStatus.OK: 2}
    checks = sorted(report.checks, key=lambda check: order[check.status])
    if checks:
        text += ["", paint.bold(counted(len(checks), "check"))]
    for check in checks:
        text += _check(check, screen)
    return text


def _check(check: HealthCheck, screen: Screen) -> list[str]:
    mark = {
        HealthStatus.OK: screen.glyphs.yes,
        HealthStatus.DEGRADED: screen.glyphs.warning,
        HealthStatus.FAILING: screen.glyphs.no,
    }[check.status]
    # What is found about a line of a file says where it stands; every other check names its module itself.
    about = f"{clean(check.module)}: " if check.module and check.finding is not None else ""
    room = screen.fits(6) or 10_000
    paragraph = wrap(f"{clean(check.name)}: {about}{clean(check.message)}", room)
    hint = wrap(f"hint: {clean(check.hint)}", room) if check.hint and check.status is not HealthStatus.OK else []
    rows = [*paragraph, *(screen.paint.warn(line) for line in hint)]
    return [f"  {_painted(check.status, mark, screen) if n == 0 else ' '} {row}" for n, row in enumerate(rows)]


def _painted(status: HealthStatus, text: str, screen: Screen) -> str:
    paint = screen.paint
    return {HealthStatus.OK: paint.good, HealthStatus.DEGRADED: paint.warn, HealthStatus.FAILING: paint.bad}[status](
        text
    )


def _word(status: HealthStatus, screen: Screen) -> str:
    return _painted(status, status.value, screen)
