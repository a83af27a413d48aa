# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store where a caller leaves half way, no process can be started, and the disk refuses."""

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from kmodd.core.store.store import ImportOptions, Store, StoreCatalogue
from kmodd.daemon.store import limits_of
from kmodd.errors import Conflict
from kmodd.kernel.modules.store_files import SpoolFiles, StoreFiles
from kmodd.kernel.modules.trees import ModuleTree
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import RELEASE
from kmodd.model import Caller
from kmodd.model.settings import DaemonSettings
from kmodd.model.store import Examination, StoredModule
from kmodd.names import ModuleName
from tests.unit.fakes import Journal, Ticks

CALLER = Caller(":1.7", 1000)
ENTRY = StoredModule(ModuleName("dummy"), "1", RELEASE, "a" * 64, 1)


class SlowFiles(StoreFiles):
    """Opens its files when the test lets it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opening, self.go_on = threading.Event(), threading.Event()

    def spool(self) -> SpoolFiles:
        self.opening.set()
        self.go_on.wait(10)
        return super().spool()

    def remove(self, entry: StoredModule) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


class NoExaminer:
    """Where no process can be started."""

    async def examine(self, source: int, copy: int, plain: int, **limits: Any) -> Examination:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.fixture
def files(tmp_path: Path) -> SlowFiles:
    made = SlowFiles(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def store(files: SlowFiles, journal: Journal, tmp_path: Path) -> Store:
    return Store(
        files, ModuleTree(tmp_path), NoExaminer(), SimulatedKernel(pace=0.0).facts, StoreCatalogue(RELEASE),
        lock=asyncio.Lock(), audit=journal, clock=Ticks(),
    )  # fmt: skip


def opened() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def written(files: StoreFiles) -> list[Path]:
    """Everything in the store's folder."""
    return list(files.path(ENTRY).parents[2].rglob("*"))


async def test_a_caller_that_leaves_while_files_are_opened_leaves_none_open(files: SlowFiles, store: Store) -> None:
    before = opened()
    task = asyncio.get_running_loop().create_task(store.examine(0, ImportOptions(), CALLER))
    assert await asyncio.to_thread(files.opening.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    files.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened() == before
    assert not written(files)


async def test_a_process_that_cannot_be_started_is_no_matter_of_the_disk(files: SlowFiles, store: Store) -> None:
    files.go_on.set()
    with pytest.raises(Conflict, match=r"^no process could be started to examine the file$") as caught:
        await store.examine(0, ImportOptions(), CALLER)
    assert caught.value.evidence.errno == errno.EACCES
    assert not written(files)


@pytest.mark.parametrize(("total", "roots"), [(1 << 20, 4 << 30), (64 << 30, 64 << 30)])
def test_root_has_as_much_room_as_anybody(total: int, roots: int) -> None:
    limits = limits_of(DaemonSettings(store_total_max=total))
    assert (limits.per_user, limits.root) == (total, roots)


async def test_a_version_that_cannot_be_removed_is_in_the_journal(store: Store, journal: Journal) -> None:
    store.catalogue.put(ENTRY)
    with pytest.raises(Conflict, match="read-only"):
        await store.remove((ENTRY,), CALLER)
    assert [(record.event, record.action) for record in journal.records] == [("operation.failed", "remove")]
