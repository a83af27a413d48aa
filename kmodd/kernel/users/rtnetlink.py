# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interfaces of any network namespace and traffic control of this one, by rtnetlink (rtnetlink(7), linux/if_link.h).

sysfs does not name the module of an interface without a device, such as `dummy0`; its link kind does. Queueing disciplines,
filters and actions are not in sysfs at all. Reading those of the own namespace needs no capability.

The interfaces of another namespace are listed without entering it: IFLA_TARGET_NETNSID in the request names it by its id in
the caller's namespace (Linux 4.15). Giving it such an id (RTM_NEWNSID) requires CAP_NET_ADMIN in the caller's namespace, the
list CAP_NET_ADMIN in the other one (rtnl_get_net_ns_capable in net/core/rtnetlink.c); setns(2) would require CAP_SYS_ADMIN.
"""

import errno
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.users.netlink import (
    ACK,
    DONE,
    DUMP,
    DUMP_INTERRUPTED,
    ERROR,
    HEADER,
    RECEIVE_MAX,
    REQUEST,
    SECONDS_MAX,
    attribute,
    attributes,
    check,
    dump,
    frames,
    text,
)

_NEWLINK, _GETLINK = 16, 18
_NEWADDR, _GETADDR = 20, 22
_NEWROUTE, _GETROUTE = 24, 26
_NEWNSID, _GETNSID = 88, 90
_NEWQDISC, _GETQDISC = 36, 38
_NEWFILTER, _GETFILTER = 44, 46
_GETACTION = 50
_IFINFO = struct.Struct("=BxHiII")
_TCMSG = struct.Struct("=BxxxiIII")
"""struct tcmsg of linux/rtnetlink.h: family, interface, handle, parent, info."""
_IFADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")
_NUMBER = struct.Struct("=i")
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
_IFLA_LINK, _IFLA_MASTER, _IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID = 5, 10, 37, 46
_IFLA_PARENT_DEV_NAME, _IFLA_PARENT_DEV_BUS_NAME = 56, 57  # Linux 5.14
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH = 1, 4, 9
_RTM_F_FIB_MATCH = 0x2000
_NETNSA_NSID, _NETNSA_FD = 1, 3
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_IFF_UP = 1
_KIND, _OPTIONS, _CHAIN = 1, 2, 11
_ROOT, _CLSACT = 0xFFFFFFFF, 0xFFFFFFF1
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
"""Parents of linux/pkt_sched.h: TC_H_ROOT, TC_H_CLSACT, and the classes of the latter that filters hang on."""
_ACTIONS = {"u32": 7, "flower": 3, "matchall": 2, "bpf": 1, "fw": 4, "basic": 3, "route": 6, "cgroup": 1, "flow": 9}
"""Attribute of the actions in each classifier's options (linux/pkt_cls.h: TCA_U32_ACT and its like)."""
_PARAMETERS = {"police": 1, "csum": 1, "nat": 1, "ife": 1, "connmark": 1, "ct": 1, "ctinfo": 3}
"""Attribute of each action's options that begins with its index (linux/tc_act/); 2 for the others."""
_BOUND = struct.Struct("=I12xi")
"""tc_gen of linux/pkt_cls.h, of which the index and the bindings to filters count."""
_POLICE = struct.Struct("=I44xi")
"""The same of struct tc_police, which is older."""
_QDISCS_MAX, _FILTERS_MAX = 4096, 4096
_ABROAD = (
    (socket.AF_INET, "192.0.2.1"),
    (socket.AF_INET, "203.0.113.1"),
    (socket.AF_INET6, "2001:db8::1"),
    (socket.AF_INET6, "2620:fe::fe"),
)
"""Addresses far from here, those of documentation among them: nothing is sent to them, routes are looked up."""
_ANSWER_MAX = 32 << 20
"""Bytes of one answer: some 20000 interfaces."""
_ATTEMPTS = 5
"""Attempts at a dump before it is reported as failed."""


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline."""

    device: str
    kind: str
    handle: int
    """0 for one that the kernel has put there by default."""
    parent: int

    @property
    def place(self) -> tuple[str, ...]:
        """Where it hangs, in the words of tc(8)."""
        if self.parent == _ROOT:
            return ("root",)
        return (self.kind,) if self.parent == _CLSACT else ("parent", classid(self.parent))


@dataclass(frozen=True, slots=True)
class Filter:
    """All filters of one preference at one place."""

    device: str
    kind: str
    place: tuple[str, ...]
    preference: int
    chain: int
    actions: frozenset[str]
    """Kinds of the actions that belong to it."""


@dataclass(frozen=True, slots=True)
class Action:
    """An action that belongs to no filter."""

    kind: str
    index: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traffic control of a network namespace."""

    qdiscs: tuple[Qdisc, ...] = ()
    filters: tuple[Filter, ...] = ()
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    kind: str = ""
    """`ip link add … type KIND`; empty for one that a device's driver made."""
    up: bool = False
    """Administratively up (IFF_UP)."""
    master: int = 0
    """Index of the bridge or bond that it is a port of; 0 for none."""
    lower: int = 0
    """Index of the interface of the same namespace that it is stacked on, as a VLAN is; 0 for none."""
    bus: str = ""
    device: str = ""
    """Of one that a driver made: the bus and name of its device, below /sys/bus/BUS/devices."""


class Rtnetlink:
    """Queries of interfaces. Every method raises OSError if the kernel cannot be queried, or refuses."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(SECONDS_MAX)
        # With it the kernel obeys what narrows a request down, and refuses what it does not know (Linux 4.20).
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def namespace_id(self, namespace: int) -> int:
        """The id of the network namespace of this descriptor, which is given one where it has none."""
        about = bytes(4) + attribute(_NETNSA_FD, struct.pack("=I", namespace))
        identifier = self._namespace_id(about)
        if identifier >= 0:
            return identifier
        # -1: the next one that is free.
        self._ask(_NEWNSID, ACK, about + attribute(_NETNSA_NSID, _NUMBER.pack(-1)))
        return self._namespace_id(about)

    def links(self, namespace: int | None = None) -> tuple[Link, ...]:
        """Every interface of the namespace with this id, or of this process's own."""
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        if namespace is not None:
            body += attribute(_IFLA_TARGET_NETNSID, _NUMBER.pack(namespace))
        return tuple(read_link(data) for kind, data in self._ask(_GETLINK, DUMP, body) if kind == _NEWLINK)

    def addresses(self) -> dict[int, tuple[str, ...]]:
        """The addresses of this namespace's interfaces, by their index: `192.0.2.7/24`."""
        addresses: dict[int, tuple[str, ...]] = {}
        for kind, data in self._ask(_GETADDR, DUMP, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            if kind != _NEWADDR or len(data) < _IFADDR.size:
                continue
            family, length, _, _, index = _IFADDR.unpack_from(data)
            values = dict(attributes(data[_IFADDR.size :]))
            value = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS) or b""
            if family in (socket.AF_INET, socket.AF_INET6) and len(value) == (4 if family == socket.AF_INET else 16):
                addresses[index] = (*addresses.get(index, ()), f"{socket.inet_ntop(family, value)}/{length}")
        return addresses

    def default_routes(self) -> frozenset[int]:
        """Indexes of the interfaces over which addresses far from here are reached, by a default route or half of one.

        Routes are looked up and not listed: a router has a million of them.
        """
        outgoing: set[int] = set()
        for family, address in _ABROAD:
            packed = socket.inet_pton(family, address)
            body = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
            try:
                replies = self._ask(_GETROUTE, ACK, body + attribute(_RTA_DST, packed))
            except TimeoutError:
                raise
            except OSError:
                continue  # there is no route, or no IPv6: ENETUNREACH, EHOSTUNREACH, EOPNOTSUPP and what rules answer
            for kind, data in replies:
                if kind == _NEWROUTE and len(data) >= _ROUTE.size and _ROUTE.unpack_from(data)[1] <= 1:
                    outgoing |= _ways_out(data[_ROUTE.size :])
        return frozenset(outgoing)

    def _namespace_id(self, about: bytes) -> int:
        for kind, data in self._ask(_GETNSID, ACK, about):
            if kind == _NEWNSID:
                for number, value in attributes(data[4:]):
                    if number == _NETNSA_NSID and len(value) == _NUMBER.size:
                        return int(_NUMBER.unpack(value)[0])
        raise OSError(errno.EBADMSG, "the kernel names no id of the network namespace")

    def _ask(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """Every message of the answer; OSError for the kernel's refusal.

        A dump during which something changed may lack what was there all the time (NLM_F_DUMP_INTR), and is repeated.
        """
        for _ in range(_ATTEMPTS):
            if (answer := self._try(kind, flags, body)) is not None:
                return answer
        raise OSError(errno.EBUSY, "it changes while it is listed")

    def _try(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]] | None:
        self._sequence += 1
        head = HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, self._sequence, 0)
        self._socket.sendto(head + body, (0, 0))
        answer: list[tuple[int, bytes]] = []
        complete = True
        size = 0
        while True:
            data, (sender, _) = self._socket.recvfrom(RECEIVE_MAX)
            if sender != 0:  # 0 is the kernel; anyone may send to a netlink socket.
                continue
            size += len(data)
            if size > _ANSWER_MAX:
                raise OSError(errno.EFBIG, "a netlink answer is too long")
            for number, frame_flags, sequence, message in frames(data):
                if sequence != self._sequence:
                    continue
                complete &= not frame_flags & DUMP_INTERRUPTED
                if number in (DONE, ERROR):
                    check(number, message)
                    return answer if complete else None
                answer.append((number, message))


def read_link(body: bytes) -> Link:
    """One interface of a dump."""
    if len(body) < _IFINFO.size:
        raise OSError(errno.EBADMSG, "a netlink message is cut off")
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    values = dict(attributes(body[_IFINFO.size :]))
    inner = dict(attributes(values.get(_IFLA_LINKINFO, b"")))
    # Stacked on an interface of another namespace, such as the other end of a veth: that one does not carry it.
    lower = 0 if _IFLA_LINK_NETNSID in values else _index(values.get(_IFLA_LINK))
    return Link(
        index,
        text(values.get(_IFLA_IFNAME, b"")),
        kind=text(inner.get(_IFLA_INFO_KIND, b"")),
        up=bool(flags & _IFF_UP),
        master=_index(values.get(_IFLA_MASTER)),
        lower=lower if lower != index else 0,
        bus=text(values.get(_IFLA_PARENT_DEV_BUS_NAME, b"")),
        device=text(values.get(_IFLA_PARENT_DEV_NAME, b"")),
    )


def _ways_out(data: bytes) -> set[int]:
    """The interfaces of a route, of one with several next hops too (struct rtnexthop)."""
    values = dict(attributes(data))
    indexes = {_index(values.get(_RTA_OIF))}
    hops = values.get(_RTA_MULTIPATH, b"")
    while len(hops) >= _NEXT_HOP.size:
        length, _, _, index = _NEXT_HOP.unpack_from(hops)
        indexes.add(index)
        if length < _NEXT_HOP.size:
            break
        hops = hops[(length + 3) & ~3 :]
    return indexes - {0}


def _index(value: bytes | None) -> int:
    return 0 if value is None or len(value) != _NUMBER.size else max(0, int(_NUMBER.unpack(value)[0]))


def link_kinds() -> dict[str, str]:
    """Interface → kind, for those that have a kind, in this network namespace; OSError if the query fails."""
    return {link.name: link.kind for link in all_links() if link.name and link.kind}


def all_links() -> Iterator[Link]:
    """Every interface of this network namespace; OSError if the query fails."""
    links = dump(socket.NETLINK_ROUTE, _GETLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    return (read_link(body) for message, body in links if message == _NEWLINK)


def traffic_control(filters: bool, actions: Collection[str], in_time: Callable[[], bool]) -> Traffic:
    """Queueing disciplines, filters if needed, and the actions of these kinds that stand alone.

    As much as there is time for. OSError when the kernel does not answer, or there is more than a dump may have.
    """
    listed = dump(socket.NETLINK_ROUTE, _GETQDISC, _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    bodies = [body for message, body in listed if message == _NEWQDISC][:_QDISCS_MAX]
    # Not by if_indextoname(3): it makes a socket of another family, which the inspector may not. What has no name here is gone meanwhile.
    names = {link.index: link.name for link in all_links()} if bodies else {}
    indexes = {name: index for index, name in names.items()}
    qdiscs = [qdisc for body in bodies if (qdisc := read_qdisc(body, lambda index: names.get(index, "")))]
    chosen: dict[Filter, None] = {}
    for qdisc in qdiscs if filters else ():
        for parent in _parents(qdisc) if in_time() else ():
            request = _TCMSG.pack(socket.AF_UNSPEC, indexes[qdisc.device], 0, parent, 0)
            for message, body in dump(socket.NETLINK_ROUTE, _GETFILTER, request):
                if not in_time():
                    break
                if message == _NEWFILTER and len(chosen) < _FILTERS_MAX and (each := read_filter(body, qdisc.device)):
                    chosen[each] = None
    alone = [each for kind in actions for each in _actions(kind, in_time)]
    return Traffic(tuple(qdiscs), tuple(_merged(chosen)), tuple(alone))


def read_qdisc(body: bytes, name: Callable[[int], str]) -> Qdisc | None:
    """One message of the dump; `name` answers the interface of an index. None for what is none."""
    if len(body) < _TCMSG.size:
        return None
    _, interface, handle, parent, _ = _TCMSG.unpack_from(body)
    kind = next((text(value) for number, value in attributes(body[_TCMSG.size :]) if number == _KIND), "")
    device = name(interface)
    return Qdisc(device, kind, handle, parent) if kind and device else None


def read_filter(body: bytes, device: str) -> Filter | None:
    """One message of the dump; None for what is none."""
    if len(body) < _TCMSG.size:
        return None
    _, _, _, parent, info = _TCMSG.unpack_from(body)
    values = dict(attributes(body[_TCMSG.size :]))
    kind = text(values.get(_KIND, b""))
    if not kind:
        return None
    place = {_INGRESS: ("ingress",), _EGRESS: ("egress",)}.get(parent, ("parent", classid(parent)))
    chain = int.from_bytes(values.get(_CHAIN, b"")[:4], sys.byteorder)
    actions = frozenset(_kinds_in(dict(attributes(values.get(_OPTIONS, b""))).get(_ACTIONS.get(kind, 0), b"")))
    return Filter(device, kind, place, info >> 16, chain, actions)


def read_actions(kind: str, body: bytes) -> Iterator[Action]:
    """Actions of one message that no filter is bound to."""
    for number, table in attributes(body[4:]):
        if number != 1:  # TCA_ACT_TAB
            continue
        for _, each in attributes(table):
            options = dict(attributes(dict(attributes(each)).get(_OPTIONS, b"")))
            values = options.get(_PARAMETERS.get(kind, 2), b"")
            layout = _POLICE if kind == "police" else _BOUND
            if len(values) >= layout.size:
                index, bound = layout.unpack_from(values)
                if bound <= 0:
                    yield Action(kind, index)


def classid(number: int) -> str:
    """A handle as tc writes it: `1:`, `1:10`, `:1`."""
    major, minor = number >> 16, number & 0xFFFF
    return f"{major:x}:" if major and not minor else f"{major:x}:{minor:x}" if major else f":{minor:x}"


def _actions(kind: str, in_time: Callable[[], bool]) -> Iterator[Action]:
    request = bytes(4) + attribute(1, attribute(1, attribute(1, kind.encode() + b"\0"), nested=True), nested=True)
    for message, body in dump(socket.NETLINK_ROUTE, _GETACTION, request):
        if not in_time():
            return
        if message == _GETACTION:
            yield from read_actions(kind, body)


def _parents(qdisc: Qdisc) -> tuple[int, ...]:
    return (_INGRESS, _EGRESS) if qdisc.parent == _CLSACT else (qdisc.handle,) if qdisc.handle else ()


def _kinds_in(actions: bytes) -> Iterator[str]:
    for _, each in attributes(actions):
        if kind := dict(attributes(each)).get(1):
            yield text(kind)


def _merged(filters: Iterable[Filter]) -> Iterator[Filter]:
    """One for each preference: tc deletes all of its filters together."""
    merged: dict[tuple[str, str, tuple[str, ...], int, int], frozenset[str]] = {}
    for each in filters:
        key = (each.device, each.kind, each.place, each.preference, each.chain)
        merged[key] = merged.get(key, frozenset()) | each.actions
    for (device, kind, place, preference, chain), actions in merged.items():
        yield Filter(device, kind, place, preference, chain, actions)
