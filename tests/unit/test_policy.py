# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the administrator ruled, honoured for the module, its aliases and its dependencies."""

from dataclasses import replace

import pytest

from kmodd.core.planning.policy import Policy, command_line_rule, where
from kmodd.errors import DisabledByPolicy
from kmodd.kernel.simulated.modules import SimulatedModule
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
    assert str(caught.value) == (
        f"vfat is not loaded: it is blacklisted ({FILE}, line 7); modprobe still loads it by name"
    )


@pytest.mark.parametrize(
    "command",
    [
        "/bin/false",
        "/bin/true",
        "/usr/bin/false",
        " /bin/true ",
        "/bin/false # not on this machine",
        ":",
        "exit 0",
        "exit 1",
        "/usr/bin/true vfat",
        "true; /bin/false",
        "/bin/true && exit 1",
        "/bin/false >/dev/null 2>&1",
        "exec /bin/false",
    ],
)
def test_install_line_that_does_nothing_disables(command: str) -> None:
    with pytest.raises(DisabledByPolicy, match="an install line disables it"):
        policy(rule("install", "vfat", command)).check_load(M, "")


@pytest.mark.parametrize(
    "command",
    [
        "/sbin/modprobe -i vfat; reboot",
        "/sbin/modprobe vfat",
        "/sbin/modprobe -i fat",
        "/sbin/modprobe -i vfat x=1",
        "/sbin/modprobe -r -i vfat",
        "/sbin/modprobe -i -C /tmp vfat",
        "/bin/true; reboot",
        "/bin/true && x",
        "/bin/true `reboot`",
        "/bin/true $(reboot)",
        "/bin/false > /etc/passwd",
        "/bin/false\nreboot",
        "/bin/false | reboot",
        "/bin/false & reboot",
        "echo /bin/false",
    ],
)
@pytest.mark.parametrize("override", [False, True])
def test_install_line_that_runs_a_program_is_always_refused(command: str, override: bool) -> None:
    with pytest.raises(DisabledByPolicy, match="runs a shell command"):
        policy(rule("install", "vfat", command)).check_load(M, "", override=override)


@pytest.mark.parametrize(
    "command",
    [
        "/sbin/modprobe --ignore-install vfat",
        "modprobe -i vfat",
        "/sbin/modprobe -q --ignore-install vfat $CMDLINE_OPTS # as before",
        "exec /sbin/modprobe --ignore-install -- vfat",
    ],
)
def test_install_line_that_only_loads_the_module_is_permission(command: str) -> None:
    judged = policy(rule("install", "vfat", command), rule("install", "vfat", "/bin/false", line=2))
    assert judged.check_load(M, "") == judged.load_rules(M) == ()


def test_install_line_that_loads_another_module_is_explained() -> None:
    with pytest.raises(DisabledByPolicy, match="never does: it would load ntfs3 and fat"):
        policy(rule("install", "vfat", "/sbin/modprobe ntfs3; modprobe -q fat x=1; logger hello")).check_load(M, "")
    closed = replace(rule("install", "vfat", "/sbin/modprobe secret"), public=False)
    with pytest.raises(DisabledByPolicy) as caught:
        policy(closed).check_load(M, "")
    assert "secret" not in caught.value.message


def test_install_line_that_modprobe_ignores_says_so_and_what_makes_it_hold() -> None:
    rules = (rule("install", "nfsd", "/bin/false"), rule("softdep", "nfsd", "pre: crypto", line=9))
    kernel = machine(SimulatedModule("nfsd"), SimulatedModule("crypto"), rules=rules)
    judged = Policy(kernel.index)
    assert not judged.keeps_out(ModuleName("nfsd"))
    with pytest.raises(DisabledByPolicy) as caught:
        judged.check_load(ModuleName("nfsd"), "")
    assert "nfsd is not loaded: an install line disables it" in caught.value.message
    assert f"modprobe ignores install lines of a module with soft dependencies ({FILE}, line 9)" in caught.value.message
    assert "'softdep nfsd pre:' in an earlier file makes the line effective" in caught.value.message
    # The first softdep line counts: an empty one makes the install line act.
    kernel.index.change_rules((rule("softdep", "nfsd", "pre:"), *rules))
    assert judged.keeps_out(ModuleName("nfsd"))
    with pytest.raises(DisabledByPolicy, match="nfsd cannot be used: an install line disables it"):
        judged.check_load(ModuleName("nfsd"), "")


def test_command_that_modprobe_does_not_run_is_no_objection() -> None:
    rules = (rule("install", "nfsd", "logger x"), rule("softdep", "nfsd", "pre: crypto", line=9))
    kernel = machine(SimulatedModule("nfsd"), SimulatedModule("crypto"), rules=rules)
    assert Policy(kernel.index).check_load(ModuleName("nfsd"), "") == ()


def test_content_of_a_closed_file_is_not_reported() -> None:
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


def test_what_cannot_be_overridden_is_reported_first() -> None:
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


def test_the_kernel_compares_names_on_its_command_line_letter_by_letter() -> None:
    assert command_line_rule(ModuleName("snd_pcm"), "module_blacklist=snd-pcm") is None
    assert command_line_rule(ModuleName("snd_pcm"), "module-blacklist=snd_pcm") is not None


def test_rule_on_the_requested_alias() -> None:
    with pytest.raises(DisabledByPolicy):
        policy(rule("install", "fs_other", "/bin/true")).check_load(M, "", requested="fs-other")


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
    with pytest.raises(DisabledByPolicy, match="an alias line disables it") as caught:
        policy(rule("alias", "vfat", "off", line=3)).check_load(M, "", requested="vfat", override=True)
    assert (caught.value.evidence.line, caught.value.evidence.rule) == (3, "alias vfat off")


def test_alias_switched_off_leaves_the_module_usable_by_name() -> None:
    judged = policy(rule("alias", "net_pf_*", "off"))
    assert judged.check_load(M, "", requested="vfat") == ()
    with pytest.raises(DisabledByPolicy, match="net_pf_10 cannot be used"):
        judged.check_alias("net-pf-10")


def test_module_switched_off_by_an_alias_is_loaded_as_a_dependency_as_by_modprobe() -> None:
    assert policy(rule("alias", "vfat", "off")).check_load(M, "", needed_by="other") == ()


def test_alias_for_another_module_is_no_objection() -> None:
    judged = policy(rule("alias", "vfat", "msdos"))
    assert judged.check_load(M, "", requested="vfat") == ()
    judged.check_alias("vfat")


def test_module_called_off_is_a_module() -> None:
    kernel = machine(SimulatedModule("off"), SimulatedModule("vfat"), rules=[rule("alias", "vfat", "off")])
    assert Policy(kernel.index).check_load(M, "", requested="vfat") == ()
