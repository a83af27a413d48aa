# SPDX-License-Identifier: LGPL-2.1-or-later
"""Wishes by another name than the kernel's: an alias, or a file that was renamed."""

import pytest

from kmodd.core.health.rules import DesiredHealth
from kmodd.model import HealthStatus, Result, Rule
from kmodd.names import ModuleName
from tests.unit.desired_bench import Bench, Make, benches, wanted
from tests.unit.fakes import rule

bench = pytest.fixture(benches)
ALIASES = [rule("alias", "old_name", "vfat"), rule("alias", "two", "a"), rule("alias", "two", "b", 2)]


def told(b: Bench) -> list[tuple[HealthStatus, str, str]]:
    checks = DesiredHealth(b.desired, b.comparison, b.reconciler).checks()
    return [(check.status, check.message, check.hint) for check in checks if check.name == "desired-name"]


async def test_a_wish_for_an_alias_is_met_by_the_module(bench: Make) -> None:
    b = bench(wanted("old_name"), rules=ALIASES)
    await b.boot()
    assert b.live() == {"fat", "vfat"}
    assert await b.drift() == []
    assert await b.apply() == {}
    assert told(b) == [
        (
            HealthStatus.OK,
            "old_name is an alias of vfat, whose desired state it sets.",
            "write [module.vfat] in /etc/kmodd/modules.d/x.toml, line 1",
        )
    ]


async def test_it_differs_by_the_module_s_name(bench: Make) -> None:
    b = bench(wanted("old_name"), rules=ALIASES)
    await b.boot()
    await b.rmmod("vfat")
    assert await b.drift() == [("vfat", "presence", "loaded", "absent")]
    assert await b.apply() == {"vfat": Result.CHANGED}
    assert await b.drift() == []


async def test_parameters_of_an_alias_are_those_of_the_module(bench: Make) -> None:
    b = bench(wanted("old", "parameters = { fixed = 3 }"), rules=[rule("alias", "old", "tuned")])
    await b.boot()
    assert await b.drift() == []


async def test_what_is_after_an_alias_waits_for_the_module(bench: Make) -> None:
    b = bench(wanted("c", 'after = ["old_name"]'), rules=ALIASES)
    await b.boot()
    assert await b.drift() == []
    await b.modprobe("vfat")
    assert "c" in b.live()


async def test_an_absent_alias_is_unloaded(bench: Make) -> None:
    b = bench('[module.old_name]\nstate = "absent"\n', "vfat", rules=ALIASES)
    b.desired.reload()
    assert await b.drift() == [("vfat", "presence", "absent", "live")]
    assert await b.apply() == {"vfat": Result.CHANGED}
    assert await b.drift() == []


async def test_the_table_of_the_module_goes_before_the_alias_s(bench: Make) -> None:
    b = bench('[module.old_name]\nstate = "absent"\n' + wanted("vfat"), rules=ALIASES)
    await b.boot()
    assert "vfat" in b.live()
    ((status, message, _),) = told(b)
    assert status is HealthStatus.DEGRADED
    assert message == "old_name is an alias of vfat, which another table describes: this one is ignored."


async def test_an_alias_of_several_is_reported_with_their_names(bench: Make) -> None:
    b = bench(wanted("two"), rules=ALIASES)
    b.desired.reload()
    assert await b.drift() == [("two", "presence", "loaded", "an alias of a and b")]
    assert told(b)[0][:2] == (HealthStatus.DEGRADED, "two is an alias of a and b, so it cannot have a desired state.")


async def test_two_names_of_one_module_close_no_loop(bench: Make) -> None:
    b = bench(wanted("vfat", 'after = ["a"]') + wanted("a", 'after = ["old_name"]'), rules=ALIASES)
    await b.boot()
    assert await b.drift() == []


async def test_autoload_of_an_alias_is_written_by_the_module_s_name(bench: Make) -> None:
    b = bench("[module.old_name]\nautoload = true\n", rules=ALIASES)
    b.desired.reload()
    assert await b.apply() == {"vfat": Result.CHANGED}
    assert [change.module for change in b.rules.written] == ["vfat"]


@pytest.mark.parametrize("table", ["vfat", "old_name"])
async def test_autoload_is_met_by_a_line_with_an_alias(bench: Make, table: str) -> None:
    b = bench(f"[module.{table}]\nautoload = true\n", rules=ALIASES)
    b.autoloaded = [Rule("autoload", "old_name", "", "/etc/modules-load.d/x.conf", 1, "old_name")]
    b.desired.reload()
    assert await b.drift() == []


async def test_a_changed_alias_is_seen_with_the_files(bench: Make) -> None:
    b = bench(wanted("old_name"), rules=ALIASES)
    await b.boot()
    b.kernel.index.change_rules([rule("alias", "old_name", "c")])
    b.reconciler.files_changed()
    assert await b.drift() == [("c", "presence", "loaded", "absent")]


async def test_a_wish_for_a_renamed_file_is_met_by_the_module_in_it(bench: Make) -> None:
    b = bench(wanted("acme_nic", "parameters = { number = 3 }"))
    await b.boot()
    assert b.live() == {"ifb"}
    assert await b.drift() == []
    assert await b.apply() == {}
    await b.rmmod("ifb")
    assert await b.drift() == [("acme_nic", "presence", "loaded", "absent")]
    assert await b.apply() == {ModuleName("ifb"): Result.CHANGED}
