# SPDX-License-Identifier: LGPL-2.1-or-later
"""The unix socket: the kernel says who is at the other end, and the journal and tokens know it."""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmodd import tokens
from kmodd.errors import Failed
from kmodd.gateway.http.listener import is_open_to_squatters
from tests.gateway.processes import ROOT, Gateway, Reply, ask, gateway, wait_for

NOBODY = 65534
# Connects as another user; that needs no root afterwards.
AS_USER = """
import http.client, os, socket, sys
uid, path, method, where, token = sys.argv[1:]
os.setgid(int(uid)); os.setuid(int(uid))
connection = http.client.HTTPConnection("localhost", timeout=20)
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(path)
connection.request(method, where, headers={"Authorization": f"Bearer {token}"})
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


@dataclass
class Local:
    """A gateway with a unix socket, and TCP beside it."""

    gateway: Gateway
    path: Path

    def ask(self, method: str, where: str, body: object = None, *, token: str = "") -> Reply:
        """One request over the unix socket, as root."""
        with closing(http.client.HTTPConnection("localhost", timeout=20)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(self.path))
            return ask(connection, method, where, body, token=token or self.gateway.token)

    def ask_as(self, uid: int, method: str, where: str, token: str) -> int:
        """One request by another user; its status."""
        command = [sys.executable, "-c", AS_USER, str(uid), str(self.path), method, where, token]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0])

    def token_for(self, name: str, uid: int) -> str:
        """A token that is bound to a user."""
        made, text = tokens.make(name, ["admin"], [], int(time.time()), 3600, uid)
        with tokens.TokenFile(self.gateway.folder / "tokens", lambda: None).changing() as known:
            known[made.id] = made
        return text


@pytest.fixture(scope="module")
def local(simulation: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """The gateway."""
    assert os.geteuid() == 0, "other users are acted by root"
    folder = tmp_path_factory.mktemp("unix")
    path = Path(f"/tmp/kmodd-{folder.name}-{os.getpid()}/http")
    path.parent.mkdir(mode=0o755)
    settings = f'listen = ["127.0.0.1:@PORT@", "{path}"]\n[limits]\nrate = 0\n'
    try:
        with gateway(folder, simulation, settings, listens=True) as made:
            path.chmod(0o666)
            yield Local(made, path)
    finally:
        shutil.rmtree(path.parent)


def test_it_answers_and_the_journal_names_the_user(local: Local) -> None:
    assert local.ask("POST", "/module/load/dummy", {"dry_run": True}).status == 200
    wait_for(lambda: "), uid 0: load dummy" in local.gateway.log.read_text())
    token = local.gateway.make_token("shared", "load")
    assert local.ask_as(NOBODY, "POST", "/module/unload/dummy", token) == 403
    wait_for(lambda: f"refused a request from uid {NOBODY}: token shared" in local.gateway.log.read_text())
    assert local.gateway.ask("POST", "/module/load/dummy", {"dry_run": True}).status == 200
    wait_for(lambda: "): load dummy" in local.gateway.log.read_text())


def test_a_token_bound_to_a_user_is_refused_for_others(local: Local) -> None:
    token = local.token_for("bound", NOBODY)
    assert local.ask_as(NOBODY, "GET", "/v1/modules", token) == 200
    assert local.ask_as(1, "GET", "/v1/modules", token) == 401
    assert local.ask("GET", "/v1/modules", token=token).status == 401
    assert local.gateway.ask("GET", "/v1/modules", token=token).status == 401
    wait_for(lambda: f"is bound to uid {NOBODY} and was used over TCP" in local.gateway.log.read_text())
    assert "and was used by uid 1" in local.gateway.log.read_text()


def test_who_knows_no_token_is_slowed_down_alone(local: Local) -> None:
    answers = [local.ask_as(1, "GET", "/v1/modules", "wrong") for _ in range(3)]
    assert answers == [401] * 3
    for _ in range(40):
        answer = local.ask("GET", "/v1/modules", token="wrong")
        if answer.status == 429:
            break
    assert answer.status == 429
    assert local.ask_as(1, "GET", "/v1/modules", "wrong") == 401
    assert local.ask("GET", "/v1/modules").status == 200


def test_tcp_in_the_clear_is_warned_of_and_the_socket_is_not(local: Local) -> None:
    log = local.gateway.log.read_text()
    assert log.count("receives its clients' tokens") == 1
    assert f"a program that binds 127.0.0.1:{local.gateway.port} while the gateway is stopped" in log


def test_a_port_below_1024_is_not_open_to_squatters() -> None:
    with socket.create_server(("127.0.0.1", 0)) as high:
        assert is_open_to_squatters(high)
    with socket.create_server(("127.0.0.1", 765)) as low:
        assert not is_open_to_squatters(low)


def test_kmodctl_binds_a_token_to_a_user(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    base = [sys.executable, "-m", "kmodd.cli", "token"]

    def kmodctl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*base, *words, "--file", str(file)], cwd=ROOT, capture_output=True, text=True, check=False
        )

    assert kmodctl("create", "web", "--scope", "read", "--user", "nobody").returncode == 0
    assert kmodctl("create", "all", "--scope", "read").returncode == 0
    assert [token.uid for token in tokens.parse(file.read_text()).values()] == [NOBODY, None]
    lines = kmodctl("list").stdout.splitlines()
    assert "nobody" in lines[1]
    assert " any " in lines[2]
    answer = kmodctl("create", "x", "--scope", "read", "--user", "nosuchuser")
    assert (answer.returncode, "no such user: nosuchuser" in answer.stderr) == (2, True)


@pytest.mark.parametrize("uid", ["0", "true", "-1", '"0"'])
def test_a_binding_of_another_shape_invalidates_the_file(uid: str) -> None:
    made, _ = tokens.make("x", ["read"], [], 0, 60, 7)
    text = tokens.spell({made.id: made})
    assert tokens.parse(text)[made.id].uid == 7
    damaged = text.replace('"uid": 7', f'"uid": {uid}')
    if uid == "0":
        assert tokens.parse(damaged)[made.id].uid == 0
    else:
        with pytest.raises(Failed):
            tokens.parse(damaged)
