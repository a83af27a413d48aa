# SPDX-License-Identifier: LGPL-2.1-or-later
"""The processes that a search examines, with mount namespace, unit and container of each, and the limits of a search."""

import fcntl
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from signal import SIGHUP, SIGTERM

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import FAULTS, note, read_text, readlink
from kmodd.model import Remedy, User

Sighting = tuple[frozenset[str], User]
"""A user, with the loaded modules that it keeps busy."""
_MODULES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one search. Each is far above what a busy machine has, and far below what a user can set up."""

    seconds: float = 2.0
    processes: int = 32768
    namespaces: int = 64
    """Mount namespaces beside the first process's."""
    network_namespaces: int = 128
    """Network namespaces beside the system's own that are entered."""
    namespace_share: float = 0.25
    """The part of the time that one of several may take: what is in it may be a stranger's."""
    mount_bytes: int = 16 << 20
    """Bytes of mountinfo in all."""
    mount_bytes_per_user: int = 4 << 20
    """Bytes of mountinfo in the namespaces of one user who is not root."""
    mount_share: float = 0.5
    """The part of the time that mount tables may take: processes are looked at afterwards."""
    rule_share: float = 0.7
    """The part of the time after which no more rules of netfilter are looked at, for the same reason."""
    mapping_seconds: float = 1.5
    """What the mappings of all processes may take: the owner of one can make the kernel wait."""
    mapping_bytes_per_process: int = 1 << 20
    """Bytes of maps."""
    mapping_bytes_per_user: int = 16 << 20
    """Bytes of maps of all processes of one user who is not root."""
    mounts: int = 8192
    """Mounts that are kept, after those that cannot concern a module were dropped."""
    descriptors_per_process: int = 4096
    descriptors_per_user: int = 32768
    descriptors_of_root: int = 262144
    users: int = 64
    """Users of one module."""
    answers: int = 4096
    """Users of all modules."""


class Budget:
    """Counts what a search costs, and remembers which bounds it met.

    Everybody may read what it remembers: it names no user.
    """

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or Limits()
        self._clock = clock
        self._begin = clock()
        self._met: dict[str, None] = {}
        self.crowded: dict[str, None] = {}
        """Modules with more users than are named."""
        self._mount_bytes: Counter[int] = Counter()
        self._descriptors: Counter[int] = Counter()
        self._mapping_bytes: Counter[int] = Counter()

    @property
    def partial(self) -> str:
        """The bounds that were met, as a clause; empty when none was."""
        return ", ".join(self._met)

    @property
    def bounds(self) -> tuple[str, ...]:
        """The same, one by one."""
        return tuple(self._met)

    @property
    def seconds_for_mappings(self) -> float:
        """How long mappings may be looked at."""
        return max(0.01, min(self.limits.mapping_seconds, self.limits.seconds - (self._clock() - self._begin)))

    def met(self, bound: str) -> None:
        """Something was left out."""
        self._met[bound] = None

    def in_time(self) -> bool:
        """There is time left."""
        if self._clock() - self._begin < self.limits.seconds:
            return True
        self.met(f"the search was ended after {round(self.limits.seconds, 1):g} s")
        return False

    def in_time_for_mounts(self) -> bool:
        """There is time left for mount tables."""
        most = self.limits.seconds * self.limits.mount_share
        if self._clock() - self._begin < most:
            return True
        self.met(f"the mount tables took more than {most:g} s")
        return False

    def in_time_for_rules(self) -> bool:
        """There is time left for rules of netfilter."""
        most = self.limits.seconds * self.limits.rule_share
        if self._clock() - self._begin < most:
            return True
        self.met(f"the rules of netfilter were not examined after {most:g} s")
        return False

    def part(self, count: int) -> "Budget":
        """That of one of so many network namespaces that are left, which `add` counts afterwards."""
        left = self.limits.seconds - (self._clock() - self._begin)
        seconds = min(left, max(left / count, self.limits.seconds * self.limits.namespace_share))
        return Budget(replace(self.limits, seconds=seconds), self._clock)

    def add(self, part: "Budget") -> None:
        """What was left out in another network namespace."""
        for bound in part._met:
            self.met(f"{bound}, in another network namespace")

    def take_mount_bytes(self, uid: int, size: int) -> bool:
        """Bytes of a mount table of this user's were read; False when no more of that user's may be."""
        self._mount_bytes[uid] += size
        if self._mount_bytes.total() > self.limits.mount_bytes:
            self.met(f"the mount tables have more than {self.limits.mount_bytes >> 20} MiB")
            return False
        if uid != 0 and self._mount_bytes[uid] > self.limits.mount_bytes_per_user:
            self.met(f"the mount tables of a user have more than {self.limits.mount_bytes_per_user >> 20} MiB")
            return False
        return True

    def take_mapping_bytes(self, uid: int, size: int, of_process: int) -> bool:
        """Bytes of a process's mappings were read, `of_process` in all; False when no more of them may be."""
        self._mapping_bytes[uid] += size
        if of_process > self.limits.mapping_bytes_per_process:
            self.met(f"a process has more than {self.limits.mapping_bytes_per_process >> 20} MiB of mappings")
            return False
        if uid != 0 and self._mapping_bytes[uid] > self.limits.mapping_bytes_per_user:
            self.met(f"a user has more than {self.limits.mapping_bytes_per_user >> 20} MiB of mappings")
            return False
        return True

    def take_descriptor(self, uid: int, of_process: int) -> bool:
        """One more open file of a process, the `of_process`th; False when no more of its files may be looked at."""
        if of_process > self.limits.descriptors_per_process:
            self.met(f"a process has more than {self.limits.descriptors_per_process} open files")
            return False
        self._descriptors[uid] += 1
        most = self.limits.descriptors_of_root if uid == 0 else self.limits.descriptors_per_user
        if self._descriptors[uid] > most:
            self.met(f"a user has more than {most} open files")
            return False
        return True


def bounded(sightings: Iterable[Sighting], budget: Budget, reported: set[tuple[str, User]]) -> Iterator[Sighting]:
    """Each user once for each module, up to the bounds; `reported` gets what was answered, and the budget what was left out."""
    counts: Counter[str] = Counter()
    answers = 0
    with faults_noted(budget):
        for modules, user in sightings:
            fresh = frozenset(module for module in modules if (module, user) not in reported)
            for module in fresh:
                counts[module] += 1
                if counts[module] > budget.limits.users:
                    fresh -= {module}
                    budget.crowded[module] = None
            if not fresh:
                continue
            if answers == budget.limits.answers:
                budget.met(f"there are more than {answers} users of modules")
                return
            answers += 1
            reported.update((module, user) for module in fresh)
            yield fresh, user


@contextmanager
def faults_noted(budget: Budget) -> Iterator[None]:
    """Faults of the machine that are met meanwhile are something left out."""
    faults: set[str] = set()
    FAULTS.set(faults)
    try:
        yield
    finally:
        FAULTS.set(None)
        if faults:
            budget.met(f"something could not be read ({', '.join(sorted(faults))})")


def references(root: Path) -> dict[str, int]:
    """The loaded modules, with the number of references of each that no other module holds."""
    lines = (read_text(root / "proc/modules", _MODULES_MAX) or "").splitlines()
    # Name, size, references, the modules that hold some of them (`-` for none).
    rows = [fields for fields in map(str.split, lines) if len(fields) > 3]
    return {name: _number(count) - holders.count(",") for name, _, count, holders, *_ in rows}


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0  # `-` on a kernel that cannot unload


_NS_GET_USERNS, _NS_GET_OWNER_UID = 0xB701, 0xB704
"""linux/nsfs.h: a descriptor of the user namespace that owns a namespace, and the user who made a user namespace."""
_CGROUP_MAX = 1 << 14
_PROCESSES_MAX = 1 << 16
_SERVICE = re.compile(r"[A-Za-z0-9:_.\\@-]{1,247}\.service")
"""What systemd allows in the name of a unit (VALID_CHARS in src/basic/unit-name.c)."""
_MACHINE = re.compile(
    r"machine-(?P<scope>[A-Za-z0-9_.\\-]{1,128})\.scope|systemd-nspawn@(?P<nspawn>[A-Za-z0-9_.-]{1,64})\.service"
)
_OF_SOCKET = re.compile(r"@\d+-[^@]*\.service$")
"""Number of the connection, then the other end (instance_from_socket in src/core/socket.c)."""
_START = 19
"""Place of the start time in /proc/PID/stat behind the name (proc(5))."""
_MEMBERS_MAX = 256
_CONTAINER = re.compile(
    r"(?P<kind>libpod|docker)-(?P<id>[0-9a-f]{64})\.scope|(?P<runtime>crun|runc)-(?P<name>[A-Za-z0-9_][A-Za-z0-9_+.-]{0,127})\.scope"
)
_RUNTIMES = {
    "libpod": Remedy.STOP_PODMAN,
    "docker": Remedy.STOP_DOCKER,
    "crun": Remedy.DELETE_CRUN,
    "runc": Remedy.DELETE_RUNC,
}
"""By what the scopes of their containers begin with; those of the last two are for containers that no engine manages."""
_INITS = frozenset({"init", "systemd"})
"""Programs that take SIGTERM as something other than a request to end."""
NamespaceOwner = Callable[[Path], str]
"""Answers the user namespace that owns a namespace, as its link reads (`user:[4026531837]`); OSError."""


def namespace_owner(link: Path) -> str:
    """Ask the kernel (ioctl_ns(2)); the namespace is opened and not entered."""
    namespace = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return owner_of(namespace)[0]
    finally:
        os.close(namespace)


def owner_of(namespace: int) -> tuple[str, int]:
    """The user namespace that owns the namespace of this descriptor, as its link reads, and who made that one; OSError."""
    owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    try:
        uid = int.from_bytes(fcntl.ioctl(owner, _NS_GET_OWNER_UID, bytes(4)), sys.byteorder)
        return f"user:[{os.fstat(owner).st_ino}]", uid
    finally:
        os.close(owner)


@dataclass(frozen=True, slots=True)
class Task:
    """One process."""

    pid: int
    uid: int
    """Whose view of /proc shows its files and namespaces; 0 for a process that may not be dumped."""
    user: int
    """Its effective user, whose share of a search it takes."""
    namespace: str
    """Its mount namespace as its link reads; empty where that may not be read."""


class Tasks:
    """The processes there are, in the order in which a search looks at them.

    First those of root in the first process's mount namespace, then root's others, then one of each other user after the
    other: a user with many processes is not in front of the rest.
    """

    def __init__(self, root: Path, budget: Budget, owner: NamespaceOwner = namespace_owner) -> None:
        self._proc = root / "proc"
        self._groups = root / "sys/fs/cgroup"
        self._budget = budget
        self._owner = owner

    @cached_property
    def all(self) -> tuple[Task, ...]:
        """Every process, up to the limit."""
        found: list[Task] = []
        try:
            with os.scandir(self._proc) as entries:
                for entry in entries:
                    if not entry.name.isdecimal():
                        continue
                    if len(found) == self._budget.limits.processes:
                        self._budget.met(f"there are more than {len(found)} processes")
                        break
                    if not self._budget.in_time():
                        break
                    try:
                        # The folder belongs to the effective user. Of a process that may not be dumped, all below it is
                        # root's (task_dump_owner in fs/proc/base.c): any user can make one.
                        user = entry.stat(follow_symlinks=False).st_uid
                        uid = user and os.stat(f"{entry.path}/fd").st_uid  # noqa: PTH116 - plain texts, thousands of times
                    except OSError as error:
                        note(error)
                        continue
                    found.append(Task(int(entry.name), uid, user, readlink(f"{entry.path}/ns/mnt")))
        except OSError as error:
            note(error)
            return ()
        found.sort(key=lambda task: task.pid)
        initial = found[0].namespace if found and found[0].pid == 1 else ""
        ranked: list[tuple[int, int, Task]] = []
        ranks: Counter[int] = Counter()
        for task in found:
            if task.user == 0:
                ranked.append((0, int(task.namespace != initial), task))
            else:
                ranks[task.user] += 1
                ranked.append((1, ranks[task.user], task))
        ranked.sort(key=lambda each: (each[0], each[1], each[2].pid))
        return tuple(task for _, _, task in ranked)

    def folder(self, task: Task) -> Path:
        """Its folder in /proc."""
        return self._proc / str(task.pid)

    @cached_property
    def members(self) -> dict[str, tuple[Task, ...]]:
        """The processes of each distinct mount namespace."""
        members: dict[str, list[Task]] = {}
        for task in self.all:
            if task.namespace:
                members.setdefault(task.namespace, []).append(task)
        return {namespace: tuple(tasks) for namespace, tasks in members.items()}

    @cached_property
    def first_namespace(self) -> str:
        """The mount namespace of the first process, as its link reads; empty where that may not be read."""
        return next((task.namespace for task in self.all if task.pid == 1), "")

    @cached_property
    def initial(self) -> str:
        """The user namespace of the first process, as its link reads; empty where that may not be read."""
        return readlink(self._proc / "1/ns/user")

    def is_roots(self, task: Task) -> bool:
        """Its mount namespace, and itself, belong to the initial user namespace: only root can have put them there.

        In a namespace of a user namespace owned by another user, that user chooses what every path and program is.
        """
        folder = self.folder(task)
        if not self.initial or readlink(folder / "ns/user") != self.initial:
            return False
        try:
            return self._owner(folder / "ns/mnt") == self.initial
        except OSError as error:
            note(error)
            return False

    def ending(self, task: Task, others: tuple[Task, ...] = ()) -> tuple[Remedy, str, tuple[int, ...]]:
        """What ends this process and the others with it: the container's runtime, systemd, or a signal."""
        path = self._group(task)
        unit, below = _unit(path)
        if machine := _MACHINE.fullmatch(unit):
            plain = machine["nspawn"] or machine["scope"].replace("\\x2d", "-")
            if "\\" not in plain:
                return Remedy.TERMINATE_MACHINE, plain, ()
        if container := _CONTAINER.fullmatch(unit):
            return _RUNTIMES[container["kind"] or container["runtime"]], container["id"] or container["name"], ()
        pids = tuple(dict.fromkeys((task.pid, *(other.pid for other in others))))
        if len(pids) == 1 and not below and _SERVICE.fullmatch(unit) and self._is_of_one_user(task, path):
            stat = (read_text(self.folder(task) / "stat") or "").rpartition(")")[2].split()
            # A service's main process; what a shell of it has started is ended for itself.
            if len(stat) > 1 and stat[1] == "1":
                return Remedy.STOP_UNIT, unit, ()
        if 1 in pids or len(pids) > PIDS_MAX:
            return Remedy.NONE, "", ()
        return Remedy.KILL, self._signal(pids), pids

    def _signal(self, pids: tuple[int, ...]) -> str:
        """What ends these processes where one ignores SIGTERM, as a shell at a terminal does; else empty.

        Of the first process in a process namespace, the kernel drops every signal that has no handler but SIGKILL
        (sig_task_ignored in kernel/signal.c); the others there end with it.
        """
        ignored = 0
        for pid in pids:
            lines = (read_text(f"{self._proc}/{pid}/status") or "").splitlines()
            fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
            if len(numbers := fields.get("NSpid", [])) > 1 and numbers[-1] == "1":
                handled = _mask(fields.get("SigCgt", [])) >> (SIGTERM - 1) & 1
                if not handled or _INITS.intersection(fields.get("Name", [])):
                    return "KILL"
            ignored |= _mask(fields.get("SigIgn", []))
        if not ignored >> (SIGTERM - 1) & 1:
            return ""
        return "KILL" if ignored >> (SIGHUP - 1) & 1 else "HUP"

    def are_of_one_unit(self, tasks: tuple[Task, ...]) -> bool:
        """What ends one of them by its unit or container ends them all; containers may share a network namespace."""
        return len({_unit(self._group(each))[0] for each in tasks[:_MEMBERS_MAX]}) < 2 and len(tasks) <= _MEMBERS_MAX

    def service(self, task: Task, others: tuple[Task, ...]) -> str:
        """The service of the system that made this process's mount namespace and that all its processes are of; or empty."""
        if not self.is_roots(task):
            return ""
        names = {_unit(self._group(each))[0] for each in (task, *others)} if len(others) <= _MEMBERS_MAX else set()
        name = names.pop() if len(names) == 1 else ""
        return name if _SERVICE.fullmatch(name) and not _MACHINE.fullmatch(name) else ""

    def _group(self, task: Task) -> str:
        """Its control group; empty where that cannot be read."""
        lines = (read_text(self.folder(task) / "cgroup", _CGROUP_MAX) or "").splitlines()
        # `0::` begins the line of the unified hierarchy (cgroups(7)). Colons further on belong to a group's name, which its
        # owner chose.
        return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")

    def _is_of_one_user(self, task: Task, group: str) -> bool:
        """Every process of the control group is of this process's user.

        What users have cron and its like start is in the group of that service. To stop the service for such a process would
        end what is not its user's.
        """
        pids = (read_text(f"{self._groups}{group}/cgroup.procs", _PROCESSES_MAX) or "").split()
        users = {str(other.pid): other.user for other in self.all}
        return bool(pids) and all(users.get(pid) == task.user for pid in pids) and self._is_oldest(task, pids)

    def _is_oldest(self, task: Task, pids: list[str]) -> bool:
        """None of these processes began before it: what a service has started and let go is a child of the first process too."""

        def begin(pid: str) -> int:
            fields = (read_text(self._proc / pid / "stat") or "").rpartition(")")[2].split()
            return int(fields[_START]) if len(fields) > _START else 0

        return begin(str(task.pid)) <= min(map(begin, pids))


def _mask(words: list[str]) -> int:
    """A set of signals in /proc/PID/status."""
    return int(words[0], 16) if words else 0


def _unit(group: str) -> tuple[str, bool]:
    """The unit below system.slice or machine.slice, and whether the control group is one below that of the unit.

    What a unit or a user with a delegated control group calls the groups below it is a stranger's text, so only the
    first name that is no slice counts: systemd made it.
    """
    names = group.split("/")[1:]
    if not names or names[0] not in {"system.slice", "machine.slice"}:
        return "", False
    unit = next((name for name in names if not name.endswith(".slice")), "")
    return unit, names[-1] != unit


def is_of_socket(unit: str) -> bool:
    """It serves one connection of a socket (`Accept=` in systemd.socket(5)): nothing else can start it."""
    return _OF_SOCKET.search(unit) is not None


PIDS_MAX = 16
"""Processes of one namespace that are named one by one."""
