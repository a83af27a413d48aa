# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network namespaces beside this process's own: where they are, and what a command about one of them has to enter or to end.

To ask the kernel for the rules, filters and states of one takes a socket in it. To enter it for that requires CAP_SYS_ADMIN, which
this process lacks: it opens them for the one that does (`namespaces`).
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import listdir, note, read_text, readlink, value_if_there
from kmodd.kernel.users.tasks import Budget, Task, Tasks, owner_of
from kmodd.kernel.users.xtables import KINDS, TABLES_MAX
from kmodd.kernel.watcher.watcher import place
from kmodd.model import Remedy, User
from kmodd.text import shown

_NAMED = "run/netns"
_MAX = 64
"""Namespaces that are named for one module."""
_ATTEMPTS = 4
"""Processes of one that are tried: some may have ended."""
_CGROUP_MAX = 1 << 14
_SET_UP = (
    *("sch_", "cls_", "act_", "nft_", "nf_tables", "xt_", "ipt_", "ip6t_", "arpt_", "ebt", "ip_set"),
    *("esp4", "esp6", "ah4", "ah6", "ipcomp"),
)
"""Beginnings of the names of modules that something may hold which is set up in one network namespace."""


@dataclass(frozen=True, slots=True)
class NetNamespace:
    """A network namespace with its processes, or one that `ip netns` has named."""

    link: str
    """`net:[4026532281]`."""
    tasks: tuple[Task, ...]
    name: str = ""

    @property
    def label(self) -> str:
        """Its name, or one of its processes."""
        return shown(self.name) if self.name else f"pid {self.tasks[0].pid}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A network namespace that is open."""

    file: int
    place: User
    """What it adds to each user that is found in it, of the kind `namespace`."""
    tables: dict[str, list[str]] | None
    """The tables of iptables-legacy and its like in it, by the file that names them; None where that can be read in it."""


class NetNamespaces:
    """The other network namespaces, found once."""

    def __init__(self, root: Path, tasks: Tasks, budget: Budget) -> None:
        self._root = root
        self.tasks = tasks
        self._budget = budget

    @cached_property
    def all(self) -> tuple[NetNamespace, ...]:
        """Those of processes, in the order of a search, then those that have a name alone."""
        own = readlink(self._root / "proc/self/ns/net") or readlink(self._root / "proc/1/ns/net")
        members: dict[str, list[Task]] = {}
        for task in self.tasks.all:
            link = readlink(f"{self._root}/proc/{task.pid}/ns/net")
            if link and link != own:
                members.setdefault(link, []).append(task)
        names: dict[str, str] = {}
        for name in listdir(self._root / _NAMED):
            try:
                names.setdefault(f"net:[{os.stat(self._root / _NAMED / name).st_ino}]", name)  # noqa: PTH116 - a number alone
            except OSError as error:
                note(error)
        alone = (NetNamespace(link, (), name) for link, name in names.items() if link not in members and link != own)
        return (*(NetNamespace(link, tuple(tasks), names.get(link, "")) for link, tasks in members.items()), *alone)

    @property
    def folders(self) -> Iterator[Path]:
        """The folder in /proc of one process of each, as long as there is time."""
        for each in self.all:
            if each.tasks and self._budget.in_time():
                yield self.tasks.folder(each.tasks[0])

    @property
    def labels(self) -> dict[str, str]:
        """The label of each, by what its link reads."""
        return {each.link: each.label for each in self.all}

    def candidates(self, loaded: dict[str, int], explained: Collection[str]) -> Iterator[tuple[frozenset[str], User]]:
        """The namespaces that may hold the modules of which no user was found."""
        modules = frozenset(
            name for name, count in loaded.items() if count > 0 and name.startswith(_SET_UP) and name not in explained
        )
        for each in self.all[:_MAX] if modules else ():
            task = each.tasks[0] if each.tasks else None
            detail = "not everything in network namespaces could be examined"
            owner = 0 if task is None or each.name else task.uid
            pid = task.pid if task is not None else None
            yield modules, User("namespace", each.label, detail, pid=pid, netns=each.label, owner=owner)

    def opened(self) -> Iterator[Opened]:
        """Each, those with a name first, then those of root's processes. The caller closes them."""
        for count, each in enumerate(sorted(self.all, key=lambda each: not each.name)):
            if count == self._budget.limits.network_namespaces:
                self._budget.met(f"there are more than {count} network namespaces")
                return
            if not self._budget.in_time():
                return
            file = self._open(each)
            if file is None:
                continue
            try:
                owner, uid = owner_of(file)
            except OSError:
                os.close(file)  # a file in /run/netns on which no namespace is mounted any more
                continue
            roots = owner == self.tasks.initial
            place = self._place(each, roots=roots, uid=0 if roots else uid)
            yield Opened(file, place, None if roots else self._tables(each))

    def _open(self, namespace: NetNamespace) -> int | None:
        """A descriptor; None when it has ended, or its processes have gone into others."""
        named = [str(self._root / _NAMED / namespace.name)] if namespace.name else []
        for path in (*named, *(f"{self.tasks.folder(task)}/ns/net" for task in namespace.tasks[:_ATTEMPTS])):
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError as error:
                note(error)
                self._budget.met("a network namespace cannot be opened")
                return None
            if f"net:[{os.fstat(file).st_ino}]" == namespace.link:
                return file
            os.close(file)
        return None

    def _place(self, namespace: NetNamespace, *, roots: bool, uid: int) -> User:
        """Where it is, and what its users' commands enter; of one that is not root's, what ends it from outside.

        `roots`: it belongs to the initial user namespace; else it is of the user `uid`.
        """
        tasks, label = namespace.tasks, namespace.label
        unit = container = ""
        if tasks:
            unit, container = map(shown, place(read_text(self.tasks.folder(tasks[0]) / "cgroup", _CGROUP_MAX) or ""))
        found = User(
            *("namespace", label, ""),
            pid=tasks[0].pid if tasks else None,
            unit=unit,
            container=container,
            netns=label,
            owner=uid,
        )
        if roots and namespace.name and not container:
            return replace(found, entry=f"/{_NAMED}/{namespace.name}")
        inside = next((task for task in tasks if task.user == 0 and self.tasks.is_roots(task)), None)
        if roots and inside is not None and not container:
            return replace(found, entry=f"/proc/{inside.pid}/ns/net")
        remedy, target, pids = self.tasks.ending(tasks[0], tasks) if tasks else (Remedy.NONE, "", ())
        if (namespace.name and remedy is Remedy.KILL) or not self.tasks.are_of_one_unit(tasks):
            return found  # its name keeps it, or another container that shares it
        return replace(found, remedy=remedy, target=target, pids=pids)

    def _tables(self, namespace: NetNamespace) -> dict[str, list[str]] | None:
        """The tables of iptables-legacy and its like in one that is a user's: their names are readable to that user alone."""
        if not namespace.tasks:
            return None
        folder = self.tasks.folder(namespace.tasks[0]) / "net"
        try:
            return {kind.names: (value_if_there(folder / kind.names) or "").split()[:TABLES_MAX] for kind in KINDS}
        except OSError:
            self._budget.met("the names of the tables of iptables-legacy cannot be read")
            return None
