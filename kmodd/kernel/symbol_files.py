# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that tell the symbols of an installed kernel, where its packages have brought them."""

import re
from pathlib import Path

from kmodd.kernel.compression import Damaged, Unsupported, decompress, is_compressed

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
        found = set(_EXPORTED.findall(read(root / path.format(release))))
        if found:
            return found
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
