# SPDX-License-Identifier: LGPL-2.1-or-later
"""Workers that somebody else starts for a connection, as systemd does: not our children, told apart by credentials."""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kmodd.kernel.worker import executor
from kmodd.kernel.worker.executor import WorkerPool
from kmodd.model import Outcome

TREE = f"/lib/modules/{os.uname().release}/"
SCRIPTED = (sys.executable, "-I", "-S", str(Path(__file__).with_name("scripted_worker.py")))


class SocketUnit:
    """A listening socket whose connections become descriptor 3 of a process each: `Accept=yes` in one thread."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.program: tuple[str, ...] = SCRIPTED
        self.accepting = threading.Event()
        self.accepting.set()
        self.started: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self.accepting.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for pid in self.started:
            os.waitpid(pid, 0)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # shut down
                return
            with connection:
                self.accepting.wait()
                null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
                actions = [(os.POSIX_SPAWN_DUP2, connection.fileno(), 3), null]
                pid = os.posix_spawn(self.program[0], self.program, {}, file_actions=actions)
                self.started.append(pid)


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[SocketUnit]:
    made = SocketUnit(tmp_path / "socket")
    yield made
    made.close()


@pytest.fixture
async def pool(unit: SocketUnit) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(unit_socket=unit.path, close_grace=2.0)
    yield made
    await made.close()


async def insert(pool: WorkerPool, script: str, *, timeout: float = 20.0) -> Outcome:
    return await pool.insert(TREE + script, "", timeout=timeout)


async def test_answer_comes_from_the_process_the_kernel_vouches_for(pool: WorkerPool, unit: SocketUnit) -> None:
    outcome = await insert(pool, "errno:17")
    assert (outcome.kind, outcome.errno) == ("done", 17)
    assert [outcome.worker] == unit.started


async def test_worker_is_kept_warm(pool: WorkerPool, unit: SocketUnit) -> None:
    pool.start()
    first = await insert(pool, "errno:0")
    second = await insert(pool, "errno:0")
    assert first.worker == second.worker
    assert len(unit.started) == 1


async def test_worker_killed_in_a_call_is_a_crash(pool: WorkerPool) -> None:
    assert (await insert(pool, "kill")).kind == "crashed"
    assert (await insert(pool, "errno:0")).kind == "done"


async def test_deadline_abandons_and_kills_the_worker(pool: WorkerPool, unit: SocketUnit) -> None:
    await insert(pool, "errno:0")
    outcome = await insert(pool, "sleep:60", timeout=0.1)
    assert outcome.kind == "timed-out"
    told: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pool.on_return(outcome.worker, told.set_result)
    assert (await asyncio.wait_for(told, 20)).kind == "crashed"
    assert outcome.worker in unit.started


async def test_worker_that_comes_too_late_is_killed_when_it_comes(
    pool: WorkerPool, unit: SocketUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_START_TIMEOUT", 0.2)
    unit.accepting.clear()
    outcome = await insert(pool, "sleep:60", timeout=0.05)
    assert outcome.kind == "timed-out"
    told: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pool.on_return(outcome.worker, told.set_result)
    unit.accepting.set()
    assert (await asyncio.wait_for(told, 20)).kind == "crashed"


async def test_no_socket_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await insert(WorkerPool(unit_socket=str(tmp_path / "none")), "errno:0")


async def test_program_that_does_not_start_is_an_error_of_ours(pool: WorkerPool, unit: SocketUnit) -> None:
    unit.program = ("/bin/false",)
    with pytest.raises(ChildProcessError):
        await insert(pool, "errno:0")
