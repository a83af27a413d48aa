# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protocol of sd_notify(3) for a service of Type=notify."""

import os
from collections.abc import Mapping

_FIRST = 3
"""SD_LISTEN_FDS_START in sd_listen_fds(3)."""


class SdNotify:
    """Reports the state of this process to systemd by sd_notify(3); does nothing if systemd did not start it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._enabled = bool(environment.get("NOTIFY_SOCKET"))

    def notify(self, *lines: str) -> None:
        """Send assignments such as `READY=1`."""
        if self._enabled:
            # Imported here: a simulation runs without systemd.
            from systemd.daemon import notify

            notify("\n".join(lines))

    def keep(self, name: str, file: int) -> None:
        """Have systemd keep a copy of a descriptor over a restart (FileDescriptorStoreMax= in systemd.service(5))."""
        if self._enabled:
            from systemd.daemon import notify

            notify(f"FDSTORE=1\nFDNAME={name}", fds=[file])

    def drop(self, name: str) -> None:
        """Have systemd close its copy."""
        self.notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def stored_descriptors(environment: Mapping[str, str], pid: int) -> dict[str, int]:
    """The descriptors that systemd kept for this process, by name; children do not inherit them."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(pid) or not (count.isascii() and count.isdecimal()):
        return {}
    files = range(_FIRST, _FIRST + int(count))
    for file in files:
        os.set_inheritable(file, False)
    return dict(zip(environment.get("LISTEN_FDNAMES", "").split(":"), files, strict=False))
