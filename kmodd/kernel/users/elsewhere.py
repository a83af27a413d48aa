# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network namespaces beside this process's own, and which modules something in one of them may hold.

To query the kernel for the rules, filters and states of one takes a socket in it: see `kmodd.kernel.users.netns`.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kmodd.kernel.files import listdir, note, readlink
from kmodd.kernel.users.tasks import Budget, Task, Tasks
from kmodd.kernel.users.xtables import KINDS, tables_in_use
from kmodd.text import shown

_NAMED = "run/netns"
_LEGACY = ("xt_", "ipt_", "ip6t_", "arpt_", "iptable_", "ip6table_", "arptable_", "nf_")
_IPSEC = ("esp4", "esp6", "ah4", "ah6", "ipcomp")
_SET_UP = ("sch_", "cls_", "act_", "nft_", "ip_set", "ip_vs", "tcp_", *_IPSEC, *_LEGACY)
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
    """The other network namespaces, listed once."""

    def __init__(self, root: Path, tasks: Tasks, budget: Budget) -> None:
        self._root = root
        self._tasks = tasks
        self._budget = budget
        self.closed = 0
        """Processes whose network namespace may not be known, once they are listed."""

    @cached_property
    def all(self) -> tuple[NetNamespace, ...]:
        """Those that have a name alone, which only root can make, then those of processes, in the order of a search."""
        own = readlink(self._root / "proc/self/ns/net") or readlink(self._root / "proc/1/ns/net")
        members: dict[str, list[Task]] = {}
        for task in self._tasks.all:
            try:
                link = os.readlink(f"{self._root}/proc/{task.pid}/ns/net")  # noqa: PTH115 - the plain text, thousands of times
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            except OSError as error:
                note(error)
                # The first process is in this one's, and not every root may look at it.
                self.closed += task.pid != 1
                continue
            if link != own:
                members.setdefault(link, []).append(task)
        names: dict[str, str] = {}
        for name in listdir(self._root / _NAMED):
            try:
                names.setdefault(f"net:[{os.stat(self._root / _NAMED / name).st_ino}]", name)  # noqa: PTH116 - a number alone
            except OSError as error:
                note(error)
        alone = (NetNamespace(link, (), name) for link, name in names.items() if link not in members and link != own)
        return (*alone, *(NetNamespace(link, tuple(tasks), names.get(link, "")) for link, tasks in members.items()))

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

    def path(self, namespace: NetNamespace) -> Path:
        """What leads to it: its name, or the link of one of its processes."""
        if namespace.tasks:
            return self._tasks.folder(namespace.tasks[0]) / "ns/net"
        return self._root / _NAMED / namespace.name


def held_elsewhere(
    root: Path, loaded: Mapping[str, int], namespaces: NetNamespaces, algorithms: Collection[str]
) -> frozenset[str]:
    """The modules that something may hold which is set up in another network namespace, or in a table of iptables-legacy.

    `loaded` are the modules with their references, `algorithms` those of the crypto API whose user is not known.
    """
    others = bool(namespaces.all or namespaces.closed)
    if not others and not _has_tables(root):
        return frozenset()
    beginnings = _SET_UP if others else _LEGACY
    held = frozenset(name for name, count in loaded.items() if count > 0 and name.startswith(beginnings))
    return held | frozenset(algorithms) if any(name.startswith(_IPSEC) for name in held) else held


def _has_tables(root: Path) -> bool:
    """A table of iptables-legacy is in use, or it is not known whether one is."""
    try:
        return any(tables_in_use(root, kind) for kind in KINDS)
    except OSError as error:
        note(error)
        return True
