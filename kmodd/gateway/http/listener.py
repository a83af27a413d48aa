# SPDX-License-Identifier: LGPL-2.1-or-later
"""The listening sockets, and a limit on their connections, which asyncio's own server lacks.

A connection counts from accept(2), before TLS and its first byte, so that an idle one is displaced before it costs a
handshake. A connection that has shown a valid token belongs to that token; the others are strangers, counted by peer. When
all places are taken, the longest idle stranger of the peer with most of them is closed: a flood displaces itself. Tokens
have a reserve, and lose the connections they keep alive without using them.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import struct
import traceback
from asyncio import sslproto
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kmodd.config.section import ConfigurationError

FIRST = 3
"""The first descriptor that systemd hands over (sd_listen_fds(3))."""
BACKLOG = 128
PRIVILEGED_PORTS = 1024
"""Ports below need CAP_NET_BIND_SERVICE (ip(7), net.ipv4.ip_unprivileged_port_start)."""
IDLE = 2.0
"""Seconds after which a connection that a token keeps alive makes room, when there are no strangers left."""


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


@dataclass(slots=True, eq=False)
class ConnectionSlot:
    """One connection's."""

    peer: str
    """Whose share it counts for: `uid 1000`, an IPv4 address or an IPv6 /64."""
    end: Callable[[], None]
    """Drops the connection."""
    address: str = ""
    """Where it comes from, for the journal."""
    uid: int | None = None
    """The user at the other end of a unix socket."""
    owner: str = field(default="", init=False)
    """The token it has shown; empty for a stranger."""
    since: float = field(default=0.0, init=False)
    """When something happened on it last."""
    is_busy: bool = field(default=False, init=False)
    """A request with a valid token is being served."""


class Admission:
    """The places, the longest idle one first."""

    def __init__(self, limit: int, reserve: int, clock: Callable[[], float]) -> None:
        """`limit` places, of which strangers never have the last `reserve`, nor have requests of one token. The clock counts
        seconds.
        """
        self._limit = limit
        self._strangers_max = max(1, limit - reserve)
        self._share = max(1, limit - reserve)
        self._clock = clock
        self._places: dict[ConnectionSlot, None] = {}

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, place: ConnectionSlot) -> bool:
        """Give a new connection a place, of another one if need be. False when every place is in use by an owner."""
        strangers = sum(1 for taken in self._places if not taken.owner)
        if (len(self._places) >= self._limit or strangers >= self._strangers_max) and not self._evict():
            return False
        self._add(place)
        return True

    def leave(self, place: ConnectionSlot) -> None:
        """The connection is gone, or counts elsewhere from now on."""
        self._places.pop(place, None)

    def progress(self, place: ConnectionSlot) -> None:
        """Something happened on the connection: it is the last to go."""
        if place in self._places:
            del self._places[place]
            self._add(place)

    def _add(self, place: ConnectionSlot) -> None:
        self._places[place] = None
        place.since = self._clock()

    def recognise(self, place: ConnectionSlot, owner: str) -> bool:
        """A request with a valid token has begun on it. False when as many of this token are being served as one may have."""
        place.owner, place.is_busy = owner, True
        return sum(1 for taken in self._places if taken.is_busy and taken.owner == owner) <= self._share

    def _evict(self) -> bool:
        strangers = Counter(place.peer for place in self._places if not place.owner)
        if strangers:
            (peer, _), *_ = strangers.most_common(1)
            victim = next(place for place in self._places if not place.owner and place.peer == peer)
        else:
            before = self._clock() - IDLE
            owners = Counter(place.owner for place in self._places)
            idle = [place for place in self._places if not place.is_busy and place.since <= before]
            if not idle:
                return False
            victim = max(idle, key=lambda place: owners[place.owner])
        self._end(victim)
        return True

    def _end(self, place: ConnectionSlot) -> None:
        del self._places[place]
        place.end()


HANDSHAKE = 5.0
"""Seconds within which TLS has to be agreed on, and taken leave of."""
TLS_BUFFER = 32 * 1024
"""Bytes read from a TLS connection in one call."""
AT_ONCE = 16
"""Connections taken before others have their turn on the loop."""
PAUSE = 0.5
"""Seconds without taking any after the system had no descriptor or memory for one."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PEER = struct.Struct("iII")
"""struct ucred of unix(7): pid, uid, gid."""


class Listener:
    """One listening socket's; has what uvicorn asks of an asyncio.Server."""

    def __init__(
        self,
        listening: socket.socket,
        admission: Admission,
        make: Callable[[ConnectionSlot], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        *,
        refusal: bytes,
        exhausted: Callable[[OSError], None],
    ) -> None:
        """`make` makes a connection's protocol; `refusal` is sent to a connection that finds no place; `exhausted` is called when the
        system has nothing left for a connection.
        """
        self._listening = listening
        self._admission = admission
        self._make = make
        self._tls = tls
        self._refusal = refusal
        self._exhausted = exhausted
        self._loop = asyncio.get_running_loop()
        if tls is not None:
            # asyncio fills 256 KiB for each connection (CPython 3.11, sslproto.py); a TLS record has 16 KiB.
            sslproto.SSLProtocol.max_size = TLS_BUFFER
        self._pause: asyncio.TimerHandle | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._resume()

    def close(self) -> None:
        """Take no more; connections go on."""
        self._loop.remove_reader(self._listening)
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Return when the connections that were about to begin have begun or ended."""
        if self._starting:
            await asyncio.wait(self._starting)

    def _resume(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                made, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # of the connection, not of the socket (accept(2))
                self._exhausted(error)
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(PAUSE, self._resume)
                return
            made.setblocking(False)
            try:
                place = place_of(made)
            except OSError:  # gone already
                made.close()
                continue
            if self._admission.enter(place):
                task = self._loop.create_task(self._start(made, place))
                self._starting.add(task)
                task.add_done_callback(self._starting.discard)
            else:
                self._refuse(made)

    def _refuse(self, made: socket.socket) -> None:
        with made, contextlib.suppress(OSError):
            if self._tls is None:
                made.send(self._refusal)

    async def _start(self, made: socket.socket, place: ConnectionSlot) -> None:
        limits = {"ssl_handshake_timeout": HANDSHAKE, "ssl_shutdown_timeout": HANDSHAKE} if self._tls else {}
        try:
            await self._loop.connect_accepted_socket(lambda: self._make(place), made, ssl=self._tls, **limits)
        except OSError as error:  # TLS was not agreed on; ssl.SSLError is one
            self._admission.leave(place)
            # asyncio's frames hold the future that holds this error, and so the TLS buffers until the collector's last
            # generation: 5,000 failed handshakes had 480 MB.
            traceback.clear_frames(error.__traceback__)


def place_of(made: socket.socket) -> ConnectionSlot:
    """Where a connection comes from. OSError when it is gone. Its place ends it by closing both directions."""

    def end() -> None:
        with contextlib.suppress(OSError):
            made.shutdown(socket.SHUT_RDWR)

    if made.family == socket.AF_UNIX:
        _, uid, _ = _PEER.unpack(made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return ConnectionSlot(f"uid {uid}", end, f"uid {uid}", uid)
    address = ipaddress.ip_address(str(made.getpeername()[0]).partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    # A machine has a whole /64 to choose addresses from (RFC 7934).
    peer = str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
    return ConnectionSlot(peer, end, str(address))
