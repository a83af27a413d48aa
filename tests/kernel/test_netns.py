# SPDX-License-Identifier: LGPL-2.1-or-later
"""The inspector of network namespaces: which it enters, for how long, what ends a use there, and which of its rights it needs."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from kmodd.kernel.files import readlink
from kmodd.kernel.users import netns
from kmodd.kernel.users.ipsec import State
from kmodd.kernel.users.netfilter import Expression, Firewall, Rule
from kmodd.kernel.users.netns import Entrance, NamespaceSearch, Owner, answers
from kmodd.kernel.users.network_setup import Queries
from kmodd.kernel.users.rtnetlink import Qdisc, Traffic
from kmodd.kernel.users.tasks import Budget, Limits
from kmodd.model import Remedy, User
from tests.kernel.test_inspector import asked
from tests.kernel.usage_root import ALIASES, FakeRoot
from tests.vm.privilege import elevated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

INITIAL, STRANGERS = Owner(initial=True, uid=0), Owner(initial=False, uid=1000)
HOST, BLUE, ROOTS, USERS = (f"net:[{number}]" for number in range(1, 5))
OTHER = 5
"""The first of further network namespaces."""


class Machine(FakeRoot):
    """A root folder with network namespaces, in each of which the kernel answers something else."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.place = HOST
        self.entered: list[str] = []
        self.administered: dict[str, Owner] = {USERS: STRANGERS}
        self.unknown: dict[str, OSError] = {}
        self.handles: dict[str, tuple[int, ...]] = {}
        """Numbers of the rules in each that hold nft_ct."""
        self.time = 0.0
        self.cost: dict[str, float] = {}
        """Seconds that one takes."""
        self.put(
            "proc/modules",
            "nf_tables 1 1 nft_ct, Live 0x0\nnft_ct 1 2 - Live 0x0\nsch_fq 1 1 - Live 0x0\nesp4 1 1 - Live 0x0\n",
        )
        self.process(1, "/sbin/init")
        self.link("proc/1/ns/net", HOST)
        self.link("proc/self", "1")
        self.put("proc/net/netlink", "sk Eth Pid\n0 6 0\n")

    def namespace(self, pid: int, link: str, cgroup: str = "") -> None:
        """A process in a network namespace."""
        self.process(pid, "/usr/bin/sleep", cgroup=cgroup)
        self.link(f"proc/{pid}/ns/net", link)

    def search_namespaces(self, limits: Limits = netns.LIMITS) -> tuple[list[User], Budget]:
        """The users of nft_ct, sch_fq and esp4."""
        budget = Budget(limits, lambda: self.time)
        queries = Queries(
            traffic=lambda *_: Traffic((Qdisc("lo", "fq", 0x10000, 0xFFFFFFFF),) if self.place in self.handles else ()),
            netfilter=lambda _: Firewall(
                rules=[Rule(1, "t", "c", n, (Expression("ct"),)) for n in self.handles.get(self.place, ())]
            ),
            sets=lambda: (),
            states=lambda: [State(4, "10.0.0.1", "10.0.0.2", 50, 256)] if self.place in self.handles else [],
        )
        search = NamespaceSearch(
            self.path,
            lambda alias: ALIASES.get(alias, ()),
            budget,
            queries=queries,
            tables=lambda kind, table: (b"", b""),
            entrance=lambda _: self.entrance(),
        )
        return [user for _, user in search.users()], budget

    def entrance(self) -> Entrance:
        machine = self

        class Door(Entrance):
            def __init__(self) -> None:
                pass

            def __exit__(self, *_: object) -> None:
                pass

            @contextmanager
            def opened(
                self, path: Path, link: str
            ) -> Iterator[tuple[Owner, Callable[[], AbstractContextManager[None]]]]:
                if error := machine.unknown.get(link):
                    raise error
                assert readlink(path) in (link, ""), "what is entered is what was listed"
                yield machine.administered.get(link, INITIAL), lambda: machine.inside(link)

        return Door()

    @contextmanager
    def inside(self, link: str) -> Iterator[None]:
        self.place = link
        self.entered.append(link)
        yield
        self.time += self.cost.get(link, 0.0)
        self.place = HOST


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def named(machine: Machine, name: str) -> str:
    """A network namespace with a name and without processes; its link."""
    machine.put(f"run/netns/{name}")
    return f"net:[{(machine.path / 'run/netns' / name).stat().st_ino}]"


def test_uses_in_a_namespace_that_root_has_named_end_in_it(machine: Machine) -> None:
    link = named(machine, "blue")
    machine.handles[link] = (2, 3)
    users, budget = machine.search_namespaces()
    assert [(user.remedy, user.words, user.within, user.netns, user.owner) for user in users] == [
        (Remedy.DELETE_QDISC, ("lo", "root"), "blue", "blue", 0),
        (Remedy.DELETE_RULE, ("inet", "t", "c", "handle", "2"), "blue", "blue", 0),
        (Remedy.DELETE_RULE, ("inet", "t", "c", "handle", "3"), "blue", "blue", 0),
        (
            Remedy.DELETE_STATE,
            (*["src", "10.0.0.1", "dst", "10.0.0.2", "proto", "esp", "spi", "0x00000100"],),
            "blue",
            "blue",
            0,
        ),
    ]
    assert users[0].detail == "root, in network namespace blue"
    assert users[3].detail == "in network namespace blue"
    assert (machine.place, budget.partial) == (HOST, "")


def test_uses_in_other_namespaces_are_ended_from_outside(machine: Machine) -> None:
    """By what runs the processes, or by their end; the rule's own words are in no command."""
    machine.namespace(7, ROOTS, cgroup="/system.slice/docker-" + "a" * 64 + ".scope")
    machine.namespace(8, USERS)
    machine.namespace(9, USERS)
    machine.handles = {ROOTS: (2,), USERS: (2,)}
    users, _ = machine.search_namespaces()
    rules = [user for user in users if user.kind == "rule"]
    assert [(user.remedy, user.target, user.pids, user.owner, user.netns) for user in rules] == [
        (Remedy.STOP_DOCKER, "a" * 64, (), 0, "pid 7"),
        (Remedy.KILL, "", (8, 9), 1000, "pid 8"),
    ]
    assert not [user for user in users if user.words or user.within]


def test_a_users_namespace_is_entered_by_no_command_under_any_name(machine: Machine) -> None:
    """`ip netns attach` names one of any process."""
    machine.administered[named(machine, "red")] = STRANGERS
    machine.handles = dict.fromkeys(machine.administered, (2,))
    users, _ = machine.search_namespaces()
    assert {(user.remedy, user.within, user.words, user.owner) for user in users} == {(Remedy.NONE, "", (), 1000)}


def test_a_user_with_many_namespaces_leaves_time_for_others(machine: Machine) -> None:
    """No matter how many there are, and how long each takes; what is left out is said to be."""
    for number in range(200):
        link = f"net:[{OTHER + number}]"
        machine.namespace(100 + number, link)
        machine.administered[link] = STRANGERS
        machine.handles[link] = (2,)
        machine.cost[link] = 0.15
    blue = named(machine, "blue")
    machine.namespace(1000, ROOTS)
    machine.handles |= {blue: (2,), ROOTS: (2,)}
    users, budget = machine.search_namespaces()
    assert {"blue", "pid 1000"} <= {user.netns for user in users}
    assert len(machine.entered) == 2 + 2, "two fifths of a second of the user's"
    assert machine.entered[0] == blue, "first what only root can have made"
    assert budget.partial == "not every network namespace was examined completely"
    assert machine.time < 1.0


def test_a_user_with_many_small_namespaces_has_so_many_entered(machine: Machine) -> None:
    for number in range(200):
        machine.namespace(100 + number, f"net:[{OTHER + number}]")
        machine.administered[f"net:[{OTHER + number}]"] = STRANGERS
    _, budget = machine.search_namespaces()
    assert len(machine.entered) == 64
    assert budget.partial


def test_the_search_ends_in_time(machine: Machine) -> None:
    for number in range(20):
        machine.namespace(100 + number, f"net:[{OTHER + number}]")
        machine.cost[f"net:[{OTHER + number}]"] = 0.3
    _, budget = machine.search_namespaces()
    assert len(machine.entered) == 4
    assert budget.partial == "not every network namespace was examined completely"


def test_one_that_cannot_be_examined_is_said_to_be_missing_and_one_that_ended_is_not(machine: Machine) -> None:
    machine.namespace(7, ROOTS)
    machine.namespace(8, USERS)
    machine.handles = {ROOTS: (2,), USERS: (2,)}
    machine.unknown = {ROOTS: FileNotFoundError()}
    users, budget = machine.search_namespaces()
    assert ({user.netns for user in users}, budget.partial) == ({"pid 8"}, "")
    machine.unknown = {ROOTS: PermissionError()}
    users, budget = machine.search_namespaces()
    assert {user.netns for user in users} == {"pid 8"}
    assert budget.partial == "not every network namespace was examined completely"


def test_an_order_is_a_search_and_nothing_else(tmp_path: Path) -> None:
    orders: tuple[Any, ...] = (
        {},
        [],
        {"search": True, "path": "/etc/shadow"},
        {"executables": [1]},
        {"consequences": ["loop"]},
    )
    for order in orders:
        with pytest.raises(ValueError, match="no such order"):
            list(answers(order, tmp_path))


# --- on the real kernel -----------------------------------------------------------------------------------------------


@contextmanager
def process_in_a_namespace(*unshare: str) -> Iterator[int]:
    """A process in a network namespace of its own."""
    command = [*elevated(), "unshare", "--net", *unshare, "sh", "-c", "echo there; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


ENTERED = """
import socket
from pathlib import Path
from kmodd.kernel.files import readlink
from kmodd.kernel.users.netns import Entrance
own, other = readlink("/proc/self/ns/net"), readlink("/proc/PID/ns/net")
try:
    with Entrance(Path("/")) as entrance:
        with entrance.opened(Path("/proc/PID/ns/net"), other) as (owner, enter):
            with enter():
                inside = readlink("/proc/self/ns/net")
            print(inside == other != own == readlink("/proc/self/ns/net"), owner.initial, owner.uid)
except PermissionError:
    print("refused")
"""
ALL = "sys_admin,sys_ptrace,dac_read_search,net_admin"


@pytest.mark.parametrize(
    ("capabilities", "answer"),
    [
        (ALL, "True True 0"),
        ("sys_admin,sys_ptrace", "True True 0"),
        ("sys_admin", "refused"),
        ("sys_ptrace,net_admin", "refused"),
        ("", "refused"),
    ],
)
def test_it_enters_and_returns_with_its_rights_alone(capabilities: str, answer: str) -> None:
    with process_in_a_namespace() as pid:
        assert asked(capabilities, ENTERED.replace("PID", str(pid))) == answer


def test_the_namespace_of_a_users_belongs_to_that_user() -> None:
    with process_in_a_namespace("--user", "--map-root-user", "--setuid", "0") as pid:
        assert asked(ALL, ENTERED.replace("PID", str(pid))).split()[:2] == ["True", "False"]


def test_it_leaves_where_it_cannot_return() -> None:
    """What it read from then on would be of the wrong namespace."""
    code = """
import os
from pathlib import Path
from kmodd.kernel.files import readlink
from kmodd.kernel.users.netns import Entrance
child = os.fork()
if child == 0:
    with Entrance(Path("/")) as entrance:
        with entrance.opened(Path("/proc/PID/ns/net"), readlink("/proc/PID/ns/net")) as (owner, enter):
            with enter():
                os.close(entrance._own)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    with process_in_a_namespace() as pid:
        assert asked(ALL, code.replace("PID", str(pid))) == "71"


INTERFACES = """
from pathlib import Path
from kmodd.kernel.files import readlink, read_text
from kmodd.kernel.users.netns import Entrance
from kmodd.kernel.users.rtnetlink import traffic_control
with Entrance(Path("/")) as entrance:
    with entrance.opened(Path("/proc/PID/ns/net"), readlink("/proc/PID/ns/net")) as (owner, enter):
        with enter():
            print(*(line.split(":")[0].strip() for line in read_text("/proc/net/dev", 1 << 16).splitlines()[2:]))
            print(*(f"{each.kind} on {each.device}" for each in traffic_control(False, (), lambda: True).qdiscs))
"""


def test_what_is_set_up_in_one_is_read_in_it() -> None:
    """The kernel answers of the namespace that was entered, by netlink and in /proc."""
    with process_in_a_namespace() as pid:
        inside = [*elevated(), "nsenter", f"--net=/proc/{pid}/ns/net"]
        subprocess.run([*inside, "tc", "qdisc", "replace", "dev", "lo", "root", "pfifo"], check=True)
        script = "tail -n +3 /proc/net/dev | cut -d: -f1 | xargs"
        devices = subprocess.check_output([*inside, "sh", "-c", script], text=True).strip()
        assert asked(ALL, INTERFACES.replace("PID", str(pid))).splitlines() == [devices, "pfifo on lo"]
