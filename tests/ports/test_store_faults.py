# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store with a machine that refuses one call: what was, or what is to be, never something between; and a record says which.

Every call into the system of an import, an activation, a deactivation and a removal fails once: reads, writes, fsync, rename, and the
start of depmod, which is the real one here.
"""

import asyncio
import errno
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from kmodd.core.health.store import StoreWatch
from kmodd.core.store.activation import Activation
from kmodd.core.store.store import ImportOptions, Store, StoreCatalogue
from kmodd.errors import KmoddError
from kmodd.kernel.modules.depmod import Depmod
from kmodd.kernel.modules.store_files import StoreFiles
from kmodd.kernel.modules.trees import ModuleTree
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import Caller, Result
from kmodd.model.store import Examination, KernelMatch, StoredModule
from kmodd.names import ModuleName
from tests.kernel.fakeroot import RELEASE, FakeModule, FakeRoot
from tests.ports.faults import broken
from tests.unit.fakes import Broadcaster, Journal, Ticks
from tests.unit.test_activation import FakeReloader

NAME = ModuleName("dummy")
CALLER = Caller(":1.7", 0)
CODES = (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.ENOMEM, errno.EROFS)
State = tuple[bytes, bytes, tuple[str, ...], bytes, tuple[tuple[str, bool], ...]]


class Examiner:
    """Copies the file and finds it good."""

    async def examine(self, source: int, copy: int, plain: int, *, maximum: int, unpacked: int) -> Examination:
        os.sendfile(copy, source, 0, maximum)
        match = KernelMatch(RELEASE, tree=True, vermagic=f"{RELEASE} SMP preempt mod_unload modversions ")
        return Examination(name=NAME, vermagic=match.vermagic, match=match, versions=True)


class Bench:
    """The store and its module tree in a folder; a new one over the same folder is the next start of the daemon."""

    def __init__(self, folder: Path, *, build: bool = True) -> None:
        self.folder = folder
        self.root = FakeRoot(folder / "root", [FakeModule("dummy"), FakeModule("user", ("dummy",))])
        if build:
            self.root.build()
            self.root.put(FakeModule("dummy", folder="updates/dkms"))
            self.root.depmod()
            (folder / "root/etc").mkdir()
        self.files, self.trees = StoreFiles(folder / "store"), ModuleTree(self.root.root)
        self.depmod = Depmod(folder / "store/.index", configuration=self.root.root / "etc/depmod.d")
        self.catalogue, self.journal, lock = StoreCatalogue(RELEASE), Journal(), asyncio.Lock()
        kernel = SimulatedKernel(pace=0.0)
        self.files.prepare()
        self.catalogue.fill(self.files.entries())
        self.store = Store(
            self.files,
            self.trees,
            Examiner(),
            kernel.facts,
            self.catalogue,
            lock=lock,
            audit=self.journal,
            clock=Ticks(),
        )
        self.activation = Activation(
            self.files, self.trees, self.depmod, self.catalogue, index=kernel.index, loaded=kernel.loaded,
            facts=kernel.facts, operations=cast("Any", FakeReloader()), lock=lock, audit=self.journal, events=Broadcaster(),
        )  # fmt: skip
        self.watch = StoreWatch(self.files, self.trees, self.catalogue, is_changing=self.activation.is_changing)

    async def load(self, version: str) -> StoredModule:
        """Import a version."""
        path = self.folder.with_suffix(".ko")
        path.write_bytes(FakeModule("dummy", info=(f"version={version}",), exports=(f"symbol{version}",)).content())
        file = os.open(path, os.O_RDONLY)
        try:
            pending = await self.store.examine(file, ImportOptions(version=version, shadow=True), CALLER)
            try:
                return await self.store.commit(pending, CALLER)
            finally:
                self.store.abandon(pending)
        finally:
            os.close(file)

    def version(self, version: str) -> StoredModule:
        """One that is there."""
        (entry,) = self.catalogue.versions(NAME, version)
        return entry

    @property
    def state(self) -> State:
        """(our file in the tree, the index, versions on the disk with what is active, lines for depmod, the catalogue)."""
        path = self.trees.path(NAME, RELEASE)
        lines = self.root.root / "etc/depmod.d/kmodd.conf"
        index = (self.root.tree / "modules.dep").read_bytes() + (self.root.tree / "modules.symbols").read_bytes()
        return (
            path.read_bytes() if path.exists() else b"",
            index,
            tuple(sorted(f"{entry.version} {entry.active}" for entry in self.files.entries())),
            lines.read_bytes() if lines.exists() else b"",
            tuple(sorted((entry.version, entry.active) for entry in self.catalogue.all())),
        )


Deed = Callable[[Bench], Awaitable[object]]
DEEDS: dict[str, Deed] = {
    "import": lambda bench: bench.load("2"),
    "activate": lambda bench: bench.activation.activate(bench.version("1"), CALLER, load=False),
    "switch": lambda bench: bench.activation.activate(bench.version("2"), CALLER, load=False),
    "deactivate": lambda bench: bench.activation.deactivate(bench.version("1"), CALLER, load=False),
    "remove": lambda bench: bench.store.remove((bench.version("1"),), CALLER),
}

STRIDES = {"import": 1, "activate": 3, "switch": 5, "deactivate": 3, "remove": 1}
"""One call of so many fails, where each try runs depmod; steps that differ take other calls."""


async def prepared(folder: Path, deed: str) -> Bench:
    bench = Bench(folder)
    await bench.load("1")
    if deed == "switch":
        await bench.load("2")
    if deed in {"switch", "deactivate"}:
        await bench.activation.activate(bench.version("1"), CALLER, load=False)
    await bench.watch.read()
    list(bench.watch.findings())
    bench.journal.records.clear()
    return bench


def folders(tmp_path: Path) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        (tmp_path / str(number)).mkdir()
        yield tmp_path / str(number)


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("deed", DEEDS)
async def test_after_any_fault_the_store_is_as_before_or_as_after(tmp_path: Path, deed: str, *, lasting: bool) -> None:
    fresh = folders(tmp_path)
    bench = await prepared(next(fresh), deed)
    with broken(0, -1, f"{bench.folder}/", changes=True) as counted:
        await DEEDS[deed](bench)
    done = bench.state
    total = len(counted.calls)
    assert total > 5
    refused = 0
    for number in range(0, total, STRIDES[deed] * (3 if lasting else 1)):
        bench = await prepared(next(fresh), deed)
        before = bench.state
        code = CODES[number % len(CODES)]
        said: KmoddError | None = None
        with broken(code, number, f"{bench.folder}/", changes=True, lasting=lasting) as faults:
            try:
                await DEEDS[deed](bench)
            except KmoddError as error:
                said = error
        where = f"{faults.calls[number]} fails with {errno.errorcode[code]}"
        assert faults.failed, where
        results = [record.result for record in bench.journal.records]
        assert results, where
        assert (Result.FAILED in results) == (said is not None), (where, results, said)
        refused += said is not None
        if not lasting and not bench.files.changes():
            # Nothing to undo at the next start: it is as it is to be, now.
            after = bench.state
            assert (after == before) if said is not None else (after != before), where
            check(bench, where)
        unsettled = bool(bench.files.changes())
        again = Bench(bench.folder, build=False)
        await again.activation.recover()
        assert not again.files.changes(), where
        check(again, where, left=lasting)
        # Where even undoing failed, the next start finds what was or what is to be, and says which.
        assert again.state in ((done,) if said is None else (before, done) if lasting else (before,)), where
        if unsettled:
            (record,) = again.journal.records
            active = (
                "".join(f"version {entry.version}" for entry in again.catalogue.all() if entry.active) or "no version"
            )
            assert record.message.endswith(f"{active} is active"), where
    assert refused


def check(bench: Bench, where: str, *, left: bool = False) -> None:
    """Files, index, lines and catalogue agree with one another; what was half written may be `left` where nothing can be removed."""
    ours, index, _, lines, known = bench.state
    active = [entry for entry in bench.files.entries() if entry.active]
    assert known == tuple(sorted((entry.version, entry.active) for entry in bench.files.entries())), where
    assert len(active) <= 1, where
    assert bool(ours) == bool(active), where
    if active:
        assert hashlib.sha256(ours).hexdigest() == active[0].sha256, where
    assert (b"updates/kmodd/dummy.ko:" in index) == bool(active), where
    assert bool(lines) == bool(active), where
    assert not bench.files.damaged, where
    assert left or not list(bench.folder.rglob(".*.new")), where
