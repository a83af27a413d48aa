# SPDX-License-Identifier: LGPL-2.1-or-later
"""The search for users of modules in user space, bounded, including algorithms of the crypto API."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from kmodd.kernel.proc.crypto import Algorithm, Algorithms
from kmodd.kernel.users.block import OpenedFiles, block_users, root_devices
from kmodd.kernel.users.configfs import configfs_users
from kmodd.kernel.users.devices import DeviceOwners, bound_devices, iscsi_sessions, watchdogs
from kmodd.kernel.users.ipsec import State, ipsec_states
from kmodd.kernel.users.mount import Mounts, modules_of_charset, modules_of_type
from kmodd.kernel.users.namespace_list import NetNamespaces
from kmodd.kernel.users.namespaces import Kernel
from kmodd.kernel.users.netfilter import Firewall, IpSet, firewall, ip_sets
from kmodd.kernel.users.netlink import TcpUse, macsec_associations, tcp_uses
from kmodd.kernel.users.network import MacsecCiphers, ReadTraffic, interfaces, modules_of_kind
from kmodd.kernel.users.places import Places
from kmodd.kernel.users.process import OpenFiles, Processes, SocketModules, Unmounted
from kmodd.kernel.users.rtnetlink import link_kinds, traffic_control
from kmodd.kernel.users.settings import setting_users
from kmodd.kernel.users.tasks import Budget, NamespaceOwner, Sighting, Tasks, bounded, namespace_owner, references
from kmodd.kernel.users.tracing import Attachments, Tracing, pinned, tracing_users
from kmodd.model import Remedy, User
from kmodd.text import shown


def used_algorithms(
    algorithms: Algorithms, explained: Callable[[Algorithm], bool]
) -> Iterator[tuple[frozenset[str], User]]:
    """Algorithms that something uses; `explained` tells whether users were found with which the use of one ends."""
    for each in algorithms.of_modules:
        used = f"driver {each.driver}, used {each.uses} times"
        remedy = Remedy.NOT_NEEDED if explained(each) else Remedy.NONE
        if not remedy and (consumers := algorithms.consumers(each)):
            used += f", perhaps through {', '.join(consumers)}"
        yield frozenset({each.module}), User("crypto", shown(each.name), shown(used), remedy=remedy)


_SCTP = "sctp"
_STAYING = "one in each network namespace, made with the module: it stays until the next boot"
"""sctp_ctl_sock_init in net/sctp/protocol.c: the module holds itself by it."""


class ProcUsage:
    """A search in the /proc and /sys below `root`.

    `resolve_alias` answers canonical module names for an alias such as `fs-iso9660`. `kinds` answers interface → link kind
    from the kernel; `traffic`, `netfilter`, `sets`, `tcp`, `states` and `associations` are the questions to it of `rtnetlink`,
    `netfilter`, `netlink` and `ipsec` (an OSError means: not to be had).

    Nothing is opened but small files of /proc and /sys and mount tables: no device, and nothing that a process has open. What
    vanishes or may not be read is passed over. Of other network namespaces only what /proc shows is seen (see `namespaces`).
    """

    def __init__(
        self,
        root: Path,
        resolve_alias: Callable[[str], tuple[str, ...]],
        *,
        kinds: Callable[[], dict[str, str]] = link_kinds,
        traffic: ReadTraffic = traffic_control,
        netfilter: Callable[[Callable[[], bool]], Firewall] = firewall,
        sets: Callable[[], Iterable[IpSet]] = ip_sets,
        tcp: Callable[[], Iterable[TcpUse]] = tcp_uses,
        states: Callable[[], Iterable[State]] = ipsec_states,
        owner: NamespaceOwner = namespace_owner,
        associations: Callable[[], Mapping[int, int]] = macsec_associations,
    ) -> None:
        self._root = root
        self._resolve = resolve_alias
        self._kinds = kinds
        self._kernel = Kernel(traffic, netfilter, sets, states, associations=associations)
        self._tcp = tcp
        self._owner = owner

    def namespaces(self, budget: Budget) -> NetNamespaces:
        """The other network namespaces, and the processes that a search with this budget examines."""
        return NetNamespaces(self._root, Tasks(self._root, budget, self._owner), budget)

    def search(self, budget: Budget, namespaces: NetNamespaces | None = None) -> Iterator[Sighting]:
        """Each user once for each module, those first that certainly hold a reference, with text safe to show.

        Takes as long as the budget allows; what it left out, and what could not be read, the budget says afterwards.
        """
        reported: set[tuple[str, User]] = set()
        places = Places(self._root)
        sightings = self._all(budget, reported, namespaces or self.namespaces(budget))
        yield from bounded(((modules, places.located(user)) for modules, user in sightings), budget, reported)

    def _all(
        self, budget: Budget, reported: Collection[tuple[str, User]], namespaces: NetNamespaces
    ) -> Iterator[Sighting]:
        loaded = references(self._root)

        def known(names: Iterable[str]) -> frozenset[str]:
            return frozenset(name for name in names if name in loaded)

        def of_type(type_: str) -> frozenset[str]:
            return known(modules_of_type(type_, self._resolve))

        tasks = namespaces.tasks
        mounts = Mounts(tasks, of_type, budget, lambda charset: known(modules_of_charset(charset, self._resolve)))
        algorithms = Algorithms(self._root, loaded, lambda: budget.met("there are more algorithms than are examined"))
        owners = DeviceOwners(self._root, self._resolve, loaded, algorithms)
        yield from mounts.users()
        yield from block_users(self._root, owners, mounts, loaded, self._resolve, algorithms)
        yield from setting_users(self._root, loaded, self._resolve, mounts, lambda: namespaces.labels, budget)
        macsec = MacsecCiphers(algorithms, self._kernel.associations, budget)
        yield from interfaces(
            self._root,
            lambda kind: known(modules_of_kind(kind, self._resolve)),
            self._kinds,
            loaded,
            macsec,
        )
        yield from self._kernel.users(self._root, loaded, self._resolve, budget)
        yield from configfs_users(self._root, loaded, budget, OpenedFiles(self._root, owners, mounts).kept)
        sockets = SocketModules(self._root, loaded, self._resolve, self._tcp, budget, namespaces.folders, algorithms)
        guesses: list[Sighting] = []

        def left() -> dict[str, int]:
            held = (module for module, user in reported if user.remedy is not Remedy.NOT_NEEDED and not user.level)
            counts = Counter(held)
            return {module: count for module, count in loaded.items() if count > counts[module]}

        unmounted = Unmounted(self._root, mounts, owners, of_type, budget)
        tracing = Tracing(self._root, budget)
        attachments = Attachments(tracing, loaded)
        files = OpenFiles(self._root, owners, sockets, unmounted, mounts, loaded, self._resolve, attachments, budget)
        running = Processes(tasks, files, namespaces.labels, budget)
        yield from running.open(guesses)
        yield from watchdogs(self._root, loaded)
        yield from iscsi_sessions(self._root, loaded, root_devices(self._root, mounts), owners)
        if loaded.get(_SCTP, 0) > 0:
            yield frozenset({_SCTP}), User("socket", "SCTP's control socket", _STAYING)
        yield from tracing_users(tracing, left())
        # Behind all that is looked up: a stranger can have the time used up here.
        yield from running.mapped(
            lambda: left().keys() - frozenset[str]().union(*(owners.modules("block", *each) for each in mounts.base))
        )
        explained = {module for module, user in reported if user.remedy is not Remedy.NONE}
        beside = {module for module, user in reported if user.remedy is not Remedy.NONE and user.kind != "netdev"}

        def ends(algorithm: Algorithm) -> bool:
            if algorithm.module in explained - beside:  # Of interfaces it is known what they use, and how often.
                return macsec.explains(algorithm)
            return algorithm.module in explained

        yield from used_algorithms(algorithms, ends)
        # That an algorithm is in use says nothing about who uses it.
        listed = {module for module, user in reported if user.kind != "crypto"}
        yield from ((modules - listed, user) for modules, user in guesses if modules - listed)
        # The link that a process has open may be the one that is pinned, and stay when the process ends.
        if modules := attachments.described - (listed - attachments.linked):
            yield from ((modules, user) for user in pinned(self._root))
        yield from namespaces.candidates(loaded, {module for module, _ in reported})
        yield from bound_devices(self._root, loaded)
