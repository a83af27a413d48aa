# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a kernel exports, told from what is on every machine: no headers and no Module.symvers are needed.

Names: `__ksymtab_…` in /proc/kallsyms for the running kernel, modules.symbols for its modules. Checksums (modversions) are in
no file of an installed kernel, but each of its own modules carries those of the symbols it uses (`__versions`), and was built
with that very kernel. So its modules are the witnesses: the vermagic, the machine, and the checksum of every symbol that one
of them uses. A symbol that none of them uses has no witness; the kernel itself compares it when the module is loaded.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kmodd.kernel.compression import Damaged, Unsupported, decompress, is_compressed
from kmodd.kernel.elf import ElfError, ElfObject

PATIENCE = 3.0
"""Seconds to look for witnesses. Plain files take a millisecond each; a whole tree of compressed ones would take minutes."""
_EXPORTED = re.compile(rb" __ksymtab_(\S+)")
_OF_MODULES = re.compile(rb"^alias symbol:(\S+) (\S+)$", re.MULTILINE)
_SIZE_MAX = 64 << 20


class KernelSymbols:
    """The exports of one installed kernel."""

    def __init__(self, root: Path, release: str, *, running: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._tree = root / "lib/modules" / release
        self._running = running
        self._clock = clock
        self.vermagic = ""
        self.machine = 0
        self._sums: dict[bytes, int] = {}
        """Of symbols that witnesses use."""

    @property
    def present(self) -> bool:
        """The kernel has a module tree with an index."""
        return (self._tree / "modules.dep").is_file()

    def consult(self, wanted: Iterable[bytes]) -> None:
        """Ask witnesses until all of these symbols are known, or the time is over."""
        missing = set(wanted)
        end = self._clock() + PATIENCE
        for path in self._witnesses():
            if self.vermagic and (not missing or self._clock() > end):
                return
            try:
                self._hear(path)
            except (OSError, ElfError, Damaged, Unsupported):
                continue  # a file that cannot be read is no witness
            missing -= self._sums.keys()

    def sum_of(self, symbol: bytes) -> int | None:
        """A symbol's checksum; None where no witness uses it."""
        return self._sums.get(symbol)

    def names(self) -> frozenset[bytes] | None:
        """Every exported symbol; None where that cannot be told, as for a kernel that does not run."""
        if not self._running:
            return None
        exported = set(_EXPORTED.findall(_read(self._root / "proc/kallsyms")))
        if not exported:
            return None  # kernels are built that keep these out of the file
        exported.update(name for name, _ in _OF_MODULES.findall(_read(self._tree / "modules.symbols")))
        return frozenset(exported | self._sums.keys())

    def _witnesses(self) -> Iterator[Path]:
        """Files of the kernel's own build; others may have been built for another one."""
        for line in _read(self._tree / "modules.dep").decode(errors="replace").splitlines():
            path = line.partition(":")[0]
            if path.startswith("kernel/"):
                yield self._tree / path

    def _hear(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if is_compressed(os.pread(file, 6, 0)):
                data = decompress(os.read(file, _SIZE_MAX), _SIZE_MAX)
                os.close(file)
                file = os.memfd_create("witness", os.MFD_CLOEXEC)
                os.write(file, data)
            witness = ElfObject(file)
            if not self.vermagic:
                self.machine = witness.machine
                self.vermagic = first_fact(witness.section(b".modinfo") or b"", b"vermagic")
            self._sums |= witness.versions()
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
