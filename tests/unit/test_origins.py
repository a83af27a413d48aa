# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records wait for the program of their caller: none is lost, their order stays, and the next start finds what waits."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.core.audit.limit import WAITING_MAX, OriginAudit
from kmodd.daemon.state_files import SavedRecords
from kmodd.dbus.peers import Peer, Peers
from kmodd.dbus.transport import Transport
from kmodd.model import Caller, Record
from kmodd.startup.machine import identity
from tests.unit.fakes import Journal


def record(number: int, sender: str = ":1.7", exe: str = "") -> Record:
    return Record("module.loaded", str(number), sender=sender, exe=exe, kernel_log=("a",), extra={"X": "1"})


def told(journal: Journal) -> list[tuple[str, str]]:
    return [(one.message, one.exe) for one in journal.records]


def test_a_record_is_complete_when_it_is_written() -> None:
    journal = Journal()
    audit = OriginAudit(journal)
    known = audit.expect(":1.7")
    audit.record(record(1))
    audit.record(record(2, ":1.8", "/bin/b"))
    audit.record(record(3, ""))
    assert not journal.records
    known("/bin/a")
    assert told(journal) == [("1", "/bin/a"), ("2", "/bin/b"), ("3", "")]
    audit.record(record(4))
    assert told(journal)[3:] == [("4", "/bin/a")], "one that was made before, and is written after"


def test_one_that_stays_unknown_is_written_without(tmp_path: Path) -> None:
    journal = Journal()
    audit = OriginAudit(journal)
    known = audit.expect(":1.7")
    audit.record(record(1))
    known("")
    assert told(journal) == [("1", "")]


@given(st.lists(st.tuples(st.sampled_from(["record", "expect", "known", "flush"]), st.integers(0, 3))))
def test_nothing_is_lost_and_the_order_stays(steps: list[tuple[str, int]]) -> None:
    journal, kept = Journal(), list[Sequence[Record]]()
    audit = OriginAudit(journal, kept.append)
    pending = {}
    count = 0
    for kind, sender in steps:
        if kind == "record":
            audit.record(record(count, f":1.{sender}"))
            count += 1
        elif kind == "expect":
            pending[sender] = audit.expect(f":1.{sender}")
        elif kind == "known" and sender in pending:
            pending.pop(sender)(f"/bin/{sender}")
        elif kind == "flush":
            audit.flush()
        waiting = [one.message for one in kept[-1]] if kept else []
        assert [one.message for one in journal.records] + waiting == [str(number) for number in range(count)]
    audit.flush()
    assert [one.message for one in journal.records] == [str(number) for number in range(count)]
    assert not kept or not kept[-1]


def test_they_do_not_wait_without_a_bound() -> None:
    journal = Journal()
    audit = OriginAudit(journal)
    audit.expect(":1.7")
    for number in range(WAITING_MAX + 1):
        audit.record(record(number))
    assert len(journal.records) == WAITING_MAX + 1


async def test_who_reads_the_history_waits_for_what_was_recorded() -> None:
    audit = OriginAudit(Journal())
    await audit.settled()
    known = audit.expect(":1.7")
    audit.record(record(1))
    reading = asyncio.create_task(audit.settled())
    leaving = asyncio.create_task(audit.settled())
    await asyncio.sleep(0)
    leaving.cancel()
    assert not reading.done()
    known("/bin/a")
    await asyncio.wait_for(reading, 1)


def test_the_next_start_finds_what_waited(tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    audit = OriginAudit(Journal(), SavedRecords(path).write)
    audit.expect(":1.7")
    audit.record(record(1))
    audit.record(record(2))
    assert path.stat().st_mode & 0o777 == 0o600
    kept = SavedRecords(path)
    assert kept.take() == [record(1), record(2)]
    kept.write(())
    assert SavedRecords(path).take() == []


@pytest.mark.parametrize(
    "text", ["", "[", "{}", "[1]", '[{"event": "x"}]', '[{"event": "x", "message": "", "kernel_log": 1}]', "[" * 99999]
)
def test_what_kmodd_did_not_write_is_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "held.json").write_text(text)
    kept = SavedRecords(tmp_path / "held.json")
    assert kept.take() == []
    kept.write((record(1),))
    assert SavedRecords(tmp_path / "held.json").take() == [record(1)]


# --- looking a caller up --------------------------------------------------------------------------------------------------


class Driver(Transport):
    """A bus that takes every call."""

    def __init__(self) -> None:
        """Nothing is connected."""

    def call_driver(self, member: str, signature: str, *body: object) -> None:
        """Nothing listens."""


async def nobody(_: str) -> tuple[int | None, int]:
    return 0, 7


async def test_a_call_does_not_wait_for_an_inspector_that_has_to_be_started() -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    known: list[tuple[str, str]] = []

    async def executable(_: int) -> str:
        return await answer

    callers = Peers(Driver(), nobody, executable, expect=lambda sender: lambda program: known.append((sender, program)))
    client = Peer(":1.7", 0, 7)
    begin = asyncio.get_running_loop().time()
    caller = await callers.with_origin(client, Caller(":1.7", 0))
    assert asyncio.get_running_loop().time() - begin < 0.5
    assert caller.exe == ""
    answer.set_result("/bin/a")
    await asyncio.sleep(0.01)
    assert known == [(":1.7", "/bin/a")]
    assert (await callers.with_origin(client, Caller(":1.7", 0))).exe == "/bin/a"


async def test_a_caller_that_has_ended_is_named_as_it_called_itself() -> None:
    """And never by the program of another process that has its number by then."""
    befores: list[tuple[tuple[str, int] | None, str]] = [
        (("sh", 5), "/bin/sh"),
        (("sh", 6), "[sh]"),
        (("cat", 5), "[sh]"),
        (None, "[sh]"),
    ]
    for after, expected in befores:
        looks = iter([("sh", 5), after])

        async def executable(_: int) -> str:
            return "/bin/sh"

        def identify(_: int, looks: Iterator[tuple[str, int] | None] = looks) -> tuple[str, int] | None:
            return next(looks)

        callers = Peers(Driver(), nobody, executable, identity=identify)
        assert (await callers.with_origin(Peer(":1.7", 0, 7), Caller(":1.7", 0))).exe == expected


def test_what_a_process_calls_itself(tmp_path: Path) -> None:
    name, began = identity(os.getpid()) or ("", 0)
    assert name == Path("/proc/self/comm").read_text().strip()
    assert began > 0
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert identity(child.pid) is None
    assert identity(0) is None
    for number, text in enumerate(["", "7 (a) S", "7 (a", "7 a) " + "1 " * 30]):
        folder = tmp_path / str(number + 1)
        folder.mkdir()
        (folder / "stat").write_text(text)
        assert identity(number + 1, tmp_path) is None
    (tmp_path / "9").mkdir()
    (tmp_path / "9/stat").write_text("9 (a) S (\x1b) S " + " ".join(map(str, range(1, 40))))
    assert identity(9, tmp_path) == ("a) S (\\x1b", 19)
