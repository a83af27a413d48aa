# SPDX-License-Identifier: LGPL-2.1-or-later
"""dbus-next's connection, with what version 0.2.3 gets wrong while it connects and when it ends; of servers and clients.

Measured: a failed connection leaves its socket open, the end of file during authentication spins without ever yielding, and
disconnecting shuts the socket down but does not close it. What servers and clients do differently, reading and writing, is in
`kmodd.dbus.transport` and `kmodd.client.connection`.
"""

import contextlib
from typing import Any

from dbus_next.aio import MessageBus
from dbus_next.errors import AuthError

_LINE_MAX = 4096
"""Bytes of a line of the authentication protocol."""


class Connection(MessageBus):
    """One connection to a message bus."""

    def _setup_socket(self) -> None:
        base: Any = super()
        try:
            base._setup_socket()
        except BaseException:
            self.release()
            raise

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = await self._loop.sock_recv(self._sock, 1)
            if not byte or len(line) > _LINE_MAX:
                raise AuthError("the bus ended the conversation during authentication")
            line += byte
        return line[:-2].decode(errors="replace")

    def release(self) -> None:
        """Close the descriptors; again is nothing."""
        if hasattr(self, "_stream"):
            # The buffer may hold unsent bytes that a closed peer refuses.
            with contextlib.suppress(OSError, ValueError):
                self._stream.close()
        if hasattr(self, "_sock"):
            self._sock.close()
