# SPDX-License-Identifier: LGPL-2.1-or-later
"""The module indexes of all installed kernels, each opened for one look, the settings that they share, and their versions.

Of an image for x86 the version stands in the setup header (Documentation/arch/x86/boot.rst, kernel_version): the text that
`uname -rv` prints when it runs. Other images are compressed as a whole and say nothing.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from kmodd.kernel.atomic_file import write_whole
from kmodd.kernel.files import NOWHERE, listdir, note, read_text
from kmodd.kernel.initramfs import Initramfs
from kmodd.kernel.modprobe.modprobe_d import DIRECTORIES, ModprobeFolders
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.kernel.modules.module_file import file_stamp
from kmodd.kernel.ports import ModuleIndex
from kmodd.kernel.proc.guards import device_nodes, read_guards
from kmodd.model.modules import Rule
from kmodd.model.rules import ManagedFile
from kmodd.model.surface import Guard, Tables
from kmodd.names import ModuleName, is_release
from kmodd.releases import by_age

NAMES = ("boot/vmlinuz-{}", "lib/modules/{}/vmlinuz", "usr/lib/modules/{}/vmlinuz")
_HEADER = 0x202
_OFFSET = 0x20E - _HEADER
_SECTOR = 0x200
_TEXT_MAX = 512
_RUNNING = "Linux version "
_FILES = ("modules.dep.bin", "modules.alias.bin", "modules.alias", "modules.builtin.bin", "modules.devname")


def running_version(root: Path) -> str:
    """`6.1.0-31-amd64 (…) #1 SMP … Debian 6.1.128-1 (2025-02-07)`, from /proc/version; empty when unknown."""
    text = read_text(root / "proc/version") or ""
    return text.removeprefix(_RUNNING) if text.startswith(_RUNNING) else ""


def image_version(root: Path, release: str) -> str:
    """The same, of the image that is installed for a release; empty when there is none, or it does not say."""
    for name in NAMES:
        with suppress(OSError):
            text = _text(root / name.format(release))
            if text.partition(" ")[0] == release:
                return text
    return ""


def _text(path: Path) -> str:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in NOWHERE:
            note(error)
        raise
    try:
        header = os.pread(file, 16, _HEADER)
        if header[:4] != b"HdrS":
            return ""
        place = int.from_bytes(header[_OFFSET : _OFFSET + 2], "little")
        data = os.pread(file, _TEXT_MAX, place + _SECTOR) if place else b""
    finally:
        os.close(file)
    return data.partition(b"\0")[0].decode("ascii", "replace")


class InstalledIndexes:
    """`kmodd.kernel.ports.InstalledKernels` below a root folder. Every method reads files: call it in a thread."""

    def __init__(
        self,
        root: Path,
        *,
        command_line: str = "",
        devices: Path | None = None,
        config_dirs: Sequence[Path] | None = None,
        scratch: Path | None = None,
    ) -> None:
        """`devices` is where the system's /dev can be seen, `config_dirs` as of LibkmodIndex.

        `scratch` is a folder of kmodd's own for rules that are tried before they are written.
        """
        self._root = root
        self._command_line = command_line
        self._devices = devices
        self._scratch = scratch
        self._directories = [root / name for name in DIRECTORIES] if config_dirs is None else list(config_dirs)

    def releases(self) -> tuple[str, ...]:
        """Releases that have an index, the oldest first."""
        modules = self._root / "lib/modules"
        named = (name for name in listdir(modules) if is_release(name))
        return tuple(sorted((name for name in named if (modules / name / _FILES[0]).is_file()), key=by_age))

    def stamp(self, release: str) -> object:
        """Compares equal as long as the files are the same."""
        tree = self._root / "lib/modules" / release
        folders = ModprobeFolders(tree, self._directories)
        files = [*(str(tree / name) for name in _FILES), *folders.files()]
        return tuple((path, file_stamp(path)) for path in files), dict(folders.unreadable)

    def guards(self) -> tuple[Guard, ...]:
        """Settings as they are now."""
        return read_guards(self._root)

    def tables(self, release: str) -> Tables:
        """Settings and device nodes as they are now."""
        devices = self._devices if self._devices is not None and self._devices.is_dir() else None
        return Tables(self.guards(), device_nodes(self._root, release, devices))

    def version_text(self, release: str) -> str:
        """Of the running kernel as it says, of others as their image does."""
        text = running_version(self._root)
        return text if text.partition(" ")[0] == release else image_version(self._root, release)

    def initramfs_modules(self, release: str) -> frozenset[ModuleName] | None:
        """The modules in the initramfs of a kernel."""
        return Initramfs(self._root, release).modules()

    def initramfs_list(self) -> tuple[Rule, ...]:
        """The modules that initramfs-tools is to load."""
        return Initramfs(self._root, "").listed()

    @contextmanager
    def index(self, release: str, *, surface: bytes | None = None) -> Iterator[ModuleIndex]:
        """An index that nothing else uses; `surface` stands in the place of kmodd's own rules."""
        directories = self._directories
        if surface is not None:
            if self._scratch is None:
                raise OSError(errno.ENOENT, "no folder to try rules in")
            folder = self._scratch / "surface"
            folder.mkdir(mode=0o700, exist_ok=True)
            for file, text in ((ManagedFile.SURFACE, surface), (ManagedFile.SURFACE_TRIAL, b"")):
                write_whole(folder / PurePosixPath(file).name, text, 0o600)
            # A file masks those of the same name in the folders after its own.
            directories = [folder, *directories]
        index = LibkmodIndex(self._root, release, config_dirs=directories, command_line=self._command_line)
        try:
            yield index
        finally:
            index.close()
