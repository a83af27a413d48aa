# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dump of links, built here as the kernel builds it."""

import errno
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.kernel.users.netlink import check, frames
from kmodd.kernel.users.rtnetlink import (
    Action,
    Filter,
    Link,
    Qdisc,
    Rtnetlink,
    classid,
    link_kinds,
    read_actions,
    read_filter,
    read_link,
    read_qdisc,
)

NEWLINK, ERROR, DONE = 16, 2, 3


def attribute(number: int, value: bytes) -> bytes:
    padded = value + bytes(-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), number) + padded


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body + bytes(-len(body) % 4)


def link(name: str, kind: str | None) -> bytes:
    info = b"" if kind is None else attribute(18 | 0x8000, attribute(1, kind.encode() + b"\0") + attribute(2, b"data"))
    return message(NEWLINK, bytes(16) + attribute(3, name.encode() + b"\0") + attribute(4, bytes(4)) + info)


def kinds(data: bytes) -> dict[str, str]:
    links = [read_link(body) for kind, _, _, body in frames(data) if kind == NEWLINK]
    return {link.name: link.kind for link in links if link.name and link.kind}


def test_kinds_by_interface() -> None:
    data = link("lo", None) + link("dummy0", "dummy") + link("br-lan", "bridge") + message(DONE, bytes(4))
    assert kinds(data) == {"dummy0": "dummy", "br-lan": "bridge"}


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_refusal_is_the_kernels_errno(kind: int) -> None:
    """A dump that fails half-way says so in its last message."""
    with pytest.raises(PermissionError):
        check(kind, struct.pack("=i", -errno.EPERM) + bytes(16))


@pytest.mark.parametrize("length", range(17, len(link("dummy0", "dummy"))))
def test_cut_off_datagram_is_an_error_and_no_crash(length: int) -> None:
    with pytest.raises(OSError, match="cut off"):
        kinds(link("dummy0", "dummy")[:length])


def test_attribute_longer_than_its_message_ends_the_reading() -> None:
    body = bytes(16) + attribute(3, b"x\0") + struct.pack("=HH", 400, 18) + b"abcd"
    assert kinds(message(NEWLINK, body)) == {}
    assert kinds(message(NEWLINK, bytes(16) + struct.pack("=HH", 0, 3))) == {}


def test_this_machines_interfaces_are_dumped() -> None:
    assert set(link_kinds()) <= {path.name for path in Path("/sys/class/net").iterdir()}


# --- traffic control, as Linux 6.18 dumped what tc had set up on lo ---------------------------------------------------

TRAFFIC: dict[str, list[str]] = json.loads(Path(__file__).with_name("traffic_control.json").read_text())


def bodies(sort: str) -> list[bytes]:
    return [bytes.fromhex(text) for text in TRAFFIC[sort]]


def test_qdiscs_with_their_places() -> None:
    qdiscs = [read_qdisc(body, {1: "lo"}.__getitem__) for body in bodies("qdiscs")]
    assert qdiscs == [
        Qdisc("lo", "htb", 0x10000, 0xFFFFFFFF),
        Qdisc("lo", "tbf", 0x200000, 0x10010),
        Qdisc("lo", "clsact", 0xFFFF0000, 0xFFFFFFF1),
    ]
    assert [qdisc.place for qdisc in qdiscs if qdisc] == [("root",), ("parent", "1:10"), ("clsact",)]


def test_filters_with_their_actions() -> None:
    filters = {read_filter(body, "lo") for body in bodies("filters")}
    with_action = frozenset({"mirred"})
    assert filters == {
        Filter("lo", "u32", ("parent", "1:"), 3, 0, frozenset()),
        Filter("lo", "u32", ("parent", "1:"), 3, 0, with_action),
        Filter("lo", "u32", ("egress",), 5, 7, frozenset()),
        Filter("lo", "u32", ("egress",), 5, 7, with_action),
    }


def test_actions_of_filters_are_not_listed_with_those_that_stand_alone() -> None:
    assert [action for body in bodies("actions") for action in read_actions("mirred", body)] == [Action("mirred", 9)]


@pytest.mark.parametrize(("number", "shown"), [(0x10000, "1:"), (0x10010, "1:10"), (1, ":1"), (0x80010000, "8001:")])
def test_handle_as_tc_writes_it(number: int, shown: str) -> None:
    assert classid(number) == shown


@given(
    st.sampled_from([body for sort in TRAFFIC for body in bodies(sort)]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    st.integers(0, 500),
)
@settings(max_examples=500)
def test_whatever_stands_there_is_read_or_passed_over(body: bytes, changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(body)
    for position, value in changes:
        data[position % len(data)] = value
    for cut in (bytes(data), bytes(data[:length])):
        read_qdisc(cut, str)
        read_filter(cut, "lo")
        list(read_actions("mirred", cut))


def body(*attributes: bytes, index: int = 7, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"".join(attributes)


def number(value: int) -> bytes:
    return struct.pack("=i", value)


def test_an_interface_with_all_that_is_read_of_it() -> None:
    found = read_link(
        body(
            attribute(3, b"eth0\0"),
            attribute(5, number(3)),
            attribute(10, number(9)),
            attribute(56, b"virtio1\0"),
            attribute(57, b"virtio\0"),
            flags=1,
        )
    )
    assert found == Link(7, "eth0", up=True, master=9, lower=3, bus="virtio", device="virtio1")


def test_an_interface_below_in_another_namespace_is_not_below_it() -> None:
    assert read_link(body(attribute(3, b"v0\0"), attribute(5, number(3)), attribute(37, number(0)))).lower == 0
    assert read_link(body(attribute(3, b"lo\0"), attribute(5, number(7)))).lower == 0, "it is the one below itself"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(OSError):
        assert read_link(data).index >= -(1 << 31)


@pytest.fixture
def rtnetlink() -> Iterator[Rtnetlink]:
    made = Rtnetlink()
    yield made
    made.close()


def test_this_machines_interfaces_are_listed(rtnetlink: Rtnetlink) -> None:
    links = {link.name: link for link in rtnetlink.links()}
    assert set(links) == {path.name for path in Path("/sys/class/net").iterdir() if path.is_symlink()}
    assert set(rtnetlink.addresses()) <= {link.index for link in links.values()}
    assert rtnetlink.default_routes() <= {link.index for link in links.values()}


def test_another_namespace_is_listed_without_being_entered(rtnetlink: Rtnetlink) -> None:
    """As root: a process in a namespace of its own, which has nothing but its loopback device."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo there; exec sleep 60"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        opened = os.open(f"/proc/{other.pid}/ns/net", os.O_RDONLY)
        try:
            number = rtnetlink.namespace_id(opened)
            assert rtnetlink.namespace_id(opened) == number, "it keeps its id"
            assert [link.name for link in rtnetlink.links(number)] == ["lo"]
        finally:
            os.close(opened)
            other.kill()
    assert len(rtnetlink.links()) >= 1


def test_a_namespace_with_an_unknown_id_is_an_error(rtnetlink: Rtnetlink) -> None:
    """The kernel says so at the end of a dump without interfaces."""
    with pytest.raises(OSError) as found:  # noqa: PT011 - its errno is looked at
        rtnetlink.links(4711)
    assert found.value.errno == errno.EINVAL


class Wire:
    """A socket that answers each request with the next of these lists of messages."""

    def __init__(self, *answers: list[tuple[int, int, bytes]]) -> None:
        self._answers = list(answers)
        self.asked = 0

    def sendto(self, data: bytes, _: object) -> None:
        self.asked += 1

    def recvfrom(self, _: int) -> tuple[bytes, tuple[int, int]]:
        messages = self._answers.pop(0)
        packed = (
            struct.pack("=IHHII", 16 + len(text), kind, flags, self.asked, 0) + text for kind, flags, text in messages
        )
        return b"".join(packed), (0, 0)

    def close(self) -> None:
        pass


DONE_WELL = (DONE, 2, bytes(4))


def test_a_dump_that_changed_meanwhile_is_requested_again(rtnetlink: Rtnetlink) -> None:
    rtnetlink.close()
    interrupted = [(NEWLINK, 0x12, body(index=1)), DONE_WELL]
    wire = Wire(interrupted, interrupted, [(NEWLINK, 2, body(index=2)), DONE_WELL], *[interrupted] * 9)
    rtnetlink._socket = wire  # type: ignore[assignment]
    assert [link.index for link in rtnetlink.links()] == [2]
    with pytest.raises(OSError, match="changes"):
        rtnetlink.links()
