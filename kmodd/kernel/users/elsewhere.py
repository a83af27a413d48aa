# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network namespaces beside this process's own, and what /proc shows of them.

To ask the kernel for the rules, filters and states of one takes a socket in it, which requires CAP_SYS_ADMIN. /proc/PID/net shows
some tables of the namespace that the process is in.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from kmodd.kernel.files import listdir, note, readlink
from kmodd.kernel.users.ipvs import ipvs_users
from kmodd.kernel.users.tasks import Budget, Task, Tasks
from kmodd.model import User
from kmodd.text import shown
from kmodd.values import dataclass

_NAMED = "run/netns"
_MAX = 64
"""Namespaces that are named for one module."""
_SET_UP = (
    *("sch_", "cls_", "act_", "nft_", "nf_tables", "xt_", "ipt_", "ip6t_", "arpt_", "ip_set"),
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


class NetNamespaces:
    """The other network namespaces, found once."""

    def __init__(self, root: Path, tasks: Tasks, budget: Budget) -> None:
        self._root = root
        self._tasks = tasks
        self._budget = budget

    @cached_property
    def all(self) -> tuple[NetNamespace, ...]:
        """Those of processes, in the order of a search, then those that have a name alone."""
        own = readlink(self._root / "proc/self/ns/net") or readlink(self._root / "proc/1/ns/net")
        members: dict[str, list[Task]] = {}
        for task in self._tasks.all:
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
                yield self._tasks.folder(each.tasks[0])

    @property
    def labels(self) -> dict[str, str]:
        """The label of each, by what its link reads."""
        return {each.link: each.label for each in self.all}

    def users(self, loaded: Collection[str]) -> Iterator[tuple[frozenset[str], User]]:
        """What is seen of them: services of IPVS, which end with the processes of their namespace."""
        for each in self.all if any(name.startswith("ip_vs") for name in loaded) else ():
            if not each.tasks or not self._budget.in_time():
                continue
            for modules, user in ipvs_users(self._tasks.folder(each.tasks[0]) / "net/ip_vs", loaded, self._budget):
                yield modules, self._of(each, user)

    def candidates(self, loaded: dict[str, int], explained: Collection[str]) -> Iterator[tuple[frozenset[str], User]]:
        """The namespaces that may hold the modules of which no user was found."""
        modules = frozenset(
            name for name, count in loaded.items() if count > 0 and name.startswith(_SET_UP) and name not in explained
        )
        for each in self.all[:_MAX] if modules else ():
            task = each.tasks[0] if each.tasks else None
            detail = "what is set up in it cannot be seen from outside"
            owner = 0 if task is None or each.name else task.uid
            pid = task.pid if task is not None else None
            yield modules, User("namespace", each.label, detail, pid=pid, netns=each.label, owner=owner)

    def _of(self, namespace: NetNamespace, user: User) -> User:
        """This use of a module, in that namespace; what it consists of is ended from outside."""
        task = namespace.tasks[0]
        remedy, target, pids = self._tasks.ending(task, namespace.tasks)
        return replace(
            user,
            detail=shown(f"{user.detail}, in network namespace {namespace.label}"),
            pid=task.pid,
            netns=namespace.label,
            owner=task.uid,
            remedy=remedy,
            target=target,
            words=(),
            pids=pids,
        )
