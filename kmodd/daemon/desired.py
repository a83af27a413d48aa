# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of the composition root for the desired state: files, comparison, reconciliation, health."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kmodd.config.toml_file import FOLDERS, DropIns
from kmodd.core.desired.apply import DesiredStateService, Versions
from kmodd.core.desired.drift import Comparison
from kmodd.core.desired.reconciler import Reconciler
from kmodd.core.desired.state import DesiredState
from kmodd.core.desired.trial import ApplyTrial
from kmodd.core.events import Audit, Clock, Events, HistoryReader
from kmodd.core.health.checks import BootHealth, FilesHealth
from kmodd.core.health.monitor import HealthMonitor
from kmodd.core.health.rules import DesiredHealth, RulesHealth
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.operations.operations import Operations
from kmodd.core.operations.parameters import Parameters
from kmodd.core.rules.configuration import Configuration
from kmodd.core.surface.enforcement import Enforcement
from kmodd.daemon.state_files import DesiredCache
from kmodd.errors import Conflict, Evidence, NotPermitted, errno_name
from kmodd.kernel.atomic_file import read_file, remove_durably, write_whole
from kmodd.kernel.file_watch import FileWatch
from kmodd.kernel.initramfs import Initramfs
from kmodd.kernel.modprobe import modprobe_d, modules_load_d
from kmodd.kernel.modules.trees import ModuleTrees
from kmodd.kernel.ports import Kernel
from kmodd.kernel.proc.facts import present_aliases
from kmodd.model import KMODD, Record
from kmodd.model.rules import Presence
from kmodd.model.settings import Document
from kmodd.names import ModuleName

_TRIAL_TIMEOUT = 3
_CLOSE_TIMEOUT = 1
"""Seconds of patience with a look at the disk when the daemon ends."""


class NoFiles:
    """Where there are no settings: a simulated system."""

    def changed(self) -> bool:
        """Never."""
        return False

    def read(self) -> Sequence[Document]:
        """None."""
        return ()


def desired_state(root: Path | None, kernel: Kernel, audit: Audit, on_reload: Callable[[], None]) -> DesiredState:
    """The administrator's files below `root`, not read yet; None is a simulated machine, which has none.

    `on_reload` is called when they were read again and are right: the daemon's own settings may be others.
    """
    index = kernel.index

    def modules_of(name: ModuleName) -> tuple[ModuleName, ...]:
        return () if index.exists(name) else index.resolve(name)

    return DesiredState(
        NoFiles() if root is None else DropIns(root, "modules.d"),
        NoFiles() if root is None else DropIns(root, "kmodd.toml.d", main="kmodd.toml"),
        release=kernel.facts.read().release,
        aliases=tuple if root is None else lambda: present_aliases(root),
        audit=audit,
        on_reload=on_reload,
        modules_of=modules_of,
    )


def enforcement(
    root: Path | None,
    kernel: Kernel,
    desired: DesiredState,
    *,
    history: HistoryReader,
    audit: Audit,
    clock: Clock,
    forgotten: Callable[[], None],
) -> Enforcement:
    """The policy for the attack surface, from the files below `root`; None is a simulated machine, which has none."""

    def modules() -> Iterator[tuple[ModuleName, str]]:
        for name, entry in desired.desired_modules.items():
            if entry.state is Presence.LOADED:
                yield name, f"{entry.file}, line {entry.line}"

    return Enforcement(
        kernel.installed,
        kernel.needs,
        kernel.configuration,
        NoFiles() if root is None else DropIns(root, "surface.d", reload="kmodctl surface plan"),
        loaded=kernel.loaded,
        facts=kernel.facts,
        index=kernel.index,
        history=history,
        desired=modules,
        audit=audit,
        clock=clock,
        forgotten=forgotten,
    )


class KeptTrialFile:
    """The trial of the desired state on disk; in memory where there is no state directory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory: bytes | None = None

    def read(self) -> bytes | None:
        """None for nothing; OSError."""
        return self._memory if self._path is None else read_file(self._path)

    def write(self, data: bytes | None) -> None:
        """Replace or remove it; NotPermitted."""
        if self._path is None:
            self._memory = data
            return
        try:
            if data is None:
                remove_durably(self._path)
            else:
                write_whole(self._path, data, 0o600)
        except OSError as error:
            raise NotPermitted(
                f"{self._path} cannot be written ({errno_name(error.errno or 0)})",
                evidence=Evidence(errno=error.errno, file=str(self._path)),
            ) from error


class DesiredParts:
    """The parts for the desired state, connected."""

    def __init__(
        self,
        root: Path | None,
        kernel: Kernel,
        desired: DesiredState,
        *,
        operations: Operations,
        parameters: Parameters,
        values: LiveValues,
        rules: Configuration,
        health: HealthMonitor,
        events: Events,
        audit: Audit,
        runtime_directory: str,
        clock: Clock,
        kept_trial: KeptTrialFile,
        given: GivenValues,
        appeared: Callable[[ModuleName], bool] = lambda name: False,
        versions: Versions | None = None,
        active_version: Callable[[ModuleName], str] = lambda name: "",
        on_device: Callable[[str, str], None] = lambda action, alias: None,
    ) -> None:
        """`root` is None on a simulated machine, which has no files.

        `on_device` is called with (action, modalias) of a device that came or went.
        """
        self._index = kernel.index
        self._stop: Callable[[], None] = lambda: None
        self._ending: asyncio.Task[None] | None = None
        release = kernel.facts.read().release
        self.desired = desired
        self._audit = audit
        self._look_soon = health.look_soon
        folders = () if root is None else watched_folders(root, release)
        self._watch = FileWatch(folders, self._on_files)
        boot: BootHealth | None = None
        if root is not None:
            trees = ModuleTrees(root, release)
            boot = BootHealth(Initramfs(root, release), trees.look, health.look_soon, trees_stamp=trees.stamp)
        self._boot = boot
        self.trial = trial = ApplyTrial(
            operations, audit=audit, clock=clock, boot=kernel.boot_id, read=kept_trial.read, write=kept_trial.write
        )
        comparison = Comparison(
            desired,
            kernel.loaded,
            kernel.index,
            values,
            autoloaded=kernel.configuration.autoload,
            active_version=active_version,
            given=given,
            initramfs=tuple if boot is None else boot.drift,
            appeared=appeared,
        )
        self.reconciler = reconciler = Reconciler(
            desired,
            operations,
            loaded=kernel.loaded,
            index=kernel.index,
            events=events,
            audit=audit,
            known=DesiredCache(Path(runtime_directory) / "wishes" if runtime_directory else None),
            changed=health.look_soon,
            held=trial.held,
        )

        def device_changed(action: str, alias: str) -> None:
            reconciler.device_changed(action, alias)
            on_device(action, alias)

        kernel.uevents.on_device = device_changed
        self.convergence = DesiredStateService(
            desired,
            comparison,
            operations,
            reconciler,
            rules=rules,
            parameters=parameters,
            versions=versions,
            index=kernel.index,
            audit=audit,
            trial=trial,
            settle=None if boot is None else boot.settled,
        )
        self._rules = RulesHealth(rules.show, kernel.index.all_rules, health.look_soon)
        self._files = FilesHealth(kernel.loaded, kernel.index, health.look_soon)
        desired_health = DesiredHealth(desired, comparison, reconciler)
        health.further += (desired_health.checks, self._rules.checks, self._files.checks, trial.health)
        health.readings += (self._rules.reading, comparison.reading, self._files.reading)
        self.metrics = desired_health.metrics
        if boot is not None:
            health.further += (boot.checks,)
            health.readings += (boot.reading,)

    def read(self) -> None:
        """Read all files for the first time; a bad one is recorded and the defaults hold."""
        try:
            self.desired.reload()
        except Conflict:
            return  # in the journal and in health

    def start(self) -> None:
        """Reconcile, and watch the files of the desired state and the module index."""
        self.trial.start()
        self._stop = self.reconciler.start()
        try:
            self._watch.start()
        except OSError as error:
            # Every request and every event of a module also checks the files.
            self._audit.record(
                Record(
                    "daemon.trouble",
                    f"changed files are noticed late: no inotify watches left ({error.strerror})",
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
        """A missing prerequisite may exist now: a module that depmod has just found, a fixed file. Health may have changed too."""
        self._index.refresh()
        self.desired.refresh()
        self.reconciler.files_changed()
        self._look_soon()

    def read_again(self) -> None:
        """As on SIGHUP: what is bad is recorded, and the old settings stay."""
        try:
            self.convergence.read_again(KMODD)
        except Conflict:
            return

    async def end_trial(self) -> None:
        """Take a trial back while operations can still be made; what takes too long is taken back by the next daemon.

        Its call into the kernel is given up with all others, after that.
        """
        self._ending = asyncio.get_running_loop().create_task(self.trial.close())
        await asyncio.wait({self._ending}, timeout=_TRIAL_TIMEOUT)
        self._ending.cancel()

    async def close(self) -> None:
        """Give up what is under way."""
        looks = [self._rules.close(), self._files.close(), *([self._boot.close()] if self._boot is not None else [])]
        if self._ending is not None:
            looks.append(_ended(self._ending))
        await asyncio.gather(
            self.reconciler.close(), *(asyncio.wait_for(look, _CLOSE_TIMEOUT) for look in looks), return_exceptions=True
        )


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})


def watched_folders(root: Path, release: str) -> Iterator[Path]:
    """Directories in which a new file may help a failed module. kmodd itself stores nothing there."""
    yield root / "lib/modules" / release
    yield root / "boot"
    yield from (root / place for place in (*modprobe_d.DIRECTORIES, *modules_load_d.DIRECTORIES))
    for place in FOLDERS:
        yield root / place
        yield from (root / place / name for name in ("modules.d", "kmodd.toml.d"))
