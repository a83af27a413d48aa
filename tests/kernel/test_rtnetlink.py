# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dump of links, built here as the kernel builds it."""

import errno
import struct
from pathlib import Path

import pytest

from kmodd.kernel.rtnetlink import link_kinds, read_links

NEWLINK, ERROR, DONE = 16, 2, 3


def attribute(number: int, value: bytes) -> bytes:
    padded = value + bytes(-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), number) + padded


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body + bytes(-len(body) % 4)


def link(name: str, kind: str | None) -> bytes:
    info = b"" if kind is None else attribute(18 | 0x8000, attribute(1, kind.encode() + b"\0") + attribute(2, b"data"))
    return message(NEWLINK, bytes(16) + attribute(3, name.encode() + b"\0") + attribute(4, bytes(4)) + info)


def test_kinds_by_interface_over_several_datagrams() -> None:
    kinds: dict[str, str] = {}
    assert not read_links(link("lo", None) + link("dummy0", "dummy"), kinds)
    assert not read_links(link("br-lan", "bridge"), kinds)
    assert read_links(message(DONE, bytes(4)), kinds)
    assert kinds == {"dummy0": "dummy", "br-lan": "bridge"}


def test_refusal_is_the_kernels_errno() -> None:
    with pytest.raises(PermissionError):
        read_links(message(ERROR, struct.pack("=i", -errno.EPERM) + bytes(16)), {})


@pytest.mark.parametrize("length", range(17, len(link("dummy0", "dummy"))))
def test_cut_off_datagram_is_an_error_and_no_crash(length: int) -> None:
    with pytest.raises(OSError, match="cut off"):
        read_links(link("dummy0", "dummy")[:length], {})


def test_attribute_longer_than_its_message_ends_the_reading() -> None:
    kinds: dict[str, str] = {}
    body = bytes(16) + attribute(3, b"x\0") + struct.pack("=HH", 400, 18) + b"abcd"
    assert not read_links(message(NEWLINK, body), kinds)
    assert not read_links(message(NEWLINK, bytes(16) + struct.pack("=HH", 0, 3)), kinds)
    assert kinds == {}


def test_this_machines_interfaces_are_dumped() -> None:
    assert set(link_kinds()) <= {path.name for path in Path("/sys/class/net").iterdir()}
