# SPDX-License-Identifier: LGPL-2.1-or-later
"""Health of the rules about modules."""

import asyncio

from kmodd.core.health_rules import RulesHealth
from kmodd.model import HealthStatus, Rule
from kmodd.model.configuration import Finding, OwnFile, ShownRule

A = "/etc/modprobe.d/a.conf"


async def test_findings_are_whole_sentences_that_name_their_place_once() -> None:
    rules = [
        ShownRule(
            Rule("options", "loop", "max_lop=1", A, 3, ""),
            findings=(Finding("unknown-parameter", "loop has no parameter max_lop: did you mean max_loop?"),),
        ),
        ShownRule(
            Rule("finding", "", "", OwnFile.OPTIONS, 1, ""),
            findings=(Finding("foreign", f"{OwnFile.OPTIONS} was not written by kmodd"),),
        ),
        ShownRule(
            Rule("softdep", "tun", "pre: a", A, 7, ""),
            findings=(Finding("softdep-override", f"{A}:6 names soft dependencies of tun first"),),
        ),
    ]

    async def show() -> list[ShownRule]:
        return rules

    health = RulesHealth(show, lambda: rules, lambda: None)
    list(health.checks())
    await asyncio.sleep(0)
    assert [(check.status, check.message) for check in health.checks()] == [
        (HealthStatus.DEGRADED, f"{A}, line 3: loop has no parameter max_lop: did you mean max_loop?"),
        (HealthStatus.DEGRADED, f"{OwnFile.OPTIONS} was not written by kmodd."),
        (HealthStatus.OK, f"{A}, line 7: {A}:6 names soft dependencies of tun first."),
    ]
    await health.close()
