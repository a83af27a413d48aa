# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads an initramfs: cpio archives, the last of them compressed (Documentation/driver-api/early-userspace).

Everything is streamed: an initramfs unpacks to some hundred megabytes, of which a few kilobytes are needed.

Every compression that the kernel takes an initramfs in (lib/decompress.c); modules have three of them only.

bzip2 and lzma are Python's own. lz4 and lzo are unpacked by their libraries, called directly: no program is run. liblz4 is
on every machine with systemd, liblzo2 comes with the lzop that made the image. libarchive, which reads all of these, is not
used: Debian's runs the program `lzop -d` for an lzo image, its Python binding imports subprocess, and together with libxml2
and ICU, which it is linked with, it costs the idle daemon 7 MB.
"""

import ctypes
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from kmodd.kernel.modules.compression import GZIP, XZ, ZSTD, Damaged, Read, Unsupported, bounded, unpack

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
        raise Unsupported("a compression that kmodd does not support")
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
            raise Damaged("an lz4 block of impossible size")
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
            raise Damaged("an lzo block of impossible size")
        # Packed data that became no smaller is stored as it is, and has no separate checksum.
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
        raise Unsupported("an unknown method of lzop")
    if flags & _FILTER:
        raise Unsupported("a filter of lzop")
    _exactly(read, 12 if newer else 8)  # mode and time
    _exactly(read, _exactly(read, 1)[0] + 4)  # name and checksum
    if flags & _EXTRA:
        size = _number(read)
        if size > _PIECE:
            raise Damaged("an extra field of impossible size")
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


UNPACKED_MAX = 2 << 30
"""Bytes an archive may unpack to."""
CONTENT_MAX = 1 << 20
"""Bytes of one member that are kept."""
NAME_MAX = 4096
_STEP = 1 << 17
_MAGIC = (b"070701", b"070702")
_END = "TRAILER!!!"


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Reader:
    """Exact reads over chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""
        self.at = 0

    def take(self, size: int) -> bytes:
        """`size` bytes; Damaged at the end."""
        parts, missing = [], size
        while missing:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    raise Damaged("ends early")
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        self.at += size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass over bytes without joining them."""
        while size:
            size -= len(self.take(min(size, _STEP)))


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, int, bytes | None]]:
    """(name without leading slash or dot, size, content where `wanted`) of every member of every archive in the image.

    OSError, Damaged, Unsupported (a compression this machine has no library for).
    """
    with path.open("rb", buffering=0) as file:
        while True:
            start = file.tell()
            magic = file.read(6)
            if not magic:
                return
            if magic[:1] == b"\0":
                start = _after_padding(file, start)
                if start < 0:
                    return
                continue
            file.seek(start)
            if magic in _MAGIC:
                reader = _Reader(iter(lambda: file.read(_STEP), b""))
                yield from _archive(reader, wanted)
                file.seek(start + reader.at)
            else:
                yield from _archive(_Reader(unpack_image(file.read, magic, UNPACKED_MAX)), wanted)
                return


def _after_padding(file: BinaryIO, start: int) -> int:
    """Seek to the next byte that is not zero; -1 at the end. Archives are padded to 512 bytes or a page."""
    file.seek(start)
    while data := file.read(_STEP):
        stripped = data.lstrip(b"\0")
        if stripped:
            position = file.tell() - len(stripped)
            file.seek(position)
            return position
    return -1


def _archive(reader: _Reader, wanted: Callable[[str], bool]) -> Iterator[tuple[str, int, bytes | None]]:
    while True:
        header = reader.take(110)
        if header[:6] not in _MAGIC:
            raise Damaged("no cpio header")
        try:
            size, length = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError as error:
            raise Damaged("an invalid number in a cpio header") from error
        # int() takes a sign as well.
        if not 0 < length <= NAME_MAX or size < 0 or reader.at + size > UNPACKED_MAX:
            raise Damaged("a cpio member of impossible size")
        name = reader.take(length).rstrip(b"\0").decode("utf-8", "replace")
        reader.skip(-(110 + length) % 4)
        if name == _END:
            return
        name = name.removeprefix("./").lstrip("/")
        content = None
        if size <= CONTENT_MAX and wanted(name):
            content = reader.take(size)
        else:
            reader.skip(size)
        reader.skip(-size % 4)
        yield name, size, content
