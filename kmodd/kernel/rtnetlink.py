# SPDX-License-Identifier: LGPL-2.1-or-later
"""The link kind of every network interface, by one rtnetlink dump (rtnetlink(7), linux/if_link.h).

An interface without a device behind it, such as `dummy0`, names its module nowhere in sysfs; its link kind does.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator

_RTM_GETLINK, _RTM_NEWLINK = 18, 16
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # The two highest bits are NLA_F_NESTED and NLA_F_NET_BYTEORDER.
_RECEIVE_MAX = 1 << 18
_TIMEOUT = 2.0


def link_kinds() -> dict[str, str]:
    """Interface → kind, for those that have a kind, in this network namespace; OSError when it cannot be asked."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as channel:
        channel.settimeout(_TIMEOUT)
        channel.bind((0, 0))
        size = _HEADER.size + _IFINFO.size
        head = _HEADER.pack(size, _RTM_GETLINK, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        channel.sendto(head + _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0), (0, 0))
        kinds: dict[str, str] = {}
        while True:
            data, (sender, _) = channel.recvfrom(_RECEIVE_MAX)
            if sender == 0 and read_links(data, kinds):  # 0 is the kernel; anyone may send to a netlink socket.
                return kinds


def read_links(data: bytes, kinds: dict[str, str]) -> bool:
    """Take a datagram of the dump apart into `kinds`; True after the last message. OSError when the kernel refuses."""
    position = 0
    while position + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, position)
        if length < _HEADER.size or position + length > len(data):
            raise OSError(errno.EBADMSG, "a netlink message is cut off")
        body = data[position + _HEADER.size : position + length]
        if kind == _NLMSG_DONE:
            return True
        if kind == _NLMSG_ERROR:
            number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
            raise OSError(number, os.strerror(number))
        if kind == _RTM_NEWLINK:
            _read_link(body[_IFINFO.size :], kinds)
        position += (length + 3) & ~3
    return False


def _read_link(body: bytes, kinds: dict[str, str]) -> None:
    name = kind = ""
    for number, value in _attributes(body):
        if number == _IFLA_IFNAME:
            name = _text(value)
        elif number == _IFLA_LINKINFO:
            kind = next((_text(inner) for inside, inner in _attributes(value) if inside == _IFLA_INFO_KIND), "")
    if name and kind:
        kinds[name] = kind


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, number = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size or position + length > len(data):
            return
        yield number & _TYPE_MASK, data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode(errors="replace")
