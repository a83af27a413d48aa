# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each command asks of the daemon, and what it answers."""

import json
from pathlib import Path

import pytest

from kmodd import VERSION
from kmodd.cli.arguments import ExitCode
from tests.cli import samples
from tests.cli.fake_daemon import FakeDaemon, Refusal
from tests.cli.runner import Runner

COMMANDS = [
    "list", "show", "why", "load", "unload", "reload", "batch", "plan", "set", "status", "log", "monitor", "reset-failed",
]  # fmt: skip


def test_load_with_everything(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("load", "vfat", "a=1", "b=x y=z", "--reason", "why not", "--timeout", "7", "--override-policy")
    assert (ended.status, ended.out, ended.err) == (0, "✓ inserted fat → vfat\n", "")
    (call,) = fake.asked("Load")
    assert call.arguments == ("vfat", {"a": "1", "b": "x y=z"})
    assert call.options == {"reason": "why not", "timeout": 7, "override-policy": True}
    assert not call.interactive


def test_load_of_what_is_loaded_says_so(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("load", "loop")
    assert ended.status == 0
    assert "already loaded or built in, nothing to do" in ended.out
    assert kmodctl("load", "loop", "--json").document == {"module": "loop", "inserted": []}


def test_several_modules_are_a_batch(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("load", "nf_conntrack", "ip_tables", "--json")
    assert ended.status == ExitCode.USAGE
    assert "printf 'load %s\\n' nf_conntrack ip_tables | kmodctl batch -" in ended.document["hint"]
    assert "write a switch as NAME=1" in ended.document["hint"]
    assert "batch takes several modules" in kmodctl("load", "loop", "$(id)").err
    assert fake.calls == []


@pytest.mark.parametrize(
    ("path", "load", "keep"),
    [
        ("./loop.ko", "kmodctl load loop;", "kmodctl store import ./loop.ko"),
        ("/root/my nic.ko.xz", "", "kmodctl store import '/root/my nic.ko.xz'"),
    ],
)
def test_a_file_is_no_name(fake: FakeDaemon, kmodctl: Runner, path: str, load: str, keep: str) -> None:
    document = kmodctl("load", path, "--json").document
    assert (document["error"], fake.calls) == ("InvalidArgs", [])
    assert load in document["hint"]
    assert ("kmodctl load" in document["hint"]) == bool(load)
    assert document["hint"].endswith(keep)


def test_unload_with_everything(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("unload", "loop", "--dependents", "--unused-dependencies", "--json")
    assert ended.document == {"module": "loop", "removed": ["loop"]}
    assert fake.asked("Unload")[0].options == {"dependents": True, "unused-dependencies": True}


@pytest.mark.parametrize(
    ("words", "member"),
    [(["unload", "loop"], "Unload"), (["reload", "loop"], "Reload"), (["unload", "loop", "--dry-run"], "Plan")],
)
def test_disconnect_is_passed_on(words: list[str], member: str, fake: FakeDaemon, kmodctl: Runner) -> None:
    assert kmodctl(*words, "--disconnect").status == 0
    assert fake.asked(member)[0].options == {"disconnect": True}


def test_reload(fake: FakeDaemon, kmodctl: Runner) -> None:
    assert kmodctl("reload", "loop", "max_loop=4").status == 0
    assert fake.asked("Reload")[0].arguments == ("loop", {"max_loop": "4"})


@pytest.mark.parametrize("words", [["load", "vfat", "--dry-run"], ["plan", "load", "vfat"]])
def test_dry_run_is_the_public_plan(words: list[str], fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl(*words)
    assert ended.status == 0
    assert "insert fat" in ended.out
    assert "This would insert 2 modules. Nothing was changed." in ended.out
    assert [call.member for call in fake.calls] == ["Plan"]
    assert fake.calls[0].arguments == ([["load", "vfat", {}]],)


def test_dry_run_that_would_fail_has_the_errors_status(fake: FakeDaemon, kmodctl: Runner) -> None:
    row = {"action": "remove", "module": "vfat", "because": "requested", "error": "InUse", "message": "vfat is used."}
    fake.answers["Plan", ""] = [row]
    ended = kmodctl("unload", "vfat", "--dependents", "--dry-run")
    assert ended.status == ExitCode.IN_THE_WAY
    assert "This would fail (InUse)" in ended.out
    assert fake.calls[0].options == {"dependents": True}


def test_batch_from_a_file(fake: FakeDaemon, kmodctl: Runner, tmp_path: Path) -> None:
    file = tmp_path / "batch"
    file.write_text("# two\nload vfat 'name=a b'\n\nunload loop # trailing\n")
    fake.answers["Batch", ""] = [
        {"module": "vfat", "action": "load", "result": "changed", "changed": ["fat", "vfat"]},
        {"module": "loop", "action": "unload", "result": "unchanged", "changed": []},
    ]
    ended = kmodctl("batch", str(file), "--reason", "weekly")
    assert ended.status == 0
    assert "✓ load    vfat  fat and vfat" in ended.out
    assert ended.out.endswith("1 changed, 1 unchanged\n")
    (call,) = fake.asked("Batch")
    assert call.arguments == ([["load", "vfat", {"name": "a b"}], ["unload", "loop", {}]],)
    assert call.options == {"atomic": True, "reason": "weekly"}


def test_batch_sets_parameters_and_resets_failures(fake: FakeDaemon, kmodctl: Runner) -> None:
    fake.answers["Batch", ""] = [
        {"module": "loop", "action": "set-parameter", "result": "changed", "changed": ["loop"]},
        {"module": "vfat", "action": "reset-failed", "result": "unchanged", "changed": []},
    ]
    ended = kmodctl("batch", "-", stdin="set-parameter loop max_part=7\nreset-failed vfat\n")
    assert ended.status == 0
    assert "✓ set-parameter  loop  loop" in ended.out
    (call,) = fake.asked("Batch")
    assert call.arguments == ([["set-parameter", "loop", {"max_part": "7"}], ["reset-failed", "vfat", {}]],)


@pytest.mark.parametrize("line", ["set-parameter loop", "reset-failed loop a=1", "set loop a=1"])
def test_malformed_lines_of_a_batch(fake: FakeDaemon, kmodctl: Runner, line: str) -> None:
    ended = kmodctl("batch", "-", stdin=f"load vfat\n{line}\n")
    assert ended.status == 2
    assert "line 2: " in ended.err
    assert fake.asked("Batch") == []


def test_batch_in_json_from_stdin(fake: FakeDaemon, kmodctl: Runner) -> None:
    row = {"module": "dummy", "action": "load", "result": "failed", "changed": [], "error": "NoDevice", "message": "none",
           "hint": "plug it in", "errno": 19, "kernel-log": ["dummy: no device"]}  # fmt: skip
    fake.answers["Batch", ""] = [row]
    text = json.dumps([{"action": "load", "module": "dummy", "parameters": {"n": 2, "on": True, "s": "x"}}])
    ended = kmodctl("batch", "-", "--no-atomic", "--json", stdin=text)
    assert ended.status == ExitCode.REFUSED_BY_MODULE
    assert ended.document == [row]
    (call,) = fake.asked("Batch")
    assert call.arguments == ([["load", "dummy", {"n": "2", "on": "Y", "s": "x"}]],)
    assert call.options == {"atomic": False}


def test_batch_tells_the_sentence_and_the_hint_of_a_failure(fake: FakeDaemon, kmodctl: Runner) -> None:
    failed = {"module": "i6300esb", "action": "load", "result": "failed", "changed": [], "error": "NoDevice"}
    sentence = "i6300esb found no device it can drive"
    fake.answers["Batch", ""] = [{**failed, "message": sentence, "hint": "kmodctl show i6300esb"}]
    ended = kmodctl("batch", "-", stdin="load i6300esb")
    assert ended.status == ExitCode.REFUSED_BY_MODULE
    assert ended.out.splitlines()[:2] == [f"✗ load    i6300esb  {sentence}", "    hint: kmodctl show i6300esb"]
    assert [call.member for call in fake.calls] == ["Batch"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no operations"),
        ("insert vfat", "line 1: 'insert' is none of load, unload, reload, set-parameter, reset-failed"),
        ("load vfat\nload", "line 2: 'load' needs a module"),
        ("load vfat x", "line 1: 'x' is not a parameter"),
        ("unload vfat x=1", "line 1: 'unload' takes no parameters"),
        ("load 'vfat", "line 1: no closing quotation"),
        ("{}", "a batch in JSON must be a list"),
        ("[1]", "entry 1 needs 'action' and 'module'"),
        ('[{"action": "load", "module": 3}]', "entry 1: 'module' must be a string"),
        ("[", "not valid JSON"),
        ("load a\n" * 257, "at most 256 operations"),
    ],
)
def test_batch_refused_before_the_daemon(text: str, said: str, fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("batch", "-", stdin=text)
    assert ended.status == ExitCode.USAGE
    assert said in ended.err
    assert fake.calls == []


def test_batch_file_that_cannot_be_read(fake: FakeDaemon, kmodctl: Runner, tmp_path: Path) -> None:
    ended = kmodctl("batch", str(tmp_path / "none"))
    assert ended.status == ExitCode.USAGE
    assert "No such file or directory" in ended.err


def test_set_shows_what_the_kernel_made_of_it(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("set", "loop", "max_part", "2")
    assert ended.out == "loop: max_part = 3  (the kernel stored this for '2')\n"
    assert fake.asked("SetParameter")[0].arguments == ("loop", "max_part", "2")


def test_list_asks_for_state_and_pattern(fake: FakeDaemon, kmodctl: Runner) -> None:
    assert kmodctl("list", "--state", "all", "v*").status == 0
    assert fake.asked("ListModules")[0].options == {"state": "all", "match": "v*"}
    assert kmodctl("--json", "list").document == samples.LOADED


def test_why_json_is_the_answer_and_what_to_do(fake: FakeDaemon, kmodctl: Runner) -> None:
    document = kmodctl("why", "vfat", "--json").document
    assert document["users"] == samples.VFAT["users"]
    assert document["loaded-by"] == samples.VFAT["loaded-by"]
    assert document["free"] == [
        "umount /boot/efi",
        "umount '/mnt/My Disk'",
        "kill 4312",
        "kmodctl unload vfat",
    ]


def test_why_of_nothing(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("why", "no-such")
    assert ended.status == ExitCode.NOT_FOUND
    assert "this kernel has no such module" in ended.out
    assert kmodctl("why", "../x").status == ExitCode.USAGE


def test_status_and_show_as_json(fake: FakeDaemon, kmodctl: Runner) -> None:
    assert kmodctl("status", "--json").document["health"] == samples.HEALTH
    document = kmodctl("show", "loop", "--json").document
    assert document["description"] == samples.LOOP
    assert document["module"]["Parameters"] == {"max_loop": "8", "max_part": "3"}
    assert kmodctl("show", "vfat", "--json").document["module"] is None


def test_log_options(fake: FakeDaemon, kmodctl: Runner) -> None:
    assert "Loaded vfat" in kmodctl("log", "vfat", "--since", "2023-11-14", "-n", "5").out
    options = fake.asked("GetHistory")[0].options
    assert options["module"] == "vfat"
    assert options["limit"] == 5
    assert options["since"] > 1_699_800_000_000_000
    assert kmodctl("log", "--json").document == samples.HISTORY
    assert kmodctl("log", "--since", "soon").status == ExitCode.USAGE
    assert kmodctl("log", "-n", "0").status == ExitCode.USAGE


@pytest.mark.parametrize(
    ("words", "member"),
    [
        (("set", "loop", "max_part", "2"), "SetParameter"),
        (("reset-failed", "vfat"), "ResetFailed"),
        (("load", "vfat"), "Load"),
    ],
)
def test_a_reason_goes_along(fake: FakeDaemon, kmodctl: Runner, words: tuple[str, ...], member: str) -> None:
    assert kmodctl(*words, "--reason", "the pager").status == 0
    assert fake.asked(member)[-1].options == {"reason": "the pager"}
    assert kmodctl(*words).status == 0
    assert fake.asked(member)[-1].options == {}


def test_reset_failed(fake: FakeDaemon, kmodctl: Runner) -> None:
    assert kmodctl("reset-failed", "vfat").status == 0
    assert fake.asked("ResetFailed")[0].arguments == ("vfat",)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, kmodctl: Runner) -> None:
    ended = kmodctl(command, "--help")
    assert ended.status == 0
    assert ended.out.startswith(f"usage: kmodctl {command}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("laod", "x"), "'laod' is not known; did you mean load or unload or reload?"),
        (("config", "aply"), "'aply' is not known; did you mean apply?"),
        (("zzz",), "'zzz' is not known; expected one of: list, show, why, load"),
    ],
)
def test_mistyped_commands_get_the_nearest_ones(kmodctl: Runner, words: tuple[str, ...], said: str) -> None:
    ended = kmodctl(*words)
    assert ended.status == ExitCode.USAGE
    assert said in ended.err


def test_version_and_usage(kmodctl: Runner) -> None:
    assert kmodctl("--version").out == f"kmodctl {VERSION}\n"
    assert all(command in kmodctl("--help").out for command in COMMANDS)
    for wrong in ([], ["frobnicate"], ["load"], ["list", "--state", "odd"], ["load", "x", "--timeout", "soon"]):
        ended = kmodctl(*wrong)
        assert ended.status == ExitCode.USAGE
        assert "usage: kmodctl" in ended.err


def test_parameters_are_not_said_to_be_required(kmodctl: Runner) -> None:
    for words in (["load"], ["reload"], ["plan", "load"], ["config", "autoload"]):
        assert kmodctl(*words).err.endswith("the following arguments are required: MODULE\n")


def test_one_bus_at_a_time(kmodctl: Runner) -> None:
    ended = kmodctl("list", "--session", "--bus", kmodctl.address)
    assert ended.status == ExitCode.USAGE
    assert "--session and --bus are mutually exclusive" in ended.err


def test_answers_of_an_unexpected_form_are_a_failure(fake: FakeDaemon, kmodctl: Runner) -> None:
    fake.answers["Explain", "vfat"] = {"name": "vfat", "state": "sideways"}
    ended = kmodctl("why", "vfat")
    assert ended.status == ExitCode.FAILED
    assert "a state this version does not know" in ended.err
    fake.answers["Explain", "vfat"] = {"name": "vfat", "state": "live", "references": "many"}
    assert "field 'references' of an unexpected type" in kmodctl("why", "vfat").err


def test_bad_pairs_of_parameters(fake: FakeDaemon, kmodctl: Runner) -> None:
    for words in (["x"], ["=1"], ["a=1", "a=2"]):
        assert kmodctl("load", "vfat", *words).status == ExitCode.USAGE
    assert fake.calls == []


def test_colour_and_escapes_never_reach_a_pipe(fake: FakeDaemon, kmodctl: Runner) -> None:
    for words in (["why", "vfat"], ["list"], ["status"], ["log"], ["load", "i6300esb"], ["show", "loop"]):
        ended = kmodctl(*words)
        assert "\x1b" not in ended.out + ended.err


def test_a_denied_history_says_what_to_do(fake: FakeDaemon, kmodctl: Runner) -> None:
    fake.answers["GetHistory", ""] = Refusal("org.freedesktop.DBus.Error.AccessDenied", "Not allowed to read history.")
    ended = kmodctl("log")
    assert ended.status == ExitCode.ACCESS_DENIED
    assert "Not allowed to read history." in ended.err


WITHHELD = {
    **samples.VFAT,
    "users": [{"kind": "process", "name": "", "detail": "3 processes of other users", "count": 3}],
    "because": "loaded through kmodd",
    "free": [],
    "withheld": ["users", "loaded-by"],
}


def test_why_says_what_is_withheld_and_how_to_see_it(fake: FakeDaemon, kmodctl: Runner) -> None:
    """A number of processes is no process number: no command follows from it."""
    fake.answers["Explain", "vfat"] = {key: value for key, value in WITHHELD.items() if key != "loaded-by"}
    shown = kmodctl("why", "vfat").out
    assert "3 processes of other users" in shown
    assert "Withheld: details of other users' processes and who loaded it and why: kmodctl why --inspect vfat" in shown
    assert "kill" not in shown
    assert "To remove it" not in shown
    document = kmodctl("why", "vfat", "--json").document
    assert (document["withheld"], document["free"]) == (["users", "loaded-by"], [])
    assert "polkit does not authorize you" in kmodctl("why", "--inspect", "vfat").out
    assert not fake.asked("Explain")[0].interactive


def test_why_prints_the_commands_of_the_daemon(fake: FakeDaemon, kmodctl: Runner) -> None:
    fake.answers["Explain", "vfat"] = {**samples.VFAT, "free": ["umount /boot/efi", "kmodctl unload vfat"]}
    document = kmodctl("why", "vfat", "--json").document
    assert document["free"] == ["umount /boot/efi", "kmodctl unload vfat"]
