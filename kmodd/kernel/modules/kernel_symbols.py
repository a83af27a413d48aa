# SPDX-License-Identifier: LGPL-2.1-or-later
"""The symbols that an installed kernel and its modules export, from files of its packages.

Names: `__ksymtab_…` in /proc/kallsyms for the running kernel, Module.symvers or System.map for another one, modules.symbols
for the modules of either. Of the files of an installed kernel only Module.symvers, which comes with its headers, has
checksums (modversions). Without it its own modules serve as reference: each carries the checksums of the symbols it uses
(`__versions`) and exports, and was built with that kernel. A symbol in none of these cannot be checked here; the kernel
compares it when the module is loaded.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kmodd.kernel.modules.compression import Damaged, Unsupported, decompress, is_compressed
from kmodd.kernel.modules.elf import ElfError, ElfObject
from kmodd.names import canonical

SIZE_MAX = 64 << 20
"""Bytes of one file; Module.symvers of a distribution has two million."""
_SYMVERS = ("lib/modules/{}/build/Module.symvers", "lib/modules/{}/symvers.{}", "boot/symvers-{}.{}")
_PACKED = ("gz", "xz", "zst")
_MAPS = ("lib/modules/{}/System.map", "boot/System.map-{}", "lib/modules/{}/build/System.map")
# Checksum, symbol, module or vmlinux, how it is exported (modpost.c, write_dump).
_VERSION = re.compile(rb"^0x([0-9a-f]{1,8})\t([^\t\n]+)\t", re.MULTILINE)
_EXPORTED = re.compile(rb" __ksymtab_(\S+)")
_OF_MODULE = re.compile(rb"^alias symbol:(\S+) (\S+)$", re.MULTILINE)


def symbol_versions(root: Path, release: str) -> dict[bytes, int]:
    """Every symbol of the kernel and its modules with its checksum, by Module.symvers; empty where no headers are installed.

    A kernel without checksums (CONFIG_MODVERSIONS) has zeros there.
    """
    first, *packed = _SYMVERS
    paths = [first.format(release), *(name.format(release, end) for name in packed for end in _PACKED)]
    data = next((data for path in paths if (data := read(root / path))), b"")
    return {name: int(value, 16) for value, name in _VERSION.findall(data)}


def mapped_symbols(root: Path, release: str) -> set[bytes]:
    """Symbols that the kernel itself exports, by its System.map; empty where it may not be read, or is the stub that Debian
    ships.
    """
    for path in _MAPS:
        exported = set(_EXPORTED.findall(read(root / path.format(release))))
        if exported:
            return exported
    return set()


def listed_symbols(root: Path) -> set[bytes]:
    """Symbols that the running kernel itself exports, by /proc/kallsyms; kernels are built that keep these out of it."""
    return set(_EXPORTED.findall(read(root / "proc/kallsyms")))


def symbols_of_modules(tree: Path) -> dict[bytes, bytes]:
    """The module that exports each symbol, by depmod's index."""
    return dict(_OF_MODULE.findall(read(tree / "modules.symbols")))


def read(path: Path) -> bytes:
    """The whole file, unpacked; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_MAX)
        return decompress(data, SIZE_MAX) if is_compressed(data[:6]) else data
    except (OSError, Damaged, Unsupported):
        return b""


SEARCH_TIMEOUT = 3.0
"""Seconds to look for witnesses. Plain files take a millisecond each; a whole tree of compressed ones would take minutes."""
_PROVIDERS_MAX = 64
"""Modules whose exported symbols are read from the module itself; a module depends on a handful."""
_SIZE_MAX = 64 << 20


class KernelSymbols:
    """The exports of one installed kernel."""

    def __init__(self, root: Path, release: str, *, running: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._release = release
        self._tree = root / "lib/modules" / release
        self._running = running
        self._clock = clock
        self.vermagic = ""
        self.machine = 0
        self._sums: dict[bytes, int] = {}
        """Of symbols that witnesses use or export."""
        self._written: dict[bytes, int] = {}
        """Of every symbol, by Module.symvers."""
        self._providers: dict[bytes, bytes] = {}

    @property
    def present(self) -> bool:
        """The kernel has a module tree with an index."""
        return (self._tree / "modules.dep").is_file()

    def collect(self, wanted: Iterable[bytes]) -> None:
        """Ask files and witnesses until all of these symbols are known, or the time is over."""
        missing = set(wanted)
        self._written = symbol_versions(self._root, self._release)
        self._providers = symbols_of_modules(self._tree)
        places = {canonical(Path(path).name.partition(".ko")[0]): path for path in self._places()}
        providers = [
            name.decode("utf-8", "replace") for name in {self._providers.get(symbol, b"") for symbol in missing}
        ]
        for name in sorted(providers)[:_PROVIDERS_MAX]:
            # The exporting module has the authoritative checksum, also if it was built out of tree.
            if place := places.get(canonical(name)):
                self._read_crcs(self._tree / place, built_with=False)
        missing -= self._sums.keys()
        end = self._clock() + SEARCH_TIMEOUT
        for place in places.values():
            if not place.startswith("kernel/"):
                continue  # of another build
            if self.vermagic and (not missing - self._written.keys() or self._clock() > end):
                return
            self._read_crcs(self._tree / place, built_with=True)
            missing -= self._sums.keys()

    def sum_of(self, symbol: bytes) -> int | None:
        """A symbol's checksum; None where nothing tells it."""
        checksum = self._sums.get(symbol)
        # Zeros stand in Module.symvers of a kernel without checksums.
        return checksum if checksum is not None else self._written.get(symbol) or None

    def names(self) -> frozenset[bytes] | None:
        """Every exported symbol; None where nothing tells those of the kernel itself."""
        exported = set(self._written)
        if self._running:
            exported |= listed_symbols(self._root)
        if not exported:
            exported = mapped_symbols(self._root, self._release)
        if not exported:
            return None
        return frozenset(exported | self._providers.keys() | self._sums.keys())

    def _places(self) -> Iterator[str]:
        """Every module's file below the tree, in the order of the index."""
        for line in read(self._tree / "modules.dep").decode(errors="replace").splitlines():
            if place := line.partition(":")[0]:
                yield place

    def _read_crcs(self, path: Path, *, built_with: bool) -> None:
        """Take a module's word; one that was `built_with` this kernel knows the symbols it uses too."""
        try:
            self._listen(path, built_with=built_with)
        except (OSError, ElfError, Damaged, Unsupported):
            return  # a file that cannot be read is no witness

    def _listen(self, path: Path, *, built_with: bool) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if is_compressed(os.pread(file, 6, 0)):
                data = decompress(os.read(file, _SIZE_MAX), _SIZE_MAX)
                os.close(file)
                file = os.memfd_create("witness", os.MFD_CLOEXEC)
                os.write(file, data)
            witness = ElfObject(file)
            if built_with:
                if not self.vermagic:
                    self.machine = witness.machine
                    self.vermagic = first_fact(witness.section(b".modinfo") or b"", b"vermagic")
                used = witness.versions()
                if any(self._written.get(name, value) != value for name, value in used.items()):
                    self._written = {}  # headers of another build under the same release
                self._sums |= used
            self._sums |= {name: value for name, value in witness.exported().items() if value is not None}
        finally:
            os.close(file)


def first_fact(modinfo: bytes, key: bytes) -> str:
    """The first value of a key in a .modinfo section; empty where there is none."""
    for text in modinfo.split(b"\0"):
        name, equals, value = text.partition(b"=")
        if equals and name == key:
            return value.decode("utf-8", "replace")
    return ""
