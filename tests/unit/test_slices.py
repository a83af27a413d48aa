# SPDX-License-Identifier: LGPL-2.1-or-later
"""Long reads: module files in threads, big plans in slices, users in turns."""

import asyncio
import threading
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import pytest

from kmodd.core import fair_share
from kmodd.core.audit.records import READS
from kmodd.core.fair_share import THREADS, Slices, Work, read_files, straight
from kmodd.model import FactsPending
from kmodd.names import ModuleName

A, B = ModuleName("a"), ModuleName("b")


class Files:
    """An index whose `info` answers what was read, as far as it was."""

    def __init__(self) -> None:
        self.kept: dict[str, object] = {}
        self.threads: list[int] = []
        self.is_deferred = False

    @contextmanager
    def deferred(self) -> Any:
        self.is_deferred = True
        try:
            yield
        finally:
            self.is_deferred = False

    def unread(self, names: Iterable[ModuleName]) -> tuple[ModuleName, ...]:
        return tuple(name for name in names if name not in self.kept)

    def read_facts(self, name: ModuleName) -> object:
        self.threads.append(threading.get_ident())
        return f"facts of {name}"

    def keep_facts(self, name: ModuleName, facts: object) -> None:
        self.kept[name] = facts

    def info(self, name: ModuleName) -> object:
        if name not in self.kept:
            if self.is_deferred:
                raise FactsPending((name,))
            self.kept[name] = self.read_facts(name)
        return self.kept[name]


def describe(files: Files, *names: ModuleName) -> Work[list[object]]:
    """What a planner does."""
    described = []
    for name in names:
        while True:
            yield ()
            try:
                described.append(files.info(name))
            except FactsPending as pending:
                yield pending.names
                continue
            break
    return described


async def test_files_are_read_in_a_thread_and_once() -> None:
    files: Any = Files()
    assert await Slices(files).run(describe(files, A, B, A), 1000) == ["facts of a", "facts of b", "facts of a"]
    assert len(files.threads) == 2
    assert threading.get_ident() not in files.threads
    await Slices(files).read([A, B], 1000)
    await read_files(files, [A, B])
    assert len(files.threads) == 2


async def test_done_at_once_files_are_read_by_the_caller_or_deferred() -> None:
    files: Any = Files()
    with files.deferred(), pytest.raises(FactsPending, match="a"):
        straight(describe(files, A, B))
    assert straight(describe(files, A)) == ["facts of a"]
    assert files.threads == [threading.get_ident()]


async def test_users_take_turns_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_share, "thread_time", iter(range(1_000_000)).__next__)  # every piece takes its whole slice
    monkeypatch.setattr(fair_share, "BUDGET", 2)
    files: Any = Files()
    turns, done = Slices(files), list[str]()

    def work(user: str, pieces: int) -> Work[None]:
        for _ in range(pieces):
            yield ()
        done.append(user)

    flood = [asyncio.create_task(turns.run(work("flood", 50), 1000)) for _ in range(20)]
    await asyncio.sleep(0)
    await turns.run(work("other", 10), 1001)
    assert done == ["other"]
    await asyncio.gather(*flood)


async def test_a_fault_of_the_work_is_the_callers() -> None:
    def work() -> Work[None]:
        yield ()
        raise ValueError("no")

    files: Any = Files()
    turns = Slices(files)
    with pytest.raises(ValueError, match="no"):
        await turns.run(work(), 1000)
    assert not files.is_deferred
    assert turns._turns.running == 0


async def test_as_many_reads_block_as_there_are_slots_and_others_are_served() -> None:
    fair_share.give_threads(asyncio.get_running_loop())
    gate = threading.Event()
    slots = READS + 1 + 2 * THREADS
    blocked = [asyncio.ensure_future(asyncio.to_thread(gate.wait, 10)) for _ in range(slots)]
    try:
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "served"), 5) == "served"
    finally:
        gate.set()
        await asyncio.gather(*blocked)
