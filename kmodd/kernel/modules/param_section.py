# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the parameters that the kernel finds in a module's file.

The kernel uses the array of struct kernel_param in the section `__param` (include/linux/moduleparam.h) and not .modinfo,
which lacks the parameters of module_param_call(). Each element begins with a pointer to its name. In a module's file that is
a relocation, which stripping keeps; the symbols `__param_str_NAME` it may remove. A third pointer leads to the functions that
set and show it: `param_ops_TYPE` or `param_array_ops` of the kernel, or the module's own.
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence

from kmodd.fast_dataclass import dataclass

_PROGBITS, _SYMTAB, _RELA, _REL = 1, 2, 4, 9
_MIPS = 8
"""e_machine. Its 64-bit relocations are laid out in another way, and give no names here."""
# struct kernel_param: name, mod, ops, then perm, level and flags in four bytes, and a pointer.
_ELEMENT = {1: 20, 2: 40}
_WORD = {1: "I", 2: "Q"}
_RELOCATION = {(1, _REL): "II", (1, _RELA): "IIi", (2, _REL): "QQ", (2, _RELA): "QQq"}
_SYMBOL = {1: "IIIBBH", 2: "IBBHQQ"}
_OPERATIONS = b"param_ops_"
_ARRAY_OPERATIONS = b"param_array_ops"
_SHOWN_AS = re.compile(rb"param_get_(byte|short|ushort|int|uint|long|ulong|ullong|hexint)\0")
_NO_ARGUMENT = 1  # KERNEL_PARAM_OPS_FL_NOARG, in the flags that struct kernel_param_ops begins with
_NAME_MAX = 64
_SPAN_MAX = 64 << 10
"""Bytes that are read in one call if names are close together, as in files made by a compiler."""
_TABLE_MAX = 1 << 20
"""Bytes of the array and of its relocations that are believed; those of Linux's largest module have some 16 KiB."""

_OTHERS_MAX = 256 << 10
"""Bytes of the relocations of the section with a module's own functions; where there are more, they are left alone."""
_GETTER_MAX = 20

Read = Callable[[int, int], bytes]
"""So many bytes of the file from an offset on; raises where there are not so many."""


@dataclass(frozen=True, slots=True)
class FoundParameter:
    """An element of the array."""

    name: str
    own: bool
    """Functions of the module's own set it: the type in modinfo does not tell which values they take."""
    shown_as: str = ""
    """Of these: the kind of number it is shown as, where the kernel's own function shows it (`int`, `ulong` …)."""
    flag: bool | None = None
    """Of these: they take the name without a value (KERNEL_PARAM_OPS_FL_NOARG); None where they are not in the file."""


@dataclass(frozen=True, slots=True)
class Header:
    """A section header, the fields that are used."""

    name: bytes
    type: int
    offset: int
    size: int
    link: int
    info: int


def find_parameters(
    headers: Sequence[Header], read: Read, *, bits: int, order: str, machine: int
) -> tuple[FoundParameter, ...]:
    """Every parameter with a name, in the order of the array.

    `bits` is 1 for a 32 and 2 for a 64 bit file, `order` is struct's `<` or `>`. What does not fit together gives no name: the
    kernel refuses such a file.
    """
    number = next((number for number, header in enumerate(headers) if header.name == b"__param"), 0)
    array = headers[number]
    if not number or not 0 < array.size <= _TABLE_MAX or (bits == 2 and machine == _MIPS):
        return ()
    content = read(array.offset, array.size)
    word = struct.calcsize(_WORD[bits])
    places: dict[int, list[tuple[int, int]]] = {}
    standard: set[int] = set()
    operations: dict[int, tuple[int, int]] = {}
    for table in headers:
        if table.type not in (_RELA, _REL) or table.info != number or table.size > _TABLE_MAX:
            continue
        if table.link >= len(headers) or headers[table.link].type != _SYMTAB:
            continue
        symbols = _Symbols(headers, headers[table.link], read, bits, order)
        for place, index, addend in _relocations(table, content, read, bits, order):
            element, field = place - place % _ELEMENT[bits], place % _ELEMENT[bits]
            if field == 0 and (symbol := symbols.get(index)) is not None:
                places.setdefault(symbol.section, []).append((element, symbol.value + addend))
            elif field == 2 * word and symbols.is_kernels(index):
                standard.add(element)
            elif field == 2 * word and (symbol := symbols.get(index)) is not None:
                operations[element] = symbol.section, symbol.value + addend
    texts: dict[int, str] = {}
    for section, wanted in places.items():
        if section < len(headers) and headers[section].type == _PROGBITS:
            texts |= _texts(headers[section], wanted, read)
    flags = {element: _flag(headers, *place, read, order) for element, place in operations.items()}
    types = _shown_as(headers, operations, read, bits, order)
    return tuple(
        FoundParameter(text, element not in standard, types.get(element, ""), flags.get(element))
        for element, text in sorted(texts.items())
    )


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: int
    section: int
    value: int


class _Symbols:
    """Symbols by their numbers; a few of thousands are read."""

    def __init__(self, headers: Sequence[Header], table: Header, read: Read, bits: int, order: str) -> None:
        self._table, self._read, self._bits = table, read, bits
        self._texts = headers[table.link] if table.link < len(headers) else headers[0]
        self._layout = struct.Struct(order + _SYMBOL[bits])
        self._known: dict[int, _Symbol | None] = {}
        self._kernels: dict[int, bool] = {}

    def get(self, number: int) -> _Symbol | None:
        """None where the table ends before."""
        if number not in self._known:
            size = self._layout.size
            symbol = None
            if (number + 1) * size <= self._table.size:
                row = self._layout.unpack(self._read(self._table.offset + number * size, size))
                symbol = _Symbol(row[0], row[3], row[4]) if self._bits == 2 else _Symbol(row[0], row[5], row[1])
            self._known[number] = symbol
        return self._known[number]

    def text(self, number: int, length: int) -> bytes:
        """The first bytes of the name of a symbol that stands in another file; empty for all others."""
        symbol = self.get(number)
        if symbol is None or symbol.section or symbol.name >= self._texts.size:
            return b""
        return self._read(self._texts.offset + symbol.name, min(length, self._texts.size - symbol.name))

    def is_kernels(self, number: int) -> bool:
        """It is one of the kernel's own sets of functions for a type."""
        if number not in self._kernels:
            text = self.text(number, len(_ARRAY_OPERATIONS) + 1)
            self._kernels[number] = text.startswith(_OPERATIONS) or text == _ARRAY_OPERATIONS + b"\0"
        return self._kernels[number]


def _relocations(table: Header, content: bytes, read: Read, bits: int, order: str) -> Iterator[tuple[int, int, int]]:
    """(place in the array, number of the symbol, addend) of each pointer."""
    layout, word = struct.Struct(order + _RELOCATION[bits, table.type]), struct.Struct(order + _WORD[bits])
    data = read(table.offset, table.size)
    for row in layout.iter_unpack(data[: len(data) - len(data) % layout.size]):
        place = row[0]
        if place + word.size <= len(content):
            addend = row[2] if table.type == _RELA else word.unpack_from(content, place)[0]
            yield place, row[1] >> (32 if bits == 2 else 8), addend


def _flag(headers: Sequence[Header], section: int, offset: int, read: Read, order: str) -> bool | None:
    """Whether the operations at this place take a name without a value."""
    if (
        not 0 < section < len(headers)
        or headers[section].type != _PROGBITS
        or not 0 <= offset <= headers[section].size - 4
    ):
        return None
    (flags,) = struct.unpack(order + "I", read(headers[section].offset + offset, 4))
    return bool(flags & _NO_ARGUMENT)


def _shown_as(
    headers: Sequence[Header], operations: Mapping[int, tuple[int, int]], read: Read, bits: int, order: str
) -> dict[int, str]:
    """The numbers that the kernel's own functions show, by the elements whose operations stand at these places."""
    texts: dict[int, str] = {}
    # struct kernel_param_ops: flags, then set, get and free.
    step = 2 * struct.calcsize(_WORD[bits])
    for section in {section for section, _ in operations.values()}:
        wanted: dict[int, list[int]] = {}
        for element, (where, offset) in operations.items():
            if where == section:
                wanted.setdefault(offset + step, []).append(element)
        for table in headers:
            if table.type not in (_RELA, _REL) or table.info != section or not 0 < table.size <= _OTHERS_MAX:
                continue
            if table.link >= len(headers) or headers[table.link].type != _SYMTAB:
                continue
            symbols = _Symbols(headers, headers[table.link], read, bits, order)
            layout = struct.Struct(order + _RELOCATION[bits, table.type])
            data = read(table.offset, table.size)
            for row in layout.iter_unpack(data[: len(data) - len(data) % layout.size]):
                if row[0] in wanted:
                    match = _SHOWN_AS.match(symbols.text(row[1] >> (32 if bits == 2 else 8), _GETTER_MAX))
                    if match is not None:
                        texts.update(dict.fromkeys(wanted[row[0]], match[1].decode()))
    return texts


def _texts(section: Header, wanted: Sequence[tuple[int, int]], read: Read) -> dict[int, str]:
    """The texts at these offsets of a section, by the elements they belong to."""
    wanted = [(element, offset) for element, offset in wanted if 0 <= offset < section.size]
    if not wanted:
        return {}
    start = min(offset for _, offset in wanted)
    end = min(max(offset for _, offset in wanted) + _NAME_MAX + 1, section.size)
    at_once = read(section.offset + start, end - start) if end - start <= _SPAN_MAX else b""
    texts = {}
    for element, offset in wanted:
        if at_once:
            piece = at_once[offset - start : offset - start + _NAME_MAX + 1]
        else:
            piece = read(section.offset + offset, min(_NAME_MAX + 1, section.size - offset))
        text, end_of_text, _ = piece.partition(b"\0")
        if text and end_of_text:
            texts[element] = text.decode("utf-8", "replace")
    return texts
