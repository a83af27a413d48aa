# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parent's handle of one worker process: its socket, its end, the order it is working on."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from kmodd.kernel.worker import READY, SOCKET


class WorkerProcess:
    """One worker, from its start until it is reaped.

    Everything is told through two callbacks on the event loop: `answered` with each answer, and `ended` once, when the
    process can make no more calls: its socket closed (the kernel closes it when a call kills the worker, even where the
    task itself never goes away) or the process is gone. The process is watched by pidfd, so there is no SIGCHLD handler
    and no other child of this program is ever waited for by accident. `gone` is set once the process is reaped.

    OSError from the constructor when no process can be started; nothing is left open then.
    """

    answer_max = 64
    """Bytes of one answer."""

    def __init__(
        self,
        program: Sequence[str],
        *,
        answered: Callable[["WorkerProcess", bytes], None],
        ended: Callable[["WorkerProcess"], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._answered = answered
        self._ended = ended
        self._over = False
        self.ready = False
        """It has come up: what ends it from now on is not a program that cannot start."""
        self.gone: asyncio.Future[None] = self._loop.create_future()
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
        return channel.recv(self.answer_max)

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

    def _readable(self) -> None:
        while self._socket is not None:
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
            else:
                self._answered(self, answer)

    def _reap(self) -> None:
        if not self._has_ended():
            return
        self._readable()  # An answer may still lie in the socket.
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
