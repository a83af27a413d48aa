# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config apply --initramfs`: the command is one of two, taken apart, and run once."""

from pathlib import Path
from typing import Any

import pytest

from kmodd.cli.arguments import ExitCode
from kmodd.cli.commands.config import INITRAMFS, check_root, refresh_initramfs
from kmodd.errors import AccessDenied, Conflict
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.runner import Runner

RELEASE = "6.1.0-18-amd64"
COMMAND = f"update-initramfs -u -k {RELEASE}"


def program(folder: Path, name: str, status: int = 0) -> Path:
    """A program that writes down its words and its environment."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(
        f'#!/bin/sh\necho "$0 $*" >> {folder}/ran\n/usr/bin/env > {folder}/environment\necho said\nexit {status}\n'
    )
    path.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    "command",
    [COMMAND, f"dracut -f /boot/initrd.img-{RELEASE} {RELEASE}", f"dracut -f /boot/initramfs-{RELEASE}.img {RELEASE}"],
)
def test_the_command_is_run_as_it_is(
    tmp_path: Path, command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRACUT_EVIL", "1")
    name, _, words = command.partition(" ")
    refresh_initramfs(command.split(" "), path=str(program(tmp_path / "bin", name)))
    assert (tmp_path / "bin/ran").read_text() == f"{tmp_path}/bin/{name} {words}\n"
    assert "EVIL" not in (tmp_path / "bin/environment").read_text()
    assert capfd.readouterr() == ("", "said\n"), "standard output is for the answer"


@pytest.mark.parametrize(
    "command",
    [
        f"{COMMAND}; reboot",
        f"{COMMAND} -t",
        "update-initramfs -u -k all -v",
        "update-initramfs -u -k -v",
        f"/tmp/update-initramfs -u -k {RELEASE}",
        f"dracut -f /boot/../etc/passwd {RELEASE}",
        f"dracut -f /boot/initrd.img-{RELEASE} {RELEASE} --install /tmp/x",
        "kmodctl config apply",
        f"{COMMAND}\n",
        "",
    ],
)
def test_nothing_else_is_run(tmp_path: Path, command: str) -> None:
    folder = program(program(tmp_path / "bin", "update-initramfs"), "dracut")
    with pytest.raises(Conflict, match="unknown command"):
        refresh_initramfs(command.split(" "), path=str(folder))
    assert not (folder / "ran").exists()


def test_a_failure_and_a_missing_program_are_reported(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="update-initramfs exited with status 3"):
        refresh_initramfs(COMMAND.split(), path=str(program(tmp_path / "bin", "update-initramfs", status=3)))
    with pytest.raises(Conflict, match=r"cannot run update-initramfs \(No such file"):
        refresh_initramfs(COMMAND.split(), path=str(tmp_path))


def test_only_root_can() -> None:
    check_root(lambda: 0)
    with pytest.raises(AccessDenied):
        check_root(lambda: 1000)


def row(kind: str, hint: str) -> dict[str, Any]:
    command = {"command": hint.split()} if kind == INITRAMFS else {}
    return {"module": "", "kind": kind, "wanted": "w", "actual": "a", "hint": hint, **command}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run."""
    commands: list[list[str]] = []
    monkeypatch.setattr("kmodd.cli.commands.config.refresh_initramfs", commands.append)
    monkeypatch.setattr("kmodd.cli.commands.config.check_root", lambda: None)
    return commands


def scripted(fake: FakeDaemon, *stale: bool, applied: list[dict[str, Any]]) -> None:
    """Answers of a daemon that finds the initramfs stale, or not, one time after the other."""
    answers = iter(
        [[row("presence", "kmodctl config apply"), *([row("initramfs", COMMAND)] if each else [])] for each in stale]
    )
    fake.answers["GetDrift", ""] = lambda _: next(answers)
    fake.answers["Apply", ""] = applied


CHANGED: list[dict[str, Any]] = [
    {"module": name, "action": "load", "result": "changed", "changed": [name]} for name in ("loop", "dummy")
]


def test_it_is_refreshed_once_after_everything_else(fake: FakeDaemon, kmodctl: Runner, ran: list[list[str]]) -> None:
    scripted(fake, True, False, applied=CHANGED)
    ended = kmodctl("config", "apply", "--initramfs")
    assert (ended.status, ended.err) == (0, "")
    assert f"The initramfs was refreshed with: {COMMAND}" in " ".join(ended.out.split())
    assert [list(command) for command in ran] == [COMMAND.split()]
    assert [call.member for call in fake.calls if call.member in ("Apply", "GetDrift")] == [
        "Apply",
        "GetDrift",
        "GetDrift",
    ]


def test_it_is_left_alone_when_it_is_up_to_date_or_not_requested(
    fake: FakeDaemon, kmodctl: Runner, ran: list[list[str]]
) -> None:
    scripted(fake, False, applied=CHANGED)
    assert "is up to date" in kmodctl("config", "apply", "--initramfs").out
    scripted(fake, True, applied=CHANGED)
    ended = kmodctl("config", "apply")
    assert ended.status == 0
    assert "kmodctl config apply --initramfs" in ended.out
    scripted(fake, False, applied=CHANGED)
    assert "initramfs" not in kmodctl("config", "apply").out
    assert ran == []


def test_a_failed_change_refreshes_nothing(fake: FakeDaemon, kmodctl: Runner, ran: list[list[str]]) -> None:
    scripted(fake, applied=[{**CHANGED[0], "result": "failed", "error": "InUse", "message": "loop is in use"}])
    assert kmodctl("config", "apply", "--initramfs").status == ExitCode.IN_THE_WAY
    assert ran == []


def test_a_dry_run_runs_nothing(fake: FakeDaemon, kmodctl: Runner, ran: list[list[str]]) -> None:
    scripted(fake, True, True, applied=CHANGED)  # before, to say what would change, and after
    assert f"refresh it with: {COMMAND}" in " ".join(kmodctl("config", "apply", "--initramfs", "--dry-run").out.split())
    scripted(fake, False, False, applied=CHANGED)
    assert "would then be refreshed if" in " ".join(kmodctl("config", "apply", "--initramfs", "--dry-run").out.split())
    assert ran == []


def test_what_stays_stale_is_an_error(fake: FakeDaemon, kmodctl: Runner, ran: list[list[str]]) -> None:
    scripted(fake, True, True, applied=CHANGED)
    ended = kmodctl("config", "apply", "--initramfs", "--json")
    assert ended.status == ExitCode.IN_THE_WAY
    assert "still differs" in ended.out
    assert [list(command) for command in ran] == [COMMAND.split()]


def test_who_is_not_root_changes_nothing(
    fake: FakeDaemon, kmodctl: Runner, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise AccessDenied("not root")

    monkeypatch.setattr("kmodd.cli.commands.config.check_root", refuse)
    assert kmodctl("config", "apply", "--initramfs").status == ExitCode.ACCESS_DENIED
    assert fake.asked("Apply") == []
    assert ran == []
