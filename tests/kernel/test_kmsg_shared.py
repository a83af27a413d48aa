# SPDX-License-Identifier: LGPL-2.1-or-later
"""Marks on one descriptor: each sees what came after it, and none takes lines from another."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.kernel.proc.kmsg import SharedKmsg, is_kernel_log


class Log:
    """A file that grows; a read gives what one append wrote, as the device gives one record."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"6,1,1,-;before everything\n")
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        self.shared = SharedKmsg(self.descriptor)

    def say(self, text: str, priority: int = 6) -> None:
        with self.path.open("ab") as file:
            file.write(f"{priority},2,2,-;{text}\n".encode())


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "kmsg")
    yield made
    os.close(made.descriptor)


def test_what_was_said_before_the_mark_is_passed_over(log: Log) -> None:
    mark = log.shared.mark()
    log.say("after")
    assert mark.lines() == ("after",)


def test_marks_overlap_without_taking_from_each_other(log: Log) -> None:
    first = log.shared.mark()
    log.say("one")
    second = log.shared.mark()
    log.say("two")
    assert second.lines() == ("two",)
    assert first.lines() == ("one", "two")


def test_closed_mark_keeps_its_lines_and_takes_no_more(log: Log) -> None:
    mark, other = log.shared.mark(), log.shared.mark()
    log.say("one")
    mark.lines()
    mark.close()
    mark.close()
    log.say("two")
    assert other.lines() == ("one", "two")
    assert mark.lines() == ("one",)


def test_first_lines_are_kept_when_there_are_too_many(log: Log) -> None:
    mark = log.shared.mark()
    for number in range(205):
        log.say(str(number))
        mark.lines()
    assert mark.lines() == tuple(str(number) for number in range(200))


def test_what_user_space_wrote_is_not_the_kernels_word(log: Log) -> None:
    mark = log.shared.mark()
    log.say("forged", priority=14)
    assert mark.lines() == ()


def test_only_the_device_is_taken_for_the_kernels_log(log: Log) -> None:
    assert not is_kernel_log(log.descriptor)
    assert not is_kernel_log(987)
    with Path(os.devnull).open() as null:
        assert not is_kernel_log(null.fileno())
