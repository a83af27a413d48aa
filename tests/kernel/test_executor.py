# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool of workers: what each way a call can end is told as, and that nothing is left behind by any of them."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kmodd.kernel.worker.executor import WorkerPool, worker_program
from kmodd.model import Outcome
from kmodd.names import ModuleName

TREE = f"/lib/modules/{os.uname().release}/"
SCRIPTED = (sys.executable, "-I", "-S", str(Path(__file__).with_name("scripted_worker.py")))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> list[str]:
    """Every child of this process since the module's first test, zombies included."""
    now = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [child for child in now if child not in _others]


_others: list[str] = []


@pytest.fixture(autouse=True, scope="module")
def _count_from_here() -> None:
    """Fixtures of other folders, such as a message bus, live as long as the whole run."""
    _others[:] = children()


async def settled(pool: WorkerPool, *, workers: int = 1) -> None:
    """Wait until there are exactly so many processes."""
    for _ in range(500):
        if len(children()) == workers and len(pool.pids) == workers:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"children {children()}, workers {pool.pids}")


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    before, tasks = descriptors(), len(asyncio.all_tasks())
    made = WorkerPool(SCRIPTED)
    made.start()
    yield made
    await made.close()
    assert children() == []
    assert descriptors() == before
    assert len(asyncio.all_tasks()) <= tasks
    assert made.abandoned == 0


async def insert(pool: WorkerPool, script: str, *, timeout: float = 10.0) -> Outcome:
    return await pool.insert(TREE + script, "", timeout=timeout)


async def test_answer_is_the_kernels_errno_and_time(pool: WorkerPool) -> None:
    outcome = await insert(pool, "sleep:0.05,errno:17")
    assert (outcome.kind, outcome.errno) == ("done", errno.EEXIST)
    assert 50_000 <= outcome.duration_usec < 1_000_000
    assert outcome.worker == pool.pids[0]


async def test_removal_names_the_module(pool: WorkerPool) -> None:
    assert (await pool.remove(ModuleName("errno:11"), timeout=10)).errno == errno.EAGAIN


async def test_arguments_arrive_whole(pool: WorkerPool) -> None:
    assert (await pool.insert(TREE + "length", "x" * 70_000, timeout=10)).errno == 70_000


@pytest.mark.parametrize("arguments", ["a\0b", "x" * 200_000, "\ud800"])
async def test_arguments_no_kernel_would_take_are_refused(pool: WorkerPool, arguments: str) -> None:
    assert await pool.insert(TREE + "length", arguments, timeout=10) == Outcome("done", errno.EINVAL)


async def test_insertion_says_the_running_kernel_and_the_file_below_its_tree(pool: WorkerPool) -> None:
    assert (await insert(pool, "release")).errno == len(os.uname().release)
    assert (await pool.insert(TREE + "digest", "", sha256="0" * 64, timeout=10)).errno == 64
    assert (await pool.insert(TREE + "digest", "", timeout=10)).errno == 0


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "", "errno:0", "/lib/modules/0.0.1-other/errno:0", TREE.rstrip("/"), "/tmp" + TREE + "errno:0"],
)
async def test_file_of_another_place_is_refused_without_a_call(pool: WorkerPool, path: str) -> None:
    outcome = await pool.insert(path, "", timeout=10)
    assert (outcome.kind, outcome.errno, outcome.refusal) == ("done", errno.EACCES, "place")


async def test_word_of_the_worker_comes_with_its_refusal(pool: WorkerPool) -> None:
    assert (await insert(pool, "errno:13,data:owner")).refusal == "owner"
    assert (await insert(pool, "errno:13")).refusal == ""


async def test_warm_worker_is_used_again(pool: WorkerPool) -> None:
    pids = {(await insert(pool, "errno:0")).worker for _ in range(20)}
    assert len(pids) == 1


async def test_first_order_starts_a_worker() -> None:
    pool = WorkerPool(SCRIPTED)
    assert (await insert(pool, "errno:5")).errno == errno.EIO
    await pool.close()
    assert children() == []


async def test_calls_run_side_by_side_and_one_warm_worker_remains(pool: WorkerPool) -> None:
    started = time.monotonic()
    outcomes = await asyncio.gather(*(insert(pool, f"sleep:0.5,errno:{n}") for n in range(6)))
    assert [outcome.errno for outcome in outcomes] == list(range(6))
    assert len({outcome.worker for outcome in outcomes}) == 6
    assert time.monotonic() - started < 2.5
    await settled(pool)


async def test_worker_killed_in_a_call_is_a_crash_and_is_replaced(pool: WorkerPool) -> None:
    outcome = await insert(pool, "kill")
    assert outcome.kind == "crashed"
    await settled(pool)
    assert (await insert(pool, "errno:0")).worker != outcome.worker


async def test_closed_socket_is_a_crash_even_while_the_task_lives_on(pool: WorkerPool) -> None:
    """A task that oopses again while it exits stays for ever, with its files closed."""
    assert (await insert(pool, "oops", timeout=10)).kind == "crashed"
    assert (await insert(pool, "errno:3")).errno == 3


async def test_deadline_abandons_the_worker_and_others_are_served(pool: WorkerPool) -> None:
    outcome = await insert(pool, "sleep:60", timeout=0.1)
    assert outcome.kind == "timed-out"
    assert outcome.duration_usec >= 90_000
    assert (await insert(pool, "errno:1")).errno == 1


async def test_time_that_a_worker_takes_to_start_is_not_the_kernels() -> None:
    late = f"import runpy, time; time.sleep(0.6); runpy.run_path({SCRIPTED[-1]!r}, run_name='__main__')"
    pool = WorkerPool((sys.executable, "-I", "-S", "-c", late))
    try:
        assert (await insert(pool, "errno:5", timeout=0.3)).errno == 5
        # The next one is warm, and has no longer than it was given.
        assert (await insert(pool, "sleep:60", timeout=0.1)).kind == "timed-out"
    finally:
        await pool.close()


async def test_answer_that_came_while_the_loop_was_busy_beats_the_deadline(pool: WorkerPool) -> None:
    await insert(pool, "errno:0")
    task = asyncio.create_task(insert(pool, "errno:6", timeout=0.05))
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - the loop must see the answer and the deadline in the same turn
    outcome = await task
    assert (outcome.kind, outcome.errno) == ("done", 6)
    assert pool.abandoned == 0


async def test_end_of_an_abandoned_worker_is_reported_once(pool: WorkerPool) -> None:
    outcome = await insert(pool, "sleep:60", timeout=0.05)
    told: list[Outcome] = []
    pool.on_return(outcome.worker, told.append)
    await settled(pool)
    assert pool.abandoned == 0
    assert [(late.kind, late.worker) for late in told] == [("crashed", outcome.worker)]


async def test_end_of_an_abandoned_worker_before_the_callback_is_reported_too(pool: WorkerPool) -> None:
    outcome = await insert(pool, "sleep:60", timeout=0.05)
    await settled(pool)
    told: list[Outcome] = []
    pool.on_return(outcome.worker, told.append)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [late.worker for late in told] == [outcome.worker]
    with pytest.raises(LookupError):
        pool.on_return(outcome.worker, told.append)


async def test_worker_the_kernel_does_not_let_go_stays_abandoned(pool: WorkerPool) -> None:
    """SIGKILL does nothing to a task in state D, so here it is not sent; the real thing needs the virtual machine."""
    held = _Unkillable(pool)
    outcome = await insert(pool, "sleep:0.4,errno:7", timeout=0.1)
    assert (outcome.kind, pool.abandoned) == ("timed-out", 1)
    told: list[Outcome] = []
    pool.on_return(outcome.worker, told.append)
    assert (await insert(pool, "errno:2")).errno == 2
    assert pool.abandoned == 1
    await settled(pool)
    assert [(late.kind, late.errno) for late in told] == [("done", 7)]
    assert held.asked == [outcome.worker]


class _Unkillable:
    """Makes `kill` of the pool's busy workers do nothing, as state D does."""

    def __init__(self, pool: WorkerPool) -> None:
        self.asked: list[int] = []
        for process in pool._idle:
            process.kill = lambda process=process: self.asked.append(process.pid)  # type: ignore[method-assign,misc]


async def test_cancelled_caller_does_not_stop_the_call(pool: WorkerPool) -> None:
    task = asyncio.create_task(insert(pool, "sleep:0.3"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.abandoned == 1
    await asyncio.sleep(0.5)
    assert pool.abandoned == 0
    await settled(pool)


async def test_worker_that_died_idle_costs_no_order(pool: WorkerPool) -> None:
    await insert(pool, "errno:0")
    os.kill(pool.pids[0], signal.SIGKILL)
    time.sleep(0.05)  # noqa: ASYNC251 - the loop must not see it yet
    assert (await insert(pool, "errno:9")).errno == 9
    await settled(pool)


async def test_idle_worker_that_dies_is_replaced(pool: WorkerPool) -> None:
    pid = (await insert(pool, "errno:0")).worker
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.2)
    await settled(pool)
    assert pool.pids[0] != pid


async def test_program_that_does_not_start_is_an_error_of_ours_and_not_a_crash(tmp_path: Path) -> None:
    pool = WorkerPool(("/bin/false",))
    with pytest.raises(ChildProcessError):
        await insert(pool, "errno:0")
    with pytest.raises(FileNotFoundError):
        await insert(WorkerPool((str(tmp_path / "none"),)), "errno:0")
    await pool.close()
    assert children() == []


async def test_closed_pool_takes_no_orders_and_keeps_no_process(pool: WorkerPool) -> None:
    busy = asyncio.create_task(insert(pool, "sleep:60"))
    await asyncio.sleep(0.1)
    await pool.close()
    assert (await busy).kind == "timed-out"
    assert children() == []
    with pytest.raises(OSError, match="workers were stopped"):
        await insert(pool, "errno:0")


async def test_thousand_calls_leave_nothing(pool: WorkerPool) -> None:
    await insert(pool, "errno:0")
    before = descriptors()
    for number in range(1000):
        assert (await insert(pool, f"errno:{number % 100}")).errno == number % 100
    assert descriptors() == before
    assert len(children()) == 1


async def test_many_crashes_and_time_outs_leave_nothing(pool: WorkerPool) -> None:
    await insert(pool, "errno:0")
    before = descriptors()
    for _ in range(10):
        scripts = ("kill", "sleep:60", "errno:1", "kill")
        await asyncio.gather(*(insert(pool, script, timeout=0.3) for script in scripts))
    await settled(pool)
    assert descriptors() == before


async def test_warm_order_costs_little_beside_the_call(pool: WorkerPool) -> None:
    """Two switches of process and one turn of the loop; the bound is wide, for machines that are busy or emulated."""
    await insert(pool, "errno:0")
    costs = []
    for _ in range(300):
        started = time.perf_counter_ns()
        outcome = await insert(pool, "errno:0")
        costs.append((time.perf_counter_ns() - started) // 1000 - outcome.duration_usec)
    costs.sort()
    assert costs[len(costs) // 2] < 1500, f"median {costs[len(costs) // 2]} µs"


async def test_real_program_serves_the_pool() -> None:
    pool = WorkerPool()
    outcome = await pool.remove(ModuleName("kmodd_no_such_module"), timeout=10)
    assert outcome.kind == "done"
    assert outcome.errno in {errno.ENOSYS, errno.EPERM, errno.ENOENT}
    assert worker_program()[1:3] == ("-I", "-S")
    await pool.close()
    assert children() == []


async def test_calls_that_are_given_up_are_answered_at_once(pool: WorkerPool) -> None:
    calls = [asyncio.ensure_future(pool.insert(TREE + "sleep:60", "", timeout=60)) for _ in range(3)]
    await asyncio.sleep(0.2)
    pool.abandon_all()
    outcomes = await asyncio.wait_for(asyncio.gather(*calls), 5)
    assert {outcome.kind for outcome in outcomes} == {"timed-out"}
    assert (await pool.insert(TREE + "errno:0", "", timeout=10)).kind == "done"
    pool.abandon_all()  # nothing is under way


# --- workers of an earlier daemon -------------------------------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is no child of the pool's."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


async def test_worker_of_an_earlier_daemon_is_found_again_and_its_end_is_reported(
    pool: WorkerPool, stranger: "subprocess.Popen[bytes]"
) -> None:
    identity = pool.identify(stranger.pid)
    ended = asyncio.Event()
    assert pool.watch_abandoned(identity, ended.set)
    await asyncio.sleep(0.05)
    assert not ended.is_set()
    stranger.kill()
    await asyncio.wait_for(ended.wait(), 10)
    stranger.wait()
    assert not pool.watch_abandoned(identity, ended.set)
    assert pool.identify(stranger.pid) == ""


async def test_another_process_of_the_same_number_is_not_taken_for_the_worker(
    pool: WorkerPool, stranger: "subprocess.Popen[bytes]"
) -> None:
    number, _, began = pool.identify(stranger.pid).partition(":")
    for identity in (f"{number}:{int(began) - 1}", number, "", ":", "-1:0", "x:y"):
        assert not pool.watch_abandoned(identity, lambda: None), identity


async def test_adopted_worker_is_left_alone_at_the_end(stranger: "subprocess.Popen[bytes]") -> None:
    before = descriptors()
    pool = WorkerPool(SCRIPTED)
    told: list[None] = []
    assert pool.watch_abandoned(pool.identify(stranger.pid), lambda: told.append(None))
    await pool.close()
    assert stranger.poll() is None
    assert (told, descriptors()) == ([], before)
