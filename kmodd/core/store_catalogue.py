# SPDX-License-Identifier: LGPL-2.1-or-later
"""The versions in the store, in memory, and how callers' words find one."""

from collections.abc import Iterable
from dataclasses import replace

from kmodd.errors import Conflict, Evidence, NoSuchModule, NoSuchVersion
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
                f"there is no module {name} in the store", module=name, evidence=Evidence(hint="kmodctl store list")
            )
        found = tuple(entry for entry in of_name if entry.version == version)
        if not found:
            raise NoSuchVersion(
                f"there is no such version of {name} in the store",
                module=name,
                evidence=Evidence(hint="kmodctl store list"),
            )
        return found

    def one(self, name: ModuleName, version: str, kernel: str = "") -> StoredModule:
        """The version for this kernel; without a kernel for the running one, or for the only one that has it."""
        found = self.versions(name, version)
        wanted = kernel or self.running
        fitting = [entry for entry in found if entry.kernel == wanted]
        if not fitting and not kernel and len(found) == 1:
            return found[0]
        if not fitting:
            kernels = ", ".join(entry.kernel for entry in found)
            raise NoSuchVersion(
                f"this version of {name} is there for {kernels} and not for kernel {wanted}",
                module=name,
                evidence=Evidence(hint=f"kmodctl store activate --kernel {found[0].kernel}"),
            )
        return fitting[0]

    def label(self, name: ModuleName, kernel: str, sha256: str, found: Examination, wanted: str) -> str:
        """The version to give it: the caller's, the module's own, or the start of its hash. Conflict for one that is taken."""
        taken = {entry.version for entry in self.all() if (entry.name, entry.kernel) == (name, kernel)}
        if wanted:
            if wanted in taken:
                raise Conflict(
                    f"there is another file of {name} for kernel {kernel} with this version already",
                    module=name,
                    evidence=Evidence(hint="give it another version, or remove the other one first"),
                )
            return wanted
        own = found.version if is_version(found.version) else sha256[:SHORT]
        # Rebuilt without a new version number, as happens while a driver is being written.
        return f"{own[:50]}+{sha256[:SHORT]}" if own in taken else own
