# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd, as far as a service of Type=notify speaks to it."""

from collections.abc import Mapping


class Supervisor:
    """Tells systemd how this process is: sd_notify(3). Nobody, when it was not systemd that started it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._wanted = bool(environment.get("NOTIFY_SOCKET"))

    def tell(self, *lines: str) -> None:
        """Send assignments such as `READY=1`."""
        if self._wanted:
            # Imported here: a simulation runs without systemd.
            from systemd.daemon import notify

            notify("\n".join(lines))
