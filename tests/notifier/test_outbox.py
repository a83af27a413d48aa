# SPDX-License-Identifier: LGPL-2.1-or-later
"""The queue loses nothing, is bounded, and keeps its order."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.notifier.notice import Notice
from kmodd.notifier.outbox import SEEN_MAX, Outbox, QueueStatus
from tests.notifier.conftest import notice

ROOT = Path(__file__).parents[2]
NOW = 1_700_000_000_000_000


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "queue.sqlite")
    yield box
    box.close()


def put(outbox: Outbox, *numbers: int, to: tuple[str, ...] = ("a",), now: int = NOW) -> None:
    outbox.take([f"id{n}" for n in numbers], NOW, [(notice(n), to) for n in numbers], now)


def drain(outbox: Outbox, endpoint: str = "a", most: int = 1) -> list[str]:
    found = []
    while deliveries := outbox.begin(endpoint, most, NOW):
        found += [one.notice.message for one in deliveries]
        outbox.finish(endpoint, deliveries, NOW)
    return found


def test_it_survives_being_opened_again(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "q")
    put(first, 1, 2)
    first.close()
    second = Outbox(tmp_path / "q")
    assert second.cursor == NOW
    assert second.unseen(["id1", "id2", "id3"]) == {"id3"}
    assert drain(second) == ["failure 1", "failure 2"]
    second.close()


def test_it_is_as_durable_as_sqlite_can(outbox: Outbox, tmp_path: Path) -> None:
    assert outbox._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert outbox._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_notice_comes_back_whole(outbox: Outbox) -> None:
    wanted = notice(3, kernel_log=("a", "b"), errno=5, reason="x", uid=None, message="ünï\N{PILE OF POO}")
    outbox.take(["x"], NOW, [(wanted, ["a"])], NOW)
    (one,) = outbox.begin("a", 1, NOW)
    assert one.notice == wanted
    assert Notice.parse(wanted.dump()) == wanted
    newer = json.dumps({**json.loads(wanted.dump()), "since_next_year": 1})
    assert Notice.parse(newer) == wanted


def test_the_same_notice_is_queued_once_for_each(outbox: Outbox) -> None:
    put(outbox, 1, to=("a", "b"))
    put(outbox, 1, to=("a", "b"))
    assert outbox.waiting("a") == outbox.waiting("b") == QueueStatus(1, NOW)


def test_what_began_together_stays_together(outbox: Outbox) -> None:
    put(outbox, 1, 2)
    first = [one.number for one in outbox.begin("a", 10, NOW)]
    put(outbox, 3)
    assert [one.number for one in outbox.begin("a", 10, NOW)] == first
    assert drain(outbox, most=10) == ["failure 1", "failure 2", "failure 3"]


def test_a_full_queue_drops_the_oldest_of_who_has_most(outbox: Outbox) -> None:
    put(outbox, *range(20), to=("dead",))
    put(outbox, 100, 101, to=("well",))
    assert outbox.shrink(12, 1 << 30) == {"dead": 10}
    assert drain(outbox, "dead") == [f"failure {n}" for n in range(10, 20)]
    assert drain(outbox, "well") == ["failure 100", "failure 101"]
    assert outbox.state("dead").dropped == 10


def test_bytes_are_bounded_too(outbox: Outbox) -> None:
    outbox.take([], NOW, [(notice(n, message="x" * 10_000), ["big"]) for n in range(20)], NOW)
    put(outbox, *range(100, 130), to=("small",))
    dropped = outbox.shrink(10_000, 100_000)
    assert dropped.keys() == {"big"}
    assert 10 <= dropped["big"] <= 14
    assert outbox.waiting("small").count == 30


def test_a_burst_is_dropped_in_a_moment(outbox: Outbox) -> None:
    """It happens on the loop: the couriers wait meanwhile."""
    notices = [notice(n) for n in range(1000)]
    outbox.take([], NOW, [(one, [f"e{n}" for n in range(20)]) for one in notices], NOW)
    began = time.process_time()
    dropped = outbox.shrink(1000, 1 << 30)
    assert time.process_time() - began < 2
    assert dropped == {f"e{n}": 950 for n in range(20)}
    assert drain(outbox, "e7", 100) == [f"failure {n}" for n in range(950, 1000)]


def test_what_is_set_aside_delays_no_other_and_comes_back(outbox: Outbox) -> None:
    put(outbox, 1, 2)
    (poison,) = outbox.begin("a", 1, NOW)
    outbox.set_aside("a", poison, "400", NOW + 100)
    assert (outbox.waiting("a").due, outbox.waiting("a").refused) == (0, 1)
    assert drain(outbox) == ["failure 2"]
    assert outbox.waiting("a") == QueueStatus(1, NOW, NOW + 100, 1)
    assert outbox.begin("a", 1, NOW + 99) == []
    assert [one.notice for one in outbox.begin("a", 1, NOW + 100)] == [poison.notice]
    assert outbox.begin("a", 1, NOW - 365 * 24 * 3_600_000_000) != [], "the clock was set back"
    outbox.enable("a", enabled=True)
    assert outbox.begin("a", 1, NOW) != [], "an administrator does not have to wait"


def test_a_disabled_endpoint_keeps_what_it_has_and_gets_no_more(outbox: Outbox) -> None:
    put(outbox, 1)
    outbox.enable("a", enabled=False, why="410")
    put(outbox, 2)
    assert (outbox.state("a").enabled, outbox.state("a").why) == (False, "410")
    assert outbox.state("a").dropped == 1, "what is not queued for it is counted"
    outbox.enable("a", enabled=True)
    put(outbox, 3)
    assert outbox.state("a").dropped == 1
    assert drain(outbox) == ["failure 1", "failure 3"]


def test_endpoints_that_are_no_more_are_forgotten(outbox: Outbox) -> None:
    put(outbox, 1, 2, to=("a", "b"))
    assert outbox.forget_others(["b"]) == {"a": 2}
    assert outbox.waiting("a") == QueueStatus()
    assert outbox.waiting("b").count == 2


def test_what_was_seen_is_remembered_within_bounds(outbox: Outbox) -> None:
    outbox.take([f"n{n}" for n in range(SEEN_MAX + 100)], NOW, [], NOW)
    assert outbox._db.execute("SELECT count(*) FROM seen").fetchone() == (SEEN_MAX,)
    assert outbox.unseen(["n0", "n5099"]) == {"n0"}


def test_a_full_disk_takes_nothing_by_half(outbox: Outbox) -> None:
    put(outbox, 1)
    pages = outbox._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        outbox.take(["big"], NOW + 1, [(notice(n, message="x" * 4000), ["a"]) for n in range(2, 30)], NOW)
    assert outbox.cursor == NOW
    assert outbox.unseen(["big"]) == {"big"}
    outbox._db.execute("PRAGMA max_page_count = 100000")
    assert drain(outbox) == ["failure 1"]


WRITER = """
import sys
from kmodd.notifier.outbox import Outbox
from tests.notifier.conftest import notice
box = Outbox(sys.argv[1])
print("open", flush=True)
for n in range(int(sys.argv[2]), 1_000_000):
    box.take([f"id{n}"], n, [(notice(n), ["a", "b"])], 1)
    print("took", n, flush=True)
    if n % 3 == 0:
        one = box.begin("a", 1, 1)
        print("sent", one[0].notice.id, flush=True)
        box.finish("a", one, 1)
        print("done", one[0].notice.id, flush=True)
"""


@pytest.mark.parametrize("milliseconds", [5, 17, 31, 53, 90])
def test_a_kill_at_any_point_loses_nothing(tmp_path: Path, milliseconds: int) -> None:
    path, start = tmp_path / "q", 1
    took: set[str] = set()
    sent: list[str] = []
    done: set[str] = set()
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(path), str(start)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            time.sleep(milliseconds / 1000)
            process.kill()
            # What stands behind the last line break was being written when it was killed.
            for line in process.stdout.read().split("\n")[:-1]:
                word, _, what = line.partition(" ")
                if word == "took":
                    took.add(f"msg_{int(what):032x}")
                    start = int(what) + 1
                elif word == "sent":
                    sent.append(what)
                elif word == "done":
                    done.add(what)
        start += 1  # one that was under way may be there or not
    box = Outbox(path)
    left = {f"msg_{int(message.split()[1]):032x}" for message in drain(box, "a", 1_000_000)}
    others = {f"msg_{int(message.split()[1]):032x}" for message in drain(box, "b", 1_000_000)}
    box.close()
    assert took
    assert took <= left | set(sent)
    assert took <= others
    assert not left & done, "delivered, noted, and there again"
