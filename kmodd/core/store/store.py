# SPDX-License-Identifier: LGPL-2.1-or-later
"""Custom modules: import, storage, removal and selection of versions. `kmodd.core.store.activation` makes one active."""

import asyncio
import errno
import shlex
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from kmodd.core.audit.records import attempt_record
from kmodd.core.events import Audit, Clock
from kmodd.core.fair_share import FairSlots
from kmodd.core.operations.jobs import run_to_completion
from kmodd.core.store.compatibility import check_file, check_kernel, check_place, check_signature
from kmodd.errors import Conflict, Evidence, KmoddError, LimitsExceeded, NoSuchModule, NoSuchVersion, scarce
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Facts, FileExaminer, Spool, StoreFolder, Trees
from kmodd.model import Attempt, Caller, Record, Result
from kmodd.model.store import MAKE_ROOM, Examination, StoredModule
from kmodd.names import ModuleName, is_version

SHORT = 12
"""Hexadecimal digits of a hash that name a version."""
EXAMINATIONS = 4
"""Files examined concurrently, not counting root's: each takes a process, its memory, and a minute at worst."""
NEEDS_MAX = 64
"""Modules that a version may name as needed; more are not planned before authorization, and so not loaded along with it."""


class StoreCatalogue:
    """Every version, by what tells it apart: module, kernel, content."""

    def __init__(self, running: str) -> None:
        """`running` is the running kernel's release."""
        self.running = running
        self.changing: tuple[ModuleName, str] | None = None
        """The module and the kernel for which another version is being made the active one, or none."""
        self.placed: StoredModule | None = None
        """What stands in the module tree for the module that is being changed."""
        self._entries: dict[tuple[ModuleName, str, str], StoredModule] = {}

    def fill(self, entries: Iterable[StoredModule]) -> None:
        """Take what is on the disk in place of what was known."""
        self._entries = {(entry.name, entry.kernel, entry.sha256): entry for entry in entries}

    def all(self) -> tuple[StoredModule, ...]:
        """Every version: by module, the running kernel first, the newest import first."""
        return tuple(
            sorted(
                self._entries.values(),
                key=lambda entry: (entry.name, entry.kernel != self.running, entry.kernel, -entry.imported_at),
            )
        )

    def put(self, entry: StoredModule) -> None:
        """Add one, or change what is known of it."""
        self._entries[entry.name, entry.kernel, entry.sha256] = entry

    def drop(self, entry: StoredModule) -> None:
        """Forget one."""
        self._entries.pop((entry.name, entry.kernel, entry.sha256), None)

    def same(self, name: ModuleName, kernel: str, sha256: str) -> StoredModule | None:
        """The entry with this content."""
        return self._entries.get((name, kernel, sha256))

    def active(self, name: ModuleName, kernel: str) -> StoredModule | None:
        """The active version."""
        return next(
            (entry for entry in self.all() if entry.active and (entry.name, entry.kernel) == (name, kernel)), None
        )

    def in_tree(self, name: ModuleName, kernel: str) -> StoredModule | None:
        """The version that stands in the module tree: while one is being activated, it is there before it is the active one."""
        return self.placed if self.changing == (name, kernel) else self.active(name, kernel)

    def activate(self, name: ModuleName, kernel: str, sha256: str) -> None:
        """Remember which version is active; empty for none."""
        for key, entry in self._entries.items():
            if key[:2] == (name, kernel) and entry.active != (entry.sha256 == sha256):
                self._entries[key] = replace(entry, active=entry.sha256 == sha256)

    def stored_by(self, uid: int | None) -> int:
        """Bytes of everything this user imported."""
        return sum(entry.size for entry in self._entries.values() if entry.uid == uid)

    def versions(self, name: ModuleName, version: str) -> tuple[StoredModule, ...]:
        """All that have this name and version, one for each kernel; NoSuchModule, NoSuchVersion."""
        of_name = [entry for entry in self.all() if entry.name == name]
        if not of_name:
            raise NoSuchModule(
                f"no module {name} in the store", module=name, evidence=Evidence(hint="kmodctl store list")
            )
        entries = tuple(entry for entry in of_name if entry.version == version)
        if not entries:
            raise NoSuchVersion(
                f"no such version of {name} in the store",
                module=name,
                evidence=Evidence(hint="kmodctl store list"),
            )
        return entries

    def one(self, name: ModuleName, version: str, kernel: str = "") -> StoredModule:
        """The version for this kernel; without a kernel for the running one, or for the only one that has it."""
        entries = self.versions(name, version)
        wanted = kernel or self.running
        fitting = [entry for entry in entries if entry.kernel == wanted]
        if not fitting and not kernel and len(entries) == 1:
            return entries[0]
        if not fitting:
            kernels = ", ".join(entry.kernel for entry in entries)
            raise NoSuchVersion(
                f"this version of {name} exists for {kernels}, not for kernel {wanted}",
                module=name,
                evidence=Evidence(hint=f"kmodctl store activate --kernel {shlex.quote(entries[0].kernel)}"),
            )
        return fitting[0]

    def label(self, name: ModuleName, kernel: str, sha256: str, examination: Examination, wanted: str) -> str:
        """The version to give it: the caller's, the module's own, or the start of its hash. Conflict for one that is taken."""
        taken = {entry.version for entry in self.all() if (entry.name, entry.kernel) == (name, kernel)}
        if wanted:
            if wanted in taken:
                raise Conflict(
                    f"another file of {name} for kernel {kernel} already has this version",
                    module=name,
                    evidence=Evidence(hint="give it another version, or remove the other one first"),
                )
            return wanted
        own = examination.version if is_version(examination.version) else sha256[:SHORT]
        # Rebuilt without a new version number, as happens while a driver is being written.
        return f"{own[:50]}+{sha256[:SHORT]}" if own in taken else own


_EVENTS = {
    "import": ("store.imported", "imported"),
    "activate": ("store.activated", "activated"),
    "deactivate": ("store.deactivated", "deactivated"),
    "remove": ("store.removed", "removed"),
}


def stored(
    action: str, entry: StoredModule, caller: Caller, *, changed: bool = True, touched: tuple[str, ...] = ()
) -> Record:
    """A version was imported, activated, deactivated or removed, or was so already."""
    event, done = _EVENTS[action]
    outcome = done if changed else f"{done} already"
    return Record(
        event if changed or touched else "operation.unchanged",
        f"version {entry.version} of {entry.name} for kernel {entry.kernel} was {outcome}",
        module=entry.name,
        action=action,
        result=Result.CHANGED if changed or touched else Result.UNCHANGED,
        reason=caller.reason,
        extra={
            "VERSION": entry.version,
            "KERNEL": entry.kernel,
            "SHA256": entry.sha256,
            "SIGNER": entry.signer or "nobody",
            "TOUCHED": " ".join(touched),
        },
    ).by(caller)


def failed(action: str, module: str, caller: Caller, error: KmoddError) -> Record:
    """It was refused, or did not work."""
    record = attempt_record(Attempt(action, module), error, caller)
    return replace(record, message=f"{action} of {module or 'a module file'} failed: {error.message}")


def recovered(module: str, kernel: str, active: StoredModule | None) -> Record:
    """A change interrupted by a crash was completed: the active version is in effect."""
    which = f"version {active.version}" if active is not None else "no version"
    return Record(
        "store.recovered",
        f"a change of {module} for kernel {kernel} was interrupted, and was rolled back or finished: {which} is active",
        module=module,
        action="recover",
        result=Result.CHANGED,
        priority=5,
        extra={"KERNEL": kernel},
    )


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
    per_hour: int = 1 << 30
    """Examined of one user's files in an hour, copies and what they unpack to; root's are not counted."""
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
    file: int
    """Its descriptor: it is in memory until it is authorised."""
    entry: StoredModule
    exists: StoredModule | None
    """The same bytes are there already."""
    dry_run: bool = False


HOUR = 3_600_000_000
"""Microseconds."""
EXAMINATION_MIN = 1 << 20
"""Bytes that an examination counts at least: it starts a process, however small the file is."""


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
        self._slots = FairSlots(EXAMINATIONS)
        self._pending: set[PendingImport] = set()
        self._examined: dict[int | None, deque[tuple[int, int]]] = {}
        """By user: when so many bytes were examined, within the last hour."""

    def all(self) -> tuple[StoredModule, ...]:
        """Every version."""
        return self.catalogue.all()

    async def examine(self, source: int, options: ImportOptions, caller: Caller) -> PendingImport:
        """Copy the file behind a descriptor into memory and check everything that can be known; needs no right.

        The daemon itself never reads the caller's file. The result is final: only root can change it.
        Raises the error that importing would end with.
        """
        try:
            async with self._slots.slot(caller.uid):
                pending = await self._examine(source, options, caller)
        except KmoddError as error:
            self._audit.record(failed("import", error.module, caller, error))
            raise
        self._pending.add(pending)
        return pending

    def abandon(self, pending: PendingImport) -> None:
        """Discard a file that is no longer needed, or is part of the store now."""
        self._pending.discard(pending)
        pending.spool.remove()

    async def commit(self, pending: PendingImport, caller: Caller) -> StoredModule:
        """Make it part of the store, unless it is a dry run. The same bytes twice are one entry, and a success."""
        entry = pending.entry
        async with self._lock:
            same = self.catalogue.same(entry.name, entry.kernel, entry.sha256)
            if same is not None:
                if not pending.dry_run:
                    self._audit.record(stored("import", same, caller, changed=False))
                return same
            try:
                taken = {
                    stored.version
                    for stored in self.all()
                    if (stored.name, stored.kernel) == (entry.name, entry.kernel)
                }
                if entry.version in taken:  # imported by another caller while this one waited for authorization
                    raise Conflict(f"another file of {entry.name} got this version in the meantime", module=entry.name)
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
        entries = self.catalogue.versions(name, version)
        for entry in entries:
            if entry.active:
                raise Conflict(
                    f"this version of {name} is active for kernel {entry.kernel}",
                    module=name,
                    evidence=Evidence(hint=f"kmodctl store deactivate {name}, or activate another version first"),
                )
        return entries

    async def remove(self, wanted: tuple[StoredModule, ...], caller: Caller) -> None:
        """Remove exactly these versions, or none: Conflict when one of them is active or another one by now."""
        async with self._lock:
            there = []
            for entry in wanted:
                try:
                    if (current := self._as_authorized(entry)) is not None:
                        there.append(current)
                except Conflict as error:
                    self._audit.record(failed("remove", entry.name, caller, error))
                    raise
            for current in there:
                try:
                    await asyncio.to_thread(self._folder.remove, current)
                except OSError as error:
                    refused = disk_error(error, current.name)
                    self._audit.record(failed("remove", current.name, caller, refused))
                    raise refused from error
                self.catalogue.drop(current)
                self._audit.record(stored("remove", current, caller))

    def _as_authorized(self, entry: StoredModule) -> StoredModule | None:
        """The stored version if it is unchanged since authorization; None if another caller removed it."""
        stored = self.catalogue.same(entry.name, entry.kernel, entry.sha256)
        if stored is not None and stored.active:
            raise Conflict(f"this version of {entry.name} was activated in the meantime", module=entry.name)
        if stored not in (None, entry):
            raise changed(entry.name)
        return stored

    # --- one file -----------------------------------------------------------------------------------------------------

    async def _examine(self, source: int, options: ImportOptions, caller: Caller) -> PendingImport:
        limits = self._limits()
        self._check_room(0, caller, limits)
        self._check_hour(caller, limits)
        spool: Spool | None = None
        try:
            spool = await self._open_spool()
            try:
                examination = await self._examiner.examine(
                    source, spool.copy, spool.plain, maximum=limits.file, unpacked=limits.unpacked
                )
            except OSError as error:
                raise Conflict(
                    "no process could be started to examine the file",
                    evidence=Evidence(errno=error.errno, hint="systemctl status kmodd-parser.socket"),
                ) from error
            finally:
                self._examined.setdefault(caller.uid, deque()).append((self._clock(), max(spool.size, EXAMINATION_MIN)))
            name = check_file(examination, maximum=limits.file, unpacked=limits.unpacked)
            file = spool.plain if examination.unpacked else spool.copy
            spool.keep(file)
            return await self._describe(spool, file, name, examination, options, caller, limits)
        except BaseException as error:
            if spool is not None:
                spool.remove()
            if isinstance(error, OSError):
                raise disk_error(error, "") from error
            raise

    async def _open_spool(self) -> Spool:
        opening = asyncio.get_running_loop().create_task(asyncio.to_thread(self._folder.spool))
        try:
            return await run_to_completion(opening)
        except asyncio.CancelledError:
            # The caller left. A running thread continues to its end, and only this task knows what it opened.
            if not opening.cancelled() and opening.exception() is None:
                opening.result().remove()
            raise

    async def _describe(
        self,
        spool: Spool,
        file: int,
        name: ModuleName,
        examination: Examination,
        options: ImportOptions,
        caller: Caller,
        limits: StoreLimits,
    ) -> PendingImport:
        kernel = check_kernel(name, examination)
        check_signature(name, examination, self._facts.read())
        check_place(name, kernel, await asyncio.to_thread(self._trees.another, name, kernel), shadow=options.shadow)
        # Of the copy, after its writer has exited: this is the content that the kernel will load.
        sha256, size = await asyncio.to_thread(self._folder.digest, file)
        stored = self.catalogue.same(name, kernel, sha256)
        if stored is None:
            self._check_room(size, caller, limits)
            if sum((stored.name, stored.kernel) == (name, kernel) for stored in self.all()) >= limits.versions:
                raise LimitsExceeded(
                    f"the store keeps at most {limits.versions} versions of {name} for one kernel",
                    module=name,
                    evidence=Evidence(hint=MAKE_ROOM),
                )
        entry = stored or StoredModule(
            name=name,
            version=self.catalogue.label(name, kernel, sha256, examination, options.version),
            kernel=kernel,
            sha256=sha256,
            size=size,
            description=options.description or examination.description,
            signer=examination.signer,
            signed=examination.signed,
            vermagic=examination.vermagic,
            imported_at=self._clock(),
            uid=caller.uid,
            needs=tuple(dict.fromkeys((*examination.depends, *examination.softdeps)))[:NEEDS_MAX],
        )
        return PendingImport(spool, file, entry, stored, options.dry_run)

    def _check_hour(self, caller: Caller, limits: StoreLimits) -> None:
        begin = self._clock() - HOUR
        for uid, examined in list(self._examined.items()):
            while examined and examined[0][0] < begin:
                examined.popleft()
            if not examined:
                del self._examined[uid]
        if caller.uid != 0 and sum(size for _, size in self._examined.get(caller.uid, ())) >= limits.per_hour:
            raise LimitsExceeded(
                f"{limits.per_hour >> 20} MiB of this user's files were examined in the last hour",
                evidence=Evidence(hint="try again in an hour, or import as root"),
            )

    def _check_room(self, size: int, caller: Caller, limits: StoreLimits) -> None:
        allowed = limits.root if caller.uid == 0 else limits.per_user
        waiting = sum(pending.entry.size for pending in self._pending if pending.entry.uid == caller.uid)
        if self.catalogue.stored_by(caller.uid) + waiting + size > allowed:
            raise LimitsExceeded(
                f"this user's modules would take more than {allowed >> 20} MiB in the store",
                evidence=Evidence(hint=MAKE_ROOM),
            )


def changed(name: ModuleName) -> Conflict:
    """The error for a version that is not what was authorized any more."""
    return Conflict(
        f"the store's version of {name} changed while authorization was in progress",
        module=name,
        evidence=Evidence(hint="kmodctl store list"),
    )


def disk_error(error: OSError, name: str) -> KmoddError:
    """The error for a disk that does not take what is written."""
    if (refused := scarce(error, name)) is not None:
        return refused
    evidence = Evidence(errno=error.errno, file=error.filename if isinstance(error.filename, str) else "")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return LimitsExceeded("no space left on the disk", module=name, evidence=evidence)
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return Conflict("the disk is read-only where the module has to be written", module=name, evidence=evidence)
    return Conflict("cannot write to the disk", module=name, evidence=evidence)
