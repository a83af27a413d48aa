# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of the kernel log. A packet pipe gives one record per read, as /dev/kmsg does."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.kernel.proc.kmsg import LINES_MAX, Kmsg, KmsgMark, parse, without_addresses


@pytest.fixture
def log() -> Iterator[tuple[KmsgMark, int]]:
    read, write = os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
    mark = KmsgMark(read)
    yield mark, write
    mark.close()
    os.close(write)


@pytest.mark.parametrize(
    ("record", "lines"),
    [
        (b"6,339,5140900,-;NET: Registered protocol family 10\n", ["NET: Registered protocol family 10"]),
        (b"4,1,2,-,caller=T1;dummy: bad\n SUBSYSTEM=net\n DEVICE=n2\n", ["dummy: bad"]),
        (b"6,1,2,c;continued\n", ["continued"]),
        (b"3,1,2,-;semi;colons; stay\n", ["semi;colons; stay"]),
        (b"6,1,2,-;two\\x0alines\n", ["two", "lines"]),
        (b"6,1,2,-;bell \\x07 and \\x1b[31m\n", ["bell \\x07 and \\x1b[31m"]),
        (b"6,1,2,-;back\\x5cslash caf\\xc3\\xa9\n", ["back\\slash café"]),
        (b"6,1,2,-;bidi \\xe2\\x80\\xae!\n", ["bidi \\u202e!"]),
        (b"6,1,2,-;raw \x1b\n", ["raw \\x1b"]),
        (b"6,1,2,-;broken \\xff\n", ["broken \ufffd"]),
        (b"6,1,2,-;\n", []),
        (b"30,1,2,-;systemd[1]: user space wrote this\n", []),
        (b"12,1,2,-;and this\n", []),
        (b"no record at all", []),
        (b"x,1,2,-;no priority\n", []),
        (b"", []),
    ],
)
def test_record_becomes_lines_safe_to_show(record: bytes, lines: list[str]) -> None:
    assert parse(record) == lines


def test_long_line_is_cut() -> None:
    [line] = parse(b"6,1,2,-;" + b"x" * 5000)
    assert len(line) == 1024
    assert line.endswith("x…")


def test_lines_are_those_since_the_mark_and_stay(log: tuple[KmsgMark, int]) -> None:
    mark, write = log
    assert mark.lines() == ()
    os.write(write, b"6,1,1,-;one\n")
    os.write(write, b"6,2,2,-;two\n")
    assert mark.lines() == ("one", "two")
    os.write(write, b"6,3,3,-;three\n")
    assert mark.lines() == ("one", "two", "three")
    mark.close()
    mark.close()
    assert mark.lines() == ("one", "two", "three")


def test_first_two_hundred_lines_are_kept() -> None:
    numbers = iter(range(1000))
    mark = KmsgMark(0, lambda _file, _size: b"6,1,1,-;line %d\\x0aand more\n" % next(numbers))
    lines = mark.lines()
    assert len(lines) == LINES_MAX
    assert lines[:3] == ("line 0", "and more", "line 1")


def test_flood_from_user_space_ends() -> None:
    mark = KmsgMark(0, lambda _file, _size: b"12,1,1,-;noise\n")
    assert mark.lines() == ()


def test_overwritten_records_are_passed_over() -> None:
    script: list[bytes | OSError] = [
        b"6,1,1,-;before\n",
        BrokenPipeError(errno.EPIPE, "overwritten"),
        InterruptedError(errno.EINTR, "again"),
        b"6,9,9,-;after\n",
        BlockingIOError(errno.EAGAIN, "no more"),
        b"6,10,10,-;not yet\n",
    ]

    def read(_file: int, _size: int) -> bytes:
        step = script.pop(0)
        if isinstance(step, OSError):
            raise step
        return step

    assert KmsgMark(0, read).lines() == ("before", "after")


def test_log_that_cannot_be_opened_has_no_lines(tmp_path: Path) -> None:
    mark = Kmsg(tmp_path / "kmsg").mark()
    assert mark.lines() == ()
    mark.close()


def test_device_that_has_no_end_has_no_lines(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts itself alike both times
    assert Kmsg(tmp_path / "kmsg").mark().lines() == ()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


def test_mark_starts_at_the_end(tmp_path: Path) -> None:
    device = tmp_path / "kmsg"
    device.write_bytes(b"6,1,1,-;old\n")
    mark = Kmsg(device).mark()
    with device.open("ab") as log:
        log.write(b"6,2,2,-;new\n")
    assert mark.lines() == ("new",)
    mark.close()


# --- kernel addresses --------------------------------------------------------------------------------------------------

OOPS = """\
BUG: unable to handle page fault for address: ffffa8c0c05cfc78
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 100000067 P4D 1000067 PUD 100 PMD 0
Oops: 0002 [#1] PREEMPT SMP PTI
CPU: 0 PID: 1234 Comm: python3 Tainted: G           OE      6.1.0-31-amd64 #1  Debian 6.1.128-1
RIP: 0010:oops_init+0xd/0x1000 [kmodd_test_init_oops]
Code: Unable to access opcode bytes at 0xffffffffc0a8cfe3.
Code: 48 c7 c7 24 a0 a8 c0 e8 00 00 00 00 <c6> 04 25
RSP: 0018:ffffb2a8c05cfc78 EFLAGS: 00010246
RAX: 0000000000000000 RBX: ffff8b2a12345678 RCX: 0000000000000027
R10: 0000000000000001 R11: ffffffff9d4d2628 R12: ffffffffc0a8d000
FS:  00007f1c2ab5c040(0000) GS:ffff8b2a3ec00000(0000) knlGS:0000000000000000
CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
CR2: ffffffffc0a8cfe3 CR3: 0000000003f22000 CR4: 00000000000006f0
 do_one_initcall+0x56/0x220
 ? __die_body.cold+0x1a/0x1f
RIP: 0033:0x7f5f2a31f5f9
Unable to handle kernel paging request at virtual address c0a8d000
user pgtable: 4k pages, 48-bit VAs, pgdp=00000000418b6000
[c0a8d000] *pgd=41805811, *pte=00000000
pc : oops_init+0x14/0x1000 [kmodd_test_init_oops]
sp : ffff80000a2d3b20
x29: ffff80000a2d3b20 x28: 0000000000000000 x27: ffff0000c1234567
r7 : 81234567  r6 : c0f00000  r5 : 00000000
Process insmod (pid: 77, stack limit = 0x41234567)
foo: my state at 0xffff888012345678, ptrffff888012345678x 18446612682343475832"""
ADDRESS = re.compile(
    r"(?i)ffff[0-9a-f]{8}|\b(?:0x)?[0-9a-f]{9,}\b|\b0x[0-9a-f]{8,}|\bc0[0-9a-f]{6}\b|\b81234567\b|41805811"
)
NAMES = ("oops_init+0xd/0x1000", "do_one_initcall+0x56/0x220", "__die_body.cold+0x1a/0x1f", "oops_init+0x14/0x1000")


def test_an_oops_keeps_names_and_no_addresses() -> None:
    lines = [without_addresses(line) for line in OOPS.splitlines()]
    assert not [line for line in lines if ADDRESS.search(line)]
    assert "a0 a8 c0" not in "\n".join(lines)
    assert "PGD (removed) P4D (removed) PUD (removed) PMD 0" in lines
    assert all(any(name in line for line in lines) for name in NAMES)
    assert "RIP: 0010:oops_init+0xd/0x1000 [kmodd_test_init_oops]" in lines
    assert any("6.1.0-31-amd64" in line and "PID: 1234" in line for line in lines)


@pytest.mark.parametrize(
    "line",
    [
        "dummy: version magic '6.1.0-31-amd64 SMP' should be '6.1.0-30-amd64 SMP'",
        "Module len 40000 truncated",
        "sd 0:0:0:0: [sda] 20971520 512-byte logical blocks",
        "virtio_net virtio0 enp0s3: renamed from eth0",
        "dummy: Unknown symbol fat_detach (err -2)",
        "usb 1-1: New USB device found, idVendor=0627, idProduct=0001",
    ],
)
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert without_addresses(line) == line


@given(st.text(max_size=40), st.integers(0xFFFF_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF), st.text(max_size=40))
def test_an_address_is_found_whatever_stands_beside_it(before: str, address: int, after: str) -> None:
    for text in (f"{address:x}", f"{address:#x}", f"{address:X}"):
        assert text[-12:].lower() not in without_addresses(f"{before}{text}{after}").lower()


def test_it_is_done_before_a_long_line_is_cut() -> None:
    for padding in range(1000, 1024):
        [line] = parse(b"6,1,2,-;" + b"x" * (padding - 1) + b" ffff8b2a12345678 end of it" + b"y" * 100)
        assert "ffff8" not in line
