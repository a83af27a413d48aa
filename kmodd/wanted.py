# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of the composition root that is about the wanted state: files, comparison, reconciliation, health."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kmodd.core.api import Audit, Events
from kmodd.core.application import Versions
from kmodd.core.configuration import Configuration
from kmodd.core.converge import Convergence
from kmodd.core.desired import DesiredState, Documents
from kmodd.core.drift import Comparison
from kmodd.core.health import HealthMonitor
from kmodd.core.health_boot import BootHealth
from kmodd.core.health_desired import DesiredHealth
from kmodd.core.health_rules import RulesHealth
from kmodd.core.operations import Operations
from kmodd.core.parameters import Parameters
from kmodd.core.reconcile import CALLER, Reconciler
from kmodd.errors import Conflict
from kmodd.kernel import modprobe_d, modules_load_d
from kmodd.kernel.file_watch import FileWatch
from kmodd.kernel.initramfs import Initramfs
from kmodd.kernel.modaliases import present_aliases
from kmodd.kernel.ports import Kernel
from kmodd.kernel.toml_file import FOLDERS, DropIns
from kmodd.kernel.trees import ModuleTrees
from kmodd.known_wishes import KnownWishes
from kmodd.model import Record
from kmodd.model.document import Document
from kmodd.model.tunables import Tunables
from kmodd.names import ModuleName

_PATIENCE = 1
"""Seconds of patience with a look at the disk when the daemon ends."""


class NoFiles:
    """Where nobody has settings: a simulated machine."""

    def changed(self) -> bool:
        """Never."""
        return False

    def read(self) -> Sequence[Document]:
        """None."""
        return ()


class Wanted:
    """Everything about the wanted state, joined."""

    def __init__(
        self,
        root: Path | None,
        kernel: Kernel,
        *,
        operations: Operations,
        parameters: Parameters,
        rules: Configuration,
        health: HealthMonitor,
        events: Events,
        audit: Audit,
        runtime_directory: str,
        on_tunables: Callable[[Tunables], None],
        versions: Versions | None = None,
        active_version: Callable[[ModuleName], str] = lambda name: "",
    ) -> None:
        """`root` is None on a simulated machine, which has no files; `on_tunables` takes the daemon's settings over."""
        self._index = kernel.index
        self._stop: Callable[[], None] = lambda: None
        release = kernel.facts.read().release
        modules: Documents = NoFiles() if root is None else DropIns(root, "modules.d")
        settings: Documents = NoFiles() if root is None else DropIns(root, "kmodd.toml.d", main="kmodd.toml")
        self.desired = desired = DesiredState(
            modules,
            settings,
            release=release,
            aliases=tuple if root is None else lambda: present_aliases(root),
            audit=audit,
            on_reload=self._take_over,
        )
        self._on_tunables = on_tunables
        self._audit = audit
        self._look_soon = health.look_soon
        folders = () if root is None else watched_folders(root, release)
        self._watch = FileWatch(folders, self._on_files)
        self._boot = boot = (
            None
            if root is None
            else BootHealth(Initramfs(root, release), ModuleTrees(root, release).look, health.look_soon)
        )
        comparison = Comparison(
            desired,
            kernel.loaded,
            kernel.index,
            autoloaded=kernel.configuration.autoload,
            active_version=active_version,
            initramfs=tuple if boot is None else boot.drift,
        )
        self.reconciler = reconciler = Reconciler(
            desired,
            operations,
            loaded=kernel.loaded,
            index=kernel.index,
            events=events,
            audit=audit,
            known=KnownWishes(Path(runtime_directory) / "wishes" if runtime_directory else None),
            changed=health.look_soon,
        )
        kernel.uevents.on_device = reconciler.device_changed
        self.convergence = Convergence(
            desired,
            comparison,
            operations,
            reconciler,
            rules=rules,
            parameters=parameters,
            versions=versions,
            index=kernel.index,
            audit=audit,
            settle=None if boot is None else boot.settled,
        )
        self._rules = RulesHealth(rules.show, kernel.index.all_rules, health.look_soon)
        told = DesiredHealth(desired, comparison, reconciler)
        health.further += (told.checks, self._rules.checks)
        health.readings += (self._rules.reading,)
        self.metrics = told.metrics
        if boot is not None:
            health.further += (boot.checks,)
            health.readings += (boot.reading,)

    @property
    def tunables(self) -> Tunables:
        """The daemon's settings in force."""
        return self.desired.tunables

    def read(self) -> None:
        """Read all files for the first time; a bad one is recorded and the defaults hold."""
        try:
            self.desired.reload()
        except Conflict:
            return  # in the journal and in health

    def start(self) -> None:
        """Act on wishes, and follow the files they stand in and the module index."""
        self._stop = self.reconciler.start()
        try:
            self._watch.start()
        except OSError as error:
            # Whoever asks, and every event of a module, has the files looked at as well.
            self._audit.record(
                Record(
                    "daemon.trouble",
                    f"changed files are noticed late, there are no more watches ({error.strerror})",
                    errno=error.errno,
                    hint="sysctl fs.inotify.max_user_instances",
                    priority=4,
                )
            )

    def stop(self) -> None:
        """Follow nothing any more."""
        self._watch.close()
        self._stop()

    def _on_files(self) -> None:
        """What was missing may be there now: a module that depmod has just found, a mended file. Health may be another too."""
        self._index.refresh()
        self.desired.refresh()
        self.reconciler.files_changed()
        self._look_soon()

    def read_again(self) -> None:
        """As on SIGHUP: what is bad is recorded, and the old settings stay."""
        try:
            self.convergence.read_again(CALLER)
        except Conflict:
            return

    async def close(self) -> None:
        """Give up what is under way."""
        looks = [self._rules.close(), *([self._boot.close()] if self._boot is not None else [])]
        await asyncio.gather(
            self.reconciler.close(), *(asyncio.wait_for(look, _PATIENCE) for look in looks), return_exceptions=True
        )

    def _take_over(self) -> None:
        self._on_tunables(self.desired.tunables)


def watched_folders(root: Path, release: str) -> Iterator[Path]:
    """Where something that is written may help a wish that failed. kmodd itself keeps nothing there."""
    yield root / "lib/modules" / release
    yield root / "boot"
    yield from (root / place for place in (*modprobe_d.DIRECTORIES, *modules_load_d.DIRECTORIES))
    for place in FOLDERS:
        yield root / place
        yield from (root / place / name for name in ("modules.d", "kmodd.toml.d"))
