# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateway's listening sockets, from systemd or from the settings. Without TLS only local ones are allowed."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmodd.config.section import ConfigurationError

FIRST = 3
"""The first descriptor that systemd hands over (sd_listen_fds(3))."""
BACKLOG = 128
PRIVILEGED_PORTS = 1024
"""Ports below need CAP_NET_BIND_SERVICE (ip(7), net.ipv4.ip_unprivileged_port_start)."""


def inherited(environment: Mapping[str, str], pid: int) -> list[socket.socket]:
    """The listening sockets that systemd started us with; none without socket activation."""
    if environment.get("LISTEN_PID") != str(pid):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal():
        return []
    listeners = [socket.socket(fileno=number) for number in range(FIRST, FIRST + int(count))]
    for listener in listeners:
        listener.setblocking(False)
        os.set_inheritable(listener.fileno(), False)
    return listeners


def listen(addresses: Sequence[str]) -> list[socket.socket]:
    """Listen at these addresses; ConfigurationError when that is not possible."""
    listeners: list[socket.socket] = []
    try:
        listeners += [_unix(address) if address.startswith("/") else _tcp(address) for address in addresses]
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise ConfigurationError(f"cannot listen on {', '.join(addresses)}: {error.strerror or error}") from error
    return listeners


def _tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise ConfigurationError(f"listen: {address} is neither ADDRESS:PORT nor the path of a socket") from None
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it, an answer's body waits for the client
    # to acknowledge its head, 40 ms later.
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.bind((str(ip), number))
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _unix(path: str) -> socket.socket:
    # A stale socket of a gateway that was killed.
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
    for listener in sockets:
        if listener.type != socket.SOCK_STREAM:
            raise ConfigurationError("a socket passed by systemd is not a stream socket")
        if not tls and not is_local(listener):
            raise ConfigurationError(
                f"{listener.getsockname()[0]} can be reached from other machines, and tokens would cross the network in the "
                "clear: set certificate and key in gateway.toml, or listen on /run/kmodd-gateway/http"
            )


def is_open_to_squatters(listener: socket.socket) -> bool:
    """Any local user may bind this port while the gateway does not, and then collects the tokens that clients send."""
    return listener.family != socket.AF_UNIX and int(listener.getsockname()[1]) >= PRIVILEGED_PORTS


def is_local(listener: socket.socket) -> bool:
    """Only this machine reaches it."""
    if listener.family == socket.AF_UNIX:
        return True
    if listener.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    address = ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
