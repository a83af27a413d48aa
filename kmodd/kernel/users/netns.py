# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program that enters other network namespaces to read what is set up in them; it also reads the rules of iptables-legacy.

setns(2) requires CAP_SYS_ADMIN, which is nearly everything that root may do. So this is a separate process from the
inspector of processes, and is started only when a module is examined that something in a namespace may hold.

It sends dump requests by netlink, getsockopt(2) and reads of /proc/net, and changes nothing. Rules, names and addresses in a
namespace are chosen by those who administer it: the daemon treats its answers as untrusted, and the command that ends a use
runs in a namespace of root's alone; what is in a user's is ended from outside.

Protocol as of `kmodd.kernel.users.inspector`, with the order `{"search": true}` alone.

Run as `python3 -I -S /path/of/this/file`: it finds the package by its own path.
"""

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Self

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kmodd.kernel.files import note, readlink
from kmodd.kernel.users.elsewhere import NetNamespace, NetNamespaces
from kmodd.kernel.users.inspector import CROWDED_MAX, alias_text, serve
from kmodd.kernel.users.network_setup import QUERIES, Queries, network_users
from kmodd.kernel.users.tasks import Budget, Limits, Sighting, Tasks, bounded, loaded_modules, user_namespace
from kmodd.kernel.users.xtables import ReadTable, legacy_users, read_table
from kmodd.model import Remedy, User

_CLONE_NEWNET = 0x40000000
LIMITS = Limits(seconds=1.0, rule_share=1.0)
"""Of a search, which follows that of the inspector of processes."""
_USER_SHARE = 0.2
"""The part of the time that the namespaces of one user who is not root may take."""
_USER_NAMESPACES_MAX = 64
"""Namespaces of one user who is not root that are entered."""
_QUERIED = frozenset({"nf_tables", "ip_set"})
"""Modules that are queried for what holds others, whether they are held themselves or not."""
_EX_OSERR = 71
_INCOMPLETE = "not every network namespace was examined completely"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who administers a network namespace."""

    initial: bool
    """It belongs to the user namespace of this process, the initial one: only root can have made it."""
    uid: int
    """Who made the user namespace that it belongs to."""


class Entrance:
    """The way into other network namespaces, and back."""

    def __init__(self, root: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._initial = readlink(root / "proc/self/ns/user")
        self._own = os.open(root / "proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._own)

    @contextmanager
    def opened(self, path: Path, link: str) -> Iterator[tuple[Owner, Callable[[], AbstractContextManager[None]]]]:
        """Its owner, and what enters it; FileNotFoundError when it is gone, OSError when it cannot be examined."""
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if f"net:[{os.fstat(namespace).st_ino}]" != link:
                raise FileNotFoundError(path)
            owner, uid = user_namespace(namespace)
            yield Owner(bool(owner) and owner == self._initial, uid), lambda: self._inside(namespace)
        finally:
            os.close(namespace)

    @contextmanager
    def _inside(self, namespace: int) -> Iterator[None]:
        self._set(namespace)
        try:
            yield
        finally:
            try:
                self._set(self._own)
            except OSError:
                _leave()

    def _set(self, namespace: int) -> None:
        if self._libc.setns(namespace, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _leave() -> NoReturn:
    # What it would read from here on would be of the wrong namespace.
    os._exit(_EX_OSERR)


class NamespaceSearch:
    """One search through the network namespaces that /proc and /run/netns show below `root`."""

    def __init__(
        self,
        root: Path,
        resolve: Callable[[str], tuple[str, ...]],
        budget: Budget,
        *,
        queries: Queries = QUERIES,
        tables: ReadTable = read_table,
        entrance: Callable[[Path], Entrance] = Entrance,
    ) -> None:
        """`resolve` answers the modules with an alias."""
        self._root = root
        self._resolve = resolve
        self._budget = budget
        self._queries = queries
        self._tables = tables
        self._entrance = entrance
        self._tasks = Tasks(root, budget)
        self._namespaces = NetNamespaces(root, self._tasks, budget)

    def users(self) -> Iterator[Sighting]:
        """Each user of a module in another network namespace, and those among the rules of iptables-legacy in this one."""
        yield from bounded(self._all(), self._budget, set())

    def _all(self) -> Iterator[Sighting]:
        loaded = {name for name, count in loaded_modules(self._root).items() if count > 0 or name in _QUERIED}
        yield from legacy_users(self._root, loaded, self._resolve, self._tables, self._budget)
        taken: Counter[int] = Counter()
        """Microseconds of each user who is not root."""
        entered: Counter[int] = Counter()
        with self._entrance(self._root) as entrance:
            for namespace in self._namespaces.all:
                if self._left(0, taken, entered) <= 0:
                    self._budget.met(_INCOMPLETE)
                    return
                try:
                    with entrance.opened(self._namespaces.path(namespace), namespace.link) as (owner, enter):
                        whose = owner.uid or _user(namespace)
                        seconds = self._left(whose, taken, entered)
                        if seconds <= 0:
                            self._budget.met(_INCOMPLETE)
                            continue
                        begin = self._budget.elapsed
                        with enter():
                            sightings = self._inside(loaded, seconds)
                        taken[whose] += int((self._budget.elapsed - begin) * 1e6)
                        entered[whose] += 1
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it ended meanwhile, with what was set up in it
                except OSError as error:
                    note(error)
                    self._budget.met(_INCOMPLETE)
                    continue
                for modules, user in sightings:
                    yield modules, self._placed(user, namespace, owner)
        if self._namespaces.closed:
            self._budget.met("the network namespace of a process cannot be determined")

    def _left(self, uid: int, taken: Counter[int], entered: Counter[int]) -> float:
        """Seconds that a namespace of this user may take."""
        left = self._budget.limits.seconds - self._budget.elapsed
        if uid == 0:
            return left
        if entered[uid] == _USER_NAMESPACES_MAX:
            return 0.0
        return min(left, self._budget.limits.seconds * _USER_SHARE - taken[uid] / 1e6)

    def _inside(self, loaded: Collection[str], seconds: float) -> tuple[Sighting, ...]:
        """What is set up in the namespace that was entered. Its own budget: one namespace's rules are not another's."""
        budget = Budget(replace(self._budget.limits, seconds=seconds))
        sightings = (
            *network_users(self._root, loaded, self._resolve, self._queries, budget),
            *legacy_users(self._root, loaded, self._resolve, self._tables, budget),
        )
        if budget.partial:
            self._budget.met(_INCOMPLETE)
        return sightings

    def _placed(self, user: User, namespace: NetNamespace, owner: Owner) -> User:
        """This use of a module in that namespace, with what ends it: in one that root has named, the command itself."""
        tasks = namespace.tasks
        placed = replace(
            user,
            detail=", ".join(filter(None, (user.detail, f"in network namespace {namespace.label}"))),
            netns=namespace.label,
            owner=owner.uid,
        )
        if owner.initial and namespace.name:
            return replace(placed, within=namespace.name)
        if not tasks:
            return replace(placed, remedy=Remedy.NONE, words=())
        remedy, target, pids = self._tasks.ending(tasks[0], tasks)
        return replace(placed, pid=tasks[0].pid, remedy=remedy, target=target, words=(), pids=pids)


def _user(namespace: NetNamespace) -> int:
    return namespace.tasks[0].user if namespace.tasks else 0


def answers(order: Any, root: Path) -> Iterator[dict[str, Any]]:
    """The answers to one order, the last one included; ValueError for what is none."""
    if order != {"search": True}:
        raise ValueError("no such order")
    aliases = alias_text(root)
    aliases("")  # The index is root's own and read once: it takes nothing of a search's time.
    budget = Budget(LIMITS)
    for modules, user in NamespaceSearch(root, aliases, budget).users():
        yield {"modules": sorted(modules), "user": asdict(user)}
    yield {"end": True, "partial": budget.partial, "crowded": list(budget.crowded)[:CROWDED_MAX], "elsewhere": []}


def main() -> None:
    """Serve orders until the daemon has no more."""
    serve("kmodd-netns", answers)


if __name__ == "__main__":
    main()
