# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tries to have modules loaded as a user without any right, where an attempt that changes nothing else is known.

A child process gives up every right, makes the system calls that the kernel asks for a module in, and ends. What counts
is not what the calls answer, but whether the module is loaded afterwards.
"""

import os
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from kmodd.fast_dataclass import dataclass

NOBODY = 65534
SECONDS = 20
_AF_ALG, _NETLINK_GENERIC = 38, 16
_CTRL, _GETFAMILY, _FAMILY_NAME = 16, 3, 2


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request that was tried."""

    module: str
    request: str
    loaded: bool
    """The module was there afterwards."""


def _family(request: str) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        with suppress(OSError):
            socket.socket(int(request.rpartition("-")[2]), kind).close()


def _netlink(request: str) -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, int(request.rpartition("-")[2])).close()


def _generic(request: str) -> None:
    name = request.partition("family-")[2].encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), _FAMILY_NAME) + name + b"\0" * (-len(name) % 4)
    body = struct.pack("=BBH", _GETFAMILY, 1, 0) + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as connection:
        connection.settimeout(5)
        connection.send(struct.pack("=IHHII", 16 + len(body), _CTRL, 1, 1, 0) + body)
        connection.recv(4096)


def _algorithm_type(request: str) -> None:
    with socket.socket(_AF_ALG, socket.SOCK_SEQPACKET) as connection:
        connection.bind((request.partition("-")[2], "none"))


_ATTEMPTS: tuple[tuple[re.Pattern[str], Callable[[str], None]], ...] = (
    (re.compile(r"net-pf-16-proto-16-family-[A-Za-z0-9_.-]{1,15}"), _generic),
    (re.compile(r"net-pf-16-proto-\d{1,3}"), _netlink),
    (re.compile(r"net-pf-\d{1,3}"), _family),
    (re.compile(r"algif-[a-z]{1,13}"), _algorithm_type),
)


def attempt_of(request: str) -> Callable[[str], None] | None:
    """The system calls for a request; None where no safe way to cause it is known."""
    return next((attempt for form, attempt in _ATTEMPTS if form.fullmatch(request)), None)


def probe(requests: Iterable[tuple[str, str]], modules: Path = Path("/proc/modules")) -> list[Attempt]:
    """Try these (module, request), those that no attempt is known for left out; OSError where no process can be made."""
    attempts = []
    for module, request in requests:
        attempt = attempt_of(request)
        if attempt is not None:
            _as_nobody(attempt, request)
            attempts.append(Attempt(module, request, loaded=module in _loaded(modules)))
    return attempts


def _as_nobody(attempt: Callable[[str], None], request: str) -> None:
    child = os.fork()
    if child == 0:
        # Nothing of the parent may run here: neither its handlers nor its event loop.
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            attempt(request)
            status = 0
        finally:
            os._exit(status)
    os.waitpid(child, 0)


def _loaded(modules: Path) -> frozenset[str]:
    return frozenset(line.partition(" ")[0] for line in modules.read_text(encoding="ascii").splitlines())
