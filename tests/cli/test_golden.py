# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people see, to the letter."""

import pytest

from kmodd.cli import batch, failure, listing, log, plan, show, status, why
from kmodd.client_answers import (
    error_named,
    explanation,
    health,
    history_entry,
    listed_module,
    module_info,
    operation_result,
    step,
)
from kmodd.client_evidence import merge
from tests.cli import samples
from tests.cli.runner import assert_golden, screen

HOLDERS = {"vfat": explanation(samples.VFAT), "msdos": explanation(samples.MSDOS)}
STUCK = {
    **samples.I6300,
    "state": "coming",
    "failure": {**samples.I6300["failure"], "error": "Stuck", "message": "init does not return.", "stuck": True},
}
WHY = {
    "busy": samples.VFAT,
    "held": samples.FAT,
    "kernel": samples.MSDOS,
    "blacklisted": samples.PCSPKR,
    "failed": samples.I6300,
    "stuck": STUCK,
    "absent": samples.ABSENT,
    "builtin": {**samples.ABSENT, "state": "builtin", "name": "ext4"},
    "removable": {**samples.MSDOS, "users": [], "references": 0, "removable": True, "blockers": []},
    "own-rule": {**samples.PCSPKR, "policy": "/etc/modprobe.d/kmodd-blacklist.conf:6: blacklist pcspkr"},
    "cmdline": {**samples.PCSPKR, "policy": "/proc/cmdline:1: module_blacklist=pcspkr"},
}
OPERATIONS = [("load", "vfat", {"debug": "1"}), ("unload", "loop", {}), ("load", "nosuch", {})]
FAILING = [
    *samples.PLAN_VFAT,
    {
        "action": "insert",
        "module": "nosuch",
        "path": "",
        "parameters": "",
        "because": "requested",
        "operation": 2,
        "error": "NoSuchModule",
        "message": "There is no module nosuch for kernel 6.1.0-18-amd64.",
    },
]


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize("case", WHY)
def test_why(case: str) -> None:
    about = "VFAT filesystem support" if case == "busy" else ""
    answer = why.Answer(explanation(WHY[case]), about, HOLDERS, samples.NOW)
    assert_golden(f"why-{case}.txt", why.lines(answer, screen()))


def test_why_in_a_narrow_terminal_without_unicode() -> None:
    answer = why.Answer(explanation(samples.FAT), "FAT filesystem support library", HOLDERS, samples.NOW)
    lines = why.lines(answer, screen(60, encoding="ascii"))
    assert "\n".join(lines).isascii()
    assert_golden("why-held-ascii-60.txt", lines)


def test_why_in_colour() -> None:
    answer = why.Answer(explanation(samples.VFAT), "VFAT filesystem support", HOLDERS, samples.NOW)
    assert_golden("why-busy-colour-80.txt", why.lines(answer, screen(80, colour=True)))


def test_list() -> None:
    assert_golden("list.txt", listing.lines([listed_module(row) for row in samples.LOADED], screen()))


def test_list_is_cut_to_a_narrow_terminal() -> None:
    rows = [{**row, "holders": ["holder_" + "x" * 20] * 3} for row in samples.LOADED]
    lines = listing.lines([listed_module(row) for row in rows], screen(64))
    assert max(map(len, lines)) <= 64
    assert_golden("list-64.txt", lines)


def test_list_of_what_is_not_loaded_has_no_empty_columns() -> None:
    rows = [listed_module({"name": name, "state": "available"}) for name in ("dummy", "softdog")]
    assert_golden("list-available.txt", listing.lines(rows, screen()))


def test_show() -> None:
    info, writable = module_info(samples.LOOP)
    live = samples.answers()["GetAll", "/org/kmodd1/module/loop"]
    assert_golden("show.txt", show.lines(info, writable, live, screen(100)))


def test_show_of_what_is_not_loaded() -> None:
    info, writable = module_info(samples.LOOP)
    assert_golden("show-not-loaded.txt", show.lines(info, writable, None, screen(80)))


def test_plan() -> None:
    steps = [step(row) for row in samples.PLAN_VFAT]
    assert_golden("plan.txt", plan.lines(OPERATIONS[:2], steps, screen()))


def test_plan_that_would_fail() -> None:
    assert_golden("plan-failing.txt", plan.lines(OPERATIONS, [step(row) for row in FAILING], screen(72)))


def test_status() -> None:
    properties = {"Version": "0.1.0", "LoadedCount": 5}
    assert_golden("status.txt", status.lines(health(samples.HEALTH), properties, screen(80)))


def test_log() -> None:
    lines = [
        line
        for row in [*samples.HISTORY, *samples.NEITHER_DONE_NOR_FAILED]
        for line in log.lines(history_entry(row), screen(100))
    ]
    assert_golden("log.txt", lines)


def test_log_of_what_nobody_asked_for() -> None:
    row = {**samples.HISTORY[0], "uid": 0, "exe": "kmodd"}
    assert "  by kmodd itself" in log.lines(history_entry(row), screen(200))[0]
    row["exe"] = "/usr/bin/kmodd"
    assert "  by root (uid 0)" in log.lines(history_entry(row), screen(200))[0]


def test_batch() -> None:
    rows = [
        ["vfat", "rolled-back", "", ["fat", "vfat"]],
        ["loop", "unchanged", "", []],
        ["nosuch", "failed", "NoSuchModule", []],
    ]
    results = [operation_result(row) for row in rows]
    text = batch.lines(OPERATIONS, results, {"nosuch": "There is no module nosuch."}, screen())
    assert_golden("batch.txt", text)


@pytest.mark.parametrize(
    ("name", "data"), [("NoDevice", samples.I6300), ("InUse", samples.VFAT), ("DisabledByPolicy", samples.PCSPKR)]
)
def test_failure(name: str, data: dict[str, object]) -> None:
    told = explanation(data)
    sentence = told.failure.message if told.failure is not None else f"{data['name']} says no."
    error = error_named(name, sentence, module=str(data["name"]))
    error.evidence = merge(error, told)
    assert_golden(f"failure-{name}.txt", failure.lines(error, screen(80)))
