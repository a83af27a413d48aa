# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dumps of nf_tables and ipset, as Linux 6.18 made them of what nft, iptables-nft and ipset had set up."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.kernel.users import netfilter as nftables
from kmodd.kernel.users.netfilter import Expression, IpSet, Item
from kmodd.kernel.users.netlink import HEADER, attribute, attributes

RECORDED: dict[str, list[str]] = json.loads(Path(__file__).with_name("nftables.json").read_text())
READERS: dict[str, Callable[[bytes], object]] = {
    "tables": nftables.read_table,
    "chains": nftables.read_chain,
    "rules": nftables.read_rule,
    "sets": nftables.read_set,
    "objects": nftables.read_object,
    "flowtables": nftables.read_flowtable,
    "ipset": nftables.read_ip_set,
}
MESSAGES = [(name, bytes.fromhex(text)) for name, texts in RECORDED.items() for text in texts]


def recorded(sort: str) -> list[bytes]:
    return [bytes.fromhex(text) for text in RECORDED[sort]]


def test_rules_with_their_expressions() -> None:
    rules = [rule for body in recorded("rules") if (rule := nftables.read_rule(body))]
    shown = [
        (
            nftables.FAMILIES[rule.family],
            rule.table,
            rule.chain,
            rule.handle,
            ",".join(e.name for e in rule.expressions),
        )
        for rule in rules
    ]
    assert shown == [
        ("inet", "t", "c", 8, "ct,bitwise,cmp,immediate"),
        ("inet", "t", "c", 9, "limit,immediate"),
        ("inet", "t", "c", 10, "meta,cmp,payload,lookup,immediate"),
        ("inet", "t", "c", 12, "meta,cmp,payload,lookup,immediate"),
        ("inet", "t", "c", 13, "objref"),
        ("inet", "t", "c", 14, "objref"),
        ("inet", "t", "c", 15, "ct,bitwise,cmp,log"),
        ("inet", "t", "c", 16, "log"),
        ("inet", "t", "c", 17, "meta,cmp,payload,cmp,reject"),
        ("inet", "t", "d", 18, "meta,cmp,payload,dynset"),
        ("ip", "n", "post", 2, "meta,cmp,masq"),
        ("ip", "filter", "OUTPUT", 2, "match,counter,immediate"),
    ]
    references = {rule.handle: each.references for rule in rules for each in rule.expressions if each.references}
    assert references == {10: ("named",), 12: ("__set0",), 13: ("slow",), 14: ("hits",), 18: ("grown",)}
    assert [each.group for rule in rules for each in rule.expressions if each.name == "log"] == [False, True]
    assert rules[9].expressions[-1] == Expression("dynset", references=("grown",), inner=(Expression("limit"),))
    assert rules[-1].expressions[0] == Expression("match", extension="owner")


def test_tables_chains_sets_and_objects() -> None:
    assert [nftables.read_table(body) for body in recorded("tables")] == [
        Item(1, "t", "t"),
        Item(2, "n", "n"),
        Item(2, "filter", "filter"),
    ]
    assert [nftables.read_chain(body) for body in recorded("chains")] == [
        Item(1, "t", "c", type="filter"),
        None,  # no base chain
        Item(2, "n", "post", type="nat"),
        Item(2, "filter", "OUTPUT", type="filter"),
    ]
    assert [nftables.read_set(body) for body in recorded("sets")] == [
        Item(1, "t", "grown"),
        Item(1, "t", "named", expressions=(Expression("limit"),)),
        None,  # ends with its rule
    ]
    assert [nftables.read_object(body) for body in recorded("objects")] == [
        Item(1, "t", "slow", number=4),
        Item(1, "t", "h", number=3, helper="ftp"),
        Item(1, "t", "hits", number=1),
    ]
    assert [nftables.read_ip_set(body) for body in recorded("ipset")] == [IpSet("hosts", "hash:ip")]


@given(
    st.sampled_from(MESSAGES),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    st.integers(0, 2000),
)
@settings(max_examples=500)
def test_whatever_stands_there_is_read_or_passed_over(
    message: tuple[str, bytes], changes: list[tuple[int, int]], length: int
) -> None:
    name, body = message
    data = bytearray(body)
    for position, value in changes:
        data[position % len(data)] = value
    for cut in (bytes(data), bytes(data[:length])):
        READERS[name](cut)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_an_empty_message_is_passed_over(read: Callable[[bytes], object]) -> None:
    assert read(b"") is None
    assert read(b"\xff\0\0\0") is None


def test_expressions_in_expressions_end() -> None:
    """A rule of expressions that hold expressions without an end costs no more than its size."""

    def nested(depth: int) -> bytes:
        inner = nested(depth - 1) if depth else b""
        data = attribute(10, attribute(1, inner, nested=True), nested=True)
        return attribute(1, b"dynset\0") + attribute(2, data, nested=True)

    body = b"\1\0\0\0" + attribute(4, attribute(1, nested(40), nested=True), nested=True)
    rule = nftables.read_rule(body)
    assert rule is not None
    assert [len(each.inner) for each in rule.expressions] == [1]
    assert len(list(attributes(body[4:]))) == 1


@pytest.mark.parametrize("flags", [0, 0x10])
def test_a_dump_that_was_interrupted_is_not_taken_for_whole(monkeypatch: pytest.MonkeyPatch, flags: int) -> None:
    """NLM_F_DUMP_INTR: the kernel may have left something out (nl_dump_check_consistent in net/netlink.h)."""

    class Channel(socket.socket):
        def sendto(self, *_: Any) -> int:
            return 0

        def recvfrom(self, *_: Any) -> tuple[bytes, Any]:
            table = bytes([2, 0, 0, 0]) + attribute(1, b"t\0")
            frames = [(0x0A00, table), (3, bytes(4))]
            return b"".join(HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body for kind, body in frames), (
                0,
                0,
            )

    monkeypatch.setattr(socket, "socket", Channel)
    read = nftables.firewall(lambda: True)
    assert [table.name for table in read.tables] == ["t"]
    assert read.changed == bool(flags)


def test_a_message_that_is_not_the_kernels_ends_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who administers a network namespace may send to each socket in it, without an end."""

    class Channel(socket.socket):
        def sendto(self, *_: Any) -> int:
            return 0

        def recvfrom(self, *_: Any) -> tuple[bytes, Any]:
            return b"", (4711, 0)

    monkeypatch.setattr(socket, "socket", Channel)
    with pytest.raises(OSError, match="not the kernel's"):
        nftables.firewall(lambda: True)
