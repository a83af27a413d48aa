# SPDX-License-Identifier: LGPL-2.1-or-later
"""Health of the store: changed files, interrupted changes, and kernels without a matching version."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from kmodd.core.store.store import StoreCatalogue
from kmodd.errors import errno_name
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import StoreFolder, Trees
from kmodd.model import HealthCheck, HealthStatus
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName
from kmodd.releases import compare

_OK, _DEGRADED = HealthStatus.OK, HealthStatus.DEGRADED
_Stamp = tuple[int, ...] | None


class StoreWatch:
    """Looks at the store's files and the installed kernels. A look costs one stat for each file, unless one has changed."""

    def __init__(
        self,
        folder: StoreFolder,
        trees: Trees,
        catalogue: StoreCatalogue,
        *,
        is_changing: Callable[[ModuleName, str], bool] = lambda name, kernel: False,
    ) -> None:
        """`is_changing` tells of a module and a kernel whether a change is under way: that is none that was interrupted."""
        self._folder = folder
        self._trees = trees
        self._catalogue = catalogue
        self._is_changing = is_changing
        self._known: dict[Path, tuple[_Stamp, str]] = {}
        """Hashes of files, with the stamp they had when they were read."""
        self.on_news: Callable[[], None] = lambda: None
        """Called when files were read again, so that health looks again."""
        self._reading: asyncio.Task[None] | None = None
        self._places: dict[tuple[ModuleName, str], _Place] = {}
        """What the indexes say of the modules that `_in_indexes` names."""

    def findings(self) -> Iterator[HealthCheck]:
        """Everything, as last read; what has changed since is read in the background."""
        entries = self._catalogue.all()
        if self._unread() or self._unseen(entries):
            self._read_soon()
        faults = [
            *self._changed(entries),
            *self._outranked(entries),
            *self._damaged(),
            *self._interrupted(),
            *self._missing(entries),
        ]
        yield from faults
        if entries and not faults:
            message = "Every custom module in the store matches what was imported."
            yield HealthCheck("store", _OK, message)

    async def read(self) -> None:
        """Hash what is new or has changed, and look modules up in indexes that are new."""
        for path in self._unread():
            stamp = self._folder.stamp(path)
            digest = ""
            with suppress(OSError):
                digest, _ = await asyncio.to_thread(self._folder.digest, path)
            self._known[path] = stamp, digest
        self._known = {path: finding for path, finding in self._known.items() if path in set(self._files())}
        entries = self._catalogue.all()
        for name, kernel in self._unseen(entries):
            # The stamp first: what is put in place while it is read is read again.
            stamp = self._index_stamp(kernel)
            self._places[name, kernel] = await asyncio.to_thread(self._look_up, name, kernel, stamp)
        wanted = set(self._in_indexes(entries))
        self._places = {key: place for key, place in self._places.items() if key in wanted}

    def reading(self) -> asyncio.Task[None] | None:
        """What is being read."""
        return self._reading if self._reading is not None and not self._reading.done() else None

    async def close(self) -> None:
        """Give up reading."""
        self.on_news = lambda: None
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _files(self) -> Iterator[Path]:
        for entry in self._catalogue.all():
            yield self._folder.path(entry)
            if entry.active:
                yield self._trees.path(entry.name, entry.kernel)

    def _unread(self) -> list[Path]:
        return [path for path in self._files() if self._known.get(path, (None, None))[0] != self._folder.stamp(path)]

    def _read_soon(self) -> None:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self.read())
            self._reading.add_done_callback(lambda _: self.on_news())

    def _changed(self, entries: tuple[StoredModule, ...]) -> Iterator[HealthCheck]:
        for entry in entries:
            which = f"version {entry.version} of {entry.name} for kernel {entry.kernel}"
            if self._differs(self._folder.path(entry), entry):
                away = f"kmodctl store remove {entry.name} {entry.version}"
                if entry.active:
                    away = f"kmodctl store deactivate {entry.name} --kernel {entry.kernel}; {away}"
                yield HealthCheck(
                    "store-file-changed",
                    _DEGRADED,
                    f"The stored file of {which} is not what was imported.",
                    entry.name,
                    f"{away}; then import it again",
                )
            if entry.active and self._differs(self._trees.path(entry.name, entry.kernel), entry):
                yield HealthCheck(
                    "store-file-changed",
                    _DEGRADED,
                    f"The file that modprobe finds for {entry.name} is not the active {which}.",
                    entry.name,
                    f"kmodctl store activate {entry.name} {entry.version} --kernel {entry.kernel}",
                )

    def _damaged(self) -> Iterator[HealthCheck]:
        for file in self._folder.damaged:
            yield HealthCheck(
                "store-file-changed",
                _DEGRADED,
                f"{file} is not what kmodd wrote: its version is no longer in the store.",
                "",
                "remove it and the .ko beside it, import the module again, and systemctl restart kmodd",
            )

    def _differs(self, path: Path, entry: StoredModule) -> bool:
        now = self._folder.stamp(path)
        if now is None:
            return True
        stamp, digest = self._known.get(path, (None, entry.sha256))
        if stamp != now and self._is_stored(digest, entry):
            return False  # it was another version when it was read: one is being put in place of the other
        return stamp is not None and digest != entry.sha256

    def _is_stored(self, digest: str, entry: StoredModule) -> bool:
        return self._catalogue.same(entry.name, entry.kernel, digest) is not None

    def _interrupted(self) -> Iterator[HealthCheck]:
        for name, kernel in self._folder.changes():
            if self._is_changing(name, kernel):
                continue
            yield HealthCheck(
                "store-change-interrupted",
                _DEGRADED,
                f"A change of {name} for kernel {kernel} was interrupted and could not be undone.",
                name,
                "systemctl restart kmodd tries again; journalctl -u kmodd shows why it failed",
            )

    def _outranked(self, entries: tuple[StoredModule, ...]) -> Iterator[HealthCheck]:
        """An index that another file than the active version's is in."""
        active = [entry for entry in entries if entry.active]
        # All of them: a version that is made the active one is none of the active ones yet.
        changing = [entry for entry in entries if self._is_changing(entry.name, entry.kernel)]
        for entry in active:
            place = self._places.get((entry.name, entry.kernel))
            if place is None or entry in changing or self._is_taken(entry, place.indexed):
                continue
            which = f"version {entry.version} of {entry.name}"
            takes = (
                f"takes {place.indexed or 'no file'} and not"
                if not place.fault
                else "cannot be read, so nothing is known about"
            )
            yield HealthCheck(
                "store-index",
                _DEGRADED,
                f"The module index of kernel {entry.kernel} {takes} the active {which}.",
                entry.name,
                f"kmodctl store activate {entry.name} {entry.version} --kernel {entry.kernel}",
            )
        try:
            sound = self._trees.overrides([(entry.name, entry.kernel) for entry in active])
        except OSError:
            sound = False
        if not sound and not changing:
            yield HealthCheck(
                "store-index",
                _DEGRADED,
                "The lines of /etc/depmod.d that put active versions first were changed by another program.",
                "",
                "systemctl restart kmodd",
            )

    def _is_taken(self, entry: StoredModule, indexed: str) -> bool:
        return self._trees.folder(entry.kernel) / indexed == self._trees.path(entry.name, entry.kernel)

    def _missing(self, entries: tuple[StoredModule, ...]) -> Iterator[HealthCheck]:
        """A kernel that may run after the next boot, without what is active for another one."""
        for name, kernel in self._lacking(entries):
            there = [entry for entry in entries if (entry.name, entry.kernel) == (name, kernel)]
            place = self._places.get((name, kernel))
            if there or place is not None:
                another = (place.another or (place.fault and "an unknown file")) if place is not None else ""
                yield _lack(name, kernel, there, another, running=kernel == self._catalogue.running)

    def _lacking(self, entries: tuple[StoredModule, ...]) -> Iterator[tuple[ModuleName, str]]:
        """(module, kernel) where it is active for another kernel and not for this one, which may be the next."""
        active = {(entry.name, entry.kernel) for entry in entries if entry.active}
        if not active:
            return
        later = [kernel for kernel in self._trees.kernels() if compare(kernel, self._catalogue.running) >= 0]
        for name in sorted({name for name, _ in active}):
            yield from ((name, kernel) for kernel in later if (name, kernel) not in active)

    def _in_indexes(self, entries: tuple[StoredModule, ...]) -> Iterator[tuple[ModuleName, str]]:
        """(module, kernel) that something has to be known of."""
        yield from ((entry.name, entry.kernel) for entry in entries if entry.active)
        yield from self._lacking(entries)

    def _unseen(self, entries: tuple[StoredModule, ...]) -> list[tuple[ModuleName, str]]:
        """Those of `_in_indexes` whose index is another one than when it was read."""
        return [
            key
            for key in self._in_indexes(entries)
            if key not in self._places or self._places[key].stamp != self._index_stamp(key[1])
        ]

    def _index_stamp(self, kernel: str) -> _Stamp:
        return self._folder.stamp(self._trees.folder(kernel) / "modules.dep")

    def _look_up(self, name: ModuleName, kernel: str, stamp: _Stamp) -> "_Place":
        try:
            return _Place(stamp, self._trees.indexed(name, kernel), self._trees.another(name, kernel))
        except OSError as error:
            return _Place(stamp, fault=errno_name(error.errno or 0))


@dataclass(frozen=True, slots=True)
class _Place:
    """A module in a kernel's index."""

    stamp: _Stamp
    """Of the index."""
    indexed: str = ""
    """As `Trees.indexed`."""
    another: str = ""
    """As `Trees.another`."""
    fault: str = ""
    """Why neither is known: the name of an errno."""


def _lack(name: ModuleName, kernel: str, there: list[StoredModule], another: str, *, running: bool) -> HealthCheck:
    if there:
        return HealthCheck(
            "store-version-missing",
            _DEGRADED,
            f"No version of {name} is active for kernel {kernel}, although the store has one.",
            name,
            f"kmodctl store activate {name} {there[0].version} --kernel {kernel}",
        )
    if another:
        instead = f"the built-in {name}" if another == "built-in" else another
        when = f"it uses {instead}" if running else f"after a reboot into it {instead} is used"
    else:
        when = "it is missing now" if running else f"after a reboot into it {name} is missing"
    return HealthCheck(
        "store-version-missing",
        _DEGRADED,
        f"Kernel {kernel} is installed, but has no version of {name}: {when}.",
        name,
        f"build {name} against the headers of {kernel}, then import and activate it",
    )
