# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tables of ebtables-legacy: their rules by number, and which namespaces are queried for them. The real kernel's are in
tests/system/test_users_programs.py.
"""

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.kernel.users.ebtables import (
    bridge_rules,
    bridge_users,
    read_bridge_table,
    tables_elsewhere,
    tables_in_use,
)
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy


def extension(name: str, data: bytes = bytes(8)) -> bytes:
    return struct.pack("@31sBI4x", name.encode(), 0, len(data)) + data


def rule(*matches: str, watcher: str = "", target: str = "standard") -> bytes:
    before = b"".join(map(extension, matches))
    watching = extension(watcher) if watcher else b""
    parts = [112 + len(before), 112 + len(before + watching), 112 + len(before + watching + extension(target))]
    return struct.pack("@II2x64s24x3I", 1, 0, b"eth0", *parts) + before + watching + extension(target)


def chain(name: str, *rules: bytes) -> bytes:
    return struct.pack("@I32sIiI", 0, name.encode(), 0, -1, len(rules)) + b"".join(rules)


TABLE = b"".join(
    (
        chain("INPUT", rule("ip"), rule("limit", watcher="log"), rule("ip", target="mark")),
        chain("FORWARD"),
        chain("mine", rule("ip")),
    )
)


def test_rules_are_numbered_as_their_program_does() -> None:
    assert [(each.chain, each.number, each.extensions) for each in bridge_rules("filter", TABLE)] == [
        ("INPUT", 1, ("ip",)),
        ("INPUT", 2, ("limit", "log")),
        ("INPUT", 3, ("ip", "mark")),
        ("mine", 1, ("ip",)),
    ]


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    st.one_of(st.none(), st.integers(0, 2000)),
)
def test_whatever_stands_there_is_read_or_refused(changes: list[tuple[int, int]], length: int | None) -> None:
    changed = bytearray(TABLE)
    for place, value in changes:
        changed[place % len(changed)] = value
    try:
        count = len(list(bridge_rules("filter", bytes(changed[:length]))))
    except OSError:
        return
    assert count <= len(TABLE) // 112


def test_a_table_with_rules_is_emptied_and_the_last_rule_deleted_first() -> None:
    loaded = {"ebtable_filter": 1, "ebt_ip": 3}
    found = list(bridge_users(("filter",), loaded, lambda _: (), lambda _: (4, TABLE), Budget()))
    assert [(sorted(modules), user.remedy, user.words[2:]) for modules, user in found] == [
        (["ebt_ip"], Remedy.DELETE_LEGACY_RULE, ("mine", "1")),
        (["ebt_ip"], Remedy.DELETE_LEGACY_RULE, ("INPUT", "3")),
        (["ebt_ip"], Remedy.DELETE_LEGACY_RULE, ("INPUT", "1")),
        (["ebtable_filter"], Remedy.FLUSH_LEGACY_TABLE, ()),
    ]


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        ({"ebt_limit": 1, "xt_limit": 1}, {"ebt_limit"}),
        ({"xt_limit": 1, "ebt_mark": 1, "xt_mark": 1}, {"xt_limit", "ebt_mark"}),
    ],
)
def test_an_extension_for_all_families_is_of_no_rule_where_the_bridge_has_its_own(
    loaded: dict[str, int], expected: set[str]
) -> None:
    """What iptables-nft holds is not deleted from ebtables."""
    found = bridge_users(("filter",), loaded, lambda _: (), lambda _: (4, TABLE), Budget())
    assert {module for modules, _ in found for module in modules} == expected


def test_a_table_that_cannot_be_read_is_said_to_be_missing() -> None:
    def refuse(_: str) -> tuple[int, bytes]:
        raise PermissionError

    budget = Budget()
    assert list(bridge_users(("filter",), {}, lambda _: (), refuse, budget)) == []
    assert budget.partial == "the rules of ebtables-legacy cannot be read"


@pytest.mark.parametrize(
    ("references", "here", "elsewhere"),
    [(0, 0, ()), (1, 4, ()), (2, 4, ("filter",)), (1, 0, ("filter",))],
    ids=["empty everywhere", "here alone", "here and elsewhere", "elsewhere alone"],
)
def test_other_namespaces_are_queried_where_the_table_here_does_not_explain_every_reference(
    references: int, here: int, elsewhere: tuple[str, ...]
) -> None:
    """The question makes a table in a namespace that has none."""
    loaded = {"ebtable_filter": references, "ebtables": 1}
    assert tables_in_use(loaded) == (("filter",) if references else ())
    assert tables_elsewhere(loaded, lambda _: (here, TABLE if here else b"")) == elsewhere


def test_a_kernel_without_the_table_refuses() -> None:
    """It says that there is none of this name or, without CAP_NET_ADMIN or ebtables, nothing about tables at all."""
    with pytest.raises(OSError, match=r".") as refused:
        read_bridge_table("kmodd_none")
    assert refused.value.errno in {errno.ENOENT, errno.ENOPROTOOPT, errno.EPERM}
