# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wanted state on a simulated kernel: where the machine differs from it, and what `Apply` does about that."""

from dataclasses import replace
from pathlib import Path

import pytest

from kmodd.core.desired.drift import WITHHELD, Write
from kmodd.core.health.rules import DesiredHealth
from kmodd.errors import AccessDenied, Conflict, NoSuchParameter
from kmodd.model import HealthStatus, Result, Rule
from kmodd.model.rules import ManagedFile, RuleAction
from kmodd.names import ModuleName
from tests.unit.desired_bench import CALLER, Bench, Make, benches, wanted
from tests.unit.fakes import rule

pytestmark = pytest.mark.usefixtures("virtual_time")

bench = pytest.fixture(benches)


SETTINGS = """\
[module.tuned]
state = "loaded"
parameters = { level = 2, secret = 5, hidden = 7 }
options = { level = 2 }
autoload = true
[module.a]
blacklist = "hard"
[module.b]
blacklist = "none"
options = {}
"""
OWN = [
    rule("blacklist", "b", file="/etc/modprobe.d/kmodd-blacklist.conf"),
    rule("options", "b", "x=1", file="/etc/modprobe.d/kmodd-options.conf"),
]


async def test_drift_of_every_kind_and_apply(bench: Make) -> None:
    b = bench(SETTINGS, "tuned", rules=OWN)
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    assert await b.drift() == [
        ("tuned", "options", "level=2", ""),
        ("tuned", "autoload", "loaded at boot", "not loaded at boot"),
        ("a", "blacklist", "hard", "none"),
        ("b", "blacklist", "none", "soft"),
        ("b", "options", "", "x=1"),
        ("tuned", "parameter", "level=2", "level=1"),
        ("tuned", "parameter", f"secret={WITHHELD}", f"secret={WITHHELD}"),
    ]
    plan = await b.plan(dry_run=True, reason="")
    assert plan.modules == ("a", "b", "tuned")
    assert await b.apply(dry_run=True) == dict.fromkeys(("tuned", "a", "b"), Result.CHANGED)
    values = {p.name: p.value for p in b.kernel.loaded.parameters(ModuleName("tuned"), private=True)}
    assert (b.rules.written, values["level"]) == ([], "1")
    assert await b.apply() == dict.fromkeys(("tuned", "a", "b"), Result.CHANGED)
    assert [(change.module, change.action) for change in b.rules.written] == [
        ("tuned", RuleAction.SET_OPTIONS),
        ("tuned", RuleAction.ENABLE_AUTOLOAD),
        ("a", RuleAction.BLACKLIST_HARD),
        ("b", RuleAction.UNBLACKLIST),
        ("b", RuleAction.SET_OPTIONS),
    ]
    values = {p.name: p.value for p in b.kernel.loaded.parameters(ModuleName("tuned"), private=True)}
    assert (values["level"], values["secret"]) == ("2", "5")
    assert b.journal.events.count("desired.applied") == 1
    assert "5" not in "".join(record.message for record in b.journal.records)


async def test_a_file_that_could_not_be_written_is_drift_until_it_is(bench: Make) -> None:
    b = bench('[module.a]\nblacklist = "soft"\n')
    await b.boot()
    b.rules.refuse = Conflict("edited")
    assert await b.apply(dry_run=True) == {"a": Result.FAILED}
    assert b.reconciler.failures == {}
    assert await b.apply() == {"a": Result.FAILED}
    await b.modprobe("b")
    assert set(b.reconciler.failures) == {"a"}
    b.rules.refuse = None
    assert await b.apply() == {"a": Result.CHANGED}
    assert b.reconciler.failures == {}


VERSIONS = '[module.a]\nversion = "2"\n[module.b]\nversion = "2"\n[module.c]\nversion = "2"\n'


async def test_versions_go_back_when_the_batch_fails(bench: Make) -> None:
    b = bench(VERSIONS + wanted("broken"))
    b.settings.text = "[desired-state]\nreconcile = false\n"
    b.versions.active = {ModuleName("a"): "1"}
    await b.boot()
    assert await b.apply(dry_run=True) == dict.fromkeys(("a", "b", "c", "broken"), Result.CHANGED)
    assert b.versions.done == []
    done = {"a": Result.ROLLED_BACK, "b": Result.ROLLED_BACK, "c": Result.ROLLED_BACK, "broken": Result.FAILED}
    assert await b.apply() == done
    assert b.versions.done == [("a", "2"), ("b", "2"), ("c", "2"), ("c", ""), ("b", ""), ("a", "1")]


async def test_versions_go_back_when_one_fails(bench: Make) -> None:
    b = bench(VERSIONS)
    b.versions.refuse[ModuleName("b")] = Conflict("no")
    await b.boot()
    assert await b.apply() == {"a": Result.ROLLED_BACK, "b": Result.FAILED, "c": Result.SKIPPED}
    assert b.versions.done == [("a", "2"), ("a", "")]
    assert set(b.reconciler.failures) == {"b"}
    b.versions.refuse.clear()
    assert await b.apply() == dict.fromkeys("abc", Result.CHANGED)
    assert b.reconciler.failures == {}
    assert await b.drift() == []


async def test_foreign_autoload_lines_are_reported_and_left_alone(bench: Make) -> None:
    b = bench("[module.a]\nautoload = false\n[module.b]\nautoload = true\n[module.c]\nautoload = false\n")
    theirs = "/etc/modules-load.d/other.conf"
    b.autoloaded = [
        Rule("autoload", "a", "", theirs, 3, "a"),
        Rule("autoload", "a", "", ManagedFile.AUTOLOAD, 9, "a"),
        Rule("autoload", "b", "", theirs, 4, "b"),
    ]
    await b.boot()
    rows = await b.convergence.drift()
    assert [(row.module, row.actual, row.hint) for row in rows] == [
        ("a", f"loaded at boot by {theirs}", f"remove line 3 of {theirs}"),
        ("a", f"loaded at boot by {ManagedFile.AUTOLOAD}", "kmodctl config apply"),
    ]
    assert await b.apply() == {"a": Result.CHANGED}
    assert [(change.module, change.action) for change in b.rules.written] == [("a", RuleAction.DISABLE_AUTOLOAD)]


async def test_a_parameter_that_cannot_be_written_means_a_reload(bench: Make) -> None:
    b = bench(wanted("tuned", "parameters = { fixed = 4, level = 3 }"), "tuned")
    await b.boot()
    assert [row[:2] for row in await b.drift()] == [("tuned", "parameter")] * 2
    assert await b.apply() == {"tuned": Result.CHANGED}
    assert await b.drift() == []
    await b.comparison.look()
    assert b.comparison.find().writes == list[Write]()


async def test_a_parameter_lost_by_a_foreign_load_is_drift(bench: Make) -> None:
    b = bench(wanted("tuned", "parameters = { hidden = 7 }"))
    await b.boot()
    assert await b.drift() == [], "kmodd gave it"
    await b.rmmod("tuned")
    await b.modprobe("tuned")

    (row,) = await b.convergence.drift()

    assert (row.wanted, row.actual, row.hint) == (
        "hidden=7",
        "not set when it was loaded",
        "kmodctl config apply reloads it",
    )
    assert await b.apply() == {"tuned": Result.CHANGED}
    assert await b.drift() == []


@pytest.mark.parametrize("when", ["before the restart", "while no daemon runs"])
async def test_it_is_found_after_a_restart_too(bench: Make, tmp_path: Path, when: str) -> None:
    """And what kmodd itself gave is not taken for lost then."""
    text = wanted("tuned", "parameters = { hidden = 7 }")
    first = bench(text, remembered=tmp_path / "values.json")
    await first.boot()
    assert await first.drift() == []
    if when == "before the restart":
        await first.rmmod("tuned")
        await first.modprobe("tuned")
    await first.close()
    if when != "before the restart":
        again = bench(text, kernel=first.kernel, remembered=tmp_path / "values.json")
        await again.boot()
        assert await again.drift() == [], "kmodd gave it before"
        await again.close()
        first.kernel.rmmod("tuned")
        first.kernel.modprobe("tuned")
    later = bench(text, kernel=first.kernel, remembered=tmp_path / "values.json")
    await later.boot()
    (row,) = await later.convergence.drift()
    assert (row.wanted, row.actual, row.hint) == (
        "hidden=7",
        "not set when it was loaded",
        "kmodctl config apply reloads it",
    )
    assert await later.apply() == {"tuned": Result.CHANGED}
    assert await later.drift() == []


async def test_one_that_modprobe_d_gives_was_not_lost(bench: Make) -> None:
    b = bench(wanted("tuned", "parameters = { hidden = 7 }"), rules=[rule("options", "tuned", "hidden=0x7")])
    await b.boot()
    await b.rmmod("tuned")
    await b.modprobe("tuned")
    assert await b.drift() == []


async def test_of_a_module_that_was_there_before_the_daemon_it_is_not_known(bench: Make) -> None:
    b = bench(wanted("tuned", "parameters = { hidden = 7 }"), "tuned")
    await b.boot()
    assert await b.drift() == []


@pytest.mark.parametrize("parameters", ["rounded = 8", "even = 5", "rounded = 8, even = 5, hidden = 7"])
@pytest.mark.parametrize("loaded", [(), ("tuned",)])
async def test_a_value_that_the_module_rounds_is_applied_once(
    bench: Make, parameters: str, loaded: tuple[str, ...]
) -> None:
    b = bench(wanted("tuned", f"parameters = {{ {parameters} }}"), *loaded)
    await b.boot()
    await b.apply()
    assert await b.drift() == []
    assert await b.apply() == {}


async def test_a_foreign_change_of_a_rounded_value_is_drift(bench: Make) -> None:
    b = bench(wanted("tuned", "parameters = { even = 5 }"))
    await b.boot()
    assert await b.drift() == []
    b.kernel.loaded.write_parameter(ModuleName("tuned"), "even", "2")
    b.values.forget(ModuleName("tuned"))  # the last reading counts for a second
    assert [row[2:] for row in await b.drift()] == [("even=5", "even=2")]
    assert await b.apply() == {"tuned": Result.CHANGED}
    assert await b.drift() == []


async def test_a_parameter_that_does_not_exist_is_drift_that_says_so(bench: Make) -> None:
    b = bench(wanted("tuned", "parameters = { levle = 3, level = 3 }"), "tuned")
    await b.boot()
    rows = await b.convergence.drift()
    assert [(row.wanted, row.actual) for row in rows] == [("levle=3", "no such parameter"), ("level=3", "level=1")]
    assert "fix /etc/kmodd/modules.d/" in rows[0].hint
    results = await b.convergence.apply(await b.plan(dry_run=False, reason=""), CALLER)
    assert [(one.result, type(one.error)) for one in results] == [
        (Result.FAILED, NoSuchParameter),
        (Result.SKIPPED, type(None)),
    ]
    assert await b.convergence.drift() == rows


async def test_apply_loads_in_the_order_of_after_and_is_atomic(bench: Make) -> None:
    text = wanted("c", 'after = ["b"]') + wanted("b", 'after = ["a"]') + wanted("a")
    b = bench(text)
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    b.files.text = text + wanted("broken")
    assert await b.apply() == {
        "a": Result.ROLLED_BACK,
        "b": Result.ROLLED_BACK,
        "c": Result.ROLLED_BACK,
        "broken": Result.FAILED,
    }
    assert b.live() == set()
    b.files.text = text
    assert list(await b.apply()) == ["a", "b", "c"]
    assert b.live() == {"a", "b", "c"}
    assert await b.apply() == {}


async def test_a_file_that_cannot_be_written_is_known_before_anything_is_done(bench: Make) -> None:
    b = bench(wanted("a") + '[module.b]\nblacklist = "soft"\n')
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    b.rules.refuse = Conflict("edited by hand")
    assert await b.apply() == {"a": Result.SKIPPED, "b": Result.FAILED}
    assert b.live() == set()


async def test_own_soft_blacklist_is_no_hindrance_another_one_is(bench: Make) -> None:
    text = wanted("a", 'blacklist = "soft"') + wanted("b", 'blacklist = "soft"')
    own = rule("blacklist", "a", file="/etc/modprobe.d/kmodd-blacklist.conf")
    b = bench(text, rules=[own, rule("blacklist", "b")])
    await b.boot()
    assert b.live() == {"a"}
    assert b.reconciler.failures[ModuleName("b")].name() == "DisabledByPolicy"


OWN_BLACKLIST, OWN_OPTIONS = "/etc/modprobe.d/kmodd-blacklist.conf", "/etc/modprobe.d/kmodd-options.conf"


async def test_what_others_keep_out_by_name_too_is_no_drift_from_softly(bench: Make) -> None:
    own = rule("blacklist", "a", file=OWN_BLACKLIST)
    b = bench('[module.a]\nblacklist = "soft"\n', rules=[rule("install", "a", "/bin/false"), own])
    await b.boot()
    assert await b.drift() == []


async def test_own_hard_blacklist_is_drift_from_softly(bench: Make) -> None:
    own = [rule("blacklist", "a", file=OWN_BLACKLIST), rule("install", "a", "/bin/false", file=OWN_BLACKLIST)]
    b = bench('[module.a]\nblacklist = "soft"\n', rules=own)
    await b.boot()
    assert await b.drift() == [("a", "blacklist", "soft", "hard")]


async def test_of_several_install_lines_the_first_decides_whether_it_is_kept_out(bench: Make) -> None:
    lines = [rule("install", "a", "/sbin/insmod a.ko"), rule("install", "a", "/bin/false", file=OWN_BLACKLIST)]
    b = bench('[module.a]\nblacklist = "hard"\n', rules=lines)
    await b.boot()
    assert await b.drift() == [("a", "blacklist", "hard", "none")]


async def test_an_option_that_is_wanted_no_more_goes_from_kmodds_file(bench: Make) -> None:
    b = bench("[module.a]\noptions = { x = 1 }\n", rules=[rule("options", "a", "x=1 y=2", file=OWN_OPTIONS)])
    await b.boot()
    assert await b.drift() == [("a", "options", "x=1", "x=1 y=2")]
    await b.apply()
    assert [change.parameters for change in b.rules.written] == [(("x", "1"),)]
    b.kernel.change_rules(rule("options", "a", "x=1", file=OWN_OPTIONS), rule("options", "a", "z=3"))
    assert await b.drift() == [], "what others set beside it is theirs"


async def test_options_in_a_closed_file_are_reported_without_values(bench: Make) -> None:
    secret = rule("options", "a", "x=topsecret other=topsecret", file="/etc/modprobe.d/secret.conf")
    b = bench("[module.a]\noptions = { x = 1 }\n", rules=[secret])
    await b.boot()
    assert await b.drift() == [("a", "options", "x=1", "x=topsecret")], "what nobody wants otherwise is nobody's matter"
    b.kernel.change_rules(replace(secret, public=False))
    assert await b.drift() == [("a", "options", "x=1", WITHHELD)]


async def test_settings_in_a_closed_file_are_reported_without_values(bench: Make) -> None:
    text = '[module.a]\noptions = { x = "hunter2" }\n' + wanted(
        "tuned", 'parameters = { level = 2, nosuch = "hunter2" }'
    )
    b = bench(text, "tuned")
    b.files.public = False
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    assert await b.drift() == [
        ("a", "options", WITHHELD, ""),
        ("tuned", "parameter", f"level={WITHHELD}", "level=1"),
        ("tuned", "parameter", f"nosuch={WITHHELD}", "no such parameter"),
    ]
    assert set((await b.plan(dry_run=True, reason="")).modules) == {"a", "tuned"}


async def test_a_soft_blacklist_of_one_wish_is_no_leave_to_load_another_module(bench: Make) -> None:
    own = [rule("blacklist", name, file=OWN_BLACKLIST) for name in "ab"]
    b = bench(wanted("a", 'blacklist = "soft"') + wanted("b"), rules=own)
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    assert await b.apply() == {"a": Result.FAILED, "b": Result.FAILED}
    assert b.live() == set()


async def test_a_dependency_is_loaded_over_the_blacklist_that_its_own_wish_asks_for(bench: Make) -> None:
    own = rule("blacklist", "fat", file=OWN_BLACKLIST)
    b = bench(wanted("vfat") + wanted("fat", 'blacklist = "soft"'), rules=[own])
    await b.boot()
    assert b.live() == {"fat", "vfat"}
    assert not b.reconciler.failures


async def test_each_result_says_what_was_to_be_done(bench: Make) -> None:
    b = bench(SETTINGS + '[module.vfat]\nstate = "loaded"\nversion = "2"\n', "tuned", rules=OWN)
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    results = await b.convergence.apply(await b.plan(dry_run=False, reason="test"), CALLER)
    assert [(one.action, one.module) for one in results] == [
        ("activate", "vfat"),
        ("set-parameter", "tuned"),
        ("set-parameter", "tuned"),
        ("load", "vfat"),
        ("set-options", "tuned"),
        ("enable-autoload", "tuned"),
        ("blacklist-hard", "a"),
        ("unblacklist", "b"),
        ("set-options", "b"),
    ]


@pytest.mark.parametrize(
    ("settings", "outside"),
    [
        ('[module.vfat]\nstate = "loaded"\n', "fat"),
        ('[module.tuned]\nstate = "loaded"\nparameters = { level = 2 }\n', "tuned"),
        ('[module.a]\nblacklist = "hard"\n', "a"),
        ("[module.a]\nautoload = true\n", "a"),
        ('[module.a]\nversion = "2"\nstate = "loaded"\n', "a"),
    ],
)
async def test_apply_touches_no_module_but_those_named(bench: Make, settings: str, outside: str) -> None:
    b = bench(settings, "tuned")
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    only = frozenset({ModuleName("vfat"), ModuleName("b")})
    await b.convergence.look()
    with pytest.raises(AccessDenied, match=f"^the call would affect {outside}, outside of only-modules"):
        b.convergence.plan(dry_run=False, reason="", only_modules=only)
    assert b.convergence.plan(dry_run=False, reason="", only_modules=only | {ModuleName(outside)}).steps is not None


async def test_a_bad_file_is_not_applied(bench: Make) -> None:
    b = bench(wanted("a"))
    await b.boot()
    b.files.text = wanted("a", "paramters = {}")
    with pytest.raises(Conflict, match=r"line 3: .* did you mean parameters\?"):
        await b.plan(dry_run=True, reason="")
    with pytest.raises(Conflict):
        await b.convergence.reload(CALLER)
    (settings,) = (c for c in DesiredHealth(b.desired, b.comparison, b.reconciler).checks() if c.name == "settings")
    assert settings.status is HealthStatus.DEGRADED
    assert "did you mean parameters?" in settings.message


def said(b: Bench, name: str) -> list[str]:
    """The sentences of one check of health."""
    return [c.message for c in DesiredHealth(b.desired, b.comparison, b.reconciler).checks() if c.name == name]


async def test_health_of_the_wanted_state_in_words(bench: Make) -> None:
    b = bench("")
    await b.boot()
    nothing = ["No desired state is configured in /etc/kmodd/modules.d."]
    assert said(b, "drift") == said(b, "desired-state") == nothing
    b.files.text = wanted("c", 'after = ["a", "b"]') + wanted("tuned", 'when = { kernel = ">=7" }')
    assert said(b, "drift") == ["The system matches the desired state."]
    assert said(b, "desired-state") == ["Waiting: c (a and b are not loaded); tuned (kernel 6.1.0-1-amd64 is not >=7)."]
    b.files.text = '[module.a]\noptions = {}\n[module.b]\nblacklist = "soft"\n'
    b.kernel.change_rules(rule("options", "a", "x=1", file=ManagedFile.OPTIONS))
    assert said(b, "drift") == [
        "a deviates from the desired state (options): desired none, actual x=1.",
        "b deviates from the desired state (blacklist): desired soft, actual none.",
    ]
    assert said(b, "desired-state") == ["No module failed to reach the desired state."]
    b.files.text = "[module.a]\nstat = 1\n"
    b.desired.refresh()
    (settings,) = said(b, "settings")
    assert settings.endswith("did you mean state?")
