# SPDX-License-Identifier: LGPL-2.1-or-later
"""The journal: one structured record for each decision and result, explained by the catalog, read back by those who may."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from kmodd.journal.fields import MESSAGE_IDS
from tests.clock import clock
from tests.system.client import Client, Kmodctl, named, record, records, soon, texts
from tests.system.service import main_pid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.vm.machine import Machine

T = "kmodd_test_"


def test_success_has_every_field(vm: Machine, client: Client) -> None:
    client.load(f"{T}dep_b", reason="for the test")
    written = record(vm, "KMODD_REASON=for the test")
    expected = {
        "SYSLOG_IDENTIFIER": "kmodd",
        "MESSAGE": f"{T}dep_b was loaded, and with it {T}dep_a",
        "MESSAGE_ID": MESSAGE_IDS["module.loaded"],
        "PRIORITY": "6",
        "KMODD_EVENT": "module.loaded",
        "KMODD_MODULE": f"{T}dep_b",
        "KMODD_ACTION": "load",
        "KMODD_RESULT": "changed",
        "KMODD_UID": "0",
        "KMODD_SENDER": client.name,
        "KMODD_EXE": vm.check("readlink -f /usr/bin/python3").strip(),
        "KMODD_TOUCHED": f"{T}dep_a {T}dep_b",
    }
    assert expected.items() <= written.items()
    assert int(written["KMODD_JOB"]) > 0
    assert int(written["KMODD_DURATION_USEC"]) > 0
    assert "KMODD_ERROR" not in written
    client.unload(f"{T}dep_a", dependents=True, reason="no more")
    assert record(vm, "KMODD_REASON=no more")["MESSAGE"] == f"{T}dep_a was unloaded, and with it {T}dep_b"


def test_failure_has_every_field(vm: Machine, client: Client) -> None:
    client.refused("Load", f"{T}fail", {}, named({"reason": "to fail"}))
    written = record(vm, "KMODD_REASON=to fail")
    expected = {
        "MESSAGE_ID": MESSAGE_IDS["operation.failed"],
        "PRIORITY": "4",
        "KMODD_EVENT": "operation.failed",
        "KMODD_MODULE": f"{T}fail",
        "KMODD_RESULT": "failed",
        "KMODD_ERROR": "InitFailed",
        "KMODD_ERRNO": "5",
    }
    assert expected.items() <= written.items()
    assert f"{T}fail: the flux capacitor is not charged" in texts(written["KMODD_KERNEL_LOG"])
    assert written["KMODD_HINT"]
    client.call("ResetFailed", f"{T}fail")
    reset = record(vm, "KMODD_EVENT=failure.reset", f"KMODD_MODULE={T}fail")
    assert (reset["KMODD_UID"], reset["KMODD_SENDER"]) == ("0", client.name)


def test_batch_has_a_record_for_each_result_and_one_for_what_was_undone(vm: Machine, client: Client) -> None:
    operations: tuple[tuple[str, str, dict[str, str]], ...] = (("load", f"{T}good", {}), ("load", f"{T}nodev", {}))
    client.batch(*operations, reason="batch one")
    found = soon(lambda: [one for one in [records(vm, "KMODD_REASON=batch one")] if len(one) == 2], "both")[0]
    assert [(one["KMODD_EVENT"], one["KMODD_MODULE"]) for one in found] == [
        ("operation.failed", f"{T}nodev"),
        ("batch.rolled-back", f"{T}good"),
    ]
    client.batch(*operations, atomic=False, reason="batch two")
    found = soon(lambda: [one for one in [records(vm, "KMODD_REASON=batch two")] if len(one) == 2], "both")[0]
    assert [one["KMODD_EVENT"] for one in found] == ["module.loaded", "operation.failed"]
    assert len({one["KMODD_JOB"] for one in found}) == 1
    client.unload(f"{T}good")


def test_written_parameter_is_recorded(vm: Machine, client: Client) -> None:
    client.load(f"{T}params", {"secret": "31337", "an_int": "5"}, reason="with parameters")
    assert "an_int=5" in record(vm, "KMODD_REASON=with parameters")["KMODD_PARAMETERS"]
    client.call("SetParameter", f"{T}params", "level", "7")
    client.call("SetParameter", f"{T}params", "secret", "31338")
    found = soon(lambda: [one for one in [records(vm, "KMODD_EVENT=parameter.set")] if len(one) == 2], "both")[0]
    assert [one["KMODD_RESULT"] for one in found] == ["changed", "changed"]
    client.unload(f"{T}params")
    everything = vm.check(["journalctl", "-b", "-o", "export", "--no-pager", "_SYSTEMD_UNIT=kmodd.service"])
    # Cursors, times and durations have any digits.
    said = [line for line in everything.splitlines() if not line.startswith("_") and "USEC=" not in line]
    assert said
    assert not [line for line in said if "31337" in line or "31338" in line]


def test_decision_about_an_ordinary_user_is_one_record(vm: Machine) -> None:
    alice = Client(vm, user="alice")
    for member, arguments in (
        ("Load", (f"{T}soft", {}, {})),
        ("Unload", ("loop", {})),
        ("SetParameter", ("loop", "max_part", "1")),
    ):
        if member == "SetParameter":
            vm.check(["modprobe", "loop"])
        alice.refused(member, *arguments)
    found = soon(
        lambda: [one for one in [records(vm, f"KMODD_SENDER={alice.name}")] if len(one) >= 2], "the decisions"
    )[0]
    denied = [one for one in found if one["KMODD_EVENT"] == "authorization.denied"]
    assert denied
    for one in denied:
        assert (one["KMODD_UID"], one["KMODD_RESULT"], one["PRIORITY"]) == ("1000", "denied", "4")
        assert one["KMODD_ERROR"] in {"AccessDenied", "InteractiveAuthorizationRequired"}
        assert one["KMODD_POLKIT_ACTION"].startswith("org.kmodd1.")
        assert one["MESSAGE_ID"] == MESSAGE_IDS["authorization.denied"]
    load = next(one for one in denied if one["KMODD_ACTION"] == "load")
    assert texts(load["KMODD_MODULE"]) == sorted([f"{T}soft", f"{T}soft_post", f"{T}soft_pre"])
    assert len([one for one in found if one["KMODD_ACTION"] == "load"]) == 1
    alice.process.end()


def test_catalog_explains_every_record(vm: Machine) -> None:
    catalog = vm.check("journalctl --dump-catalog --no-pager")
    assert [event for event, number in MESSAGE_IDS.items() if f"-- {number}" not in catalog] == []
    shown = vm.check(["journalctl", "-b", "-x", "-n", "1", "--no-pager", f"MESSAGE_ID={MESSAGE_IDS['module.loaded']}"])
    assert len(shown.splitlines()) > 3
    assert T in shown


def test_history_is_read_back_by_those_who_may(vm: Machine, client: Client) -> None:
    client.load("tun", reason="history")
    vm.check(["rmmod", "tun"])
    rows = soon(lambda: [one for one in [client.history(module="tun")] if len(one) >= 2], "both")[0]
    assert [row["event"] for row in rows] == ["module.loaded", "module.disappeared"]
    assert (rows[0]["reason"], rows[0]["uid"], rows[0]["result"]) == ("history", 0, "changed")
    assert "uid" not in rows[1]
    assert client.history(module="tun", limit=1) == rows[1:]
    assert client.history(module="tun", since=rows[0]["time"] + 1) == rows[1:]
    assert {row["event"] for row in client.history(limit=1000)} >= {"daemon.started", "module.loaded"}
    alice = Client(vm, user="alice")
    error = alice.refused("GetHistory", {})
    assert error.name in {"AccessDenied", "InteractiveAuthorizationRequired"}
    alice.process.end()


def test_record_of_another_program_is_no_history(vm: Machine, client: Client) -> None:
    lines = f"MESSAGE=forged\nSYSLOG_IDENTIFIER=kmodd\nKMODD_EVENT=module.loaded\nKMODD_MODULE={T}zst\nKMODD_UID=0\n"
    for user in ("root", "alice"):
        vm.run(["logger", "--journald"], input=lines, user=user, check=True)
    vm.run(["systemd-run", "--quiet", "--wait", "--pipe", "logger", "--journald"], input=lines, check=True)
    soon(lambda: vm.journal(f"KMODD_MODULE={T}zst").count("forged") == 3, "they are in the journal")
    assert client.history(module=f"{T}zst") == []


def test_reason_cannot_forge_anything(vm: Machine, client: Client) -> None:
    for reason in ("new\nline", "escape\x1b[31m", "\u202eright to left", "x" * 1025):
        assert client.refused("Load", f"{T}good", {}, named({"reason": reason})).name == "InvalidArgs"
    reason = "KMODD_UID=1000 %s %n $(id) ümläut"
    client.load(f"{T}good", reason=reason)
    written = record(vm, f"KMODD_REASON={reason}")
    assert (written["KMODD_UID"], written["KMODD_EVENT"]) == ("0", "module.loaded")
    client.unload(f"{T}good")


def test_kmodctl_shows_the_log(vm: Machine, kmodctl: Kmodctl, client: Client) -> None:
    client.refused("Load", f"{T}nodev", {}, named({"reason": "to be shown"}))
    record(vm, "KMODD_REASON=to be shown")
    ended = kmodctl("--no-pager", "log", f"{T}nodev")
    assert ended.code == 0
    assert "reason: to be shown" in ended.out
    assert "by root (uid 0)" in ended.out
    assert "hint: " in ended.out
    rows = json.loads(kmodctl("--json", "log", f"{T}nodev").out)
    assert rows[-1]["error"] == "NoDevice"
    client.call("ResetFailed", f"{T}nodev")


def test_kmodctl_follows_the_log(vm: Machine, client: Client) -> None:
    following = vm.start(["kmodctl", "--no-pager", "log", "-f"], env={"PYTHONUNBUFFERED": "1"})
    following.wait_for_output("kmodd", timeout=60)
    client.load(f"{T}zst", reason="seen at once")
    following.wait_for_output("reason: seen at once", timeout=30)
    vm.check(["rmmod", f"{T}zst"])
    following.wait_for_output(f"{T}zst was removed by another program", timeout=30)
    following.kill(2)
    assert following.wait(30).code == 130


def test_start_and_stop_are_recorded(vm: Machine) -> None:
    before = main_pid(vm)
    vm.run(["systemctl", "restart", "kmodd.service"], timeout=60, check=True)
    found = [
        one["KMODD_EVENT"] for one in records(vm, f"_PID={before}") if one.get("KMODD_EVENT", "").startswith("daemon")
    ]
    assert found[0] == "daemon.started"
    assert found[-1] == "daemon.stopped"
    assert records(vm, f"_PID={main_pid(vm)}", "KMODD_EVENT=daemon.started")


SLOWLY = "/run/systemd/system/kmodd-inspector@.service.d/slowly.conf"


@pytest.fixture
def _slow_inspector(vm: Machine) -> Iterator[None]:
    """Its process takes five seconds to come; and none runs now."""
    vm.write_file(SLOWLY, "[Service]\nExecStartPre=/bin/sleep 5\n")
    vm.check("systemctl daemon-reload; systemctl stop 'kmodd-inspector@*'; systemctl restart kmodd", timeout=90)
    yield
    vm.check(f"rm {SLOWLY}; systemctl daemon-reload; systemctl restart kmodd; rmmod {T}good || true", timeout=90)


def reasons(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of the two loads, each once."""
    return list(dict.fromkeys(row["reason"] for row in history if row.get("reason") in ("first", "second")))


@pytest.mark.usefixtures("_slow_inspector")
def test_a_first_call_does_not_wait_for_the_inspector(vm: Machine) -> None:
    """Its record is complete all the same, and in its place."""
    made = Client(vm)
    try:
        begin, begun = clock(), time.monotonic()
        made.load(f"{T}good", reason="first")
        made.load(f"{T}good", reason="second")
        assert clock() - begin < 4.0, "it waited for the inspector"
        assert not records(vm, "KMODD_REASON=first")
        history = made.history(limit=8)  # the health changes with the module, and has no reason
        assert time.monotonic() - begun > 4.0, "who reads the history waits for what was recorded"
        assert "first" in reasons(history)
        # The daemon has sent the second as well; journald writes it when it gets to it.
        soon(lambda: reasons(made.history(limit=8)) == ["first", "second"], "the records of both loads, in their order")
        written = [record(vm, f"KMODD_REASON={reason}") for reason in ("first", "second")]
        python = vm.check("readlink -f /usr/bin/python3").strip()
        assert [one["KMODD_EXE"] for one in written] == [python, python]
        assert int(written[0]["__REALTIME_TIMESTAMP"]) <= int(written[1]["__REALTIME_TIMESTAMP"])
    finally:
        made.process.end()


@pytest.mark.usefixtures("_slow_inspector")
def test_a_record_that_waits_is_not_lost_with_the_daemon(vm: Machine) -> None:
    """Nor with its caller, which has ended by then and is named as it called itself."""
    vm.check(f"kmodctl load {T}good --reason gone")
    assert record(vm, "KMODD_REASON=gone")["KMODD_EXE"] == "[kmodctl]"
    vm.check("systemctl stop 'kmodd-inspector@*'; systemctl restart kmodd", timeout=90)
    vm.check(f"kmodctl unload {T}good --reason killed; sleep 0.5; kill -9 {main_pid(vm)}")
    written = record(vm, "KMODD_REASON=killed")
    assert (written["KMODD_EVENT"], written["KMODD_UID"]) == ("module.unloaded", "0")
    assert len(records(vm, "KMODD_REASON=killed")) == 1
