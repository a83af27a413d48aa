# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parent's handle of one worker process: its socket, its exit, and the order in progress.

A worker may also be started by systemd: one connection to a socket unit with `Accept=yes` is one worker in a separate unit.
So the daemon needs no privilege to load modules, and a worker that hangs in the kernel is not part of the daemon's unit. It
is not a child process: its pid comes with its first message, confirmed by the kernel (SCM_CREDENTIALS, unix(7)), and its
exit is seen only by pidfd.
"""

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from kmodd.kernel.worker.worker import ANSWER_MAX, READY, SOCKET

MESSAGES_MAX: Final = 64
"""Messages that are taken in one turn of the loop: a process that sends without end does not keep the loop."""


class WorkerProcess:
    """One worker, from its start until it is reaped.

    Everything is reported through callbacks on the event loop: `came_up` when it reads orders, `answered` with each answer,
    and `ended` once, when the process can make no more calls: its socket closed (the kernel closes it when a call kills the worker,
    even where the task itself never goes away) or the process is gone. The process is watched by pidfd, so there is no SIGCHLD handler
    and no other child of this program is ever waited for by accident. `gone` is set once the process is reaped.

    OSError from the constructor when no process can be started; nothing is left open then.
    """

    answer_max = ANSWER_MAX
    """Bytes of one answer."""
    files_max = 0
    """Descriptors that may come with one answer; more are closed."""

    def __init__(
        self,
        program: Sequence[str],
        *,
        answered: Callable[["WorkerProcess", bytes], None],
        ended: Callable[["WorkerProcess"], None],
        came_up: Callable[["WorkerProcess"], None] = lambda _: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._answered = answered
        self._ended = ended
        self._came_up = came_up
        self._over = False
        self.ready = False
        """It has come up: what ends it from now on is not a program that cannot start."""
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.files: list[int] = []
        """The descriptors of the answer that `answered` is called with; what it leaves here is closed."""
        self.pid = 0
        self._pidfd = -1
        self._socket: socket.socket | None = self._start(program)
        self._loop.add_reader(self._socket.fileno(), self._readable)
        if self._pidfd >= 0:
            self._loop.add_reader(self._pidfd, self._reap)

    def _start(self, program: Sequence[str]) -> socket.socket:
        """Start the process, set `pid` and its pidfd; our end of its socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            self.pid = _spawn(program, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except BaseException:
            ours.close()
            os.kill(self.pid, signal.SIGKILL)  # Not reaped yet, so the number is still ours.
            os.waitpid(self.pid, 0)
            raise
        return ours

    def _receive(self, channel: socket.socket) -> bytes:
        """The next message; BlockingIOError when there is none yet."""
        room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_FILE.size * self.files_max)
        message, ancillary, _, _ = channel.recvmsg(self.answer_max, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self.files += [file for (file,) in _FILE.iter_unpack(data[: len(data) // _FILE.size * _FILE.size])]
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and message:
                self._sent_by(_CREDENTIALS.unpack(data)[0])
        self._close_files(self.files_max)
        return message

    def _sent_by(self, pid: int) -> None:
        """The kernel names the process that sent a message (SO_PASSCRED)."""

    def _close_files(self, kept: int = 0) -> None:
        while len(self.files) > kept:
            os.close(self.files.pop())

    def _has_ended(self) -> bool:
        """Its pidfd says so: take the zombie away."""
        pid, _ = os.waitpid(self.pid, os.WNOHANG)
        return pid != 0

    def send(self, order: bytes, files: Sequence[int] = ()) -> bool:
        """Hand over an order, with descriptors; False when the process is gone and has certainly not seen it."""
        if self._socket is None:
            return False
        try:
            if files:
                socket.send_fds(self._socket, [order], files)
            else:
                self._socket.send(order)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def dismiss(self) -> None:
        """Let it go by closing the socket; it leaves when it has no call under way. `ended` is not called any more."""
        self._over = True
        self._close_socket()

    def kill(self) -> None:
        """Send SIGKILL; a call that sleeps uninterruptibly takes no notice until the kernel lets go."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):  # It has ended and waits to be reaped.
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def receive(self) -> None:
        """Take what has arrived now, without waiting for the event loop to say so."""
        self._readable()

    def forget(self) -> None:
        """Close everything without waiting for the end; a process the kernel holds is left to init."""
        self._over = True
        self._close_socket()
        self._close_pidfd()
        if not self.gone.done():
            self.gone.set_result(None)

    def _readable(self, most: int = MESSAGES_MAX) -> None:
        for _ in range(most):
            if self._socket is None:
                return
            try:
                answer = self._receive(self._socket)
            except BlockingIOError:
                return
            except ConnectionResetError:
                answer = b""  # It was killed with an order unread.
            if not answer:
                self._close_socket()
                self._tell_end()
            elif answer == READY:
                self.ready = True
                self._came_up(self)
            else:
                self._answered(self, answer)
            self._close_files()

    def _reap(self) -> None:
        if not self._has_ended():
            return
        self._readable(sys.maxsize)  # An answer may still lie in the socket.
        self._close_socket()
        self._close_pidfd()
        if not self.gone.done():
            self.gone.set_result(None)
        self._tell_end()

    def _tell_end(self) -> None:
        if not self._over:
            self._over = True
            self._ended(self)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def _spawn(program: Sequence[str], channel: int) -> int:
    """Start the program with the socket as its descriptor 3, no environment and default signals."""
    return os.posix_spawn(
        program[0],
        list(program),
        {},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, channel, SOCKET),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ],
        setpgroup=0,  # A Ctrl-C on the daemon's terminal is not for its workers.
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD],
    )


_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""
_FILE = struct.Struct("i")


class WorkerUnit(WorkerProcess):
    """As `WorkerProcess`; `program` is the path of the socket alone.

    Until it has come up, `pid` is a negative number that no other worker has, and `kill` waits for the real one.
    """

    _kill_wanted = False

    def kill(self) -> None:
        """Send SIGKILL, as soon as it is known to whom."""
        if self.pid < 0:
            self._kill_wanted = True
        super().kill()

    def _start(self, program: Sequence[str]) -> socket.socket:
        self.pid = -id(self)
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            channel.setblocking(False)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            channel.connect(program[0])
        except BaseException:
            channel.close()
            raise
        return channel

    def _sent_by(self, pid: int) -> None:
        if self._pidfd >= 0:
            return
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # It has ended; the end of its socket follows.
        self._loop.add_reader(self._pidfd, self._reap)
        if self._kill_wanted:
            super().kill()  # The number it was abandoned under stays its name.
        else:
            self.pid = pid

    def _has_ended(self) -> bool:
        return True  # systemd takes the zombie away.

    def _close_socket(self) -> None:
        super()._close_socket()
        # Its pid was never known: there is nothing left to watch.
        if self._pidfd < 0 and not self.gone.done():
            self.gone.set_result(None)
