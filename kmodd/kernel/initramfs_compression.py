# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every compression that the kernel takes an initramfs in (lib/decompress.c); modules have three of them only.

bzip2 and lzma are Python's own. lz4 and lzo are unpacked by their libraries, called directly: no program is run. liblz4 is
on every machine with systemd, liblzo2 comes with the lzop that made the image.
"""

import ctypes
import struct
from collections.abc import Callable, Iterator

from kmodd.kernel.compression import GZIP, XZ, ZSTD, Damaged, Read, Unsupported, bounded, unpack

BZIP2, LZMA, LZ4, LZO = b"BZh", b"\x5d\x00\x00", b"\x02\x21\x4c\x18", b"\x89LZO\x00\r"
_PIECE = 1 << 17
_LZ4_BLOCK = 8 << 20
"""Bytes a block of the legacy format unpacks to at most, as the kernel has it (lib/decompress_unlz4.c)."""
_LZO_BLOCK = 64 << 20
"""Bytes of a block that lzop itself takes; it makes them of 256 KiB."""
_LZMA_MEMORY = 128 << 20
# Flags of lzop's header: checksums of the plain and of the packed data, an extra field, a filter.
_PLAIN_SUMS, _PACKED_SUMS, _EXTRA, _FILTER = (0x001, 0x100), (0x002, 0x200), 0x040, 0x800


def unpack_image(read: Read, start: bytes, maximum: int) -> Iterator[bytes]:
    """Unpack what `read` gives piece by piece; `start` are its first six bytes. Damaged, TooLarge, Unsupported.

    Unsupported is also for data that is in none of these formats, and where a library is missing.
    """
    if start.startswith((GZIP, XZ, ZSTD)):
        return unpack(read, start, maximum)
    unpacker = next((found for magic, found in _UNPACKERS if start.startswith(magic)), None)
    if unpacker is None:
        raise Unsupported("a compression kmodd does not read")
    return bounded(unpacker(read), maximum, "an initramfs")


def _bzip2(read: Read) -> Iterator[bytes]:
    import bz2

    stream = bz2.BZ2Decompressor()
    while not stream.eof:
        data = _more(read) if stream.needs_input else b""
        try:
            plain = stream.decompress(data, _PIECE)
        except OSError as error:
            raise Damaged("bzip2 data is damaged") from error
        if plain:
            yield plain


def _lzma(read: Read) -> Iterator[bytes]:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)
    while not stream.eof:
        # Without an end mark the format only ends with the file.
        data = read(_PIECE) if stream.needs_input else b""
        if stream.needs_input and not data:
            return
        try:
            plain = stream.decompress(data, _PIECE)
        except lzma.LZMAError as error:
            raise Damaged("lzma data is damaged") from error
        if plain:
            yield plain


def _lz4(read: Read) -> Iterator[bytes]:
    """`lz4 -l`: the magic, then blocks, each after its size; images that were joined have the magic again."""
    library = _library("liblz4.so.1")
    decompress = library.LZ4_decompress_safe
    decompress.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    space = ctypes.create_string_buffer(_LZ4_BLOCK)
    _exactly(read, 4)
    while head := read(4):
        if head == LZ4:
            continue
        if len(head) < 4:
            raise Damaged("ends early")
        size = int.from_bytes(head, "little")
        if size == 0:
            return  # padding
        if size > _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16:  # LZ4_COMPRESSBOUND
            raise Damaged("an lz4 block that cannot be")
        made = decompress(_exactly(read, size), space, size, _LZ4_BLOCK)
        if made < 0:
            raise Damaged("lz4 data is damaged")
        yield from _pieces(space, made)


def _lzo(read: Read) -> Iterator[bytes]:
    """What lzop writes: a header, then blocks with their sizes and checksums, then an empty one."""
    library = _library("liblzo2.so.2")
    decompress = library.lzo1x_decompress_safe
    length = ctypes.c_size_t()
    decompress.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.c_void_p,
    ]
    flags = _lzop_flags(read)
    plain_sums = 4 * sum(bool(flags & flag) for flag in _PLAIN_SUMS)
    packed_sums = 4 * sum(bool(flags & flag) for flag in _PACKED_SUMS)
    while plain := _number(read):
        packed = _number(read)
        if plain > _LZO_BLOCK or not 0 < packed <= plain:
            raise Damaged("an lzo block that cannot be")
        # Packed data that became no smaller is stored as it is, and has no sum of its own.
        _exactly(read, plain_sums + (packed_sums if packed < plain else 0))
        data = _exactly(read, packed)
        if packed == plain:
            yield data
            continue
        space = ctypes.create_string_buffer(plain)
        length.value = plain
        if decompress(data, packed, space, ctypes.byref(length), None) != 0 or length.value != plain:
            raise Damaged("lzo data is damaged")
        yield from _pieces(space, plain)


def _lzop_flags(read: Read) -> int:
    """Read the header, as lzop's own p_header.c writes it; answers its flags."""
    _exactly(read, 9)
    version, _ = struct.unpack(">HH", _exactly(read, 4))
    newer = version >= 0x0940
    method = _exactly(read, 4 if newer else 1)[2 if newer else 0]
    flags = _number(read)
    if method not in (1, 2, 3):
        raise Unsupported("a method of lzop that kmodd does not know")
    if flags & _FILTER:
        raise Unsupported("a filter of lzop")
    _exactly(read, 12 if newer else 8)  # mode and time
    _exactly(read, _exactly(read, 1)[0] + 4)  # name and checksum
    if flags & _EXTRA:
        size = _number(read)
        if size > _PIECE:
            raise Damaged("an extra field that cannot be")
        _exactly(read, size + 4)
    return flags


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise Unsupported(f"{name} is not installed") from error


def _pieces(space: "ctypes.Array[ctypes.c_char]", size: int) -> Iterator[bytes]:
    view = memoryview(space).cast("B")[:size]
    for start in range(0, size, _PIECE):
        yield bytes(view[start : start + _PIECE])


def _number(read: Read) -> int:
    return int.from_bytes(_exactly(read, 4))


def _exactly(read: Read, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        data = read(missing)
        if not data:
            raise Damaged("ends early")
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def _more(read: Read) -> bytes:
    data = read(_PIECE)
    if not data:
        raise Damaged("ends early")
    return data


_UNPACKERS: tuple[tuple[bytes, Callable[[Read], Iterator[bytes]]], ...] = (
    (BZIP2, _bzip2),
    (LZMA, _lzma),
    (LZ4, _lz4),
    (LZO, _lzo),
)
