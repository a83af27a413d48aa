# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every error ends in its exit status, its sentence and what to do."""

import json

import pytest

from kmodd import errors
from kmodd.cli.arguments import ExitCode
from kmodd.client.replies import hint_for
from kmodd.errors import ERRORS, FREEDESKTOP, PREFIX
from tests.cli.fake_daemon import FakeDaemon, Refusal
from tests.cli.runner import Runner

CONTRACT = {
    1: ["Failed"],
    2: ["InvalidArgs"],
    3: [
        "NoSuchModule",
        "NoSuchParameter",
        "NoSuchVersion",
        "NoSuchEndpoint",
        "NoSuchResponse",
        "NotLoaded",
        "ModuleTreeMissing",
    ],
    4: ["AccessDenied", "InteractiveAuthorizationRequired"],
    5: ["InUse", "Builtin", "NotRemovable", "Conflict", "Busy"],
    6: ["DisabledByPolicy"],
    7: ["LimitsExceeded"],
    8: ["BadModule", "WrongKernel", "BadSignature", "UnknownSymbol", "Shadows"],
    9: ["BadParameter", "UnknownParameter", "ReadOnlyParameter"],
    10: ["NoDevice", "InitFailed"],
    11: ["Lockdown", "ModulesDisabled", "NotPermitted"],
    12: ["TimedOut", "Stuck", "Crashed"],
    13: ["Unavailable"],
}
ROWS = [(name, code) for code, names in CONTRACT.items() for name in names]
OF_THE_BUS = {"InvalidArgs", "AccessDenied", "InteractiveAuthorizationRequired", "LimitsExceeded"}


def test_no_error_is_missing_here() -> None:
    assert {error.name() for error in ERRORS.values()} == {name for name, _ in ROWS}


@pytest.mark.parametrize(("name", "code"), ROWS)
def test_error_of_the_daemon(name: str, code: int, fake: FakeDaemon, kmodctl: Runner) -> None:
    bus_name = (FREEDESKTOP if name in OF_THE_BUS else PREFIX) + name
    fake.answers["Load", "dummy"] = Refusal(bus_name, f"The sentence about {name}.")
    ended = kmodctl("load", "dummy")
    assert ended.status == code == ExitCode(code)
    assert ended.out == ""
    assert f"The sentence about {name}." in ended.err
    assert ended.err.startswith("kmodctl: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("name", "code"), ROWS)
def test_error_as_json(name: str, code: int, fake: FakeDaemon, kmodctl: Runner) -> None:
    bus_name = (FREEDESKTOP if name in OF_THE_BUS else PREFIX) + name
    fake.answers["Unload", "dummy"] = Refusal(bus_name, "No.")
    ended = kmodctl("--json", "unload", "dummy")
    assert ended.status == code
    assert ended.err == ""
    assert ended.document["error"] == name
    assert ended.document["message"] == "No."
    assert ended.document["exit-code"] == code


def test_unknown_error_is_a_failure(fake: FakeDaemon, kmodctl: Runner) -> None:
    fake.answers["Load", "dummy"] = Refusal("com.example.Odd", "odd")
    ended = kmodctl("load", "dummy")
    assert ended.status == ExitCode.FAILED
    assert "odd" in ended.err


def test_evidence_comes_with_the_error(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("load", "i6300esb")
    assert ended.status == ExitCode.REFUSED_BY_MODULE
    assert "kmodctl: i6300esb: no device for this module" in ended.err
    assert "ENODEV (19): No such device" in ended.err
    assert "Unexpected close, not stopping watchdog!" in ended.err
    assert "look for the device with lspci" in ended.err
    document = kmodctl("load", "i6300esb", "--json").document
    assert document["errno"] == 19
    assert document["kernel-log"][0] == "i6300esb: Unexpected close, not stopping watchdog!"
    assert document["hint"] == "look for the device with lspci"


def test_an_older_failure_is_no_evidence(fake: FakeDaemon, kmodctl: Runner) -> None:
    fake.answers["Load", "i6300esb"] = Refusal(PREFIX + "Lockdown", "The kernel is locked down.")
    ended = kmodctl("load", "i6300esb")
    assert ended.status == ExitCode.FORBIDDEN_BY_KERNEL
    assert "ENODEV" not in ended.err
    assert "lspci" not in ended.err


def test_what_holds_a_module_is_named(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("unload", "vfat")
    assert ended.status == ExitCode.IN_THE_WAY
    for evidence in ("/boot/efi", "/dev/vda15", "/usr/bin/qemu-system-x86_64", "pid 4312", "kmodctl why vfat"):
        assert evidence in ended.err


def test_the_rule_that_forbids_is_named(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("load", "pcspkr")
    assert ended.status == ExitCode.POLICY
    assert "/etc/modprobe.d/nobeep.conf:3: blacklist pcspkr" in ended.err


def test_text_of_the_kernel_cannot_act_on_the_terminal(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("load", "i6300esb")
    assert "\x1b" not in ended.err
    assert "\u202e" not in ended.err
    assert r"\x1b[31mno device\u202e" in ended.err


def test_a_mistyped_name_gets_a_suggestion(fake: FakeDaemon, kmodctl: Runner) -> None:
    ended = kmodctl("load", "vfta")
    assert ended.status == ExitCode.NOT_FOUND
    assert "did you mean vfat?" in ended.err


@pytest.mark.parametrize(("command", "module"), [("unload", "vfat"), ("load", "pcspkr"), ("load", "vfta")])
def test_no_question_after_a_failure(command: str, module: str, fake: FakeDaemon, kmodctl: Runner) -> None:
    assert kmodctl(command, module).status != 0
    (call,) = fake.calls
    assert call.evidence == "full"


def test_evidence_as_json_has_the_keys_of_the_bus(fake: FakeDaemon, kmodctl: Runner) -> None:
    document = kmodctl("unload", "vfat", "--json").document
    assert document["users"][0] == {"kind": "mount", "name": "/boot/efi", "detail": "/dev/vda15"}
    document = kmodctl("load", "pcspkr", "--json").document
    assert (document["file"], document["line"], document["rule"]) == (
        "/etc/modprobe.d/nobeep.conf",
        3,
        "blacklist pcspkr",
    )
    assert document["policy"] == "/etc/modprobe.d/nobeep.conf:3: blacklist pcspkr"


def test_new_parameters_for_a_loaded_module_have_their_commands(fake: FakeDaemon, kmodctl: Runner) -> None:
    fake.answers["Load", "loop"] = Refusal(PREFIX + "Conflict", "loop is already loaded: use Reload, or SetParameter.")
    ended = kmodctl("load", "loop", "max_loop=9")
    assert ended.status == ExitCode.IN_THE_WAY
    assert "kmodctl reload loop NAME=VALUE" in ended.err
    assert "kmodctl set loop NAME VALUE" in ended.err


def test_every_hint_can_be_said() -> None:
    for error in ERRORS.values():
        assert "{" not in hint_for(error("x"), "vfat")
        assert "{" not in hint_for(error("x"), "")
    assert "kmodctl why vfat" in hint_for(errors.InUse("x"), "vfat")
    assert "--shadow" in hint_for(errors.Shadows("x"), "")


def test_how_a_module_takes_the_place_of_the_kernels_own() -> None:
    assert "kmodctl store import --shadow" in hint_for(errors.Shadows("x"), "loop")


def test_no_bus(kmodctl: Runner) -> None:
    kmodctl.address = "unix:path=/nonexistent/bus"
    ended = kmodctl("list")
    assert ended.status == ExitCode.UNAVAILABLE
    assert "cannot connect to the bus at unix:path=/nonexistent/bus: No such file or directory" in ended.err
    assert "systemctl status kmodd" in ended.err


def test_no_simulation_on_the_session_bus(kmodctl: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", kmodctl.address)
    ended = kmodctl("list", "--session")
    assert ended.status == ExitCode.UNAVAILABLE
    assert "kmodd is not running" in ended.err
    assert "kmodd --simulate" in ended.err


def test_no_bus_as_json(kmodctl: Runner) -> None:
    kmodctl.address = "nonsense"
    ended = kmodctl("list", "--json")
    assert ended.status == ExitCode.UNAVAILABLE
    assert json.loads(ended.out)["error"] == "Unavailable"


def test_no_daemon(kmodctl: Runner) -> None:
    ended = kmodctl("list")
    assert ended.status == ExitCode.UNAVAILABLE
    assert "kmodd is not running" in ended.err
    assert "systemctl status kmodd" in ended.err


@pytest.mark.parametrize("words", [["why", "loop.ko.xz"], ["set", "loop.ko.xz", "max_loop", "3"]])
def test_the_name_of_a_file_where_a_module_is_wanted(words: list[str], fake: FakeDaemon, kmodctl: Runner) -> None:
    sentence = "a module name is 1 to 55 letters, digits, '-' and '_'"
    refusal = Refusal("org.freedesktop.DBus.Error.InvalidArgs", sentence)
    fake.answers.update({(member, ""): refusal for member in ("Explain", "SetParameter")})
    assert "did you mean loop?" in kmodctl(*words).err
