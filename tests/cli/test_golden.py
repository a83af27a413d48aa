# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people see, to the letter."""

import pytest

from kmodd.cli import failure
from kmodd.cli.commands import batch, log, show, why
from kmodd.cli.commands.module import plan_lines
from kmodd.client.replies import (
    error_named,
    evidence,
    explanation,
    health,
    history_entry,
    listed_module,
    module_info,
    operation_result,
    step,
)
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
    "partial": {**samples.MSDOS, "partial": "there are more than 64 mount namespaces"},
    "kernel": samples.MSDOS,
    "blacklisted": samples.PCSPKR,
    "failed": samples.I6300,
    "stuck": STUCK,
    "absent": samples.ABSENT,
    "builtin": {**samples.ABSENT, "state": "builtin", "name": "ext4"},
    "removable": {
        **samples.MSDOS,
        "users": [],
        "references": 0,
        "removable": True,
        "blockers": [],
        "free": ["kmodctl unload msdos"],
    },
    "disconnecting": {
        **samples.MSDOS,
        "name": "wireguard",
        "users": [],
        "references": 0,
        "removable": False,
        "consequences": ["Network interface wg9 goes with it: it is up and has 10.9.0.1/24."],
        "disconnects": True,
        "blockers": ["Something that goes with it is in use: end that use first, or unload it with --disconnect."],
        "free": ["kmodctl unload wireguard --disconnect"],
    },
    "own-rule": {
        **samples.PCSPKR,
        "policy": "/etc/modprobe.d/kmodd-blacklist.conf:6: blacklist pcspkr",
        "policy-file": "/etc/modprobe.d/kmodd-blacklist.conf",
        "policy-line": 6,
    },
    "cmdline": {
        **samples.PCSPKR,
        "policy": "/proc/cmdline:1: module_blacklist=pcspkr",
        "policy-kind": "module_blacklist",
        "policy-file": "/proc/cmdline",
        "policy-line": 1,
    },
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
        "message": "No module nosuch for kernel 6.1.0-18-amd64.",
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
    assert_golden("list.txt", show.list_lines([listed_module(row) for row in samples.LOADED], screen()))


def test_list_is_cut_to_a_narrow_terminal() -> None:
    rows = [{**row, "holders": ["holder_" + "x" * 20] * 3} for row in samples.LOADED]
    lines = show.list_lines([listed_module(row) for row in rows], screen(64))
    assert max(map(len, lines)) <= 64
    assert_golden("list-64.txt", lines)


def test_list_of_what_is_not_loaded_has_no_empty_columns() -> None:
    rows = [listed_module({"name": name, "state": "available"}) for name in ("dummy", "softdog")]
    assert_golden("list-available.txt", show.list_lines(rows, screen()))


def test_show() -> None:
    info, writable = module_info(samples.LOOP)
    live = samples.answers()["GetAll", "/org/kmodd1/module/loop"]
    assert_golden("show.txt", show.lines(info, writable, live, screen(100)))


def test_show_of_what_is_not_loaded() -> None:
    info, writable = module_info(samples.LOOP)
    assert_golden("show-not-loaded.txt", show.lines(info, writable, None, screen(80)))


def test_show_of_another_file_than_the_loaded_one() -> None:
    info, writable = module_info({"name": "loop", "filename": "/x/loop.ko", "srcversion": "B"})
    live = {"State": "live", "SourceVersion": "A", "Size": 1, "References": 0}
    text = "\n".join(show.lines(info, writable, live, screen(200)))
    assert "Differs: from the file on disk: srcversion A is loaded, srcversion B is on the disk" in text
    assert "Differs" not in "\n".join(show.lines(info, writable, {**live, "SourceVersion": "B"}, screen(200)))


def test_a_file_that_holds_another_module() -> None:
    info, writable = module_info({"name": "acme_nic", "filename": "/x/acme_nic.ko", "holds": "ifb"})
    assert "Holds: the module ifb" in "\n".join(show.lines(info, writable, None, screen(80)))
    row = {
        "name": "ifb",
        "state": "live",
        "file": "acme_nic.ko",
        "differs": "version 1 is loaded, version 2 is on the disk",
    }
    answer = why.Answer(explanation(row), "", {}, 0)
    text = "\n".join(why.lines(answer, screen(200)))
    assert "acme_nic.ko holds the module ifb" in text
    assert "not the loaded one: version 1 is loaded, version 2 is on the disk; reload it to use the file" in text


def test_plan() -> None:
    steps = [step(row) for row in samples.PLAN_VFAT]
    assert_golden("plan.txt", plan_lines(OPERATIONS[:2], steps, screen()))


def test_plan_that_would_fail() -> None:
    assert_golden("plan-failing.txt", plan_lines(OPERATIONS, [step(row) for row in FAILING], screen(72)))


def test_status() -> None:
    properties = {"Version": "0.1.0", "LoadedCount": 5}
    assert_golden("status.txt", show.status_lines(health(samples.HEALTH), properties, screen(80)))


def test_log() -> None:
    lines = [
        line
        for row in [*samples.HISTORY, *samples.NEITHER_DONE_NOR_FAILED]
        for line in log.lines(history_entry(row), screen(100))
    ]
    assert_golden("log.txt", lines)


def test_log_of_what_no_caller_requested() -> None:
    row = {**samples.HISTORY[0], "uid": 0, "exe": "kmodd"}
    assert "  by kmodd itself" in log.lines(history_entry(row), screen(200))[0]
    row["exe"] = "/usr/bin/kmodd"
    assert "  by root (uid 0)" in log.lines(history_entry(row), screen(200))[0]


def test_batch() -> None:
    rows = [
        {"module": "vfat", "action": "load", "result": "rolled-back", "changed": []},
        {"module": "loop", "action": "unload", "result": "unchanged", "changed": []},
        {"module": "nosuch", "action": "load", "result": "failed", "changed": [], "error": "NoSuchModule",
         "message": "there is no module nosuch", "hint": "did you mean nouveau?"},
    ]  # fmt: skip
    text = batch.lines(OPERATIONS, [operation_result(row) for row in rows], screen())
    assert_golden("batch.txt", text)


@pytest.mark.parametrize(
    ("name", "module", "says", "data"),
    [
        ("NoDevice", "i6300esb", "found no device it can drive", samples.NO_DEVICE),
        ("InUse", "vfat", "says no", samples.IN_USE),
        ("DisabledByPolicy", "pcspkr", "says no", samples.DISABLED),
    ],
)
def test_failure(name: str, module: str, says: str, data: dict[str, object]) -> None:
    error = error_named(name, f"{module} {says}.", evidence(data), module=module)
    assert_golden(f"failure-{name}.txt", failure.lines(error, screen(80)))
