# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool of workers: one idle worker is kept ready, and more are started for concurrent calls."""

import asyncio
import errno
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kmodd.kernel.worker import worker
from kmodd.kernel.worker.worker_client import WorkerProcess, WorkerUnit
from kmodd.model import Outcome
from kmodd.names import ModuleName

_UNDELIVERED_MAX = 16
_START_TIMEOUT = 20.0
"""Seconds for a worker to come up; the time of a call counts from then."""
_CAP_SYS_MODULE = 16  # include/uapi/linux/capability.h


def worker_program() -> tuple[str, ...]:
    """The command that runs a worker: this interpreter, isolated, without site packages, on the stand-alone file."""
    return (sys.executable, "-I", "-S", str(Path(worker.__file__)))


class WorkerPool:
    """`ports.Executor` on worker processes. Made for one event loop; no threads, no separate tasks.

    `insert` and `remove` raise OSError when a worker cannot be started (the module was not touched then); everything
    that happens inside the kernel is an Outcome. The pool sets no limit on how many calls are under way.

    A cancelled caller does not stop the call: the worker stays busy until the kernel answers or its deadline comes.
    """

    def __init__(
        self, program: Sequence[str] = (), *, tree: Path | None = None, unit_socket: str = "", close_grace: float = 0.5
    ) -> None:
        """`program` is the worker's command for tests; with `unit_socket` systemd starts the workers instead, one for
        each connection to that path. `tree` is the running kernel's module tree as the index names it. `close_grace` are
        the seconds after which `close` kills, and after which again it gives up waiting for processes to end."""
        self._tree = str(tree or f"/lib/modules/{os.uname().release}")
        self._unit_socket = unit_socket
        self._program = tuple(program) or worker_program()
        self._close_grace = close_grace
        self._idle: list[WorkerProcess] = []
        self._calls: dict[WorkerProcess, _Call] = {}
        self._abandoned: dict[WorkerProcess, _Call] = {}
        self._leaving: set[WorkerProcess] = set()
        self._let_go: dict[int, Callable[[Outcome], None]] = {}
        self._undelivered: dict[int, Outcome] = {}
        self._adopted: set[int] = set()
        """Pidfds of workers that an earlier daemon abandoned."""
        self._closed = False

    def start(self) -> None:
        """Start the warm worker ahead of the first order; OSError when it cannot be started."""
        if not self._idle and not self._closed:
            self._idle.append(self._spawn())

    @property
    def abandoned(self) -> int:
        """Workers still in an abandoned call that changes something."""
        left = (*self._abandoned.values(), *(call for call in self._calls.values() if call.answer.cancelled()))
        # Reads are unprivileged, and bounded by their caller: they must not use up the limit of stuck operations.
        return sum(call.verb != "read-parameters" for call in left)

    @property
    def pids(self) -> tuple[int, ...]:
        """Every worker that can hold memory or a module: idle, busy, abandoned."""
        return tuple(process.pid for process in (*self._idle, *self._calls, *self._abandoned))

    def is_capable(self, worker: int) -> bool:
        """Whether a worker holds CAP_SYS_MODULE; true if that is no longer known."""
        try:
            status = Path(f"/proc/{worker}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return True
        line = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: ffffffffffffffff")
        return bool(int(line.split()[1], 16) >> _CAP_SYS_MODULE & 1)

    async def insert(self, path: str, arguments: str, *, sha256: str = "", timeout: float) -> Outcome:
        """Insert a file of the module tree with the kernel's argument string, waiting at most `timeout` seconds.

        The worker opens it below the tree of the kernel that it runs on itself, whatever path is given here, and compares
        its content with `sha256` where there is one.
        """
        folder, _, release = self._tree.rpartition("/")
        place, _, file = path.removeprefix(folder + "/").partition("/")
        if not path.startswith(folder + "/") or place != release or not file:
            return Outcome("done", errno.EACCES, data=b"place")
        return await self._order("insert", release, file, sha256, arguments, timeout=timeout)

    async def remove(self, name: ModuleName, *, timeout: float) -> Outcome:
        """Remove the module, waiting at most `timeout` seconds for its exit function."""
        return await self._order("remove", name, timeout=timeout)

    async def read_parameters(
        self, name: ModuleName, parameters: Sequence[str], *, timeout: float
    ) -> tuple[Outcome, Mapping[str, str]]:
        """Have the getters of a module show its parameters; what cannot be read is left out."""
        outcome = await self._order("read-parameters", name, *parameters, timeout=timeout)
        values: dict[str, str] = {}
        if outcome.kind == "done" and outcome.errno == 0:
            for parameter, value in zip(parameters, worker.decode_values(outcome.data), strict=True):
                if value is not None:
                    values[parameter] = value.decode(errors="replace").removesuffix("\n")
        return replace(outcome, data=b""), values

    async def write_parameter(self, name: ModuleName, parameter: str, value: str, *, timeout: float) -> Outcome:
        """Have the setter of a module take a value."""
        return await self._order("write-parameter", name, parameter, value, timeout=timeout)

    async def lock(self, *, timeout: float) -> Outcome:
        """Write 1 to kernel.modules_disabled."""
        return await self._order("lock", timeout=timeout)

    def on_return(self, worker: int, callback: Callable[[Outcome], None]) -> None:
        """Call back once when an abandoned worker's call ended after all; LookupError for one that was not abandoned.

        The outcome is `done` when the worker answered after all. Abandoned workers are killed, so most end unanswered:
        then it is `crashed`, and whether the module came or went has to be read from the kernel.
        """
        if (outcome := self._undelivered.pop(worker, None)) is not None:
            asyncio.get_running_loop().call_soon(callback, outcome)
        elif any(process.pid == worker for process in self._abandoned):
            self._let_go[worker] = callback
        else:
            raise LookupError(f"worker {worker} was not abandoned")

    def abandon_all(self) -> None:
        """Answer every call under way as one whose time is over: the daemon ends."""
        for process in tuple(self._calls):
            process.receive()  # The answer may lie in the socket.
            if process in self._calls:
                self._abandon(process)

    def identify(self, worker: int) -> str:
        """Its process number and when it began, which no process after it shares; empty when it is gone."""
        began = _began(worker)
        return f"{worker}:{began}" if began else ""

    def watch_abandoned(self, identity: str, ended: Callable[[], None]) -> bool:
        """Call back once when a worker of an earlier daemon is gone; False when it is gone, or cannot be found."""
        number, _, began = identity.partition(":")
        if not number.isdecimal():
            return False
        try:
            descriptor = os.pidfd_open(int(number))
        except OSError:
            return False
        # Compared after the descriptor was opened: from then on the number is its.
        if _began(int(number)) != began:
            os.close(descriptor)
            return False

        def gone() -> None:
            self._disown(descriptor)
            ended()

        self._adopted.add(descriptor)
        asyncio.get_running_loop().add_reader(descriptor, gone)
        return True

    def _disown(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        self._adopted.discard(descriptor)
        os.close(descriptor)

    async def close(self) -> None:
        """Let idle workers go; calls still under way are answered `timed-out` and left to the kernel."""
        self._closed = True
        for descriptor in tuple(self._adopted):
            self._disown(descriptor)
        for process in self._idle:
            self._dismiss(process)
        self._idle.clear()
        self.abandon_all()
        await self._wait_for_ends()
        for process in self._leaving:
            process.kill()
        await self._wait_for_ends()
        for process in (*self._leaving, *self._abandoned):
            process.forget()
        self._leaving.clear()
        self._abandoned.clear()
        self._let_go.clear()
        self._undelivered.clear()

    async def _wait_for_ends(self) -> None:
        waiting = [process.gone for process in (*self._leaving, *self._abandoned)]
        if waiting:
            await asyncio.wait(waiting, timeout=self._close_grace)

    async def _order(self, verb: str, *arguments: str, timeout: float) -> Outcome:
        try:
            order = worker.encode(verb, *map(os.fsencode, arguments))
        except ValueError:
            return Outcome("done", errno.EINVAL)  # As the kernel would answer; no call was made.
        process = self._hand_over(order)
        call = _Call(verb, timeout)
        self._calls[process] = call
        call.wait(timeout if process.ready else timeout + _START_TIMEOUT, lambda: self._expire(process))
        return await call.answer

    def _hand_over(self, order: bytes) -> WorkerProcess:
        if self._closed:
            raise OSError(errno.ESHUTDOWN, "the workers were stopped")
        while self._idle:
            process = self._idle.pop()
            if self._send(process, order):
                return process
            self._settle(process)  # It died idle; nothing was lost but the warmth.
        process = self._spawn()
        self._send(process, order)  # If it is already dead, its end is reported in the next turn of the loop.
        return process

    def _send(self, process: WorkerProcess, order: bytes) -> bool:
        try:
            return process.send(order)
        except OSError:
            self._release(process)  # No memory for the message: the worker has not seen it.
            raise

    def _spawn(self) -> WorkerProcess:
        if self._unit_socket:
            return WorkerUnit((self._unit_socket,), answered=self._answered, ended=self._ended, came_up=self._came_up)
        return WorkerProcess(self._program, answered=self._answered, ended=self._ended, came_up=self._came_up)

    def _came_up(self, process: WorkerProcess) -> None:
        """Begin to count: until now the worker started, and the kernel was not called."""
        if (call := self._calls.get(process)) is not None:
            call.wait(call.timeout, lambda: self._expire(process))

    def _answered(self, process: WorkerProcess, answer: bytes) -> None:
        number, nanoseconds, data = worker.decode_answer(answer)
        outcome = Outcome("done", number, nanoseconds // 1000, process.pid, data)
        if (call := self._calls.pop(process, None)) is not None:
            call.finish(outcome)
            self._release(process)
        elif (call := self._abandoned.pop(process, None)) is not None:
            self._dismiss(process)  # Its death is on the way.
            self._deliver_late(outcome)

    def _ended(self, process: WorkerProcess) -> None:
        if process in self._idle:
            self._idle.remove(process)
        process.kill()  # Where only the socket is closed; one that is stuck on its way out takes no notice.
        self._settle(process)
        if (call := self._calls.pop(process, None)) is not None:
            if process.ready:
                call.finish(Outcome("crashed", 0, call.elapsed_usec(), process.pid))
            else:
                call.fail(ChildProcessError(errno.ECHILD, "the worker program does not start"))
        elif (call := self._abandoned.pop(process, None)) is not None:
            self._deliver_late(Outcome("crashed", 0, call.elapsed_usec(), process.pid))
        # Only after one that did start: a program that cannot start would be started forever.
        if process.ready:
            self._keep_warm()

    def _expire(self, process: WorkerProcess) -> None:
        process.receive()  # The answer may have come in the same turn of the loop as the deadline.
        if process in self._calls:
            self._abandon(process)
            self._keep_warm()

    def _abandon(self, process: WorkerProcess) -> None:
        call = self._calls.pop(process)
        self._abandoned[process] = call
        self._undelivered.pop(process.pid, None)  # Of an earlier process with the same number.
        process.kill()
        call.finish(Outcome("timed-out", 0, call.elapsed_usec(), process.pid))

    def _deliver_late(self, outcome: Outcome) -> None:
        if (callback := self._let_go.pop(outcome.worker, None)) is not None:
            callback(outcome)
            return
        # The caller learns of the time-out in a later turn of the loop than this; keep it for when it asks.
        self._undelivered[outcome.worker] = outcome
        while len(self._undelivered) > _UNDELIVERED_MAX:
            del self._undelivered[next(iter(self._undelivered))]

    def _release(self, process: WorkerProcess) -> None:
        if self._idle or self._closed:
            self._dismiss(process)
        else:
            self._idle.append(process)

    def _keep_warm(self) -> None:
        with suppress(OSError):  # No process to be had right now; the next order tries again and tells its caller.
            self.start()

    def _dismiss(self, process: WorkerProcess) -> None:
        process.dismiss()
        self._settle(process)

    def _settle(self, process: WorkerProcess) -> None:
        """Keep a worker that makes no more calls until it is reaped."""
        if not process.gone.done():
            self._leaving.add(process)
            process.gone.add_done_callback(lambda _: self._leaving.discard(process))


def _began(process: int) -> str:
    """When a process began, in clock ticks since boot: field 22 of proc_pid_stat(5). Empty when there is none."""
    try:
        # The second field, its name in parentheses, may contain spaces and parentheses.
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return fields[19].decode("ascii", "replace") if len(fields) > 19 else ""


class _Call:
    """An order under way."""

    __slots__ = ("answer", "deadline", "loop", "started", "timeout", "verb")

    def __init__(self, verb: str, timeout: float) -> None:
        self.verb = verb
        self.timeout = timeout
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Outcome] = self.loop.create_future()
        self.deadline: asyncio.TimerHandle | None = None
        self.started = time.monotonic_ns()

    def wait(self, seconds: float, expire: Callable[[], None]) -> None:
        """Expire after this many seconds from now, replacing the earlier timeout."""
        self._stop_clock()
        self.started = time.monotonic_ns()
        self.deadline = self.loop.call_later(seconds, expire)

    def elapsed_usec(self) -> int:
        return (time.monotonic_ns() - self.started) // 1000

    def finish(self, outcome: Outcome) -> None:
        self._stop_clock()
        if not self.answer.done():  # Its caller may be gone.
            self.answer.set_result(outcome)

    def fail(self, error: OSError) -> None:
        self._stop_clock()
        if not self.answer.done():
            self.answer.set_exception(error)

    def _stop_clock(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
