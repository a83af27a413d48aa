# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the administrator ruled, honoured for the module, its aliases and its dependencies."""

from dataclasses import replace

import pytest

from kmodd.core.policy import Policy, command_line_rule, where
from kmodd.errors import DisabledByPolicy
from kmodd.kernel.simulated_modules import SimulatedModule
from kmodd.model import Rule
from kmodd.names import ModuleName
from tests.unit.fakes import FILE, machine, rule

M = ModuleName("vfat")


def policy(*rules: Rule) -> Policy:
    return Policy(machine(SimulatedModule("vfat", aliases=("fs-vfat", "net-pf-10")), rules=rules).index)


def test_no_rule_no_objection() -> None:
    assert policy(rule("options", "vfat", "x=1"), rule("softdep", "vfat", "pre: x")).check_load(M, "") == ()


def test_blacklisted_module_names_file_line_and_rule() -> None:
    with pytest.raises(DisabledByPolicy) as caught:
        policy(rule("blacklist", "vfat", line=7)).check_load(M, "")
    evidence = caught.value.evidence
    assert (evidence.file, evidence.line, evidence.rule) == (FILE, 7, "blacklist vfat")
    assert str(caught.value) == f"vfat cannot be used: it is blacklisted ({FILE}, line 7)"


@pytest.mark.parametrize("command", ["/bin/false", "/bin/true", "/usr/bin/false", " /bin/true "])
def test_install_line_that_does_nothing_disables(command: str) -> None:
    with pytest.raises(DisabledByPolicy, match="an install line disables it"):
        policy(rule("install", "vfat", command)).check_load(M, "")


@pytest.mark.parametrize(
    "command", ["/sbin/modprobe -i vfat", "/bin/true; reboot", "/bin/true && x", "echo /bin/false"]
)
@pytest.mark.parametrize("override", [False, True])
def test_install_line_that_runs_something_is_refused_whatever_is_asked(command: str, override: bool) -> None:
    with pytest.raises(DisabledByPolicy, match="runs a shell command"):
        policy(rule("install", "vfat", command)).check_load(M, "", override=override)


def test_what_not_everyone_may_read_is_not_told() -> None:
    """Explain answers anybody, and the journal keeps what a refusal tells."""
    closed = replace(rule("install", M, "/usr/bin/unlock --key hunter2"), public=False)
    assert where(closed) == f"{FILE}:1: install vfat …"
    assert where(replace(rule("blacklist", M), public=False)) == f"{FILE}:1: blacklist vfat"
    with pytest.raises(DisabledByPolicy) as refused:
        policy(closed).check_load(M, "")
    assert "hunter2" not in repr(refused.value)
    assert refused.value.evidence.rule == "install vfat …"


def test_override_sets_aside_blacklists_and_names_them() -> None:
    rules = (rule("blacklist", "vfat", line=1), rule("blacklist", "vfat", line=2))
    assert policy(*rules).check_load(M, "", override=True) == rules
    assert where(rules[1]) == f"{FILE}:2: blacklist vfat"


def test_a_denial_by_install_line_is_not_overridden() -> None:
    with pytest.raises(DisabledByPolicy, match="an install line disables it"):
        policy(rule("install", "vfat", "/bin/false")).check_load(M, "", override=True)


def test_what_cannot_be_overridden_is_told_first() -> None:
    hard = (rule("blacklist", "vfat", line=1), rule("install", "vfat", "/bin/false", line=2))
    with pytest.raises(DisabledByPolicy, match="an install line disables it") as caught:
        policy(*hard).check_load(M, "")
    assert caught.value.evidence.line == 2
    assert policy(*hard).load_rules(M) == (hard[1], hard[0])


@pytest.mark.parametrize(
    "line",
    [
        "module_blacklist=vfat",
        "quiet module_blacklist=a,vfat,b ro",
        'module-blacklist="vfat"',
        '"module_blacklist=a,vfat" ro',
        'dyndbg="file a.c -- +p" module_blacklist=vfat',
    ],
)
@pytest.mark.parametrize("override", [False, True])
def test_kernel_command_line_cannot_be_set_aside(line: str, override: bool) -> None:
    with pytest.raises(DisabledByPolicy, match="the kernel command line blacklists it") as caught:
        policy().check_load(M, line, override=override)
    assert caught.value.evidence.file == "/proc/cmdline"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "module_blacklist=vfat2",
        "module_blacklist=vfat module_blacklist=x",
        "-- module_blacklist=vfat",
        'dyndbg="+p module_blacklist=vfat"',
    ],
)
def test_command_line_that_names_others(line: str) -> None:
    assert command_line_rule(M, line) is None


def test_dash_and_underscore_are_one_letter_on_the_command_line() -> None:
    assert command_line_rule(ModuleName("snd_pcm"), "module_blacklist=snd-pcm") is not None


def test_rule_on_the_alias_it_was_asked_by() -> None:
    with pytest.raises(DisabledByPolicy):
        policy(rule("install", "fs_other", "/bin/true")).check_load(M, "", asked="fs-other")


def test_rule_on_one_of_its_aliases() -> None:
    with pytest.raises(DisabledByPolicy):
        policy(rule("install", "net_pf_10", "/bin/true")).check_load(M, "")


def test_rule_on_another_modules_alias_is_no_objection() -> None:
    assert policy(rule("install", "net_pf_11", "/bin/true")).check_load(M, "") == ()


def test_sentence_about_a_dependency_names_who_needs_it() -> None:
    with pytest.raises(DisabledByPolicy, match="msdos needs vfat, but it is blacklisted"):
        policy(rule("blacklist", "vfat")).check_load(M, "", needed_by="msdos")


@pytest.mark.parametrize("command", ["/sbin/rmmod x", "/bin/true"])
def test_remove_line_is_refused(command: str) -> None:
    with pytest.raises(DisabledByPolicy, match="a remove line runs a shell command"):
        policy(rule("remove", "vfat", command)).check_unload(M)


def test_blacklist_does_not_keep_a_module_loaded() -> None:
    policy(rule("blacklist", "vfat"), rule("install", "vfat", "/bin/false")).check_unload(M)


def test_rules_that_change_are_seen() -> None:
    kernel = machine(SimulatedModule("vfat", aliases=("net-pf-10",)))
    judge = Policy(kernel.index)
    assert judge.check_load(M, "") == ()
    kernel.index.change_rules((rule("blacklist", "net_pf_10"),))
    with pytest.raises(DisabledByPolicy):
        judge.check_load(M, "")


def test_module_switched_off_by_an_alias() -> None:
    with pytest.raises(DisabledByPolicy, match="an alias line switches it off") as caught:
        policy(rule("alias", "vfat", "off", line=3)).check_load(M, "", asked="vfat", override=True)
    assert (caught.value.evidence.line, caught.value.evidence.rule) == (3, "alias vfat off")


def test_alias_switched_off_leaves_the_module_usable_by_name() -> None:
    judged = policy(rule("alias", "net_pf_*", "off"))
    assert judged.check_load(M, "", asked="vfat") == ()
    with pytest.raises(DisabledByPolicy, match="net_pf_10 cannot be used"):
        judged.check_alias("net-pf-10")


def test_module_switched_off_by_an_alias_is_loaded_as_a_dependency_as_by_modprobe() -> None:
    assert policy(rule("alias", "vfat", "off")).check_load(M, "", needed_by="other") == ()


def test_alias_for_another_module_is_no_objection() -> None:
    judged = policy(rule("alias", "vfat", "msdos"))
    assert judged.check_load(M, "", asked="vfat") == ()
    judged.check_alias("vfat")


def test_module_called_off_is_a_module() -> None:
    kernel = machine(SimulatedModule("off"), SimulatedModule("vfat"), rules=[rule("alias", "vfat", "off")])
    assert Policy(kernel.index).check_load(M, "", asked="vfat") == ()
