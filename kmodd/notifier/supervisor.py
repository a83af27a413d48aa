# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells systemd how this process is, as sd_notify(3) does: a datagram to the socket it named. Nobody, when it named none."""

from collections.abc import Mapping
from contextlib import suppress
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket


class Supervisor:
    """systemd, or nobody."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def tell(self, *lines: str) -> None:
        """Send assignments such as `READY=1`."""
        if not self._address:
            return
        with socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC) as sender, suppress(OSError):
            sender.sendto("\n".join(lines).encode(), self._address)
