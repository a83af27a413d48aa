# SPDX-License-Identifier: LGPL-2.1-or-later
"""Custom modules: versions that are imported, kept, and removed. What is in force of them is `kmodd.core.activation`'s."""

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kmodd.core.api import Audit, Clock
from kmodd.core.compatibility import check_file, check_kernel, check_place, check_signature
from kmodd.core.store_catalogue import StoreCatalogue
from kmodd.core.store_records import failed, stored
from kmodd.core.store_turns import ExaminationTurns
from kmodd.core.unbroken import unbroken
from kmodd.errors import Conflict, Evidence, KmoddError, LimitsExceeded
from kmodd.kernel.ports import Facts, FileExaminer, Spool, StoreFolder, Trees
from kmodd.model import Caller
from kmodd.model.store import Examination, StoredModule
from kmodd.names import ModuleName


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bytes."""

    file: int = 64 << 20
    """A file as it comes."""
    unpacked: int = 256 << 20
    per_user: int = 256 << 20
    """Everything of one user, what waits for its authorisation included."""
    root: int = 4 << 30
    """Everything of root's."""
    versions: int = 16
    """Of one module for one kernel; not bytes."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a caller says about a file."""

    version: str = ""
    description: str = ""
    shadow: bool = False
    dry_run: bool = False
    """Find out whether it would be taken, and take nothing."""


@dataclass(eq=False, slots=True)
class PendingImport:
    """A file that was copied, examined and found good, and is not part of the store yet."""

    spool: Spool
    file: Path
    entry: StoredModule
    exists: StoredModule | None
    """The same bytes are there already."""
    dry_run: bool = False


class Store:
    """Imports, lists and removes versions."""

    def __init__(
        self,
        folder: StoreFolder,
        trees: Trees,
        examiner: FileExaminer,
        facts: Facts,
        catalogue: StoreCatalogue,
        *,
        lock: asyncio.Lock,
        audit: Audit,
        clock: Clock,
        limits: Callable[[], StoreLimits] = StoreLimits,
    ) -> None:
        """`lock` is held while the store or a module tree changes."""
        self._folder = folder
        self._trees = trees
        self._examiner = examiner
        self._facts = facts
        self.catalogue = catalogue
        self._lock = lock
        self._audit = audit
        self._clock = clock
        self._limits = limits
        self._turns = ExaminationTurns()
        self._pending: set[PendingImport] = set()

    def all(self) -> tuple[StoredModule, ...]:
        """Every version."""
        return self.catalogue.all()

    async def examine(self, source: int, options: ImportOptions, caller: Caller) -> PendingImport:
        """Copy the file behind a descriptor to the spool and check everything that can be known; needs no right.

        The daemon itself never reads the caller's file. What comes back is frozen: nobody but root can change it any more.
        Raises the error that importing would end with.
        """
        try:
            async with self._turns.turn(caller.uid):
                pending = await self._examine(source, options, caller)
        except KmoddError as error:
            self._audit.record(failed("import", error.module, caller, error))
            raise
        self._pending.add(pending)
        return pending

    def abandon(self, pending: PendingImport) -> None:
        """Forget a file that is not wanted any more, or is part of the store now."""
        self._pending.discard(pending)
        pending.spool.remove()

    async def commit(self, pending: PendingImport, caller: Caller) -> StoredModule:
        """Make it part of the store, unless it is a dry run. The same bytes twice are one entry, and a success."""
        entry = pending.entry
        async with self._lock:
            known = self.catalogue.same(entry.name, entry.kernel, entry.sha256)
            if known is not None:
                if not pending.dry_run:
                    self._audit.record(stored("import", known, caller, changed=False))
                return known
            try:
                taken = {one.version for one in self.all() if (one.name, one.kernel) == (entry.name, entry.kernel)}
                if entry.version in taken:  # imported by somebody else while this one waited for its authorisation
                    raise Conflict(f"another file of {entry.name} got this version meanwhile", module=entry.name)
                if pending.dry_run:
                    return entry
                await asyncio.to_thread(self._folder.add, pending.file, entry)
            except (KmoddError, OSError) as error:
                refused = disk_error(error, entry.name) if isinstance(error, OSError) else error
                self._audit.record(failed("import", entry.name, caller, refused))
                raise refused from error
            self.catalogue.put(entry)
        self._audit.record(stored("import", entry, caller))
        return entry

    def removable(self, name: ModuleName, version: str) -> tuple[StoredModule, ...]:
        """The versions, one for each kernel; NoSuchModule, NoSuchVersion, Conflict for one that is active."""
        found = self.catalogue.versions(name, version)
        for entry in found:
            if entry.active:
                raise Conflict(
                    f"this version of {name} is active for kernel {entry.kernel}",
                    module=name,
                    evidence=Evidence(hint=f"kmodctl store deactivate {name}, or activate another version first"),
                )
        return found

    async def remove(self, wanted: tuple[StoredModule, ...], caller: Caller) -> None:
        """Remove exactly these versions; Conflict when one of them became active meanwhile."""
        async with self._lock:
            for entry in wanted:
                known = self.catalogue.same(entry.name, entry.kernel, entry.sha256)
                if known is None:
                    continue  # somebody else removed it: so it is gone, as was asked
                try:
                    if known.active:
                        raise Conflict(f"this version of {entry.name} was activated meanwhile", module=entry.name)
                    await asyncio.to_thread(self._folder.remove, known)
                except (KmoddError, OSError) as error:
                    refused = disk_error(error, entry.name) if isinstance(error, OSError) else error
                    self._audit.record(failed("remove", entry.name, caller, refused))
                    raise refused from error
                self.catalogue.drop(known)
                self._audit.record(stored("remove", known, caller))

    # --- one file -----------------------------------------------------------------------------------------------------

    async def _examine(self, source: int, options: ImportOptions, caller: Caller) -> PendingImport:
        limits = self._limits()
        self._check_room(0, caller, limits)
        spool: Spool | None = None
        try:
            spool = await self._open_spool()
            try:
                found = await self._examiner.examine(
                    source, spool.copy, spool.plain, maximum=limits.file, unpacked=limits.unpacked
                )
            except OSError as error:
                raise Conflict(
                    "no process could be started to examine the file",
                    evidence=Evidence(errno=error.errno, hint="systemctl status kmodd-parser.socket"),
                ) from error
            finally:
                spool.close()
            name = check_file(found, maximum=limits.file, unpacked=limits.unpacked)
            file = spool.plain_path if found.unpacked else spool.copy_path
            return await self._describe(spool, file, name, found, options, caller, limits)
        except BaseException as error:
            if spool is not None:
                spool.remove()
            if isinstance(error, OSError):
                raise disk_error(error, "") from error
            raise

    async def _open_spool(self) -> Spool:
        opening = asyncio.get_running_loop().create_task(asyncio.to_thread(self._folder.spool))
        try:
            return await unbroken(opening)
        except asyncio.CancelledError:
            # The caller left. A thread that has begun goes on to its end, and nobody else knows what it opened.
            if not opening.cancelled() and opening.exception() is None:
                opening.result().close()
                opening.result().remove()
            raise

    async def _describe(
        self,
        spool: Spool,
        file: Path,
        name: ModuleName,
        found: Examination,
        options: ImportOptions,
        caller: Caller,
        limits: StoreLimits,
    ) -> PendingImport:
        kernel = check_kernel(name, found)
        check_signature(name, found, self._facts.read())
        check_place(name, kernel, await asyncio.to_thread(self._trees.another, name, kernel), shadow=options.shadow)
        # Of the copy, after its writer has ended: what is hashed here is what the kernel will load.
        sha256, size = await asyncio.to_thread(self._folder.digest, file)
        known = self.catalogue.same(name, kernel, sha256)
        if known is None:
            self._check_room(size, caller, limits)
            if sum((one.name, one.kernel) == (name, kernel) for one in self.all()) >= limits.versions:
                raise LimitsExceeded(
                    f"the store keeps at most {limits.versions} versions of {name} for one kernel",
                    module=name,
                    evidence=Evidence(hint="kmodctl store remove"),
                )
        entry = known or StoredModule(
            name=name,
            version=self.catalogue.label(name, kernel, sha256, found, options.version),
            kernel=kernel,
            sha256=sha256,
            size=size,
            description=options.description or found.description,
            signer=found.signer,
            signed=found.signed,
            vermagic=found.vermagic,
            imported_at=self._clock(),
            uid=caller.uid,
        )
        return PendingImport(spool, file, entry, known, options.dry_run)

    def _check_room(self, size: int, caller: Caller, limits: StoreLimits) -> None:
        allowed = limits.root if caller.uid == 0 else limits.per_user
        waiting = sum(pending.entry.size for pending in self._pending if pending.entry.uid == caller.uid)
        if self.catalogue.stored_by(caller.uid) + waiting + size > allowed:
            raise LimitsExceeded(
                f"this user's modules would take more than {allowed >> 20} MiB in the store",
                evidence=Evidence(hint="kmodctl store remove"),
            )


def disk_error(error: OSError, name: str) -> KmoddError:
    """The error for a disk that does not take what is written."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return LimitsExceeded("there is no room left on the disk", module=name, evidence=Evidence(errno=error.errno))
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return Conflict(
            "the disk is read-only where the module has to be written",
            module=name,
            evidence=Evidence(errno=error.errno),
        )
    return Conflict("the disk does not take what is written", module=name, evidence=Evidence(errno=error.errno))
