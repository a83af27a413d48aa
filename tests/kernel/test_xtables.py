# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tables of iptables-legacy and its like, as Linux 6.18 answered them, and as this kernel does."""

import errno
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.kernel.users.tasks import Budget
from kmodd.kernel.users.xtables import KINDS, Kind, LegacyRule, legacy_users, rules_of
from kmodd.model import Remedy, User
from tests.kernel.usage_root import ALIASES

RECORDED: dict[str, list[str]] = json.loads(Path(__file__).with_name("xtables.json").read_text())
"""Of `iptables-legacy -A INPUT -p tcp --dport 80 -m comment --comment hi -j ACCEPT; iptables-legacy -N user; iptables-legacy -A
user -m conntrack --ctstate NEW -j DROP; iptables-legacy -A user -m comment --comment y; iptables-legacy -A FORWARD -j user;
iptables-legacy -A OUTPUT -j LOG; ip6tables-legacy -A OUTPUT -m comment --comment x -j ACCEPT; arptables-legacy -A INPUT -j DROP;
arptables-legacy -A OUTPUT -j CLASSIFY --set-class 1:2; arptables-legacy -A OUTPUT -j mangle --mangle-ip-s 1.2.3.4`."""
PROGRAMS = {kind.program: kind for kind in KINDS}


def recorded(kind: Kind) -> tuple[bytes, bytes]:
    information, entries = RECORDED[f"{kind.program} filter"]
    return bytes.fromhex(information), bytes.fromhex(entries)


def rules(program: str) -> list[LegacyRule]:
    kind = PROGRAMS[program]
    return [rule for rule in rules_of(kind, "filter", *recorded(kind)) if rule.extensions]


def test_rules_are_numbered_as_their_program_does() -> None:
    assert [(rule.chain, rule.number, rule.extensions) for rule in rules("iptables-legacy")] == [
        ("INPUT", 1, ("tcp", "comment")),
        ("OUTPUT", 1, ("LOG",)),
        ("user", 1, ("conntrack",)),
        ("user", 2, ("comment",)),
    ]
    assert [(rule.chain, rule.number, rule.extensions) for rule in rules("ip6tables-legacy")] == [
        ("OUTPUT", 1, ("comment",))
    ]
    assert [(rule.chain, rule.number, rule.extensions) for rule in rules("arptables-legacy")] == [
        ("OUTPUT", 1, ("CLASSIFY",)),
        ("OUTPUT", 2, ("mangle",)),
    ]


@settings(max_examples=400)
@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    st.one_of(st.none(), st.integers(0, 4000)),
)
def test_whatever_stands_there_is_read_or_refused(
    kind: Kind, changes: list[tuple[int, int]], length: int | None
) -> None:
    information, entries = recorded(kind)
    changed = bytearray(entries)
    for place, value in changes:
        changed[place % len(changed)] = value
    try:
        count = len(list(rules_of(kind, "filter", information, bytes(changed[:length]))))
    except OSError:
        return
    assert count <= len(entries) // kind.matches


FILTER = ("iptables-legacy", "filter")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/ip_tables_names").write_text("filter\n")
    return tmp_path


def found(
    root: Path,
    module: str,
    answers: dict[tuple[str, str], tuple[bytes, bytes]] | None = None,
    budget: Budget | None = None,
) -> list[User]:
    """The users of a module that is loaded, where the kernel answers this about tables: the recorded one, unless told."""
    tables = {FILTER: recorded(PROGRAMS["iptables-legacy"])} if answers is None else answers
    users = legacy_users(
        root,
        {module},
        lambda alias: ALIASES.get(alias, ()),
        lambda kind, table: tables[kind.program, table],
        budget or Budget(),
    )
    return [user for modules, user in users if module in modules]


def test_the_last_rule_of_a_chain_is_deleted_first(root: Path) -> None:
    assert [(user.remedy, user.words) for user in found(root, "xt_comment")] == [
        (Remedy.DELETE_LEGACY_RULE, ("iptables-legacy", "filter", "user", "2")),
        (Remedy.DELETE_LEGACY_RULE, ("iptables-legacy", "filter", "INPUT", "1")),
    ]
    assert [user.detail for user in found(root, "xt_conntrack")] == ["conntrack"]


def test_a_table_with_rules_holds_its_module(root: Path) -> None:
    users = found(root, "iptable_filter")
    assert [(user.remedy, user.words) for user in users] == [
        (Remedy.FLUSH_LEGACY_TABLE, ("iptables-legacy", "filter")),
        (Remedy.DELETE_LEGACY_CHAIN, ("iptables-legacy", "filter", "user")),
    ]
    assert users[0].detail == "5 rules, which go with it"


def test_a_table_that_is_not_in_use_is_not_asked_for(root: Path) -> None:
    """The question would make one."""
    (root / "proc/net/ip_tables_names").write_text("")
    assert found(root, "xt_comment", {}) == []


def test_a_table_that_cannot_be_read_is_said_to_be_missing(root: Path) -> None:
    budget = Budget()
    assert found(root, "xt_comment", {FILTER: (b"", b"")}, budget) == []
    assert budget.partial == "the rules of iptables-legacy cannot be read"


def test_this_kernel_is_understood() -> None:
    """As root, in a network namespace of its own, where the question makes an empty table; a kernel may have none."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from kmodd.kernel.users.xtables import KINDS, read_table, rules_of\n"
        "for kind in KINDS:\n"
        "    try: print(list(rules_of(kind, 'filter', *read_table(kind, 'filter'))))\n"
        "    except OSError as error: print(error.errno)"
    )
    command = ["unshare", "--net", "/usr/bin/python3", "-c", code, str(Path(__file__).parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert len(lines := done.stdout.splitlines()) == len(KINDS)
    assert set(lines) <= {"[]", str(errno.ENOPROTOOPT), str(errno.ENOENT)}


def test_without_the_right_the_kernel_refuses() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from kmodd.kernel.users.xtables import KINDS, read_table\n"
        "try: read_table(KINDS[0], 'filter')\n"
        "except OSError as error: print(error.errno)"
    )
    command = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "--inh-caps=-all"]
    done = subprocess.run(
        [*command, "/usr/bin/python3", "-c", code, str(Path(__file__).parents[2])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) in [(str(errno.EPERM), ""), (str(errno.ENOPROTOOPT), "")]
