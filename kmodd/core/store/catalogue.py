# SPDX-License-Identifier: LGPL-2.1-or-later
"""The versions in the store, in memory, how requests select one, and journal records about the store."""

import shlex
from collections.abc import Iterable
from dataclasses import replace

from kmodd.core.audit.records import attempt_record
from kmodd.errors import Conflict, Evidence, KmoddError, NoSuchModule, NoSuchVersion
from kmodd.model import Attempt, Caller, Record, Result
from kmodd.model.store import Examination, StoredModule
from kmodd.names import ModuleName, is_version

SHORT = 12
"""Hexadecimal digits of a hash that name a version."""


class StoreCatalogue:
    """Every version, by what tells it apart: module, kernel, content."""

    def __init__(self, running: str) -> None:
        """`running` is the running kernel's release."""
        self.running = running
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
        uid=caller.uid,
        sender=caller.sender,
        exe=caller.exe,
        login_uid=caller.login_uid,
        on_behalf_of=caller.on_behalf_of,
        reason=caller.reason,
        extra={
            "VERSION": entry.version,
            "KERNEL": entry.kernel,
            "SHA256": entry.sha256,
            "SIGNER": entry.signer or "nobody",
            "TOUCHED": " ".join(touched),
        },
    )


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
