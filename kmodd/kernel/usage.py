# SPDX-License-Identifier: LGPL-2.1-or-later
"""What in user space keeps a module busy: every source asked in turn, the ones that certainly hold a reference first."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from kmodd.kernel.deviceowners import DeviceOwners
from kmodd.kernel.rtnetlink import link_kinds
from kmodd.kernel.usage_block import block_users
from kmodd.kernel.usage_device import bound_devices
from kmodd.kernel.usage_loop import loop_devices
from kmodd.kernel.usage_mount import Mounts
from kmodd.kernel.usage_netdev import interfaces
from kmodd.kernel.usage_process import processes
from kmodd.kernel.usage_socket import SocketModules
from kmodd.model import User
from kmodd.names import ModuleName

USERS_MAX = 64


class ProcUsage:
    """`ports.Usage` on the /proc and /sys below `root`.

    `resolve_alias` answers canonical module names for an alias such as `fs-iso9660`; it is called in the thread `users`
    is called in. `kinds` answers interface → link kind from the kernel (an OSError from it means: not to be had).

    Nothing is opened but small files of /proc and /sys: no device, and nothing that a process has open. What vanishes or
    may not be read is passed over. Only this process's own network namespace is seen.
    """

    def __init__(
        self,
        root: Path,
        resolve_alias: Callable[[str], tuple[str, ...]],
        *,
        kinds: Callable[[], dict[str, str]] = link_kinds,
    ) -> None:
        self._root = root
        self._resolve = resolve_alias
        self._kinds = kinds

    def users(self, name: ModuleName) -> tuple[User, ...]:
        """At most 64 users, each once, with text safe to show. Takes a millisecond per ten or so processes."""
        return tuple(islice(dict.fromkeys(self._all(name)), USERS_MAX))

    def _all(self, name: ModuleName) -> Iterator[User]:
        mounts = Mounts(self._root)
        owners = DeviceOwners(self._root, self._resolve)
        yield from mounts.users(name, self._resolve)
        yield from loop_devices(self._root, name)
        yield from processes(self._root, name, owners, SocketModules(self._root))
        yield from block_users(self._root, name, owners, mounts)
        yield from interfaces(self._root, name, self._resolve, self._kinds)
        yield from bound_devices(self._root, name)
