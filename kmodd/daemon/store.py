# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of the composition root for custom modules: the store's directory, the parser, module trees, depmod."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kmodd.core.events import Audit, Clock, Events
from kmodd.core.health.monitor import HealthMonitor
from kmodd.core.health.store import StoreWatch
from kmodd.core.operations.operations import Operations
from kmodd.core.store.activation import Activation, AuthorizedContent, Switch
from kmodd.core.store.store import Store, StoreCatalogue, StoreLimits
from kmodd.kernel.atomic_file import clear_folder
from kmodd.kernel.modules.depmod import Depmod
from kmodd.kernel.modules.parser_client import ModuleParser
from kmodd.kernel.modules.store_files import StoreFiles
from kmodd.kernel.modules.trees import ModuleTree
from kmodd.kernel.ports import Kernel
from kmodd.model import Caller
from kmodd.model.settings import DaemonSettings
from kmodd.names import ModuleName
from kmodd.startup.options import Settings


class StorePlace:
    """Where custom modules are: the store's folder, the module trees, and what is known of both."""

    def __init__(self, root: Path, folder: Path, release: str, simulated: "SimulatedPlace | None" = None) -> None:
        """`root` has the module trees, `folder` is the store's own; a simulation has both in a temporary directory."""
        self.root = root
        self.folder = folder
        self.release = release
        self.simulated = simulated
        self.files = StoreFiles(folder)
        self.trees = ModuleTree(root)
        self.catalogue = StoreCatalogue(release)
        self.content = AuthorizedContent(self.trees, self.catalogue)

    @classmethod
    def of(cls, settings: Settings, release: str) -> "StorePlace":
        """That of the system, or of a simulation with its own files."""
        simulated = SimulatedPlace(os.environ.get("XDG_RUNTIME_DIR", ""), release) if settings.simulate else None
        root = Path("/") if simulated is None else simulated.root
        return cls(root, Path(settings.state_directory or root / "var/lib/kmodd") / "store", release, simulated)


class CustomModules:
    """Everything about custom modules, joined."""

    def __init__(
        self,
        place: StorePlace,
        kernel: Kernel,
        *,
        operations: Operations,
        events: Events,
        audit: Audit,
        clock: Clock,
        daemon_settings: Callable[[], DaemonSettings],
        parser_socket: str = "",
    ) -> None:
        self._place = place
        self._catalogue = catalogue = place.catalogue
        self._loaded = kernel.loaded
        self._recovery: asyncio.Task[None] | None = None
        files, trees = place.files, place.trees
        lock = asyncio.Lock()
        self.store = Store(
            files,
            trees,
            ModuleParser(place.root, place.release, unit_socket=parser_socket),
            kernel.facts,
            catalogue,
            lock=lock,
            audit=audit,
            clock=clock,
            limits=lambda: limits_of(daemon_settings()),
        )
        self.activation = Activation(
            files,
            trees,
            # With -b too depmod reads the machine's own depmod.d, which is not a simulation's.
            Depmod(
                place.folder / ".index",
                configuration=None if place.root == Path("/") else place.root / "etc/depmod.d",
            ),
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

    def start(self, health: HealthMonitor | None = None) -> None:
        """Read what is kept, clear away what a crash left, and undo in the background what it interrupted."""
        self._place.files.prepare()
        self._catalogue.fill(self._place.files.entries())
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

    def foresee(self, name: ModuleName, version: str) -> Switch:
        """What making a version the active one, and loading it where another one is loaded, would do now."""
        kernel = self._catalogue.running
        switch = self.activation.foresee(
            name, kernel, self._catalogue.one(name, version, kernel), load=self._is_loaded(name)
        )
        # For the desired state, which one action stands for whatever is reloaded with it.
        return replace(switch, loaders=None)

    async def activate(self, switch: Switch, caller: Caller, *, dry_run: bool) -> tuple[ModuleName, ...]:
        """Make exactly this version the active one, for the desired state."""
        return tuple(map(ModuleName, await self.activation.switch(switch, caller, dry_run=dry_run)))

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
        if self._place.simulated is not None:
            self._place.simulated.remove()

    def _settled(self) -> None:
        self.watch.on_news()

    def _is_changing(self, name: ModuleName, kernel: str) -> bool:
        recovering = self._recovery is not None and not self._recovery.done()
        return recovering or self.activation.is_changing(name, kernel)

    def _is_loaded(self, name: ModuleName) -> bool:
        return self._loaded.read(name) is not None


def limits_of(daemon_settings: DaemonSettings) -> StoreLimits:
    """The store's limits as they are set; root has more room than others, and never less."""
    usual = StoreLimits()
    return StoreLimits(
        file=daemon_settings.store_file_max,
        per_user=daemon_settings.store_total_max,
        root=max(usual.root, daemon_settings.store_total_max),
        versions=daemon_settings.store_versions_max,
    )


class SimulatedPlace:
    """A folder for a simulation's files, with an empty module tree; no other user can use it, and `remove` deletes it."""

    def __init__(self, parent: str, release: str) -> None:
        self.root = Path(parent or "/tmp") / f"kmodd-simulation-{os.getpid()}-{os.urandom(4).hex()}"  # noqa: S108 - 0700, and ours
        tree = self.root / "lib/modules" / release
        self.root.mkdir(mode=0o700)
        (tree / "kernel").mkdir(parents=True)
        (self.root / "etc/depmod.d").mkdir(parents=True)
        for name in ("modules.dep", "modules.order", "modules.builtin", "modules.builtin.modinfo"):
            (tree / name).touch()

    def remove(self) -> None:
        """Take everything away."""
        clear_folder(self.root)
