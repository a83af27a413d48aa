# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodctl asks before it takes away the interface over which its own session came."""

import io
from pathlib import Path
from typing import Any

import pytest

from kmodd.cli.session import ssh_address
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.runner import Runner, Terminal

SESSION = "192.0.2.9 50000 192.0.2.7 22"
STEP: dict[str, Any] = {
    "action": "remove",
    "module": "virtio_net",
    "path": "",
    "parameters": "",
    "because": "requested",
    "operation": 0,
    "consequences": ["Network interface eth0 goes with it: it is up and has 192.0.2.7/24."],
    "interfaces": ["eth0"],
    "addresses": ["192.0.2.7/24", "2001:db8::7/64"],
}
UNLOAD = ("unload", "virtio_net", "--disconnect")


@pytest.fixture
def asking(fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    """A daemon that would take eth0 away, and a terminal."""
    fake.answers["Plan", ""] = [STEP]
    fake.answers["Unload", "virtio_net"] = ["virtio_net"]
    monkeypatch.setattr(io, "StringIO", Terminal)  # what the runner has as standard input
    return fake


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)


@pytest.mark.parametrize(
    "connection",
    [SESSION, "2001:db8::9 1 2001:db8::7 22", "2001:db8::9 1 2001:DB8:0::7 22", "fe80::9%eth0 1 fe80::7%eth0 22"],
)
def test_it_asks_once_and_obeys(
    asking: FakeDaemon, kmodctl: Runner, monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    on_a_terminal(monkeypatch)
    ended = kmodctl(*UNLOAD, stdin="n\n", SSH_CONNECTION=connection)
    assert ended.status == 5
    assert ended.err.count("[y/N]") == 1
    assert "nothing was changed" in ended.err
    assert asking.asked("Unload") == []
    ended = kmodctl(*UNLOAD, stdin="y\n", SSH_CONNECTION=connection)
    assert ended.status == 0
    assert asking.asked("Unload")[0].options == {"disconnect": True}


@pytest.mark.parametrize("connection", ["192.0.2.9 50000 198.51.100.1 22", "", "fe80::9%eth1 1 fe80::7%eth1 22"])
def test_it_does_not_ask_for_another_interface(
    asking: FakeDaemon, kmodctl: Runner, monkeypatch: pytest.MonkeyPatch, connection: str, tmp_path: Path
) -> None:
    on_a_terminal(monkeypatch)
    monkeypatch.setattr("kmodd.cli.session._of_parents", lambda *_: iter(()))
    ended = kmodctl(*UNLOAD, SSH_CONNECTION=connection)
    assert (ended.status, ended.err) == (0, "")


def test_without_a_terminal_there_is_no_question(fake: FakeDaemon, kmodctl: Runner) -> None:
    fake.answers["Plan", ""] = [STEP]
    fake.answers["Unload", "virtio_net"] = ["virtio_net"]
    assert kmodctl(*UNLOAD, SSH_CONNECTION=SESSION).status == 0
    assert fake.asked("Plan") == []


def test_a_batch_and_apply_ask_too(
    asking: FakeDaemon, kmodctl: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_a_terminal(monkeypatch)
    batch = tmp_path / "batch"
    batch.write_text("unload virtio_net\n")
    assert kmodctl("batch", str(batch), "--disconnect", stdin="\n", SSH_CONNECTION=SESSION).status == 5
    row = {"module": "virtio_net", "kind": "presence", "wanted": "absent", "actual": "loaded", "hint": ""}
    asking.answers["GetDrift", ""] = [row]
    assert kmodctl("config", "apply", "--disconnect", stdin="\n", SSH_CONNECTION=SESSION).status == 5
    assert asking.asked("Batch") == asking.asked("Apply") == []


def process(proc: Path, pid: int, parent: int, *variables: str, name: str = "sh") -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} 1 1\n")
    (folder / "environ").write_bytes("".join(f"{each}\0" for each in variables).encode())


def test_the_session_is_found_behind_sudo(tmp_path: Path) -> None:
    process(tmp_path, 40, 30, "HOME=/root")
    process(tmp_path, 30, 20, name=") S 1 (")
    process(tmp_path, 20, 10, "A=b", f"SSH_CONNECTION={SESSION}")
    process(tmp_path, 10, 1)
    assert ssh_address({}, tmp_path, 40) == "192.0.2.7"
    assert ssh_address({"SSH_CONNECTION": "a b c d"}, tmp_path, 40) == "c"
    assert ssh_address({}, tmp_path, 10) == ""
    assert ssh_address({}, tmp_path, 99) == ""
