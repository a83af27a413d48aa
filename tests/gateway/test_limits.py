# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a client may cost, and what never gets as far as routing."""

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.config.section import ConfigurationError
from kmodd.gateway import settings
from kmodd.gateway.http.listener import is_local, listen, require_tls
from kmodd.gateway.http.middleware import RateLimiter
from tests.clock import clock
from tests.gateway.processes import ROOT, Gateway, gateway, wait_for

LIMITS = """
[limits]
rate = 0
connections = 8
header-timeout = 0.5
body-timeout = 0.5
send-timeout = 0.5
"""


@pytest.fixture(scope="module")
def narrow(simulation: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with little patience."""
    with gateway(tmp_path_factory.mktemp("narrow"), simulation, LIMITS) as made:
        yield made


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.nip.io:80", "[::2]", "a b"])
@pytest.mark.parametrize("path", ["/health", "/v1/modules", "/", "/nope"])
def test_other_hosts_are_misdirected(served: Gateway, host: str, path: str) -> None:
    assert served.ask("GET", path, headers={"Host": host}).status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]", "[::1]:8765"])
def test_our_hosts_are_ours(served: Gateway, host: str) -> None:
    assert served.ask("GET", "/health", headers={"Host": host}).status == 200


def say(gateway: Gateway, data: bytes, *, wait: float = 5.0) -> bytes:
    """What comes back until the other side closes."""
    with gateway.socket() as sock:
        sock.settimeout(wait)
        sock.sendall(data)
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while chunk := sock.recv(65536):
                received += chunk
    return received


def head(gateway: Gateway, line: str, *headers: str) -> bytes:
    """A request's head with a valid token."""
    return "\r\n".join([line, "Host: localhost", f"Authorization: Bearer {gateway.token}", *headers, "", ""]).encode()


def test_two_hosts_are_none(served: Gateway) -> None:
    answer = say(served, b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nConnection: close\r\n\r\n")
    assert answer.split()[1] in {b"400", b"421"}


def test_no_host_is_misdirected(served: Gateway) -> None:
    assert b" 421 " in say(served, b"GET /health HTTP/1.0\r\n\r\n").splitlines()[0]


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=utf-16"],
)
def test_a_body_is_json(served: Gateway, kind: str) -> None:
    answer = served.ask("POST", "/module/load/loop", raw=b"{}", headers={"Content-Type": kind})
    assert answer.status == 415


def test_json_with_its_charset_is_json(served: Gateway) -> None:
    kind = {"Content-Type": 'application/json; charset="UTF-8"'}
    assert served.ask("POST", "/module/load/loop", raw=b'{"dry_run": true}', headers=kind).status == 200


@pytest.mark.parametrize(
    "raw", [b"{", b"\xff\xfe", b'{"reason": NaN}', b"[" * 60_000, b'{"dry_run": true}{}', b"null x"]
)
def test_broken_json_is_the_clients_fault(served: Gateway, raw: bytes) -> None:
    answer = served.ask("POST", "/module/load/loop", raw=raw)
    assert (answer.status, answer.document["type"]) == (400, "urn:kmodd:error:InvalidArgs")


def test_a_long_body_is_refused_unread(served: Gateway) -> None:
    answer = say(served, head(served, "POST /module/load/loop HTTP/1.1", "Content-Length: 65537"))
    assert b" 413 " in answer.splitlines()[0]
    body = json.dumps({"reason": "x" * 70_000}).encode()
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:40_000], body[40_000:])) + b"0\r\n\r\n"
    headers = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
    answer = say(served, head(served, "POST /module/load/loop HTTP/1.1", *headers) + chunked)
    assert b" 413 " in answer.splitlines()[0]


def test_slow_headers_end_the_connection(narrow: Gateway) -> None:
    started = clock()
    assert say(narrow, b"GET /health HTTP/1.1\r\nHost: local") == b""
    assert clock() - started < 3


def test_silence_ends_the_connection(narrow: Gateway) -> None:
    assert say(narrow, b"") == b""


def test_slow_headers_of_a_second_request_do_so_too(narrow: Gateway) -> None:
    started = clock()
    answer = say(narrow, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nHo")
    assert answer.count(b"HTTP/1.1") == 1
    assert clock() - started < 3


def test_a_slow_body_is_answered_408(narrow: Gateway) -> None:
    headers = ["Content-Type: application/json", "Content-Length: 100"]
    answer = say(narrow, head(narrow, "POST /module/load/loop HTTP/1.1", *headers) + b"{")
    assert b" 408 " in answer.splitlines()[0]


def test_who_asks_and_does_not_read_is_dropped(narrow: Gateway) -> None:
    """Eight of these, without any token, would otherwise shut everybody else out for as long as they like."""
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", narrow.port))
            one.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        wait_for(lambda: narrow.ask("GET", "/health").status == 200)


def begin(gateway: Gateway, token: str) -> socket.socket:
    """A request whose body is being waited for."""
    sock = gateway.socket()
    head = f"POST /module/load/loop HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    sock.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n".encode())
    time.sleep(0.02)
    return sock


def test_too_many_connections_are_refused_and_others_go_on(narrow: Gateway) -> None:
    """Eight requests under way, of two tokens: nobody's connection can be closed for another."""
    tokens = [narrow.make_token(name, "read") for name in ("one", "other")]
    with contextlib.ExitStack() as stack:
        for token in tokens:
            for _ in range(4):
                stack.enter_context(begin(narrow, token))
        assert b" 503 " in say(narrow, b"").splitlines()[0]
    wait_for(lambda: narrow.ask("GET", "/health").status == 200)


def test_one_token_leaves_places_to_others(narrow: Gateway) -> None:
    token = narrow.make_token("greedy", "read")
    with contextlib.ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(begin(narrow, token))
        with begin(narrow, token) as one_more:
            head, _, body = one_more.recv(4096).partition(b"\r\n\r\n")
        assert b" 429 " in head.splitlines()[0]
        assert json.loads(body)["detail"] == "too many requests in progress with this token"
        assert narrow.ask("GET", "/v1/modules").status == 200


def test_a_file_that_breaks_off_is_no_bug(served: Gateway) -> None:
    head = (
        f"POST /v1/store HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.token}\r\n"
        "Content-Type: application/octet-stream\r\nContent-Length: 100000\r\n\r\n"
    )
    counted = 'route="/v1/store",status="400"'
    with served.socket() as sock:
        sock.sendall(head.encode() + b"x" * 1000)
        time.sleep(0.2)
    wait_for(lambda: counted in served.ask("GET", "/metrics").body.decode())
    assert "a bug" not in served.log.read_text()


def test_malformed_requests_do_not_fill_the_journal(narrow: Gateway) -> None:
    before = narrow.log.read_text()
    for line in (b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n"):
        say(narrow, line, wait=1)
    upgrade = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert say(narrow, upgrade).split()[1] in {b"200", b"400"}
    assert narrow.log.read_text() == before


def test_headers_are_bounded(served: Gateway) -> None:
    long = "X-Long: " + "x" * 200_000
    assert say(served, head(served, "GET /health HTTP/1.1", long))[9:12] in {b"400", b"431", b""}
    assert served.ask("GET", "/health").status == 200


def test_it_refuses_other_addresses_without_tls(tmp_path: Path) -> None:
    configuration = tmp_path / "gateway.toml"
    configuration.write_text(f'listen = ["0.0.0.0:0"]\ntokens = "{tmp_path / "tokens"}"\n')
    command = [sys.executable, "-m", "kmodd.gateway.main", "--config", str(configuration)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 78
    assert "set certificate and key" in done.stderr


def test_it_serves_them_with_tls(simulation: str, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    tls = f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
    with gateway(tmp_path, simulation, tls, ready=False) as made:
        silent = made.socket()
        context = ssl.create_default_context(cafile=str(certificate))
        with silent, context.wrap_socket(made.socket(), server_hostname="localhost") as sock:
            sock.sendall(b"GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = sock.recv(65536)
            assert silent.recv(1) == b""  # it said nothing for five seconds, and is not waited for any more
    assert b" 200 " in answer.splitlines()[0]
    assert b"strict-transport-security: " in answer


def test_it_is_started_by_a_socket(simulation: str, tmp_path: Path) -> None:
    """As systemd does it: descriptor 3, LISTEN_PID, LISTEN_FDS."""
    with gateway(tmp_path, simulation, ready=False) as first:
        configuration = tmp_path / "gateway.toml"
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        script = 'exec 3<&"$0"; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        command = ["bash", "-c", script, str(listener.fileno()), sys.executable, "-m", "kmodd.gateway.main",
                   "--config", str(configuration), "--bus", simulation]  # fmt: skip
        with subprocess.Popen(
            command, cwd=ROOT, pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True
        ) as process:
            listener.close()
            first.port = port
            wait_for(lambda: first.ask("GET", "/health", token=None).status == 200)
            process.terminate()
            assert process.wait(15) == 0


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1:0", True), ("127.0.0.2:0", True), ("[::1]:0", True), ("0.0.0.0:0", False), ("[::]:0", False)],
)
def test_what_is_this_machine(address: str, *, local: bool) -> None:
    (one,) = listen([address])
    with one:
        assert is_local(one) is local
        if not local:
            with pytest.raises(ConfigurationError, match="in the clear"):
                require_tls([one], tls=False)
        require_tls([one], tls=True)


def test_no_answer_waits_for_an_acknowledgement() -> None:
    (one,) = listen(["127.0.0.1:0"])
    with one, socket.create_connection(one.getsockname()):
        one.setblocking(True)
        accepted, _ = one.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # asyncio looks at it
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_unix_socket_is_this_machine_and_left_ones_are_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        (one,) = listen([str(tmp_path / "socket")])
        with one:
            assert is_local(one)
            assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "line 1: unknown setting x; expected"),
        ("[limits]\nbursts = 1\n", "line 2: unknown setting limits.bursts; did you mean burst"),
        ("[limits]\nx = 1", "line 2: unknown setting limits.x"),
        ("[limits]\nconnections = 0", "limits.connections must be an integer from 1"),
        ("[limits]\nrate = true", "must be a number"),
        ("[limits]\nrate = nan", "must be a number"),
        ("[limits]\nkeep-alive = inf", "must be a number"),
        ('issuer = ["https://x"]', "an array of tables, each written"),
        ("hosts = 1", "hosts must be a list of strings"),
        ("hosts = []", "must name"),
        ("listen = [1]", "list of strings"),
        ('[tls]\ncertificate = "/x"', "both a certificate and a key"),
        ('[[issuer]]\nissuer = "https://x"', "needs issuer and audience"),
        ('[[issuer]]\nissuer = "http://x"\naudience = "a"', "not https"),
        ('[[issuer]]\nissuer = "http://127.0.0.1.evil"\naudience = "a"', "not https"),
        ('[[issuer]]\nissuer = "https://x"\naudience = "a"\nalgorithms = ["HS256"]', "no such algorithm: HS256"),
        (
            '[[issuer]]\nissuer = "https://x"\naudience = "a"\nalgorithms = ["none"]',
            "line 4: issuer.algorithms: no such algorithm",
        ),
        (
            '[[issuer]]\nissuer = "https://x"\naudience = "a"\n[issuer.scopes]\nx = ["root"]',
            "line 5: issuer.scopes.x: no such scope: root",
        ),
        ("\n[", "line 2: invalid TOML"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        settings.read(file)


def test_settings_that_others_can_write_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('hosts = ["a"]')
    assert settings.read(file).hosts == ("a",)
    file.chmod(0o666)
    with pytest.raises(ConfigurationError, match="file is writable by everybody"):
        settings.read(file)


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert settings.read(tmp_path / "none") == settings.GatewaySettings()


def test_the_rate_fills_again() -> None:
    now = [0.0]
    rate = RateLimiter(2.0, 2, lambda: now[0])
    assert [rate.take("a"), rate.take("a"), rate.take("a"), rate.take("b")] == [0, 0, 0.5, 0]
    now[0] = 0.5
    assert rate.take("a") == 0
    assert rate.take("a") > 0
    assert RateLimiter(0, 1, lambda: 0.0).take("a") == 0
