# SPDX-License-Identifier: LGPL-2.1-or-later
"""States of IPsec (XFRM) in this network namespace, by the modules that they hold, from a dump of NETLINK_XFRM.

The structures are those of linux/xfrm.h. The kernel answers with CAP_NET_ADMIN only. A policy holds no module.
"""

import re
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import read_text
from kmodd.kernel.users.netlink import attributes, dump, text
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_NETLINK_XFRM, _NEWSA, _GETSA = 6, 0x10, 0x12
_STATE = struct.Struct("=56x16s4sB3x16s96x12x4x4xHBBB7x")
"""struct xfrm_usersa_info: destination, SPI, protocol, source, family, mode; the rest is not looked at."""
_ALGORITHMS = {1, 2, 3, 18, 20}
"""XFRMA_ALG_AUTH, _CRYPT, _COMP, _AEAD and _AUTH_TRUNC: each begins with the algorithm's name."""
_NAME_MAX = 64
_MARK = 21
_MARK_VALUES = struct.Struct("=II")
_TYPES = {50: "esp", 51: "ah", 108: "comp"}
"""Protocols whose type is a module, in the words of ip-xfrm(8)."""
_MODULES = {(50, 4): "esp4", (50, 6): "esp6", (51, 4): "ah4", (51, 6): "ah6", (108, 4): "ipcomp", (108, 6): "ipcomp6"}
_WORD = re.compile(r"[a-z0-9_-]+")
"""Each word of `authenc(hmac(sha256),cbc(aes))` is an algorithm or a template, with a module."""
_STATES_MAX = 4096
_TABLE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class State:
    """A security association."""

    family: int
    """4 or 6."""
    source: str
    destination: str
    protocol: int
    spi: int
    algorithms: tuple[str, ...] = ()
    mark: tuple[int, int] | None = None
    """Value and mask."""


def ipsec_states() -> Iterator[State]:
    """Every state; OSError where the kernel does not answer. The socket would make the kernel load xfrm_user."""
    for message, body in dump(_NETLINK_XFRM, _GETSA, b""):
        if message == _NEWSA and (state := read_state(body)):
            yield state


def read_state(body: bytes) -> State | None:
    """One message; None for what is none of a protocol or family that is known."""
    if len(body) < _STATE.size:
        return None
    destination, spi, protocol, source, family, *_ = _STATE.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6) or protocol not in _TYPES:
        return None
    size = 4 if family == socket.AF_INET else 16
    algorithms: list[str] = []
    mark = None
    for number, value in attributes(body[_STATE.size :]):
        if number in _ALGORITHMS:
            algorithms.append(text(value[:_NAME_MAX]))
        elif number == _MARK and len(value) == _MARK_VALUES.size and any(value):
            mark = _MARK_VALUES.unpack(value)
    return State(
        4 if family == socket.AF_INET else 6,
        socket.inet_ntop(family, source[:size]),
        socket.inet_ntop(family, destination[:size]),
        protocol,
        int.from_bytes(spi, "big"),
        tuple(dict.fromkeys(filter(None, algorithms))),
        mark,
    )


def ipsec_users(
    root: Path,
    loaded: Collection[str],
    resolve: Callable[[str], tuple[str, ...]],
    read: Callable[[], Iterable[State]],
    budget: Budget,
) -> Iterator[tuple[frozenset[str], User]]:
    """Each state, which holds its type and its algorithms.

    `loaded` are the modules that are looked for, `resolve` answers the modules with an alias. Without a type of IPsec among the
    former there is no query.
    """
    if not any(name in loaded for name in _MODULES.values()) or not _listens(root):
        return
    try:
        for count, state in enumerate(read()):
            if count == _STATES_MAX:
                budget.met(f"there are more than {_STATES_MAX} states of IPsec")
                return
            names = {_MODULES[state.protocol, state.family]}
            for word in {word for algorithm in state.algorithms for word in _WORD.findall(algorithm)}:
                names |= {canonical(word), *resolve(f"crypto-{word}")}
            if modules := frozenset(name for name in names if name in loaded):
                yield modules, _user(state)
    except OSError:
        budget.met("the states of IPsec cannot be read")


def _listens(root: Path) -> bool:
    """The kernel's side of NETLINK_XFRM is there: another socket of it loads nothing."""
    lines = (read_text(root / "proc/net/netlink", _TABLE_MAX) or "").splitlines()[1:]
    return any(line.split()[1:2] == [str(_NETLINK_XFRM)] for line in lines)


def _user(state: State) -> User:
    protocol = _TYPES[state.protocol]
    words = ["src", state.source, "dst", state.destination, "proto", protocol, "spi", f"0x{state.spi:08x}"]
    if state.mark is not None:
        words += ["mark", f"0x{state.mark[0]:x}", "mask", f"0x{state.mark[1]:x}"]
    return User(
        "state",
        shown(f"IPsec {protocol} {state.source} {state.destination} spi 0x{state.spi:08x}"),
        shown(", ".join(state.algorithms)),
        remedy=Remedy.DELETE_STATE,
        words=tuple(words),
    )
