# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads ELF objects from untrusted sources: sections, symbols, and what the kernel's loader reads of a module.

Every offset and count is checked against the file before use, and nothing is mapped, so that a damaged file raises
`ElfError` and nothing else. Layouts from elf(5); meaning of sections from kernel/module/main.c and scripts/mod/modpost.c.
"""

import os
import struct
from collections import Counter
from collections.abc import Iterator

from kmodd.fast_dataclass import dataclass
from kmodd.model.store import FileFault

SECTION_MAX = 16 << 20
"""Bytes of a section that is read; the symbol table of Linux's largest module has a few MiB."""
SECTIONS_MAX = 65_280
NAME_MAX = 1024
"""Bytes of a name that are read. The kernel's own end at 512 (KSYM_NAME_LEN); a text that never ends would be copied for each
symbol that points into it."""
VERSIONS_MAX = 1 << 16
"""Symbols with a checksum that are read; Linux's largest module uses some thousands."""

_ET_REL = 1
_ABS = 0xFFF1
_WEAK = 2
# From e_type on, one section header and one symbol, of a 32 and a 64 bit file.
_HEADER = {1: "HHIIIIIHHHHHH", 2: "HHIQQQIHHHHHH"}
_SECTION = {1: "IIIIIIIIII", 2: "IIQQQQIIQQ"}
_SYMBOL = {1: "IIIBBH", 2: "IBBHQQ"}
_SYMTAB, _NOBITS = 2, 8
_VERSION = 64  # struct modversion_info: a long and a name, 64 bytes together


class ElfError(ValueError):
    """The file is not a whole module."""

    def __init__(self, fault: FileFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Section:
    """A section header, the fields that are used."""

    type: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named symbol."""

    name: bytes
    value: int
    section: int
    weak: bool


class ElfObject:
    """An object file behind an open descriptor, which stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        """Read the headers; ElfError."""
        self._file = descriptor
        self._size = os.fstat(descriptor).st_size
        start = self.read(0, min(64, self._size))
        if not start.startswith(b"\x7fELF"):
            raise ElfError(FileFault.NOT_ELF)
        if len(start) < 20:
            raise ElfError(FileFault.TRUNCATED)
        self.bits, order = start[4], start[5]
        if self.bits not in _HEADER or order not in (1, 2):
            raise ElfError(FileFault.DAMAGED)
        self._order = "<" if order == 1 else ">"
        header = struct.Struct(self._order + _HEADER[self.bits])
        if len(start) < 16 + header.size:
            raise ElfError(FileFault.TRUNCATED)
        fields = header.unpack_from(start, 16)
        kind, machine, table, entry, count, names = (fields[index] for index in (0, 1, 5, 10, 11, 12))
        self.machine = machine | self.bits << 16 | order << 24
        """e_machine with class and byte order above it: equal for objects that one kernel takes."""
        if kind != _ET_REL:
            raise ElfError(FileFault.NOT_A_MODULE)
        section = struct.Struct(self._order + _SECTION[self.bits])
        if entry != section.size or not 0 < names < count <= SECTIONS_MAX:
            raise ElfError(FileFault.DAMAGED)
        rows = [
            (row[0], Section(row[1], row[4], row[5], row[6]))
            for row in section.iter_unpack(self.read(table, count * entry))
        ]
        self.sections = [section for _, section in rows]
        texts = self.content(self.sections[names])
        names_found = [(_text(texts, where), section) for where, section in rows[1:]]
        self._by_name = dict(reversed(names_found))
        self._counts = Counter(name for name, _ in names_found)

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes, or ElfError where the file is too short."""
        if length > SECTION_MAX:
            raise ElfError(FileFault.DAMAGED)
        if offset + length > self._size:
            raise ElfError(FileFault.TRUNCATED)
        data = os.pread(self._file, length, offset)
        if len(data) < length:
            raise ElfError(FileFault.TRUNCATED)
        return data

    def content(self, section: Section) -> bytes:
        """A section's bytes; none for one that has its room in memory alone."""
        return b"" if section.type == _NOBITS else self.read(section.offset, section.size)

    def section(self, name: bytes, maximum: int = SECTION_MAX) -> bytes | None:
        """The first section of this name; None where there is none, ElfError where it has more than `maximum` bytes."""
        section = self._by_name.get(name)
        if section is not None and section.type != _NOBITS and section.size > maximum:
            raise ElfError(FileFault.DAMAGED)
        return None if section is None else self.content(section)

    def count(self, name: bytes) -> int:
        """How many sections have this name."""
        return self._counts[name]

    def check_extents(self) -> None:
        """ElfError when a section lies beyond the end, as in a file that was cut off."""
        for section in self.sections[1:]:
            if section.type != _NOBITS and section.offset + section.size > self._size:
                raise ElfError(FileFault.TRUNCATED)

    def symbols(self) -> Iterator[Symbol]:
        """Every symbol with a name."""
        table = next((section for section in self.sections if section.type == _SYMTAB), None)
        if table is None:
            return
        if table.link >= len(self.sections):
            raise ElfError(FileFault.DAMAGED)
        texts = self.content(self.sections[table.link])
        layout = struct.Struct(self._order + _SYMBOL[self.bits])
        data = self.content(table)
        for row in layout.iter_unpack(data[: len(data) - len(data) % layout.size]):
            where, info, section, value = (
                (row[0], row[1], row[3], row[4]) if self.bits == 2 else (row[0], row[3], row[5], row[1])
            )
            if where and (name := _text(texts, where)):
                yield Symbol(name, value, section, info >> 4 == _WEAK)

    def versions(self) -> dict[bytes, int]:
        """Checksums of the symbols it uses, by name: `__versions`, and since Linux 6.14 `__version_ext_…` too."""
        word = struct.Struct(self._order + ("I" if self.bits == 1 else "Q"))
        data = self.section(b"__versions", VERSIONS_MAX * _VERSION) or b""
        values = {
            data[at + word.size : at + _VERSION].partition(b"\0")[0]: word.unpack_from(data, at)[0] & 0xFFFFFFFF
            for at in range(0, len(data) - _VERSION + 1, _VERSION)
        }
        sums = self.section(b"__version_ext_crcs", VERSIONS_MAX * 4) or b""
        names = (self.section(b"__version_ext_names") or b"").split(b"\0", VERSIONS_MAX)
        for (value,), name in zip(
            struct.iter_unpack(self._order + "I", sums[: len(sums) // 4 * 4]), names, strict=False
        ):
            values[name] = value
        values.pop(b"", None)
        return values

    def exported(self) -> dict[bytes, int | None]:
        """Symbols it exports with their checksums, None where it has none."""
        values: dict[bytes, int | None] = {}
        sums: dict[bytes, int] = {}
        for symbol in self.symbols():
            if symbol.name.startswith(b"__ksymtab_"):
                values[symbol.name[10:]] = None
            elif symbol.name.startswith(b"__crc_"):
                # Absolute until Linux 5.19, a place in a section of 32-bit values since.
                value = symbol.value if symbol.section == _ABS else self._word(symbol)
                if value is not None:
                    sums[symbol.name[6:]] = value & 0xFFFFFFFF
        return {name: sums.get(name) for name in values}

    def _word(self, symbol: Symbol) -> int | None:
        if not 0 < symbol.section < len(self.sections):
            return None
        section = self.sections[symbol.section]
        if section.type == _NOBITS or symbol.value + 4 > section.size:
            return None
        (value,) = struct.unpack(self._order + "I", self.read(section.offset + symbol.value, 4))
        return int(value)


def _text(texts: bytes, where: int) -> bytes:
    if where >= len(texts):
        raise ElfError(FileFault.DAMAGED)
    end = texts.find(b"\0", where, where + NAME_MAX)
    return texts[where : end if end >= 0 else where + NAME_MAX]
