# SPDX-License-Identifier: LGPL-2.1-or-later
"""What health says of custom modules: files that are not what was imported, and kernels without a version that fits."""

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from kmodd.core.store_catalogue import StoreCatalogue
from kmodd.kernel.ports import StoreFolder, Trees
from kmodd.model import HealthCheck, HealthStatus
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName

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
        self._others: dict[tuple[ModuleName, str], tuple[_Stamp, str]] = {}
        """Files of a module that are not ours, with the stamp of the index they were read from."""

    def findings(self) -> Iterator[HealthCheck]:
        """Everything, as last read; what has changed since is read in the background."""
        entries = self._catalogue.all()
        found = [*self._changed(entries), *self._damaged(), *self._interrupted(), *self._missing(entries)]
        yield from found
        if entries and not found:
            message = "Every version of a custom module in the store is as it was imported."
            yield HealthCheck("store", _OK, message)

    async def read(self) -> None:
        """Hash what is new or has changed."""
        for path in self._unread():
            stamp = self._folder.stamp(path)
            digest = ""
            with suppress(OSError):
                digest, _ = await asyncio.to_thread(self._folder.digest, path)
            self._known[path] = stamp, digest
        self._known = {path: known for path, known in self._known.items() if path in set(self._files())}

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
        if self._unread():
            self._read_soon()
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
                f"{file} is not what kmodd wrote: the version it told of is not in the store any more.",
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
                "systemctl restart kmodd tries again; journalctl -u kmodd says why it could not",
            )

    def _missing(self, entries: tuple[StoredModule, ...]) -> Iterator[HealthCheck]:
        """A kernel that may run after the next boot, without what is active for another one."""
        later = [kernel for kernel in self._trees.kernels() if _order(kernel) >= _order(self._catalogue.running)]
        for name in sorted({entry.name for entry in entries if entry.active}):
            for kernel in later:
                there = [entry for entry in entries if (entry.name, entry.kernel) == (name, kernel)]
                if any(entry.active for entry in there):
                    continue
                another = "" if there else self._another(name, kernel)
                yield _lack(name, kernel, there, another, running=kernel == self._catalogue.running)

    def _another(self, name: ModuleName, kernel: str) -> str:
        """`Trees.another`, read again when the kernel's index has changed."""
        stamp = self._folder.stamp(self._trees.folder(kernel) / "modules.dep")
        if self._others.get((name, kernel), ((), ""))[0] != stamp:
            self._others[name, kernel] = stamp, self._trees.another(name, kernel)
        return self._others[name, kernel][1]


def _lack(name: ModuleName, kernel: str, there: list[StoredModule], another: str, *, running: bool) -> HealthCheck:
    if there:
        return HealthCheck(
            "store-version-missing",
            _DEGRADED,
            f"No version of {name} is active for kernel {kernel}, though one is in the store.",
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
        f"Kernel {kernel} is installed, and there is no version of {name} for it: {when}.",
        name,
        f"build {name} against the headers of {kernel}, then import and activate it",
    )


def _order(release: str) -> tuple[tuple[int, ...], str]:
    """For comparing releases: their numbers, as a boot loader sorts them."""
    return tuple(int(number) for number in re.findall(r"\d+", release)), release
