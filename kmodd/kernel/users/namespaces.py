# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is set up in a network namespace: in that of this process, or in others, which it enters one after the other.

setns(2) of a network namespace requires CAP_SYS_ADMIN. In it the same requests are answered as everywhere, and /proc/net, a link to
/proc/self/net, shows its tables. None of them makes the kernel load a module.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.proc.crypto import Algorithms
from kmodd.kernel.users.ebtables import ReadBridgeTable, bridge_users, read_bridge_table, tables_elsewhere
from kmodd.kernel.users.ipsec import State, ipsec_states, ipsec_users
from kmodd.kernel.users.ipvs import ipvs_users
from kmodd.kernel.users.netfilter import Firewall, IpSet, NetfilterUsers, firewall, ip_sets
from kmodd.kernel.users.netlink import macsec_associations
from kmodd.kernel.users.network import MacsecCiphers, ReadTraffic, link_users, modules_of_kind, traffic_users
from kmodd.kernel.users.rtnetlink import Link, all_links, traffic_control
from kmodd.kernel.users.tasks import Budget, Sighting, references
from kmodd.kernel.users.xtables import KINDS, ReadTable, legacy_users, read_table

_OWN = "/proc/self/ns/net"
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_ASKED = frozenset({"ip_set", "nf_tables"})
"""Modules that have to be there for a question; a set of ipset holds the module of its type, which holds `ip_set`."""
_LEGACY = frozenset({"filter", "nat", "mangle", "raw", "security"})
"""Every table that there is. Queried for one that is not in use the kernel would make it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The questions to the kernel about a network namespace; an OSError means: not to be had."""

    traffic: ReadTraffic = traffic_control
    netfilter: Callable[[Callable[[], bool]], Firewall] = firewall
    sets: Callable[[], Iterable[IpSet]] = ip_sets
    states: Callable[[], Iterable[State]] = ipsec_states
    links: Callable[[], Iterable[Link]] = all_links
    table: ReadTable = read_table
    bridge_table: ReadBridgeTable = read_bridge_table
    associations: Callable[[], Mapping[int, int]] = macsec_associations

    def users(
        self, root: Path, loaded: Mapping[str, int], resolve: Callable[[str], tuple[str, ...]], budget: Budget
    ) -> Iterator[Sighting]:
        """Users in the network namespace of this process.

        `loaded` are the modules that are looked for, `resolve` answers the modules with an alias.
        """
        yield from traffic_users(root, loaded, resolve, self.traffic, budget)
        yield from NetfilterUsers(loaded, resolve, self.netfilter, self.sets).users(budget)
        yield from ipvs_users(root / "proc/net/ip_vs", loaded, budget)
        yield from ipsec_users(root, loaded, resolve, self.states, budget)


def users_elsewhere(
    root: Path,
    files: Sequence[int],
    tables: Sequence[Mapping[str, Sequence[str]] | None],
    resolve: Callable[[str], tuple[str, ...]],
    budget: Budget,
    *,
    kernel: Kernel | None = None,
    enter: Callable[[int], None] | None = None,
) -> Iterator[Sighting]:
    """Users in the network namespaces of these descriptors; in place of a namespace's label stands its number among them.

    `tables` are the tables of iptables-legacy in each, where they are known; None where they are to be read there. Afterwards this
    process is where it was: as long as it is in a namespace, that is not taken down. One that may not be entered is reported as left
    out.
    """
    kernel, enter = kernel or Kernel(), enter or _enter
    loaded = {name: count for name, count in references(root).items() if count > 0 or name in _ASKED}
    bridge_tables = tables_elsewhere(loaded, kernel.bridge_table)
    algorithms = Algorithms(root, loaded)
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    away = False
    try:
        for number, file in enumerate(files):
            if not budget.in_time():
                return
            try:
                enter(file)
            except OSError as error:
                budget.met(f"a network namespace cannot be entered ({error.strerror})")
                continue
            away = True
            part = budget.part(len(files) - number)
            for modules, user in _in_namespace(root, loaded, tables[number], resolve, part, kernel, algorithms):
                yield modules, replace(user, netns=str(number))
            for modules, user in bridge_users(bridge_tables, loaded, resolve, kernel.bridge_table, part):
                yield modules, replace(user, netns=str(number))
            budget.add(part)
    finally:
        try:
            if away:
                enter(own)
        finally:
            os.close(own)


def _in_namespace(
    root: Path,
    loaded: Mapping[str, int],
    tables: Mapping[str, Sequence[str]] | None,
    resolve: Callable[[str], tuple[str, ...]],
    budget: Budget,
    kernel: Kernel,
    algorithms: Algorithms,
) -> Iterator[Sighting]:
    try:
        links = tuple(kernel.links())
    except OSError:
        budget.met("network interfaces cannot be listed")
    else:
        yield from link_users(
            links,
            lambda kind: frozenset(name for name in modules_of_kind(kind, resolve) if name in loaded),
            MacsecCiphers(algorithms, kernel.associations, budget),
        )
    yield from kernel.users(root, loaded, resolve, budget)
    names = None
    if tables is not None:
        names = {kind.names: [name for name in tables.get(kind.names, ()) if name in _LEGACY] for kind in KINDS}
    yield from legacy_users(root, loaded, resolve, kernel.table, budget, names)


def _enter(file: int) -> None:
    if _LIBC.setns(file, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
