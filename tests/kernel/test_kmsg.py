# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of the kernel log. A packet pipe gives one record per read, as /dev/kmsg does."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.kernel.kmsg import LINES_MAX, Kmsg, KmsgMark, parse


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
