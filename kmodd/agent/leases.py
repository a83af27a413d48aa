# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's leases: while pods need a module, kmodd lets nothing unload it.

The agent loads a module first and holds it then, so that it stays when the lease ends with the agent: ending unloads nothing. The next
agent takes the lease again; in between the module is loaded and anyone with the right to do so may unload it.
"""

import os
import select
from collections.abc import Collection, Mapping

from kmodd.client import CallerOptions, Client


class Leases:
    """Descriptors of `Hold`, by module."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._files: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    async def take(self, name: str, parameters: Mapping[str, str], options: CallerOptions) -> None:
        """Hold a module that is loaded; the errors of `Hold`."""
        self._files[name] = await self._client.hold(name, parameters, **options)

    def keep(self, names: Collection[str]) -> None:
        """Release all others, and those that kmodd ended: it was stopped, or something else unloaded the module."""
        for name in [name for name, file in self._files.items() if name not in names or _is_over(file)]:
            self.release(name)

    def release(self, name: str) -> None:
        """End the lease of a module, if there is one."""
        file = self._files.pop(name, None)
        if file is not None:
            os.close(file)

    def close(self) -> None:
        """End all."""
        self.keep(())


def _is_over(file: int) -> bool:
    """kmodd closed the other end; nothing is ever written into it."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))
