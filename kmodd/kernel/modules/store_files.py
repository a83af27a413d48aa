# SPDX-License-Identifier: LGPL-2.1-or-later
"""The directory of the store, accessible to root only:

    NAME/KERNEL/SHA256.ko     the module as the kernel loads it
    NAME/KERNEL/SHA256.json   its facts; a version exists when this file does
    NAME/KERNEL/active        the SHA256 of the version that should be in the kernel's module tree
    NAME/KERNEL/changing      present while the module tree is being changed to another version
    .spool/                   files being imported by earlier versions of kmodd; removed at the start
    .index/                   work directory for depmod; emptied whenever it is used

No module name starts with a dot. Each file is written completely and synced before the next step, so after a crash the old
or the new state is found. All methods block on the disk: call them in a thread. OSError is the disk's.
"""

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.atomic_file import clear_folder, copy_whole, digest, remove_durably, sync_folder, write_whole
from kmodd.kernel.files import read_if_there, value_if_there
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName, is_module_name, is_release

_FACTS_MAX = 64 << 10
_OF_THE_FILE = frozenset({errno.EACCES, errno.EIO, errno.EISDIR})
_SECRET = 0o600
_SHA256 = re.compile("[0-9a-f]{64}")
_TEXTS = ("name", "version", "kernel", "sha256", "description", "signer", "vermagic")
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(_TEXTS, str),
    "size": int,
    "imported_at": int,
    "signed": bool,
    "uid": (int, type(None)),
    "needs": list,
}


@dataclass(frozen=True, slots=True)
class SpoolFiles:
    """Two files of one import, in memory: nothing is on the disk before the import was authorised.

    The memory is accounted to the process that writes, which is the parser, with the limit of its unit.
    """

    copy: int
    plain: int
    _open: list[int]
    """The descriptors that are not closed yet."""

    @property
    def size(self) -> int:
        """Bytes of both together, as far as they are open."""
        return sum(os.fstat(file).st_size for file in self._open)

    def keep(self, file: int) -> None:
        """Give back the memory of the other file. Nothing, the parser included, can write to this one any more."""
        for other in [opened for opened in self._open if opened != file]:
            self._close(other)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)

    def remove(self) -> None:
        """Give back the memory of both; again is nothing."""
        for file in list(self._open):
            self._close(file)

    def _close(self, file: int) -> None:
        self._open.remove(file)
        os.close(file)


class StoreFiles:
    """The folder. One process uses it at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spool = folder / ".spool"
        self.damaged: tuple[str, ...] = ()
        """Files of facts that could not be read when `entries` last looked."""

    def prepare(self) -> None:
        """Make the folder, and clear away what a crash left half done; what cannot be cleared away is left to the next start."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):
            clear_folder(self._spool)
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
        copy = _memory("copy")
        try:
            plain = _memory("plain")
        except BaseException:
            os.close(copy)
            raise
        return SpoolFiles(copy, plain, [copy, plain])

    def entries(self) -> list[StoredModule]:
        """Every version, in no order. One whose facts cannot be read is left out, and is in `damaged` from then on."""
        stored: list[StoredModule] = []
        damaged: list[str] = []
        for folder in self._folders():
            active = self.active(ModuleName(folder.parent.name), folder.name)
            # Not glob(), which takes a folder that may not be listed for an empty one.
            for path in [path for path in folder.iterdir() if path.suffix == ".json"]:
                entry = _read(path)
                if entry is None or (entry.name, entry.kernel) != (folder.parent.name, folder.name):
                    damaged.append(str(path))
                else:
                    stored.append(replace(entry, active=entry.sha256 == active))
        self.damaged = tuple(damaged)
        return stored

    def add(self, file: Path | int, entry: StoredModule) -> None:
        """Write a file of an import to the disk as this version."""
        path = self.path(entry)
        for folder in (path.parent.parent, path.parent):
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
                sync_folder(folder.parent)
        copy_whole(file, path, _SECRET)
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
        """Remove a version; OSError when it is still there. A file that stays without its facts goes at the next start."""
        path = self.path(entry)
        facts = path.with_suffix(".json")
        try:
            remove_durably(facts)
        except OSError as error:
            # A version exists if this file does, whether it was synced or not.
            try:
                facts.lstat()
            except FileNotFoundError:
                pass
            except OSError:
                raise error from None
            else:
                raise
        with suppress(OSError):
            remove_durably(path)
        with suppress(OSError):  # not empty
            path.parent.rmdir()
            path.parent.parent.rmdir()

    def path(self, entry: StoredModule) -> Path:
        """The module's file."""
        return self._folder / entry.name / entry.kernel / f"{entry.sha256}.ko"

    def digest(self, file: Path | int) -> tuple[str, int]:
        """(SHA-256, size in bytes) of a file, by its path or descriptor."""
        return digest(file), os.stat(file).st_size  # noqa: PTH116 - Path knows no descriptors

    def stamp(self, path: Path) -> tuple[int, ...] | None:
        """What changes when the file does; None where there is none."""
        try:
            status = path.lstat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev

    def active(self, name: ModuleName, kernel: str) -> str:
        """The SHA256 of the active version; empty when there is none."""
        return (value_if_there(self._folder / name / kernel / "active") or "").strip()

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


def _memory(name: str) -> int:
    return os.memfd_create(f"kmodd-import-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _read(path: Path) -> StoredModule | None:
    """The facts of one version; None where they are not what `add` wrote."""
    try:
        text = read_if_there(path, _FACTS_MAX) or b""
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise  # of the machine: nothing is wrong with the file
        return None
    try:
        values = json.loads(text)
        needs = tuple(str(name) for name in values.get("needs", ()))  # an older version kept none
        entry = StoredModule(**{**values, "needs": needs})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    sound = all(isinstance(values[name], kinds) for name, kinds in _KINDS.items() if name in values)
    # The hash is part of a path.
    return entry if sound and entry.sha256 == path.stem and _SHA256.fullmatch(entry.sha256) else None
