# SPDX-License-Identifier: LGPL-2.1-or-later
"""The search for users of modules in user space, bounded, including algorithms of the crypto API."""

from collections.abc import Callable, Collection, Container, Iterable, Iterator
from pathlib import Path

from kmodd.kernel.files import read_text
from kmodd.kernel.users.block import block_users
from kmodd.kernel.users.configfs import configfs_users
from kmodd.kernel.users.devices import DeviceOwners, bound_devices, iscsi_sessions, watchdogs
from kmodd.kernel.users.ipsec import State, ipsec_states
from kmodd.kernel.users.mount import Mounts, modules_of_charset, modules_of_type
from kmodd.kernel.users.namespace_list import NetNamespaces
from kmodd.kernel.users.namespaces import Kernel
from kmodd.kernel.users.netfilter import Firewall, IpSet, firewall, ip_sets
from kmodd.kernel.users.netlink import TcpUse, tcp_uses
from kmodd.kernel.users.network import ReadTraffic, interfaces, modules_of_kind
from kmodd.kernel.users.places import Places
from kmodd.kernel.users.process import OpenFiles, SocketModules, Unmounted, processes
from kmodd.kernel.users.rtnetlink import link_kinds, traffic_control
from kmodd.kernel.users.settings import setting_users
from kmodd.kernel.users.tasks import Budget, NamespaceOwner, Sighting, Tasks, bounded, namespace_owner, references
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_TABLE_MAX = 1 << 20


def algorithms(
    root: Path, loaded: Container[str], explained: Callable[[str], bool], budget: Budget
) -> Iterator[tuple[frozenset[str], User]]:
    """From /proc/crypto: an algorithm that nothing uses has one reference, that of its registration.

    Who uses it the kernel does not say: a mapping of dm-crypt, an AF_ALG socket, IPsec, TLS. `loaded` are the modules that
    are looked for, `explained` tells whether a user of a module was found, with which the use of its algorithms ends.
    """
    table = read_text(root / "proc/crypto", _TABLE_MAX) or ""
    if len(table) >= _TABLE_MAX - 1:
        budget.met("there are more algorithms than are examined")
    for entry in table.split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in entry.splitlines())}
        module, count = canonical(fields.get("module", "")), fields.get("refcnt", "")
        if module in loaded and count.isdecimal() and int(count) > 1:
            used = f"driver {fields.get('driver', '')}, used {int(count) - 1} times"
            remedy = Remedy.NOT_NEEDED if explained(module) else Remedy.NONE
            yield frozenset({module}), User("crypto", shown(fields.get("name", "")), shown(used), remedy=remedy)


_SCTP = "sctp"
_STAYING = "one in each network namespace, made with the module: it stays until the next boot"
"""sctp_ctl_sock_init in net/sctp/protocol.c: the module holds itself by it."""


class ProcUsage:
    """A search in the /proc and /sys below `root`.

    `resolve_alias` answers canonical module names for an alias such as `fs-iso9660`. `kinds` answers interface → link kind
    from the kernel; `traffic`, `netfilter`, `sets`, `tcp` and `states` are the questions to it of `rtnetlink`, `netfilter`,
    `netlink` and `ipsec` (an OSError means: not to be had).

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
    ) -> None:
        self._root = root
        self._resolve = resolve_alias
        self._kinds = kinds
        self._kernel = Kernel(traffic, netfilter, sets, states)
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
        owners = DeviceOwners(self._root, self._resolve, loaded)
        yield from mounts.users()
        yield from block_users(self._root, owners, mounts, loaded, self._resolve)
        yield from setting_users(self._root, loaded, self._resolve, mounts, budget)
        yield from interfaces(self._root, lambda kind: known(modules_of_kind(kind, self._resolve)), self._kinds, loaded)
        yield from self._kernel.users(self._root, loaded, self._resolve, budget)
        yield from configfs_users(self._root, loaded, budget)
        sockets = SocketModules(self._root, loaded, self._resolve, self._tcp, budget, namespaces.folders)
        unmounted = Unmounted(self._root, mounts, owners, of_type, budget)
        yield from processes(
            tasks,
            OpenFiles(owners, sockets, unmounted, mounts, loaded, self._resolve, budget),
            namespaces.labels,
            budget,
        )
        yield from watchdogs(self._root, loaded)
        yield from iscsi_sessions(self._root, loaded)
        if loaded.get(_SCTP, 0) > 0:
            yield frozenset({_SCTP}), User("socket", "SCTP's control socket", _STAYING)
        explained = {module for module, user in reported if user.remedy is not Remedy.NONE}
        yield from algorithms(self._root, loaded, explained.__contains__, budget)
        yield from namespaces.candidates(loaded, {module for module, _ in reported})
        yield from bound_devices(self._root, loaded)
