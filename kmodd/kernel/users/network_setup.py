# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is set up in the network namespace that this process is in, by the modules that it holds."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kmodd.kernel.users.ipsec import State, ipsec_states, ipsec_users
from kmodd.kernel.users.ipvs import ipvs_users
from kmodd.kernel.users.netfilter import Firewall, NetfilterUsers, firewall, ip_sets
from kmodd.kernel.users.network import ReadTraffic, traffic_users
from kmodd.kernel.users.rtnetlink import traffic_control
from kmodd.kernel.users.tasks import Budget, Sighting


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries of the kernel about the network namespace that this process is in; each raises OSError where it does not answer."""

    traffic: ReadTraffic = traffic_control
    netfilter: Callable[[Callable[[], bool]], Firewall] = firewall
    sets: Callable[[], Iterable[tuple[str, str]]] = ip_sets
    states: Callable[[], Iterable[State]] = ipsec_states


QUERIES = Queries()


def network_users(
    root: Path, loaded: Collection[str], resolve: Callable[[str], tuple[str, ...]], queries: Queries, budget: Budget
) -> Iterator[Sighting]:
    """Traffic control, rules and sets of netfilter, services of IPVS and states of IPsec.

    `loaded` are the modules that are looked for, `resolve` answers the modules with an alias. Rules of iptables-legacy take
    sockets that the inspector of processes may not make.
    """
    yield from traffic_users(root, loaded, resolve, queries.traffic, budget)
    yield from NetfilterUsers(loaded, resolve, queries.netfilter, queries.sets).users(budget)
    yield from ipvs_users(root / "proc/net/ip_vs", loaded, budget)
    yield from ipsec_users(root, loaded, resolve, queries.states, budget)
