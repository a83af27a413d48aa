# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of the composition root that is about custom modules: the store's folder, the parser, module trees, depmod."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from kmodd.core.activation import Activation
from kmodd.core.api import Audit, Clock, Events
from kmodd.core.health import HealthMonitor
from kmodd.core.operations import Operations
from kmodd.core.store import Store, StoreLimits
from kmodd.core.store_catalogue import StoreCatalogue
from kmodd.core.store_health import StoreWatch
from kmodd.kernel.depmod import Depmod
from kmodd.kernel.file_copy import clear_folder
from kmodd.kernel.module_tree import ModuleTree
from kmodd.kernel.parser_process import ModuleParser
from kmodd.kernel.ports import Kernel
from kmodd.kernel.store_files import StoreFiles
from kmodd.model import Caller
from kmodd.model.tunables import Tunables
from kmodd.names import ModuleName
from kmodd.settings import Settings


class CustomModules:
    """Everything about custom modules, joined."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        kernel: Kernel,
        *,
        operations: Operations,
        events: Events,
        audit: Audit,
        clock: Clock,
        tunables: Callable[[], Tunables],
        parser_socket: str = "",
    ) -> None:
        """`root` has the module trees, `folder` is the store's own; a simulation has both in a place of its own."""
        release = kernel.facts.read().release
        self._files = files = StoreFiles(folder)
        self._catalogue = catalogue = StoreCatalogue(release)
        self._loaded = kernel.loaded
        self._place: SimulatedPlace | None = None
        self._recovery: asyncio.Task[None] | None = None
        trees = ModuleTree(root)
        lock = asyncio.Lock()
        self.store = Store(
            files,
            trees,
            ModuleParser(root, release, unit_socket=parser_socket),
            kernel.facts,
            catalogue,
            lock=lock,
            audit=audit,
            clock=clock,
            limits=lambda: limits_of(tunables()),
        )
        self.activation = Activation(
            files,
            trees,
            Depmod(folder / ".index"),
            catalogue,
            index=kernel.index,
            loaded=kernel.loaded,
            facts=kernel.facts,
            operations=operations,
            lock=lock,
            audit=audit,
            events=events,
        )
        self.watch = StoreWatch(files, trees, catalogue, is_changing=self._is_changing)
        self.activation.on_settled = self._settled

    @classmethod
    def of(
        cls,
        settings: Settings,
        kernel: Kernel,
        *,
        operations: Operations,
        events: Events,
        audit: Audit,
        clock: Clock,
        tunables: Callable[[], Tunables],
    ) -> "CustomModules":
        """Those of the machine, or of a simulation with files of its own."""
        place = None
        if settings.simulate:
            place = SimulatedPlace(os.environ.get("XDG_RUNTIME_DIR", ""), kernel.facts.read().release)
        root = Path("/") if place is None else place.root
        made = cls(
            root,
            Path(settings.state_directory or root / "var/lib/kmodd") / "store",
            kernel,
            operations=operations,
            events=events,
            audit=audit,
            clock=clock,
            tunables=tunables,
            parser_socket=settings.parser_socket,
        )
        made._place = place
        return made

    def start(self, health: HealthMonitor | None = None) -> None:
        """Read what is kept, clear away what a crash left, and undo in the background what it interrupted."""
        self._files.prepare()
        self._catalogue.fill(self._files.entries())
        if health is not None:
            self.watch.on_news = health.look_soon
            health.further += (self.watch.findings,)
            health.readings += (self.watch.reading,)
        self._recovery = asyncio.get_running_loop().create_task(self._recover())
        self._recovery.add_done_callback(lambda _: self.watch.on_news())

    async def _recover(self) -> None:
        await self.activation.recover()
        await self.watch.read()

    def active_version(self, name: ModuleName) -> str:
        """The active version for the running kernel; empty when there is none."""
        entry = self._catalogue.active(name, self._catalogue.running)
        return entry.version if entry is not None else ""

    async def activate(
        self, name: ModuleName, version: str, caller: Caller, *, dry_run: bool
    ) -> tuple[ModuleName, ...]:
        """Make a version the active one and load it where another one is loaded, as a wanted state asks."""
        entry = self._catalogue.one(name, version, self._catalogue.running)
        touched = await self.activation.activate(entry, caller, load=self._is_loaded(name), dry_run=dry_run)
        return tuple(map(ModuleName, touched))

    async def restore(self, name: ModuleName, version: str, caller: Caller) -> None:
        """Make this version active again, or none (empty)."""
        load = self._is_loaded(name)
        if version:
            await self.activation.activate(
                self._catalogue.one(name, version, self._catalogue.running), caller, load=load
            )
        elif (entry := self._catalogue.active(name, self._catalogue.running)) is not None:
            await self.activation.deactivate(entry, caller, load=load)

    async def close(self) -> None:
        """Stop a change under way, give up looking, and leave nothing of a simulation behind."""
        await self.activation.close()
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        await self.watch.close()
        if self._place is not None:
            self._place.remove()

    def _settled(self) -> None:
        self.watch.on_news()

    def _is_changing(self, name: ModuleName, kernel: str) -> bool:
        recovering = self._recovery is not None and not self._recovery.done()
        return recovering or self.activation.is_changing(name, kernel)

    def _is_loaded(self, name: ModuleName) -> bool:
        return self._loaded.read(name) is not None


def limits_of(tunables: Tunables) -> StoreLimits:
    """The store's limits as they are set; root has more room than others, and never less."""
    usual = StoreLimits()
    return StoreLimits(
        file=tunables.store_file_max,
        per_user=tunables.store_total_max,
        root=max(usual.root, tunables.store_total_max),
        versions=tunables.store_versions_max,
    )


class SimulatedPlace:
    """A folder for a simulation's files, with an empty module tree; nobody else can use it, and it goes with `remove`."""

    def __init__(self, parent: str, release: str) -> None:
        self.root = Path(parent or "/tmp") / f"kmodd-simulation-{os.getpid()}-{os.urandom(4).hex()}"  # noqa: S108 - 0700, and ours
        tree = self.root / "lib/modules" / release
        self.root.mkdir(mode=0o700)
        (tree / "kernel").mkdir(parents=True)
        for name in ("modules.dep", "modules.order", "modules.builtin", "modules.builtin.modinfo"):
            (tree / name).touch()

    def remove(self) -> None:
        """Take everything away."""
        clear_folder(self.root)
