# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which module stands behind a socket that some process has open."""

import os
from functools import cached_property
from pathlib import Path

from kmodd.kernel.smallfile import read_text
from kmodd.names import ModuleName, canonical

_TABLE_MAX = 1 << 16
_ATTRIBUTE = "system.sockprotoname"


class SocketModules:
    """Protocols by module, from /proc/net/protocols: its first column is the protocol, the eighth its module or `kernel`."""

    def __init__(self, root: Path) -> None:
        self._path = root / "proc/net/protocols"

    def protocol(self, link: Path, name: ModuleName) -> str:
        """The socket's protocol when it is one of the module's; empty otherwise. `link` is /proc/PID/fd/N."""
        mine = self._protocols.get(name)
        if not mine:
            return ""
        try:
            # Each socket carries the name of its protocol (sockfs_xattr_get in net/socket.c); lsof reads it there too.
            protocol = os.getxattr(link, _ATTRIBUTE).rstrip(b"\0").decode(errors="replace")
        except OSError:
            return ""
        return protocol if protocol in mine else ""

    @cached_property
    def _protocols(self) -> dict[str, set[str]]:
        table: dict[str, set[str]] = {}
        for line in (read_text(self._path, _TABLE_MAX) or "").splitlines()[1:]:
            fields = line.split()
            # `press` is one word, and a name may have a space in it: count from the end, where 19 `y` or `n` stand.
            flags = next((n for n, word in enumerate(reversed(fields)) if word not in {"y", "n"}), len(fields))
            head = fields[: len(fields) - flags]
            if len(head) >= 8:
                table.setdefault(canonical(head[-1]), set()).add(" ".join(head[:-7]))
        return table
