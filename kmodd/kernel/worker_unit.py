# SPDX-License-Identifier: LGPL-2.1-or-later
"""A worker that systemd starts: one connection to a socket unit with `Accept=yes` is one worker, in a unit of its own.

So the daemon needs no right to load modules, and a worker that hangs in the kernel is no part of the daemon's unit. It
is not our child: its number comes with its first message, vouched for by the kernel (SCM_CREDENTIALS, unix(7)), and its
end is seen by pidfd alone.
"""

import os
import socket
import struct
from collections.abc import Sequence

from kmodd.kernel.worker_process import WorkerProcess

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


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

    def _receive(self, channel: socket.socket) -> bytes:
        message, ancillary, _, _ = channel.recvmsg(self.answer_max, socket.CMSG_SPACE(_CREDENTIALS.size))
        if message and self._pidfd < 0:
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    self._know(_CREDENTIALS.unpack(data)[0])
        return message

    def _know(self, pid: int) -> None:
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
        # Nobody ever learned who it is: there is nothing left to watch.
        if self._pidfd < 0 and not self.gone.done():
            self.gone.set_result(None)
