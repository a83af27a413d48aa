# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the gateway listens: what systemd hands over, or what the settings name. Without TLS only on this machine."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmodd.gateway.settings import ConfigurationError

FIRST = 3
"""The first descriptor that systemd hands over (sd_listen_fds(3))."""
BACKLOG = 128


def inherited(environment: Mapping[str, str], pid: int) -> list[socket.socket]:
    """The listening sockets that systemd started us with; none without socket activation."""
    if environment.get("LISTEN_PID") != str(pid):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal():
        return []
    found = [socket.socket(fileno=number) for number in range(FIRST, FIRST + int(count))]
    for one in found:
        one.setblocking(False)
        os.set_inheritable(one.fileno(), False)
    return found


def listen(addresses: Sequence[str]) -> list[socket.socket]:
    """Listen at these addresses; ConfigurationError when that is not possible."""
    found: list[socket.socket] = []
    try:
        found += [_unix(one) if one.startswith("/") else _tcp(one) for one in addresses]
    except OSError as error:
        for one in found:
            one.close()
        raise ConfigurationError(f"cannot listen on {', '.join(addresses)}: {error.strerror or error}") from error
    return found


def _tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        found = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise ConfigurationError(f"listen: {address} is neither ADDRESS:PORT nor the path of a socket") from None
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it, an answer's body waits for the client
    # to acknowledge its head, 40 ms later.
    family = socket.AF_INET6 if found.version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.bind((str(found), number))
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _unix(path: str) -> socket.socket:
    # A socket nobody listens on any more is left by a gateway that was killed.
    with contextlib.suppress(FileNotFoundError):
        if Path(path).is_socket():
            Path(path).unlink()
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(path)
        Path(path).chmod(0o660)
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def require_tls(sockets: Sequence[socket.socket], *, tls: bool) -> None:
    """ConfigurationError when a socket can be reached from elsewhere and TLS is not set up."""
    for one in sockets:
        if one.type != socket.SOCK_STREAM:
            raise ConfigurationError("a socket that was handed over is no stream socket")
        if not tls and not is_local(one):
            raise ConfigurationError(
                f"{one.getsockname()[0]} can be reached from other machines, and tokens would cross the network in the "
                "clear: set certificate and key in gateway.toml, or listen on 127.0.0.1"
            )


def is_local(one: socket.socket) -> bool:
    """Only this machine reaches it."""
    if one.family == socket.AF_UNIX:
        return True
    if one.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    address = ipaddress.ip_address(str(one.getsockname()[0]).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
