# SPDX-License-Identifier: LGPL-2.1-or-later
"""Services of IPVS in a network namespace: each holds ip_vs and the module of its scheduler (net/netfilter/ipvs/ip_vs_ctl.c)."""

import re
import socket
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from pathlib import Path

from kmodd.kernel.files import read_text
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_TABLE_MAX = 1 << 20
_OPTIONS = {"TCP": "--tcp-service", "UDP": "--udp-service", "SCTP": "--sctp-service", "FWM": "--fwmark-service"}
"""Options of ipvsadm(8), by the first word of a line (ip_vs_info_seq_show)."""
_IPV4 = re.compile(r"([0-9A-F]{8}):([0-9A-F]{4})")
_IPV6 = re.compile(r"\[([0-9a-f:]+)\]:([0-9A-F]{4})")
_MARK = re.compile(r"[0-9A-F]{8}")


def ipvs_users(file: Path, loaded: Collection[str], budget: Budget) -> Iterator[tuple[frozenset[str], User]]:
    """Each service in a file such as /proc/net/ip_vs; `loaded` are the modules that are looked for."""
    table = read_text(file, _TABLE_MAX) or ""
    if len(table) >= _TABLE_MAX - 1:
        budget.met("IPVS has more services than are examined")
    for line in table.splitlines():
        words = line.split()
        if len(words) < 3 or words[0] not in _OPTIONS:
            continue  # the head of the table, or a server of the service above
        address, scheduler = _address(words[0], words[1]), words[2]
        modules = frozenset(name for name in ("ip_vs", canonical(f"ip_vs_{scheduler}")) if name in loaded)
        if address and modules:
            yield (
                modules,
                User(
                    "service",
                    shown(f"IPVS {words[0]} {address}"),
                    shown(f"scheduler {scheduler}"),
                    remedy=Remedy.DELETE_SERVICE,
                    words=(_OPTIONS[words[0]], address),
                ),
            )


def _address(protocol: str, text: str) -> str:
    """As ipvsadm(8) reads it; empty for what is none."""
    if protocol == "FWM":
        return str(int(text, 16)) if _MARK.fullmatch(text) else ""
    if match := _IPV4.fullmatch(text):
        return f"{socket.inet_ntoa(bytes.fromhex(match[1]))}:{int(match[2], 16)}"
    if match := _IPV6.fullmatch(text):
        try:
            return f"[{ip_address(match[1])}]:{int(match[2], 16)}"
        except ValueError:
            return ""
    return ""
