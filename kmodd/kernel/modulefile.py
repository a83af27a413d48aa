# SPDX-License-Identifier: LGPL-2.1-or-later
"""A module's file: the strings of its .modinfo section and what is appended to it.

Written here, with every offset checked, because libkmod's reader ends the process on some damaged files (assert() in
libkmod-elf.c, an unchecked index in libkmod-signature.c). Reads a few small pieces of the file instead of mapping it, so
a file that shrinks meanwhile is an error, not a SIGBUS.
"""

import os
import stat
import struct
from types import TracebackType

from kmodd.errors import BadModule, Evidence
from kmodd.kernel.compression import MAXIMUM, Damaged, Unsupported, decompress, is_compressed
from kmodd.names import ModuleName

MODINFO_MAX = 8 << 20
"""Bytes of a .modinfo section that are believed; the largest of Linux (amdgpu's) has some 100 KiB."""

_START = 64
"""The header of a 64 bit file."""
_AHEAD_MAX = 32 << 10
_TRAILER = 28 + 12
_SIGNATURE_MAX = 64 << 10
_ET_REL = 1
# From e_type on, and one section header, of a 32 and a 64 bit file (elf(5)).
_HEADER = {1: "HHIIIIIHHHHHH", 2: "HHIQQQIHHHHHH"}
_SECTION = {1: "IIIIIIIIII", 2: "IIQQQQIIQQ"}


class ModuleFile:
    """One open module file, unpacked if need be. Every fault is BadModule, with a sentence that tells which."""

    def __init__(self, name: ModuleName, path: str) -> None:
        """Open it; BadModule when it cannot be read, is no regular file or is damaged as a compressed file."""
        self.name = name
        self._path = path
        self._data: bytes | None = None
        self._pieces: list[tuple[int, bytes]] = []
        """What was read already, with its place in the file."""
        self._fd = -1
        try:
            # O_NONBLOCK: opening a FIFO must not wait for a writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(self._fd)
        except OSError as error:
            self.close()
            raise self._unreadable(error) from error
        self._size = status.st_size
        try:
            self._check(status.st_mode)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ModuleFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def modinfo(self) -> bytes:
        """Read the .modinfo section: NUL-terminated `key=value` strings."""
        start = self._read(0, min(_START, self._size))
        if not start.startswith(b"\x7fELF"):
            raise self._bad("is not an ELF file")
        if len(start) < 20 or start[4] not in _HEADER or start[5] not in (1, 2):
            raise self._bad("has a damaged ELF header")
        bits, order = start[4], "<" if start[5] == 1 else ">"
        header = struct.Struct(order + _HEADER[bits])
        if len(start) < 16 + header.size:
            raise self._bad("is truncated")
        fields = header.unpack_from(start, 16)
        kind, table, entry_size, count, names_index = fields[0], fields[5], fields[10], fields[11], fields[12]
        section = struct.Struct(order + _SECTION[bits])
        if kind != _ET_REL:
            raise self._bad("is an ELF file but not a module")
        if entry_size != section.size or not 0 < names_index < count:
            raise self._bad("has a damaged ELF header")
        self._read_ahead(table)
        sections = list(section.iter_unpack(self._read(table, count * entry_size)))
        names = self._read(sections[names_index][4], sections[names_index][5], limit=MODINFO_MAX)
        for candidate in sections[1:]:
            if names[candidate[0] : candidate[0] + 9] == b".modinfo\0":
                return self._read(candidate[4], candidate[5], limit=MODINFO_MAX)
        raise self._bad("has no .modinfo section")

    def trailer(self) -> bytes:
        """Read the end of the file, where a signature is appended: 40 bytes, or fewer of a smaller file."""
        length = min(_TRAILER, self._size)
        return self._read(self._size - length, length)

    def before_trailer(self, length: int) -> bytes:
        """Read `length` bytes that stand before the trailer; empty when there are not so many, or more than 64 KiB."""
        start = self._size - _TRAILER - length
        return self._read(start, length) if start >= 0 and length <= _SIGNATURE_MAX else b""

    def _check(self, mode: int) -> None:
        if not stat.S_ISREG(mode):
            raise self._bad("is not a regular file")
        if self._size == 0:
            raise self._bad("is empty")
        start = self._read(0, min(_START, self._size))
        if is_compressed(start[:6]):
            self._unpack()
        else:
            self._pieces.append((0, start))

    def _read(self, offset: int, length: int, *, limit: int | None = None) -> bytes:
        if limit is not None and length > limit:
            raise self._bad("has a section of impossible size")
        if offset + length > self._size:
            raise self._bad("is truncated")
        if self._data is not None:
            return self._data[offset : offset + length]
        for start, piece in self._pieces:
            if start <= offset and offset + length <= start + len(piece):
                return piece[offset - start : offset - start + length]
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            raise self._unreadable(error) from error
        if len(data) < length:
            raise self._bad("is truncated")
        return data

    def _read_ahead(self, table: int) -> None:
        """Read what stands from the section headers on: in most files the signature follows them, and then the end."""
        if self._data is None and 0 < self._size - table <= _AHEAD_MAX:
            self._pieces.append((table, self._read(table, self._size - table)))

    def _unpack(self) -> None:
        if self._size > MAXIMUM:
            raise self._bad("is larger than a module can be")
        try:
            self._data = decompress(self._read(0, self._size))
        except Damaged as error:
            raise self._bad("is damaged: its compressed data does not unpack") from error
        except Unsupported as error:
            raise self._bad("is compressed in a format this machine cannot unpack") from error
        self._size = len(self._data)

    def _bad(self, fault: str) -> BadModule:
        hint = (
            f"install the package again that brought {self._path}, or run 'depmod -a' if the file was changed by hand"
        )
        return BadModule(f"the file of module {self.name} {fault}", module=self.name, evidence=Evidence(hint=hint))

    def _unreadable(self, error: OSError) -> BadModule:
        bad = self._bad("is not there" if isinstance(error, FileNotFoundError) else "cannot be read")
        bad.evidence = Evidence(errno=error.errno, hint=bad.evidence.hint)
        return bad
