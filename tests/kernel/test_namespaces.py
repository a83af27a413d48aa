# SPDX-License-Identifier: LGPL-2.1-or-later
"""Users in other network namespaces: who finds these, who enters them, and what is made of the answers."""

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kmodd.core.audit.redaction import View, redact_evidence
from kmodd.core.diagnosis.advice import command
from kmodd.errors import Evidence
from kmodd.kernel.users.inspector import answers
from kmodd.kernel.users.inspector_client import Inspector
from kmodd.kernel.users.namespaces import Kernel, users_elsewhere
from kmodd.kernel.users.netfilter import Firewall
from kmodd.kernel.users.rtnetlink import Link, Qdisc, Traffic
from kmodd.kernel.users.tasks import Budget, Limits
from kmodd.kernel.users.xtables import KINDS
from kmodd.model import Remedy, Usage, User
from kmodd.names import ModuleName
from tests.kernel.test_inspector import USER, asked, orders, scripted
from tests.vm.privilege import elevated

M = ModuleName
ROOT = 0xFFFFFFFF
LOADED = "sch_fq 1 1 - Live 0x0\nsch_sfq 1 0 - Live 0x0\ntun 1 2 - Live 0x0\nip_tables 1 1 x, Live 0x0\nxt_owner 1 1 - Live 0x0\n"


# --- the process that enters ------------------------------------------------------------------------------------------


class Namespaces:
    """What is in each, by its descriptor."""

    def __init__(self, **traffic: Traffic) -> None:
        self.traffic = {int(name[1:]): each for name, each in traffic.items()}
        self.entered: list[int] = []
        self.tables: list[str] = []

    def enter(self, file: int) -> None:
        if file == 66:
            raise PermissionError(1, "Operation not permitted")
        self.entered.append(file)

    def table(self, _: object, name: str) -> tuple[bytes, bytes]:
        self.tables.append(name)
        raise PermissionError

    @property
    def kernel(self) -> Kernel:
        def no_firewall(_: object) -> Firewall:
            raise AssertionError("nf_tables is not loaded")

        return Kernel(
            traffic=lambda *_: self.traffic.get(self.entered[-1], Traffic()),
            netfilter=no_firewall,
            links=lambda: (Link(2, "tap9", kind="tun", up=True), Link(1, "lo")),
            table=self.table,
        )

    def found(self, root: Path, files: list[int], budget: Budget, tables: Any = None) -> list[tuple[str, str, str]]:
        (root / "proc").mkdir(exist_ok=True)
        (root / "proc/modules").write_text(LOADED)
        rows = tables or [None] * len(files)
        search = users_elsewhere(root, files, rows, lambda _: (), budget, kernel=self.kernel, enter=self.enter)
        return [(*modules, user.name, user.netns) for modules, user in search]  # type: ignore[misc]


FQ = Traffic((Qdisc("lo", "fq", 0x10000, ROOT), Qdisc("lo", "sfq", 0x20000, 1)))


def test_each_is_entered_and_left(tmp_path: Path) -> None:
    namespaces, budget = Namespaces(n8=FQ), Budget()
    found = namespaces.found(tmp_path, [7, 8], budget)
    # Nothing is looked for that no module of which something is left unexplained could be behind: sch_sfq.
    assert found == [("tun", "tap9", "0"), ("tun", "tap9", "1"), ("sch_fq", "fq on lo", "1")]
    assert namespaces.entered[:2] == [7, 8]
    assert len(namespaces.entered) == 3, "the way back"
    assert budget.partial == ""


def test_a_cipher_is_named_where_an_interface_has_a_key(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text("aesni_intel 1 1 - Live 0x0\nmacsec 1 0 - Live 0x0\n")
    row = "name : gcm(aes)\ndriver : gcm-x\nmodule : aesni_intel\nrefcnt : 3\ntype : aead\n"
    (tmp_path / "proc/crypto").write_text(row)
    kernel = Kernel(
        links=lambda: (Link(2, "sec5", kind="macsec"), Link(3, "sec6", kind="macsec")),
        associations=lambda: {2: 2, 3: 0},
        traffic=lambda *_: Traffic(),
    )
    search = users_elsewhere(tmp_path, [7], [None], lambda _: (), Budget(), kernel=kernel, enter=lambda _: None)
    assert [(set(modules), user.name, user.detail, user.netns) for modules, user in search] == [
        ({"aesni_intel"}, "sec5", "gcm(aes) of 2 associations", "0")
    ]


def test_one_that_cannot_be_entered_is_said_to_be_missing(tmp_path: Path) -> None:
    namespaces, budget = Namespaces(n8=FQ), Budget()
    assert namespaces.found(tmp_path, [66, 8], budget)[-1] == ("sch_fq", "fq on lo", "1")
    assert budget.partial == "a network namespace cannot be entered (Operation not permitted)"


def test_one_takes_no_more_than_its_part(tmp_path: Path) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.1
        return now

    namespaces = Namespaces(n8=FQ)
    budget = Budget(Limits(), lambda: 0.0)
    assert [budget.part(count).limits.seconds for count in (60, 4, 2, 1)] == [0.5, 0.5, 1.0, 2.0]
    budget = Budget(Limits(), clock)
    found = namespaces.found(tmp_path, [8] * 60, budget)
    assert 0 < len(found) < 60
    assert namespaces.entered[-1] != 8, "it is back"
    assert "the search was ended after 2 s" in budget.partial


def test_only_tables_that_there_are_are_asked_for(tmp_path: Path) -> None:
    """Queried for one that is not in use, the kernel would make it, and load its module."""
    namespaces, budget = Namespaces(), Budget()
    names = {kind.names: ["filter", "../x", "evil"] for kind in KINDS}
    namespaces.found(tmp_path, [7], budget, [names])
    assert namespaces.tables == ["filter"] * 3
    assert "the rules of iptables-legacy cannot be read, in another network namespace" in budget.partial


# --- what the daemon makes of it --------------------------------------------------------------------------------------

PLACE = {
    **USER,
    "kind": "namespace",
    "name": "blue",
    "detail": "",
    "netns": "blue",
    "owner": 0,
    "entry": "/run/netns/blue",
}
PLACES = f"""\
PLACE = {PLACE!r}
def offer(place, tables=None, files=(0,)):
    socket.send_fds(channel, [json.dumps({{"namespace": place, "tables": tables}}).encode()], files)
"""
RULE = {**USER, "kind": "rule", "name": "inet t c handle 2", "detail": "ct", "pid": None, "owner": None, "target": ""}
FOUND = f"""\
if "search" in order:
    offer({{**PLACE, "remedy": "", "target": ""}})
    offer({{**PLACE, "remedy": "kill", "pids": [7, 8], "netns": "pid 7", "entry": "", "container": "abc", "owner": 1000}})
    send({{"namespaces": True}})
    send({{"modules": ["nft_ct", "nft_log"], "user": {{**USER, "kind": "namespace", "name": "blue"}}}})
else:
    for number in "0", "1":
        rule = {{**{RULE!r}, "remedy": "delete-rule", "words": ["inet", "t", "c", "handle", "2"], "netns": number}}
        send({{"modules": ["nft_ct"], "user": {{**rule, "entry": "/proc/1/ns/net"}}}})
send({{"end": True, "partial": "", "crowded": []}})
"""


def opened() -> int:
    """Descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only how many


async def test_users_in_a_namespace_get_its_place_and_what_ends_them_there(tmp_path: Path) -> None:
    made = Inspector(network=tmp_path, program=scripted(tmp_path, PLACES + FOUND))
    before = opened()
    usage = await made.users(M("nft_ct"))
    assert [(user.detail, user.netns, user.owner, user.container, command(user)) for user in usage.users] == [
        ("ct, in network namespace blue", "blue", 0, "", "ip netns exec blue nft delete rule inet t c handle 2"),
        ("ct, in the network namespace of pid 7", "pid 7", 1000, "abc", "kill 7 8"),
    ]
    assert (await made.users(M("nft_log"))).users == (), "every namespace was examined"
    assert sorted(order for each in orders(tmp_path) for order in each) == ["namespaces", "search"]
    await made.close()
    await asyncio.sleep(0)
    assert opened() <= before, "none is kept open"


async def test_without_namespaces_nothing_is_started_to_enter_any(tmp_path: Path) -> None:
    body = "send({'end': True, 'partial': '', 'crowded': []})"
    made = Inspector(network=tmp_path, program=scripted(tmp_path, body))
    assert await made.users(M("nft_ct")) == Usage()
    assert orders(tmp_path) == [{"search": True}]
    await made.close()


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(1)",
        "send({'modules': ['nft_ct'], 'user': {**USER, 'netns': '2'}})\nsend({'end': True, 'partial': '', 'crowded': []})",
        "send({'modules': ['nft_ct'], 'user': {**USER, 'netns': 'x'}})\nsend({'end': True, 'partial': '', 'crowded': []})",
    ],
)
async def test_namespaces_that_were_not_examined_are_named(tmp_path: Path, body: str) -> None:
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    program = (
        PLACES
        + FOUND.partition("else:")[0]
        + "    send({'end': True, 'partial': '', 'crowded': []})\nelse:\n"
        + indented
    )
    made = Inspector(network=tmp_path, program=scripted(tmp_path, program))
    usage = await made.users(M("nft_ct"))
    assert [user.kind for user in usage.users] == ["namespace"]
    assert usage.partial == "other network namespaces were not examined"
    await made.close()


@pytest.mark.parametrize(
    "offered",
    [
        "offer(PLACE, files=())",
        "offer({**PLACE, 'name': '\\x1b'})",
        "offer(PLACE, {'ip_tables_names': []})",
        "offer(PLACE, [7])",
        "for _ in range(200): offer(PLACE)",
    ],
)
async def test_what_is_no_namespace_ends_the_conversation(tmp_path: Path, offered: str) -> None:
    before = opened()
    made = Inspector(network=tmp_path, program=scripted(tmp_path, PLACES + offered + "\ntime.sleep(60)"), timeout=5.0)
    assert await made.users(M("nft_ct")) == Usage((), "the inspector did not answer")
    await made.close()
    await asyncio.sleep(0)
    assert opened() <= before


@pytest.mark.parametrize(
    "odd",
    [
        'offer(PLACE); send({"namespaces": True}); ' * 20 + 'send({"end": True, "partial": "", "crowded": []})',
        'send({"end": True, "partial": "", "crowded": []}); ' + 'offer(PLACE); send({"namespaces": True}); ' * 20,
    ],
)
async def test_no_descriptor_is_left_open_whatever_is_answered(tmp_path: Path, odd: str) -> None:
    before = opened()
    body = (
        PLACES
        + f"if 'search' in order:\n    {odd}\n"
        + 'send({"end": True, "partial": "", "crowded": []})\ntime.sleep(0.3)'
    )
    made = Inspector(network=tmp_path, program=scripted(tmp_path, body), timeout=5.0)
    await made.users(M("nft_ct"))
    await asyncio.sleep(0.5)
    await made.close()
    await asyncio.sleep(0)
    assert opened() <= before


# --- commands and what everyone may see -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "remedy", "printed"),
    [
        ("/run/netns/blue", Remedy.DESTROY_SET, "ip netns exec blue ipset destroy x"),
        ("/proc/7/ns/net", Remedy.DESTROY_SET, "nsenter --net=/proc/7/ns/net ipset destroy x"),
        ("/run/netns/a b", Remedy.DESTROY_SET, ""),
        ("/run/netns/-x", Remedy.DESTROY_SET, ""),
        ("/run/netns/../x", Remedy.DESTROY_SET, ""),
        ("/run/netns/$(id)", Remedy.DESTROY_SET, ""),
        ("/proc/7/ns/mnt", Remedy.DESTROY_SET, ""),
        ("/proc/7/root/x", Remedy.DESTROY_SET, ""),
        ("/run/netns/blue", Remedy.UNMOUNT, ""),
        ("/run/netns/blue", Remedy.WRITE_SETTING, ""),
    ],
)
def test_a_command_enters_a_network_namespace_for_the_network_alone(entry: str, remedy: Remedy, printed: str) -> None:
    assert command(User("set", "x", "", remedy=remedy, words=("x",), target="/x", entry=entry)) == printed


def test_rules_of_one_process_are_counted_one_by_one() -> None:
    rules = tuple(User("rule", f"{n}", "", pid=7, netns="pid 7", owner=0) for n in range(3))
    shown, withheld = redact_evidence(Evidence(users=rules), View(1000))
    assert [user.detail for user in shown.users] == ["3 rules of netfilter"]
    assert withheld == ("users",)
    assert redact_evidence(Evidence(users=rules), View(0))[0].users == rules


# --- the real ones ----------------------------------------------------------------------------------------------------


@pytest.fixture
def others() -> Iterator[tuple[int, int]]:
    """A process in a network namespace of root's, and one in that of a user namespace."""
    options = (["--net"], ["--user", "--map-root-user", "--net"])
    with ExitStack() as stack:
        programs = []
        for each in options:
            command = [*elevated(), "unshare", *each, "sh", "-c", "echo there; exec sleep 60"]
            program = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(program.kill)
            assert program.stdout is not None
            assert program.stdout.readline() == b"there\n"
            programs.append(program)
        yield programs[0].pid, programs[1].pid


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that every user may read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


OPENED = """
import json, os
from pathlib import Path
from kmodd.kernel.users.namespace_list import NetNamespaces
from kmodd.kernel.users.tasks import Budget, Tasks
budget = Budget()
rows = []
for each in NetNamespaces(Path("/"), Tasks(Path("/"), budget), budget).opened():
    place = each.place
    rows.append([place.netns, place.owner, place.entry, place.remedy, os.fstat(each.file).st_ino, each.tables is None])
print(json.dumps(rows))
"""


def test_who_may_see_processes_opens_their_namespaces(others: tuple[int, int]) -> None:
    mine, theirs = others
    rows = {row[0]: row[1:] for row in json.loads(asked("sys_ptrace,dac_read_search", OPENED))}
    entry, remedy, number, unread = rows[f"pid {mine}"][1:]
    # In a container it may not be known which user namespace is the initial one: then none is entered.
    known = asked("sys_ptrace,dac_read_search", "import os; print(os.access('/proc/1/ns/user', os.F_OK))") == "True"
    assert (entry, remedy, unread) == ((f"/proc/{mine}/ns/net", "", True) if known else ("", "kill", False))
    assert number == os.stat(f"/proc/{mine}/ns/net").st_ino  # noqa: PTH116 - a number
    entry, remedy, _, unread = rows[f"pid {theirs}"][1:]
    assert (entry, remedy, unread) == ("", "kill", False), "one of a user namespace is never entered"
    assert not {f"pid {mine}", f"pid {theirs}"} & {row[0] for row in json.loads(asked("", OPENED))}


ENTERED = """
import os
from pathlib import Path
from kmodd.kernel.users.namespaces import users_elsewhere
from kmodd.kernel.users.tasks import Budget
root = Path("{root}")
budget = Budget()
files = [os.open(path, os.O_RDONLY) for path in {paths}]
before = os.readlink("/proc/self/ns/net")
found = [(user.name, user.netns) for _, user in users_elsewhere(root, files, [None] * len(files), lambda _: (), budget)]
assert os.readlink("/proc/self/ns/net") == before
print(found, budget.partial)
"""


def test_who_may_enter_them_sees_their_interfaces(others: tuple[int, int], readable: Path) -> None:
    mine, _ = others
    subprocess.run(
        [*elevated(), "nsenter", f"--net=/proc/{mine}/ns/net", "ip", "link", "add", "b7", "type", "bridge"], check=True
    )
    (readable / "proc").mkdir()
    (readable / "proc/modules").write_text("bridge 1 1 - Live 0x0\n")
    code = ENTERED.replace("{root}", str(readable)).replace(
        "{paths}", repr([f"/proc/{mine}/ns/net", "/proc/self/ns/mnt"])
    )
    entered = asked("sys_admin,net_admin,sys_ptrace", code)
    assert entered == "[('b7', '0')] a network namespace cannot be entered (Invalid argument)"
    refused = "[] a network namespace cannot be entered (Operation not permitted)"
    assert asked("net_admin,sys_ptrace", code).startswith(refused)


def test_an_order_with_another_number_of_descriptors_is_none() -> None:
    with pytest.raises(ValueError, match="no such order"):
        list(answers({"namespaces": [None]}, Path("/"), ()))
