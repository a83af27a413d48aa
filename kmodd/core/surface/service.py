# SPDX-License-Identifier: LGPL-2.1-or-later
"""The attack surface of each installed kernel, computed in a thread and kept while clients ask for it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from kmodd.core.fair_share import FairSlots, User
from kmodd.errors import Evidence, ModuleTreeMissing, NoSuchModule
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Facts, InstalledKernels, LoadedModules
from kmodd.model import HealthCheck, HealthStatus
from kmodd.model.surface import Exposure, Gate, Surface
from kmodd.names import ModuleName
from kmodd.text import shown

KEEP = 10.0
"""Seconds without a question after which everything is forgotten: it has megabytes."""
_WAITING = 256
"""More than the concurrent calls of one user: each of them has a place."""
_KERNELS_MAX = 2
"""Kernels whose surface is kept."""

_RESET = "sysctl kernel.modprobe=/sbin/modprobe"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ComputedSurface:
    """A surface, and all that it was computed from."""

    stamp: object
    surface: Surface


class Surfaces:
    """Answers questions about the surface of one kernel at a time."""

    def __init__(
        self,
        installed: InstalledKernels,
        loaded: LoadedModules,
        facts: Facts,
        *,
        forgotten: Callable[[], None] = lambda: None,
    ) -> None:
        """`forgotten` is called when the kept surfaces were dropped."""
        self._installed = installed
        self._loaded = loaded
        self._facts = facts
        self._forgotten = forgotten
        self._slots = FairSlots(1, root=1, waiting=_WAITING)
        self._known: dict[str, ComputedSurface] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def answer(self, kernel: str, uid: User, make: Callable[[Surface], Answer]) -> Answer:
        """What `make` answers for the surface of a kernel (empty: the running one), in the same thread; ModuleTreeMissing."""
        made: Answer = await self._slots.in_thread(uid, self._answer, kernel, make)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(KEEP, self._forget)
        return made

    def releases(self) -> tuple[str, ...]:
        """The installed kernels; in the thread of `make`."""
        return self._installed.releases()

    def health(self) -> list[HealthCheck]:
        """A program in the place of modprobe: the kernel runs it as root for a request of any user."""
        guard = next(guard for guard in self._installed.guards() if guard.gate is Gate.MODPROBE)
        message = ""
        if guard.unusual:
            message = f"The kernel runs {shown(guard.value)} as root for each module request, not modprobe."
        elif guard.unread:
            message = f"kernel.modprobe {guard.says}."
        return [HealthCheck("modprobe", HealthStatus.DEGRADED, message, "", _RESET)] if message else []

    def close(self) -> None:
        """Forget everything, and wait for nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._known = {}

    def _forget(self) -> None:
        self.close()
        self._forgotten()

    def _answer(self, kernel: str, make: Callable[[Surface], Answer]) -> Answer:
        return make(self._surface(kernel))

    def _surface(self, kernel: str) -> Surface:
        facts = self._facts.read()
        release = kernel or facts.release
        running = release == facts.release
        # Taken before anything is read: what changes meanwhile is seen the next time.
        tables = self._installed.tables(release)
        loaded = frozenset(self._loaded.snapshot()) if running else frozenset()
        stamp = self._installed.stamp(release), tables, loaded, facts.command_line
        computed = self._known.get(release)
        if computed is not None and computed.stamp == stamp:
            return computed.surface
        if not running:
            # It is set by a running system, and gone with the next boot.
            guards = tuple(guard for guard in tables.guards if guard.gate is not Gate.MODULES_DISABLED)
            tables = replace(tables, guards=guards)
        # The tables of what the kernel requests are not for an idle daemon.
        from kmodd.core.surface.surface import compute

        with self._installed.index(release) as index:
            if not any(True for _ in index.available()):
                raise ModuleTreeMissing(
                    f"no modules are installed for kernel {release}",
                    evidence=Evidence(hint="kmodctl surface --json lists the installed kernels"),
                )
            surface = compute(index, tables, replace(facts, release=release), running=running, loaded=loaded)
        kept = {name: value for name, value in self._known.items() if name != release}
        while len(kept) >= _KERNELS_MAX:
            del kept[next(iter(kept))]
        self._known = {**kept, release: ComputedSurface(stamp, surface)}
        return surface


def exposure_of(surface: Surface, module: ModuleName) -> Exposure:
    """One module of a surface; NoSuchModule."""
    exposure = surface.find(module)
    if exposure is None:
        raise NoSuchModule(
            f"no module {module} for kernel {surface.kernel}, or it is part of the kernel image", module=module
        )
    return exposure
