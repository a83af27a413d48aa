# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps of kernel tables by netlink(7), bounded in bytes, their attributes, the modules that TCP sockets use, and what MACsec has keys for.

The last two are about this network namespace, by sock_diag(7) and generic netlink, and need no capability.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator

from kmodd.fast_dataclass import dataclass
from kmodd.names import canonical

ERROR, DONE = 2, 3
"""Types of the last message of an answer."""
REQUEST, ACK, DUMP_INTERRUPTED, DUMP = 0x1, 0x4, 0x10, 0x300
"""Flags of linux/netlink.h."""
HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # The two highest bits are NLA_F_NESTED and NLA_F_NET_BYTEORDER.
_NESTED = 0x8000
RECEIVE_MAX = 1 << 18

BYTES_MAX = 8 << 20
"""Bytes of one dump; a table that is longer is an error (EFBIG)."""
SECONDS_MAX = 2.0
"""Seconds that the kernel is waited for; who takes what it answers may stop at any time."""


def dump(protocol: int, kind: int, request: bytes, *, limit: int = BYTES_MAX) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message that the kernel answers to a dump request `kind` with the body `request`.

    OSError when the kernel refuses (EPERM without the right, EOPNOTSUPP and EINVAL for what it does not know), when the dump
    has more than `limit` bytes (EFBIG), when the table changed meanwhile so that something may be missing (EAGAIN, after the last
    message; BlockingIOError), or when the dump does not come (TimeoutError). Asks for nothing that loads a module as long as the
    module of `protocol` is loaded.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as channel:
        channel.settimeout(SECONDS_MAX)
        channel.bind((0, 0))
        head = HEADER.pack(HEADER.size + len(request), kind, REQUEST | DUMP, 1, 0)
        channel.sendto(head + request, (0, 0))
        size, interrupted = 0, False
        while True:
            data, (sender, _) = channel.recvfrom(RECEIVE_MAX)
            if sender != 0:  # 0 is the kernel.
                # Who administers a namespace may send to every socket in it, and would keep this one busy.
                raise OSError(errno.EBADMSG, "a netlink message is not the kernel's")
            size += len(data)
            if size > limit:
                raise OSError(errno.EFBIG, "a netlink dump is too long")
            for message, flags, _, body in frames(data):
                check(message, body)
                interrupted = interrupted or bool(flags & DUMP_INTERRUPTED)
                if message in (ERROR, DONE):
                    if interrupted:
                        raise OSError(errno.EAGAIN, "the table changed while it was dumped")
                    return
                yield message, body


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and body of each message in a datagram; OSError for one that is cut off."""
    position = 0
    while position + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, position)
        if length < HEADER.size or position + length > len(data):
            raise OSError(errno.EBADMSG, "a netlink message is cut off")
        yield kind, flags, sequence, data[position + HEADER.size : position + length]
        position += (length + 3) & ~3


def check(kind: int, body: bytes) -> None:
    """OSError where the kernel refuses in this message; 0 in an error message is an acknowledgement (NLM_F_ACK)."""
    if kind in (ERROR, DONE):
        # A dump that fails midway reports it in its last message (netlink_dump_done in net/netlink/af_netlink.c).
        number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
        if number > 0:
            raise OSError(number, os.strerror(number))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and value of each attribute; what follows one that is cut off is passed over."""
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, number = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size or position + length > len(data):
            return
        yield number & _TYPE_MASK, data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3


def attribute(number: int, value: bytes, *, nested: bool = False) -> bytes:
    """One attribute as it stands in a message."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, number | (_NESTED if nested else 0)) + value + b"\0" * (-length % 4)


def text(value: bytes) -> str:
    """A text attribute, which ends in a zero byte."""
    return value.split(b"\0", 1)[0].decode(errors="replace")


def big_endian(value: bytes) -> int:
    """A number as netfilter writes it."""
    return int.from_bytes(value, "big")


_SOCK_DIAG, _BY_FAMILY = 4, 20
"""NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY."""
_INFO, _CONG, _ULP_INFO, _ULP_NAME, _ULP_TLS, _TLS_CIPHER = 2, 4, 19, 1, 2, 2
"""INET_DIAG_INFO, INET_DIAG_CONG, INET_DIAG_ULP_INFO, INET_ULP_INFO_NAME and INET_ULP_INFO_TLS of linux/inet_diag.h, TLS_INFO_CIPHER of
linux/tls.h. Those of the upper layer need CAP_NET_ADMIN, and come with the first (inet_sk_diag_fill in net/ipv4/inet_diag.c)."""
_CIPHERS = {
    51: "gcm(aes)",
    52: "gcm(aes)",
    53: "ccm(aes)",
    54: "rfc7539(chacha20,poly1305)",
    55: "gcm(sm4)",
    56: "ccm(sm4)",
    57: "gcm(aria)",
    58: "gcm(aria)",
}
"""TLS_CIPHER_ of linux/tls.h."""
_REQUEST = struct.Struct("=BBBxI48x")
"""struct inet_diag_req_v2: family, protocol, requested attributes, states, and any socket."""
_MESSAGE = struct.Struct("=4x48x16xI")
"""struct inet_diag_msg: the inode is its last field."""
_EVERY_STATE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class TcpUse:
    """What a TCP socket takes from a module: its congestion control, or its upper layer (such as TLS)."""

    inode: int
    name: str
    module: str
    cipher: str = ""
    """The name of the algorithm of the crypto API that it uses as well."""


def tcp_uses() -> Iterator[TcpUse]:
    """What the TCP sockets of this network namespace use; OSError when the kernel does not answer or there are too many.

    Call it only while tcp_diag is loaded: the request would make the kernel load it.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_CONG - 1) | 1 << (_INFO - 1), _EVERY_STATE)
        for message, body in dump(_SOCK_DIAG, _BY_FAMILY, request):
            if message == _BY_FAMILY:
                yield from read_socket(body)


def read_socket(body: bytes) -> Iterator[TcpUse]:
    """Those of one message; none for a socket that no process has."""
    if len(body) < _MESSAGE.size:
        return
    (inode,) = _MESSAGE.unpack_from(body)
    values = dict(attributes(body[_MESSAGE.size :]))
    control = text(values.get(_CONG, b""))
    layer = dict(attributes(values.get(_ULP_INFO, b"")))
    upper = text(layer.get(_ULP_NAME, b""))
    cipher = int.from_bytes(dict(attributes(layer.get(_ULP_TLS, b""))).get(_TLS_CIPHER, b"")[:2], sys.byteorder)
    if inode and control:
        yield TcpUse(inode, control, canonical(f"tcp_{control}"))
    if inode and upper:
        yield TcpUse(inode, upper, canonical(upper), _CIPHERS.get(cipher, ""))


_GENERIC = 16
"""NETLINK_GENERIC, and GENL_ID_CTRL."""
_HEAD = struct.Struct("=BBxx")
"""struct genlmsghdr: command and version."""
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2
"""CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID and CTRL_ATTR_FAMILY_NAME of linux/genetlink.h."""
MACSEC, _GET_TXSC = "macsec", 0
_IFINDEX, _SENDING, _RECEIVING, _RECEIVED_BY = 1, 5, 6, 3
"""MACSEC_ATTR_IFINDEX, _TXSA_LIST and _RXSC_LIST, and MACSEC_RXSC_ATTR_SA_LIST of linux/if_macsec.h."""


def macsec_associations() -> dict[int, int]:
    """How many security associations the interfaces with MACsec have, by their index; OSError when the kernel does not answer.

    Each has the cipher to itself from the moment that it gets a key (init_tx_sa in drivers/net/macsec.c), used or not. Call it only
    while macsec is loaded.
    """
    families = dump(_GENERIC, _GENERIC, _HEAD.pack(_GET_FAMILY, 1))
    ids = [_family(body) for message, body in families if message == _GENERIC]
    family = next((number for name, number in ids if name == MACSEC), 0)
    if not family:
        return {}
    return dict(
        read_associations(body)
        for message, body in dump(_GENERIC, family, _HEAD.pack(_GET_TXSC, 1))
        if message == family
    )


def _family(body: bytes) -> tuple[str, int]:
    values = dict(attributes(body[_HEAD.size :]))
    return text(values.get(_FAMILY_NAME, b"")), int.from_bytes(values.get(_FAMILY_ID, b"")[:2], sys.byteorder)


def read_associations(body: bytes) -> tuple[int, int]:
    """The index of an interface with MACsec, and how many associations it has in both directions."""
    values = dict(attributes(body[_HEAD.size :]))
    channels = (dict(attributes(channel)) for _, channel in attributes(values.get(_RECEIVING, b"")))
    lists = (values.get(_SENDING, b""), *(channel.get(_RECEIVED_BY, b"") for channel in channels))
    return int.from_bytes(values.get(_IFINDEX, b"")[:4], sys.byteorder), sum(
        len(list(attributes(each))) for each in lists
    )
