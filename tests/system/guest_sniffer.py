# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the virtual machine, copied there: a name server that lies, and a sniffer on every interface.

Names end in `.test`. What each has for addresses stands in ANSWERS; `rebind.test` has a public one the first time it is asked
and inner ones from then on. Each TCP packet to PORT, wherever it goes, becomes a line with its destination.
"""

import ipaddress
import select
import socket
import struct
import sys
from pathlib import Path

PORT = 4443
PUBLIC, PUBLIC6 = "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"
ANSWERS = {
    "public": [PUBLIC],
    "public6": [PUBLIC6],
    "inner": ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "127.0.0.53"],  # noqa: S104 - an answer
    "metadata": ["169.254.169.254"],
    "inner6": ["::1", "fd00::1", "fe80::1", "ff02::1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"],
    "both": ["127.0.0.1", PUBLIC],
}
A, AAAA = 1, 28


class Names:
    """Answers questions for addresses."""

    def __init__(self) -> None:
        self._asked = 0

    def reply(self, query: bytes) -> bytes:
        """The answer to one datagram."""
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += query[at] + 1
        (kind,) = struct.unpack_from("!H", query, at + 1)
        records = [
            struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(one.packed)) + one.packed
            for one in map(ipaddress.ip_address, self._addresses(labels[0], kind))
            if one.version == (6 if kind == AAAA else 4)
        ]
        question = query[12 : at + 5]
        return query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0) + question + b"".join(records)

    def _addresses(self, name: str, kind: int) -> list[str]:
        if name != "rebind":
            return ANSWERS.get(name, [])
        if kind != A:
            return []
        self._asked += 1
        return [PUBLIC] if self._asked == 1 else ["127.0.0.1", "169.254.169.254"]


def destination(packet: bytes) -> str | None:
    """Where an IP packet to PORT over TCP goes."""
    if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
        address, segment = packet[16:20], packet[(packet[0] & 15) * 4 :]
    elif packet[0] >> 4 == 6 and packet[6] == socket.IPPROTO_TCP:
        address, segment = packet[24:40], packet[40:]
    else:
        return None
    return str(ipaddress.ip_address(address)) if struct.unpack_from("!H", segment, 2)[0] == PORT else None


def main(file: str) -> None:
    """Serve until killed."""
    names = Names()
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    with Path(file).open("a", buffering=1) as out:
        while True:
            for ready in select.select((server, sniffer), (), ())[0]:
                if ready is server:
                    query, client = server.recvfrom(4096)
                    server.sendto(names.reply(query), client)
                elif (found := destination(sniffer.recv(65536))) is not None:
                    out.write(found + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
