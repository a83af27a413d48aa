# SPDX-License-Identifier: LGPL-2.1-or-later
"""The inspector: what it sees, what it may, and that its answers are a stranger's."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kmodd.kernel.users import inspector_client
from kmodd.kernel.users.inspector import answers
from kmodd.kernel.users.inspector_client import Inspector, read_user
from kmodd.kernel.users.xtables import KINDS
from kmodd.model import Consequence, ConsequenceKind, Remedy, Usage, User
from kmodd.names import ModuleName
from tests.kernel.test_worker_unit import SocketUnit
from tests.vm.privilege import elevated

M = ModuleName
INSPECTOR = Path(inspector_client.__file__).with_name("inspector.py")
USER: dict[str, Any] = {
    "kind": "mount",
    "name": "/m",
    "detail": "type overlay, source x",
    "command": "",
    "pid": 7,
    "exe": "",
    "unit": "",
    "container": "",
    "netns": "",
    "mountns": "",
    "file": "",
    "line": 0,
    "owner": 1000,
    "remedy": "unmount",
    "target": "/m",
    "words": [],
    "pids": [],
    "level": 0,
    "entry": "",
    "sets": [],
    "references": 0,
}
READ = User("mount", "/m", "type overlay, source x", pid=7, owner=1000, remedy=Remedy.UNMOUNT, target="/m")


def scripted(tmp_path: Path, body: str) -> tuple[str, ...]:
    """A program in place of the inspector: `order` is what it was asked, `send` answers, `log` writes down."""
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, socket, sys, time\n"
        f"USER = {USER!r}\n"
        f"FORESEEN = {json.loads(json.dumps(FORESEEN))!r}\n"
        f"log = open({str(tmp_path / 'log')!r}, 'a', buffering=1)\n"
        "channel = socket.socket(fileno=3)\n"
        "channel.send(b'ready 0')\n"
        "def send(value):\n    channel.send(value if isinstance(value, bytes) else json.dumps(value).encode())\n"
        "while data := channel.recv(4096):\n"
        "    order = json.loads(data)\n"
        "    log.write(data.decode() + '\\n')\n" + "".join(f"    {line}\n" for line in body.splitlines())
    )
    return sys.executable, "-I", "-S", str(program)


def orders(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


FORESEEN = {**asdict(Consequence(ConsequenceKind.INTERFACE, "d0", netns="x", owner=0))}
ANSWERS = """\
if "consequences" in order:
    time.sleep(0.1)
    for name in order["consequences"]:
        send({"modules": [name], "consequence": FORESEEN})
elif "search" in order:
    time.sleep(0.1)
    send({"modules": ["overlay", "loop"], "user": USER})
else:
    for pid in order["executables"]:
        send({"pid": pid, "executable": f"/bin/{pid}"})
send({"end": True, "partial": "", "crowded": ["loop"]})
"""


async def test_looks_at_what_goes_are_of_after_the_question(tmp_path: Path) -> None:
    """One that is under way answers nobody who asks later; all who wait are answered by the next, together."""
    made = Inspector(network=tmp_path, program=scripted(tmp_path, ANSWERS))
    first = asyncio.create_task(made.consequences([M("dummy")]))
    await asyncio.sleep(0.05)
    others = await asyncio.gather(*(made.consequences([M(f"m{n}")]) for n in range(3)), first)
    row = Consequence(ConsequenceKind.INTERFACE, "d0", netns="x", owner=0)
    assert others == [{M("m0"): (row,)}, {M("m1"): (row,)}, {M("m2"): (row,)}, {M("dummy"): (row,)}]
    assert [order["consequences"] for order in orders(tmp_path)] == [["dummy"], ["m0", "m1", "m2"]]
    await made.close()


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit()",
        'send(b"{")',
        'send({"modules": ["dummy"], "consequence": {**FORESEEN, "name": 7}})',
        'send({"modules": ["dummy"], "consequence": {**FORESEEN, "kind": "moon"}})',
        'send({"modules": ["dummy"], "consequence": {**FORESEEN, "name": "\\x1b"}})',
        'send({"modules": ["dummy"], "consequence": {**FORESEEN, "up": 1}})',
        "time.sleep(60)",
    ],
)
async def test_no_answer_about_what_goes_is_not_taken_for_nothing(tmp_path: Path, body: str) -> None:
    made = Inspector(network=tmp_path, program=scripted(tmp_path, body), timeout=0.3 if "sleep" in body else 20.0)
    found = await made.consequences([M("dummy"), M("loop")])
    assert all(rows[-1].kind is ConsequenceKind.UNKNOWN and rows[-1].live for rows in found.values())
    assert set(found) == {"dummy", "loop"}
    await made.close()


def test_an_order_about_what_is_no_module_is_about_nothing(tmp_path: Path) -> None:
    order = {"consequences": ["../../etc", "", 7, None, "a/b", "x" * 100]}
    assert list(answers(order, tmp_path)) == [{"end": True, "partial": "", "crowded": []}]


async def test_one_search_answers_everybody(tmp_path: Path) -> None:
    """Two users with eight names each, and again at once: nobody is refused, and nobody waits for the other's names."""
    made = Inspector(network=tmp_path, program=scripted(tmp_path, ANSWERS))
    names = ["overlay", "loop", *(f"m{n}" for n in range(6))]
    first = await asyncio.gather(*(made.users(M(name)) for name in names * 2))
    again = [await made.users(M(name)) for name in names]
    assert first[0] == again[0] == Usage((READ,))
    assert first[1] == Usage((READ,), "it has more users than are listed", crowded=True)
    assert first[2] == Usage()
    assert orders(tmp_path) == [{"search": True}]
    await asyncio.sleep(inspector_client.KEPT + 0.05)
    await made.users(M("overlay"))
    assert len(orders(tmp_path)) == 2, "what is older is looked at again"
    await made.close()


TABLES = """\
if "tables" in order:
    send({"modules": ["xt_owner"], "user": {**USER, "kind": "rule", "name": "OUTPUT 1"}})
    send({"end": True, "partial": "", "crowded": []})
    continue
for number in 1, 2:
    send({"modules": ["xt_owner", "xt_mark"], "user": {**USER, "kind": "namespace", "name": f"n{number}"}})
send({"end": True, "partial": "", "crowded": []})
"""


@pytest.mark.parametrize("names", [kind.names for kind in KINDS])
async def test_tables_are_read_by_a_process_of_its_own_while_there_are_any(tmp_path: Path, names: str) -> None:
    made = Inspector(network=tmp_path, program=scripted(tmp_path, TABLES))
    assert [user.name for user in (await made.users(M("xt_owner"))).users] == ["n1", "n2"]
    assert orders(tmp_path) == [{"search": True}]
    (tmp_path / names).touch()
    await asyncio.sleep(inspector_client.KEPT + 0.05)
    # The namespaces that may use it, of which nothing can be seen, are listed where nothing else is known.
    assert [user.name for user in (await made.users(M("xt_owner"))).users] == ["OUTPUT 1"]
    assert [user.name for user in (await made.users(M("xt_mark"))).users] == ["n1", "n2"]
    assert sorted(map(str, orders(tmp_path)[1:])) == ["{'search': True}", "{'tables': True}"]
    await made.close()


SETS = """\
if "tables" in order:
    for number in range(RULES):
        rule = {**USER, "kind": "rule", "name": f"OUTPUT {number}", "sets": [5], "remedy": "delete-legacy-rule"}
        send({"modules": ["xt_set"], "user": rule})
    send({"end": True, "partial": "", "crowded": []})
    continue
row = {**USER, "kind": "set", "name": "hosts", "remedy": "destroy-set", "words": ["hosts"], "sets": [5], "references": 2}
send({"modules": ["ip_set_hash_ip"], "user": row})
send({"end": True, "partial": "", "crowded": []})
"""


@pytest.mark.parametrize("rules", [1, 2])
async def test_a_set_is_destroyed_after_the_rules_that_name_it_where_these_are_all(tmp_path: Path, rules: int) -> None:
    (tmp_path / "ip_tables_names").touch()
    made = Inspector(network=tmp_path, program=scripted(tmp_path, SETS.replace("RULES", str(rules))))
    *others, hosts = (await made.users(M("ip_set_hash_ip"))).users
    assert hosts.name == "hosts"
    if rules == 2:
        assert [each.name for each in others] == ["OUTPUT 0", "OUTPUT 1"]
        assert hosts.remedy is Remedy.DESTROY_SET
    else:
        assert others == []
        assert hosts.remedy is Remedy.NONE
        assert hosts.detail.endswith(", which a set of sets or something else refers to")
    assert len((await made.users(M("xt_set"))).users) == rules
    await made.close()


async def test_tables_of_bridges_are_read_while_their_module_is_loaded(tmp_path: Path) -> None:
    made = Inspector(network=tmp_path, modules=tmp_path, program=scripted(tmp_path, TABLES))
    assert [user.name for user in (await made.users(M("xt_owner"))).users] == ["n1", "n2"]
    (tmp_path / "ebtables").mkdir()
    await asyncio.sleep(inspector_client.KEPT + 0.05)
    assert [user.name for user in (await made.users(M("xt_owner"))).users] == ["OUTPUT 1"]
    await made.close()


async def test_tables_that_nobody_reads_are_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "ip_tables_names").touch()
    unit = SocketUnit(tmp_path / "socket")
    unit.program = scripted(tmp_path, ANSWERS)
    nobody = str(tmp_path / "nobody")
    made = Inspector(network=tmp_path, unit_socket=unit.path, tables_socket=nobody)
    assert await made.users(M("overlay")) == Usage((READ,), "the inspector did not answer")
    await made.close()
    unit.close()
    made = Inspector(network=tmp_path, unit_socket=nobody, tables_socket=nobody)
    assert await made.users(M("overlay")) == Usage((), "the inspector did not answer")
    await made.close()


@pytest.mark.parametrize(
    ("names", "partial"), [("", ""), ("kmodd_none\n", "the rules of iptables-legacy cannot be read")]
)
def test_an_order_about_tables_asks_the_kernel_for_those_in_use(tmp_path: Path, names: str, partial: str) -> None:
    """No kernel has a table of that name, and it says so."""
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/ip_tables_names").write_text(names)
    assert list(answers({"tables": True}, tmp_path)) == [{"end": True, "partial": partial, "crowded": []}]


@pytest.mark.parametrize(
    ("end", "remedy"),
    [
        ({"partial": "", "crowded": []}, Remedy.LOG_OUT),
        ({"partial": "the mount tables took more than 1 s", "crowded": []}, Remedy.NONE),
        ({"partial": "", "crowded": ["iscsi_tcp"]}, Remedy.NONE),
    ],
    ids=["everything", "partial", "crowded"],
)
async def test_a_logout_needs_to_know_every_user(tmp_path: Path, end: dict[str, Any], remedy: Remedy) -> None:
    """What was left out may be on the disks that it takes away."""
    user = USER | {"kind": "session", "remedy": "log-out", "words": ["iqn.2026-01.example:disk", "10.0.0.1:3260"]}
    body = f"send({{'modules': ['iscsi_tcp'], 'user': {user!r}}}); send({{'end': True}} | {end!r})"
    made = Inspector(network=tmp_path, program=scripted(tmp_path, body))
    assert [each.remedy for each in (await made.users(M("iscsi_tcp"))).users] == [remedy]
    await made.close()


async def test_a_caller_that_leaves_ends_no_search(tmp_path: Path) -> None:
    made = Inspector(network=tmp_path, program=scripted(tmp_path, ANSWERS))
    leaving, staying = asyncio.ensure_future(made.users(M("loop"))), asyncio.ensure_future(made.users(M("loop")))
    await asyncio.sleep(0.02)
    leaving.cancel()
    assert (await staying).users == (READ,)
    await made.close()


async def test_executables_are_looked_up_together_beside_a_search(tmp_path: Path) -> None:
    made = Inspector(network=tmp_path, program=scripted(tmp_path, ANSWERS))
    search = asyncio.ensure_future(made.users(M("loop")))
    found = await asyncio.gather(*(made.executable(pid) for pid in (5, 6, 7, 5)))
    assert found == ["/bin/5", "/bin/6", "/bin/7", "/bin/5"]
    assert await made.executable(0) == ""
    await search
    await made.close()
    batches = [order["executables"] for order in orders(tmp_path) if "executables" in order]
    assert batches == [[5, 6, 7]]


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(1)",
        "os.kill(os.getpid(), 9)",
        "send(b'no json')",
        "send(b'[' * 30000)",
        "send([])",
        "send({})",
        "send({'end': True})",
        "send({'end': True, 'partial': ''})",
        "send({'end': True, 'partial': 7, 'crowded': []})",
        "send({'end': True, 'partial': 'a\\x1b[2J', 'crowded': []})",
        "send({'modules': ['loop'] * 65, 'user': USER})",
        "send({'modules': ['loop'], 'user': USER | {'name': 'a\\u202eb'}})",
        "send({'modules': ['loop'], 'user': USER | {'pid': -1}})",
        "send({'modules': ['loop'], 'user': USER | {'pid': True}})",
        "send({'modules': ['loop'], 'user': USER | {'remedy': 'rm -rf /'}})",
        "send({'modules': ['loop'], 'user': USER | {'target': 'x' * 5000}})",
        "send({'modules': ['loop'], 'user': USER | {'pids': list(range(100))}})",
        "send({'modules': ['loop'], 'user': USER | {'kind': 'mo unt'}})",
        "while True: send({'modules': ['loop'], 'user': USER | {'target': 'x' * 4000}})",
        "time.sleep(60)",
    ],
)
async def test_an_answer_that_is_none_is_said_to_be_missing(tmp_path: Path, body: str) -> None:
    made = Inspector(network=tmp_path, program=scripted(tmp_path, body), timeout=0.3 if "sleep" in body else 20.0)
    usage = await made.users(M("fuse"))
    assert usage == Usage((), "the inspector did not answer")
    assert await made.executable(5) == ""
    await made.close()


async def test_what_was_answered_before_the_end_is_kept_and_said_to_be_partial(tmp_path: Path) -> None:
    body = "send({'modules': ['loop'], 'user': USER})\nsys.exit(1)"
    made = Inspector(network=tmp_path, program=scripted(tmp_path, body))
    assert await made.users(M("loop")) == Usage((READ,), "the inspector did not answer")
    await made.close()


async def test_one_that_has_ended_is_started_again(tmp_path: Path) -> None:
    made = Inspector(network=tmp_path, program=scripted(tmp_path, ANSWERS + "sys.exit(0)"))
    assert await made.executable(5) == "/bin/5"
    await asyncio.sleep(0.2)
    assert await made.executable(6) == "/bin/6"
    await made.close()


async def test_what_is_idle_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector_client, "IDLE", 0.1)
    made = Inspector(
        network=tmp_path, program=scripted(tmp_path, "log.write(json.dumps({'pid': os.getpid()}) + '\\n')\n" + ANSWERS)
    )
    await made.executable(5)
    pid = orders(tmp_path)[1]["pid"]
    await asyncio.sleep(0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await made.close()


async def test_without_a_unit_there_is_no_answer_and_no_waiting(tmp_path: Path) -> None:
    made = Inspector(unit_socket=str(tmp_path / "nobody"))
    begin = time.monotonic()
    assert (await made.users(M("loop"))).partial == "the inspector did not answer"
    assert await made.executable(os.getpid()) == ""
    assert time.monotonic() - begin < 1
    await made.close()


async def test_the_program_itself() -> None:
    made = Inspector()
    assert await made.executable(os.getpid()) == os.readlink("/proc/self/exe")  # noqa: PTH115 - as text
    usage = await made.users(M("no_such_module"))
    assert usage == Usage()
    await made.close()


def test_an_order_names_processes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "proc/5").mkdir(parents=True)
    (tmp_path / "proc/5/exe").symlink_to("/usr/bin/a\nb")
    found = list(answers({"executables": [5, "../5", -1, 6, True]}, tmp_path))
    assert found == [
        {"pid": 5, "executable": "/usr/bin/a\\x0ab"},
        {"pid": 6, "executable": ""},
        {"end": True, "partial": "", "crowded": []},
    ]
    orders: tuple[Any, ...] = ({}, [], {"search": 1.5}, {"executables": 7}, {"path": "/etc/shadow"})
    for order in orders:
        with pytest.raises(ValueError, match="no such order"):
            list(answers(order, tmp_path))


def test_a_user_is_read_as_it_was_written() -> None:
    assert read_user(USER) == READ


# --- its rights -------------------------------------------------------------------------------------------------------

BOTH = "sys_ptrace,dac_read_search"


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process of another user that has /dev/full open."""
    program = [sys.executable, "-c", "import time; f = open('/dev/full'); print('open', flush=True); time.sleep(60)"]
    with subprocess.Popen(program, user=65534, group=65534, extra_groups=[], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def asked(capabilities: str, code: str) -> str:
    """Run code of the inspector's as a user of its own with these capabilities alone."""
    words = ",".join(f"+{one}" for one in capabilities.split(",") if one)
    sets = [
        f"--bounding-set=-all,{words}".rstrip(","),
        f"--inh-caps=-all,{words}".rstrip(","),
        f"--ambient-caps=-all,{words}".rstrip(","),
    ]
    prelude = f"import sys; sys.path.insert(0, {str(INSPECTOR.parents[3])!r})\n"
    command = [*elevated(), "setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "--no-new-privs", *sets]
    done = subprocess.run(
        [*command, "/usr/bin/python3", "-I", "-S", "-c", prelude + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPENED = """
from pathlib import Path
from kmodd.kernel.users.tasks import Budget
from kmodd.kernel.users.process import OpenFiles, Processes
from kmodd.kernel.users.tasks import Tasks
from kmodd.kernel.users.tracing import Attachments, Tracing
class Owners:
    def modules(self, kind, major, minor): return frozenset({"m"} if (kind, major, minor) == ("char", 1, 7) else ())
    def is_terminal(self, major, minor): return False
class Sockets:
    def uses(self, link, target): return []
class Unmounted:
    def modules(self, number): return frozenset()
class Mounts:
    busy_devices = ()
    def held(self, number, device): return ()
budget = Budget()
attachments = Attachments(Tracing(Path("/"), budget), {"m": 1})
files = OpenFiles(Path("/"), Owners(), Sockets(), Unmounted(), Mounts(), {"m": 1}, lambda _: (), attachments, budget)
print(*(user.pid for _, user in Processes(Tasks(Path("/"), budget), files, {}, budget).open()))
"""


@pytest.mark.parametrize(
    ("capabilities", "seen"), [(BOTH, True), ("sys_ptrace", False), ("dac_read_search", False), ("", False)]
)
def test_each_of_its_capabilities_is_necessary(stranger: int, capabilities: str, seen: bool) -> None:
    assert (str(stranger) in asked(capabilities, OPENED).split()) is seen


RULES = """
from kmodd.kernel.users.netfilter import firewall
try:
    firewall(lambda: True)
except PermissionError:
    print("refused")
except OSError:
    pass  # a kernel without nf_tables
"""


@pytest.mark.parametrize(("capabilities", "answer"), [(f"{BOTH},net_admin", ""), (BOTH, "refused")])
def test_rules_of_netfilter_are_dumped_to_who_administers_the_network(capabilities: str, answer: str) -> None:
    assert asked(capabilities, RULES) == answer


@pytest.fixture
def networked() -> Iterator[int]:
    """A process of root's in a network namespace of its own."""
    command = [*elevated(), "unshare", "--net", "sh", "-c", "echo there; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


NETWORKED = """
from pathlib import Path
from kmodd.kernel.modules.alias_text import AliasText
from kmodd.kernel.users.consequences import Consequences
from kmodd.kernel.users.tasks import Budget
print(*(f"{row.kind}: {row.detail}" for _, row in Consequences(Path("/"), ["tun"], AliasText(Path("/"), "none"), Budget()).search()))
"""


@pytest.mark.parametrize(
    ("capabilities", "listed"),
    [(f"{BOTH},net_admin", True), (BOTH, False), ("dac_read_search,net_admin", False), ("", False)],
)
def test_interfaces_of_other_namespaces_are_listed_or_said_to_be_unknown(
    networked: int, capabilities: str, listed: bool
) -> None:
    assert ("unknown: the " in asked(capabilities, NETWORKED)) is not listed


def test_with_them_it_cannot_write_into_a_process(stranger: int) -> None:
    """As root it could, with CAP_SYS_PTRACE alone; as a user of its own, the files in /proc are not its to write."""
    code = f"""
import os
for path in ("/proc/{stranger}/mem", "/proc/1/mem", "/proc/{stranger}/oom_score_adj"):
    try:
        os.close(os.open(path, os.O_WRONLY))
        print("open", path)
    except PermissionError:
        pass
"""
    assert asked(f"{BOTH},net_admin", code) == ""


async def test_inspector_that_systemd_starts_for_a_connection(tmp_path: Path) -> None:
    unit = SocketUnit(tmp_path / "socket")
    unit.program = (sys.executable, "-I", "-S", str(INSPECTOR))
    made = Inspector(unit_socket=unit.path)
    assert await made.executable(os.getpid()) == os.readlink("/proc/self/exe")  # noqa: PTH115 - as text
    assert await made.users(M("no_such_module")) == Usage()
    assert len(unit.started) == 2, "one for searches, one for executables"
    await made.close()
    unit.close()
