# SPDX-License-Identifier: LGPL-2.1-or-later
"""Health of the rules about modules."""

import asyncio

from kmodd.api import replies as rows
from kmodd.core.health.rules import RulesHealth
from kmodd.model import Health, HealthStatus, Rule
from kmodd.model.rules import Finding, ManagedFile, Replacement, Severity, ShownRule
from tests.unit.fakes import facts

A = "/etc/modprobe.d/a.conf"


async def test_findings_are_whole_sentences_that_name_their_place_once() -> None:
    shown = [
        ShownRule(
            Rule("options", "loop", "max_lop=1", A, 3, ""),
            findings=(
                Finding(
                    "unknown-parameter",
                    "loop has no parameter max_lop: did you mean max_loop?",
                    instead=(Replacement(A, "options loop max_loop=1"),),
                    file=A,
                    line=3,
                ),
            ),
        ),
        ShownRule(
            Rule("finding", "", "", ManagedFile.OPTIONS, 1, ""),
            findings=(Finding("foreign", f"{ManagedFile.OPTIONS} was not written by kmodd", names_file=True),),
        ),
        ShownRule(
            Rule("softdep", "tun", "pre: a", A, 7, ""),
            findings=(Finding("softdep-override", f"{A}:6 names soft dependencies of tun first", Severity.NOTE),),
        ),
    ]

    async def show() -> list[ShownRule]:
        return shown

    health = RulesHealth(show, lambda: shown, lambda: None)
    list(health.checks())
    await asyncio.sleep(0)
    assert [(check.status, check.message) for check in health.checks()] == [
        (HealthStatus.DEGRADED, f"{A}, line 3: loop has no parameter max_lop: did you mean max_loop?"),
        (HealthStatus.DEGRADED, f"{ManagedFile.OPTIONS} was not written by kmodd."),
        (HealthStatus.OK, f"{A}, line 7: {A}:6 names soft dependencies of tun first."),
    ]
    assert next(health.checks()).hint == f"write in {A}: options loop max_loop=1"
    row = rows.health(Health(HealthStatus.DEGRADED, (*health.checks(),), facts()))
    first = row["checks"][1][0]
    assert (first["file"], first["line"]) == (("s", A), ("u", 3))
    assert first["instead"] == ("a(ss)", [(A, "options loop max_loop=1")])
    await health.close()
