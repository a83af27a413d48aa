# SPDX-License-Identifier: LGPL-2.1-or-later
"""The HTTP gateway outside emulation: the real gateway on a private bus with the real daemon, whose kernel is simulated.

`python3 -m tests.bench.gateway_native`. Each figure with Debian's libraries, which `make install-gateway` uses, and with this
interpreter's own, the newest. On a machine that others use as well the requests per second of the gateway's own processor
time say more than those per second on the clock.
"""

import os
import resource
import socket
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.kept import Kept, many, request
from tests.cli.private_bus import private_bus
from tests.gateway.processes import Gateway, daemon, gateway

CONNECTIONS = 8
SECONDS = 5.0
FOLLOWERS = 1000
TICKS = os.sysconf("SC_CLK_TCK")
DEBIAN = "/usr/bin/python3"


def memory(served: Gateway) -> float:
    """Megabytes resident."""
    text = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def processor(served: Gateway) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{served.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rate(served: Gateway, path: str, aim: str) -> None:
    """Answers a second over several connections."""
    ask = request("GET", path, served.token)
    many(served.port, ask, CONNECTIONS, 1.0)
    before = processor(served)
    found = many(served.port, ask, CONNECTIONS, SECONDS)
    used = processor(served) - before
    print(
        f"  GET {path:<28} {found / SECONDS:7.0f} a second, {found / used:7.0f} a second of its processor time   aim {aim}"
    )


def followers(served: Gateway) -> None:
    """A thousand event streams, and what one event costs then."""
    ask = request("GET", "/v1/events", served.token)
    sockets: list[socket.socket] = []
    try:
        for _ in range(FOLLOWERS):
            one = socket.create_connection(("127.0.0.1", served.port), timeout=60)
            sockets.append(one)
            one.sendall(ask)
            _read_until(one, b"event: hello")
        print(f"  {memory(served):6.1f} MB resident with {FOLLOWERS} followers of the events   aim < 100 MB")
        other = Kept(served.port)
        begin = time.perf_counter()
        other.ask(request("POST", "/module/load/dummy", served.token))
        for one in sockets:
            _read_until(one, b"event: module-added")
        seconds = time.perf_counter() - begin
        print(f"  {seconds * 1e3:6.0f} ms from a load's request until the last of them has its event")
        other.ask(request("POST", "/module/unload/dummy", served.token))
        other.close()
    finally:
        for one in sockets:
            one.close()


def _read_until(one: socket.socket, wanted: bytes) -> None:
    data = b""
    while wanted not in data:
        got = one.recv(65536)
        if not got:
            raise RuntimeError("a follower was dropped")
        data += got


def measure(interpreter: str, name: str) -> None:
    """Everything with the libraries of one interpreter."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        settings = "[limits]\nrate = 0\n"
        with (
            private_bus(folder) as address,
            daemon(address),
            gateway(folder, address, settings, interpreter=interpreter) as served,
        ):
            print(f"The gateway with {name}, {CONNECTIONS} connections, a simulated kernel")
            print(f"  {memory(served):6.1f} MB resident after its start   aim <= 60 MB with Debian's libraries")
            rate(served, "/v1/modules", ">= 500")
            rate(served, "/v1/modules/ext4", "none")
            rate(served, "/v1/modules/ext4/explain", "none")
            rate(served, "/metrics", "none")
            followers(served)


def main() -> None:
    """Both."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    measure(DEBIAN, "Debian's libraries")
    if sys.prefix != sys.base_prefix:
        measure(sys.executable, "the newest libraries")


if __name__ == "__main__":
    main()
