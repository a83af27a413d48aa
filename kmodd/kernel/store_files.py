# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store's own folder, for root alone:

    NAME/KERNEL/SHA256.ko     the module as the kernel loads it
    NAME/KERNEL/SHA256.json   what is known of it; a version exists when this file does
    NAME/KERNEL/active        the SHA256 that is to lie in the kernel's module tree
    NAME/KERNEL/changing      there while the module tree is being brought to another version
    .spool/                   files being imported; emptied at every start
    .index/                   depmod's work; emptied whenever it is used

No module's name starts with a dot. Everything is written whole and to the disk before the next step, so a crash leaves either
what was or what is to be. All methods block on the disk: call them in a thread. OSError is the disk's.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

from kmodd.kernel.file_copy import clear_folder, digest, remove_durably, sync_folder, write_whole
from kmodd.kernel.smallfile import read_text
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName, is_module_name, is_release

_FACTS_MAX = 64 << 10
_SECRET = 0o600
_SHA256 = re.compile("[0-9a-f]{64}")
_TEXTS = ("name", "version", "kernel", "sha256", "description", "signer", "vermagic")
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(_TEXTS, str),
    "size": int,
    "imported_at": int,
    "signed": bool,
    "uid": (int, type(None)),
}


@dataclass(frozen=True, slots=True)
class SpoolFiles:
    """Two files of one import, open for reading and writing."""

    copy: int
    plain: int
    copy_path: Path
    plain_path: Path

    def close(self) -> None:
        """Close both."""
        os.close(self.copy)
        os.close(self.plain)

    def remove(self) -> None:
        """Remove what is left of them."""
        for path in (self.copy_path, self.plain_path):
            with suppress(OSError):
                path.unlink()


class StoreFiles:
    """The folder. One process uses it at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spool = folder / ".spool"
        self._numbers = count(1)
        self.damaged: tuple[str, ...] = ()
        """Files of facts that could not be read when `entries` last looked."""

    def prepare(self) -> None:
        """Make the folder, and clear away what a crash left half done; what cannot be cleared away is left to the next start."""
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._spool.iterdir():
            with suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    clear_folder(path)
                else:
                    path.unlink()
        for folder in self._folders():
            for path in folder.iterdir():
                other = {".ko": ".json", ".json": ".ko"}.get(path.suffix)
                half = other is not None and not path.with_suffix(other).exists()
                if (half or path.name.endswith(".new")) and not path.is_dir():
                    with suppress(OSError):
                        path.unlink()
            with suppress(OSError):  # not empty
                folder.rmdir()
                folder.parent.rmdir()

    def spool(self) -> SpoolFiles:
        """Two new files for an import."""
        number = next(self._numbers)
        copy, plain = self._spool / f"{number}.copy", self._spool / f"{number}.plain"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        first = os.open(copy, flags, _SECRET)
        try:
            return SpoolFiles(first, os.open(plain, flags, _SECRET), copy, plain)
        except BaseException:
            os.close(first)
            copy.unlink()
            raise

    def entries(self) -> list[StoredModule]:
        """Every version, in no order. One whose facts cannot be read is left out, and is in `damaged` from then on."""
        found: list[StoredModule] = []
        damaged: list[str] = []
        for folder in self._folders():
            active = self.active(ModuleName(folder.parent.name), folder.name)
            for path in folder.glob("*.json"):
                entry = _read(path)
                if entry is None or (entry.name, entry.kernel) != (folder.parent.name, folder.name):
                    damaged.append(str(path))
                else:
                    found.append(replace(entry, active=entry.sha256 == active))
        self.damaged = tuple(damaged)
        return found

    def add(self, file: Path, entry: StoredModule) -> None:
        """Take a spooled file over as this version."""
        path = self.path(entry)
        for folder in (path.parent.parent, path.parent):
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
                sync_folder(folder.parent)
        with file.open("rb") as open_file:
            os.fsync(open_file.fileno())
        file.rename(path)
        try:
            facts = {key: value for key, value in asdict(entry).items() if key != "active"}
            write_whole(path.with_suffix(".json"), json.dumps(facts, indent=1).encode(), _SECRET)
        except BaseException:
            # The facts first: where they stay, the version exists.
            for left in (path.with_suffix(".json"), path):
                with suppress(OSError):
                    left.unlink()
            raise

    def remove(self, entry: StoredModule) -> None:
        """Remove a version."""
        path = self.path(entry)
        remove_durably(path.with_suffix(".json"))
        remove_durably(path)
        with suppress(OSError):  # not empty
            path.parent.rmdir()
            path.parent.parent.rmdir()

    def path(self, entry: StoredModule) -> Path:
        """The module's file."""
        return self._folder / entry.name / entry.kernel / f"{entry.sha256}.ko"

    def digest(self, path: Path) -> tuple[str, int]:
        """(SHA-256, size in bytes) of a file."""
        return digest(path), path.stat().st_size

    def stamp(self, path: Path) -> tuple[int, ...] | None:
        """What changes when the file does; None where there is none."""
        try:
            status = path.lstat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev

    def active(self, name: ModuleName, kernel: str) -> str:
        """The SHA256 of the active version; empty when there is none."""
        return (read_text(self._folder / name / kernel / "active") or "").strip()

    def set_active(self, name: ModuleName, kernel: str, sha256: str) -> None:
        """Say which version is the active one, or none."""
        path = self._folder / name / kernel / "active"
        if sha256:
            write_whole(path, f"{sha256}\n".encode(), _SECRET)
        else:
            remove_durably(path)

    def begin_change(self, name: ModuleName, kernel: str) -> None:
        """Remember that the module tree is about to differ from what `active` says."""
        write_whole(self._folder / name / kernel / "changing", b"", _SECRET)

    def end_change(self, name: ModuleName, kernel: str) -> None:
        """The module tree is as `active` says."""
        remove_durably(self._folder / name / kernel / "changing")

    def changes(self) -> list[tuple[ModuleName, str]]:
        """Changes that a crash interrupted: (name, kernel)."""
        return [
            (ModuleName(folder.parent.name), folder.name)
            for folder in self._folders()
            if (folder / "changing").exists()
        ]

    def _folders(self) -> Iterator[Path]:
        for module in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if is_module_name(module.name) and module.is_dir():
                yield from (
                    folder for folder in sorted(module.iterdir()) if folder.is_dir() and is_release(folder.name)
                )


def _read(path: Path) -> StoredModule | None:
    """The facts of one version; None where they are not what `add` wrote."""
    text = read_text(path, _FACTS_MAX)
    try:
        values = json.loads(text or "")
        entry = StoredModule(**values)
    except (ValueError, TypeError, RecursionError):
        return None
    sound = all(isinstance(values[name], kinds) for name, kinds in _KINDS.items() if name in values)
    # The hash is part of a path.
    return entry if sound and entry.sha256 == path.stem and _SHA256.fullmatch(entry.sha256) else None
