# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config` against the real daemon on a simulated kernel, and how its answers look."""

from pathlib import Path
from typing import Any

import pytest

from kmodd.cli.arguments import ExitCode
from kmodd.cli.commands import config
from kmodd.errors import Conflict, Evidence, NoSuchModule
from kmodd.model import OperationResult, Result, Rule
from kmodd.model.rules import Drift, Finding, ManagedFile, Replacement, ShownRule
from kmodd.names import ModuleName
from tests.cli import samples
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.runner import Runner, screen

ROOT = Path(__file__).parents[2]


def ours(run: Runner) -> list[tuple[str, str, str]]:
    """(kind, module, value) of the rules kmodd wrote."""
    rows: list[dict[str, Any]] = run("config", "show", "--json").document
    return [(row["kind"], row["module"], row["value"]) for row in rows if row["ours"]]


def test_rules_come_and_go(run: Runner) -> None:
    assert ours(run) == []
    ended = run("config", "autoload", "loop", "max_loop=8", "--reason", "disk images")
    assert (ended.status, ended.err) == (0, "")
    assert "loop is loaded at boot by /etc/modules-load.d/kmodd.conf" in ended.out
    assert run("config", "options", "overlay", "redirect_max=64").status == 0
    assert run("config", "blacklist", "vfat", "--hard").status == 0
    assert ours(run) == [
        ("autoload", "loop", ""),
        ("blacklist", "vfat", ""),
        ("softdep", "vfat", "pre:"),
        ("install", "vfat", "/bin/false"),
        ("options", "loop", "max_loop=8"),
        ("options", "overlay", "redirect_max=64"),
    ]
    # What was written is in force at once.
    refused = run("load", "vfat")
    assert refused.status == ExitCode.POLICY
    assert run("config", "show", "vfat", "--json").document[0]["file"] == ManagedFile.BLACKLIST
    assert "disk images" in run("log", "loop").out
    for command in (("autoload", "loop"), ("options", "loop"), ("options", "overlay"), ("blacklist", "vfat")):
        assert run("config", *command, "--off").status == 0
    assert ours(run) == []


def test_the_name_of_a_file_is_no_modules(run: Runner) -> None:
    ended = run("config", "blacklist", "loop.ko")
    assert ended.status == ExitCode.USAGE
    assert "did you mean loop?" in ended.err


def test_a_dry_run_says_so_and_changes_nothing(run: Runner) -> None:
    ended = run("config", "blacklist", "loop", "--dry-run")
    assert "nothing was changed" in ended.out
    assert run("config", "autoload", "loop", "--dry-run", "--json").document["dry-run"] is True
    assert ours(run) == []


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("autoload", "lop"), ExitCode.NOT_FOUND, "did you mean loop?"),
        (("options", "loop", "max_lop=8"), ExitCode.BAD_PARAMETER, "has no parameter max_lop"),
        (("options", "loop"), ExitCode.USAGE, "--off removes the existing ones"),
        (("autoload", "loop", "max_loop=8", "--off"), ExitCode.USAGE, "--off takes no parameters"),
        (("blacklist", "loop", "--hard", "--off"), ExitCode.USAGE, "the option hard requires blacklisted"),
        (("blacklist", "../loop"), ExitCode.USAGE, "a module name is"),
        (("options", "dummy", "numdummies=2"), ExitCode.IN_THE_WAY, "/usr/lib/modprobe.d/systemd.conf, line 15,"),
        (
            ("options", "dummy", "numdummies=2"),
            ExitCode.IN_THE_WAY,
            "to /etc/modprobe.d/systemd.conf, which then replaces",
        ),
        (("blacklist", "unix"), ExitCode.IN_THE_WAY, "has no effect"),
        (("nonsense",), ExitCode.USAGE, "is not known"),
        ((), ExitCode.USAGE, "required"),
    ],
)
def test_what_cannot_be(run: Runner, words: tuple[str, ...], status: int, says: str) -> None:
    ended = run("config", *words)
    assert ended.status == status
    assert says in " ".join(ended.err.split())


def test_drift_apply_and_reload_without_a_desired_state(run: Runner) -> None:
    assert "matches the desired state" in run("config", "drift").out
    assert run("config", "drift", "--json").document == []
    assert "Nothing to do" in run("config", "apply").out
    assert run("config", "apply", "--dry-run", "--json").document == []
    assert "reloaded its configuration files" in run("config", "reload").out


def test_what_apply_would_do_as_people_read_it() -> None:
    before = [
        Drift("tun", "presence", "loaded", "absent", "kmodctl config apply"),
        Drift("loop", "parameter", "max_part=3", "max_part=0"),
        Drift("loop", "options", "max_part=3", "none"),
        Drift("", "initramfs", "as /etc", "older", "update-initramfs -u"),
    ]
    results = [OperationResult(name, Result.CHANGED, None, (ModuleName(name),)) for name in ("tun", "loop", "loop")]
    assert config.foretold(before, results, screen(0)) == [
        "→ tun   presence loaded  is absent",
        "→ loop  parameter max_part=3  is max_part=0",
        "→ loop  options max_part=3  is none",
        "",
        "✓ This would change 2 modules. Nothing was changed.",
    ]


def test_nothing_to_do_as_people_read_it() -> None:
    stale = Drift("", "initramfs", "up to date with /etc", "older", "update-initramfs -u")
    theirs = Drift("loop", "autoload", "not loaded at boot", "loaded at boot by /etc/modules", "remove line 3")
    nothing = ["= Nothing to do: the system matches the desired state."]
    assert config.unchanged([], screen(0), with_initramfs=False) == nothing
    assert config.unchanged([stale], screen(0), with_initramfs=True) == nothing
    told = config.unchanged([stale, theirs], screen(0), with_initramfs=False)
    assert told[0] == "= kmodd cannot resolve the remaining differences:"
    assert told[-2:] == ["hint: update-initramfs -u", "hint: remove line 3"]


def test_apply_that_fails_as_people_read_it() -> None:
    loop, tun = ModuleName("loop"), ModuleName("tun")
    edited = Conflict("its file was edited", evidence=Evidence(hint="move the edit to another file"))
    results = [
        OperationResult("loop", Result.SKIPPED),
        OperationResult("tun", Result.ROLLED_BACK, None, (tun,)),
        OperationResult("nosuch", Result.FAILED, NoSuchModule("there is no module nosuch")),
        OperationResult("loop", Result.FAILED, edited, (loop,)),
        OperationResult("tun", Result.SKIPPED),
    ]
    told = config.by_module(results)
    assert [(one.module, one.result) for one in told] == [
        ("loop", Result.FAILED),
        ("tun", Result.ROLLED_BACK),
        ("nosuch", Result.FAILED),
    ]
    assert told[0].touched == (loop,)
    assert config.hindered(told, screen(0)) == [
        "✗ loop    its file was edited",
        "    hint: move the edit to another file",
        "✗ nosuch  there is no module nosuch",
        "    hint: kmodctl list --state all shows every module of this kernel",
        "",
        "✗ This would fail and change nothing. Nothing was changed.",
    ]


def test_what_stays_changed_beside_a_failure_is_not_hidden_by_what_was_undone() -> None:
    results = [OperationResult("loop", Result.CHANGED), OperationResult("loop", Result.ROLLED_BACK)]
    assert [one.result for one in config.by_module(results)] == [Result.CHANGED]


def test_a_dry_run_tells_which_file_is_in_the_way(fake: FakeDaemon, kmodctl: Runner) -> None:
    why = f"{ManagedFile.OPTIONS} was edited since kmodd wrote it"
    fake.answers["Apply", ""] = [
        {
            "module": "loop",
            "action": "set-options",
            "result": "failed",
            "changed": [],
            "error": "Conflict",
            "message": why,
        },
        {"module": "tun", "action": "load", "result": "changed", "changed": ["tun"]},
    ]
    fake.answers["GetDrift", ""] = []
    ended = kmodctl("config", "apply", "--dry-run")
    assert ended.status == ExitCode.IN_THE_WAY
    assert ended.out.splitlines()[0] == f"✗ loop  {why}"
    assert "tun" not in ended.out


def test_drift_says_when_the_files_do_not_count(fake: FakeDaemon, kmodctl: Runner) -> None:
    fake.answers["GetDrift", ""] = []
    assert kmodctl("config", "drift").err == ""
    said = "The previous settings stay in effect: /etc/kmodd/modules.d/a.toml, line 2: invalid TOML."
    check = {"name": "settings", "status": "degraded", "message": said}
    fake.answers["GetHealth", ""] = {**samples.HEALTH, "checks": [check]}
    assert kmodctl("config", "drift").err == f"note: {said}\n"


def test_rules_as_people_read_them() -> None:
    low = "/usr/lib/modprobe.d/a.conf"
    rules = [
        ShownRule(Rule("options", "loop", "max_lop=8", "/etc/modprobe.d/a.conf", 3, ""), masks=(low,),
                  findings=(Finding("unknown-parameter", "loop has no parameter max_lop: did you mean max_loop?",
                                    instead=(Replacement("/etc/modprobe.d/a.conf", "options loop max_loop=8"),),
                                    file="/etc/modprobe.d/a.conf"),)),
        ShownRule(Rule("blacklist", "dummy", "", "/etc/modprobe.d/a.conf", 12, "")),
        ShownRule(Rule("options", "loop", "", low, 1, ""), shadowed_by="/etc/modprobe.d/a.conf", public=False),
        ShownRule(Rule("autoload", "e\x1bvil", "", ManagedFile.AUTOLOAD, 5, ""), ours=True),
        *(ShownRule(Rule("softdep", "cifs", f"pre: {word}", "/m/modules.softdep", line, ""),
                    findings=(Finding("softdep-override", "line 3 counts"),)) for line, word in ((4, "ccm"), (5, "gcm"))),
        ShownRule(Rule("finding", "", "", ManagedFile.OPTIONS, 1, ""), findings=(Finding("foreign", "not kmodd's"),)),
    ]  # fmt: skip
    assert config.lines(rules, screen(0)) == [
        "/etc/modprobe.d/a.conf  masks /usr/lib/modprobe.d/a.conf",
        "   3  options loop max_lop=8",
        "      ✗ loop has no parameter max_lop: did you mean max_loop?",
        "        write instead:",
        "          options loop max_loop=8",
        "  12  blacklist dummy",
        "",
        low,
        "   1  options loop (for root only)  not in effect: /etc/modprobe.d/a.conf",
        "",
        f"{ManagedFile.AUTOLOAD}  written by kmodd",
        "   5  autoload e\\x1bvil",
        "",
        "/m/modules.softdep",
        "   4  softdep cifs pre: ccm",
        "   5  softdep cifs pre: gcm",
        "      ✗ line 3 counts",
        "",
        ManagedFile.OPTIONS,
        "      ✗ not kmodd's",
    ]
    assert config.lines([], screen(0)) == []


def test_drift_as_people_read_it() -> None:
    found = [
        Drift("loop", "presence", "loaded", "absent", "kmodctl config apply"),
        Drift("dummy", "parameter", "numdummies=2", "numdummies=1", "kmodctl config apply"),
    ]
    assert config.drift_lines(found, screen(0)) == [
        "MODULE  WHAT       DESIRED       ACTUAL",
        "loop    presence   loaded        absent",
        "dummy   parameter  numdummies=2  numdummies=1",
        "",
        "hint: kmodctl config apply",
    ]
    (_, options, initramfs) = config.drift_lines(
        [Drift("loop", "options", "max_part=3", ""), Drift("", "initramfs", "up to date with /etc", "older")], screen(0)
    )
    assert options == "loop    options    max_part=3            none"
    assert initramfs == "        initramfs  up to date with /etc  older"
