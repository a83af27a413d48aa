# SPDX-License-Identifier: LGPL-2.1-or-later
"""Servers that a test sends to: an HTTP receiver that answers by script, a port that counts who comes, certificates."""

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What arrived."""

    path: str
    headers: dict[str, str]
    body: bytes
    time: float

    @property
    def id(self) -> str:
        """The message's id."""
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """What arrived, and what to answer: statuses in turn, then 204."""

    port: int
    requests: list[Request] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    default: int = 204

    def wait_for(self, count: int, seconds: float = 15.0) -> list[Request]:
        """Wait until so many have arrived."""
        wait_until(lambda: len(self.requests) >= count, f"{count} requests, {len(self.requests)} came", seconds)
        return self.requests


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Look until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


@contextmanager
def receiver(context: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Receiver]:
    """A web server on the loopback, with TLS when there is a context."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.requests.append(Request(self.path, headers, body, time.time()))
            status, extra = found.answers.pop(0) if found.answers else (found.default, {})
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(
            self,
            format: str,  # noqa: A002 - the name it has in the base class
            *args: object,
        ) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that refuses our certificate, or does not wait for the end, is what some tests want."""

    server = Server(("127.0.0.1", port), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    found = Receiver(int(server.server_address[1]))
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Counter:
    """A port that counts connections and says nothing."""

    port: int
    family: int
    connections: int = 0


@contextmanager
def counting(host: str = "127.0.0.1") -> Iterator[Counter]:
    """Listen and count; nobody is answered."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    listener.settimeout(0.02)
    found = Counter(listener.getsockname()[1], family)
    ending = threading.Event()
    held: list[socket.socket] = []

    def count() -> None:
        while not ending.is_set():
            try:
                held.append(listener.accept()[0])
            except TimeoutError:
                continue
            found.connections += 1

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        time.sleep(0.05)  # who was about to come has come
        ending.set()
        thread.join()
        for one in (*held, listener):
            one.close()


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for `name` (and 127.0.0.1 for localhost), and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    names = f"DNS:{name}" + (",IP:127.0.0.1" if name == "localhost" else "")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
            "-subj",
            f"/CN={name}",
            "-addext",
            f"subjectAltName={names}",
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def server_context(pair: tuple[Path, Path]) -> ssl.SSLContext:
    """TLS as the server speaks it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context
