# SPDX-License-Identifier: LGPL-2.1-or-later
"""The addresses that a webhook may be sent to: only public ones, unless the administrator allows others.

The networks are those of IANA's special-purpose registries (RFC 6890 and its updates) that are not globally reachable.
Python's `is_global` is not used: its results differ between releases.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_CLOSED: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
    )
)
_GLOBAL6 = IPv6Network("2000::/3")
"""All that is handed out so far; `::1`, ULA, link-local, site-local and multicast lie outside."""
_NAT64 = IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE = IPv6Network("::/96")
_6TO4 = IPv6Network("2002::/16")


def permitted(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Tell whether a connection to the address may be made. An IPv4 address inside an IPv6 one counts as itself."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        inner = _inner(address)
        if inner is not None:
            return permitted(inner, allowed)
    if any(address.version == network.version and address in network for network in allowed):
        return True
    if isinstance(address, IPv6Address) and address not in _GLOBAL6:
        return False
    return not any(address.version == network.version and address in network for network in _CLOSED)


def parse_address(text: str) -> Address | None:
    """An address as the resolver spells it; None for what is none."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _inner(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    number = int(address)
    if address in _NAT64 or (address in _V4_COMPATIBLE and number > 1):
        return IPv4Address(number & 0xFFFFFFFF)
    if address in _6TO4:
        return IPv4Address(number >> 80 & 0xFFFFFFFF)
    return None
