# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real gateway and the real daemon on a simulated kernel, as processes, and a client that says exactly what it sends."""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmodd import tokens
from tests.clock import clock

ROOT = Path(__file__).parents[2]
STARTED = "the gateway listens on"


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Gateway:
    """A running gateway."""

    port: int
    process: subprocess.Popen[str]
    folder: Path
    token: str
    """Good for everything."""
    log: Path
    secrets: list[str] = field(default_factory=list)

    def connect(self) -> http.client.HTTPConnection:
        """A connection, kept alive."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = "",
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Reply:
        """One request; a token of None sends none, an empty one is the one good for everything."""
        with closing(self.connect()) as connection:
            return ask(connection, method, path, body, token=self._token(token), headers=headers, raw=raw)

    def _token(self, token: str | None) -> str:
        return self.token if token == "" else token or ""

    def make_token(
        self, name: str, *scopes: str, modules: Sequence[str] = (), lifetime: int = 3600, now: int | None = None
    ) -> str:
        """A token of its own."""
        made, text = tokens.make(name, scopes, modules, int(time.time()) if now is None else now, lifetime)
        with tokens.TokenFile(self.folder / "tokens", lambda: None).changing() as known:
            known[made.id] = made
        self.secrets.append(text.split("_", 2)[2])
        return text

    def revoke(self, text: str) -> None:
        """A token counts no more."""
        with tokens.TokenFile(self.folder / "tokens", lambda: None).changing() as known:
            del known[text.split("_")[1]]

    def socket(self) -> socket.socket:
        """A connection to say anything on."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    *,
    token: str = "",
    headers: Mapping[str, str] | None = None,
    raw: bytes | None = None,
) -> Reply:
    """One request on this connection."""
    sent = {"Authorization": f"Bearer {token}"} if token else {}
    data = raw
    if body is not None:
        data = json.dumps(body).encode()
    if data is not None:
        sent["Content-Type"] = "application/json"
    connection.request(method, path, body=data, headers={**sent, **(headers or {})})
    answer = connection.getresponse()
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextmanager
def daemon(address: str) -> Iterator[subprocess.Popen[str]]:
    """kmodd on a simulated kernel, on the bus at this address."""
    command = [sys.executable, "-m", "kmodd.daemon.daemon", "--simulate", "--address", address]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "SIMULATED" in process.stderr.readline()
        clock.watch(process.pid)
        try:
            yield process
        finally:
            process.kill()
            clock.forget(process.pid)


@contextmanager
def gateway(
    folder: Path,
    address: str,
    settings: str = "",
    *,
    ready: bool = True,
    interpreter: str = sys.executable,
    listens: bool = False,
) -> Iterator[Gateway]:
    """A gateway on a port of loopback, with one token that is good for everything.

    `ready` waits until kmodd answers through it; with `listens`, the settings say where, the port as @PORT@.
    """
    port, log = free_port(), folder / "log"
    configuration = folder / "gateway.toml"
    where = "" if listens else f'listen = ["127.0.0.1:{port}"]\n'
    configuration.write_text(f'tokens = "{folder / "tokens"}"\n{where}{settings.replace("@PORT@", str(port))}')
    made = Gateway(port, subprocess.Popen(["true"], text=True), folder, "", log)
    made.process.wait()
    made.token = made.make_token("root", "admin")
    command = [interpreter, "-m", "kmodd.gateway.main", "--config", str(configuration), "--bus", address]
    with log.open("w") as stream, subprocess.Popen(command, cwd=ROOT, stderr=stream, text=True) as process:
        made.process = process
        clock.watch(process.pid)
        try:
            wait_for(lambda: STARTED in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            if ready:
                wait_for(lambda: made.ask("GET", "/health").status == http.HTTPStatus.OK)
            yield made
        finally:
            process.terminate()
            process.wait(20)
            clock.forget(process.pid)


def wait_for(condition: Any, seconds: float = 15.0) -> None:
    """Until it holds."""
    deadline = clock() + seconds
    while not condition():
        assert clock() < deadline, "it did not happen in time"
        time.sleep(0.02)
