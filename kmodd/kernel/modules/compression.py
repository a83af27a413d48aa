# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compressed module files (.ko.gz, .ko.xz, .ko.zst), recognized by their first bytes as in libkmod.

Decompressors are imported with the first compressed file: on most systems there is none.
"""

import ctypes
from collections.abc import Callable, Iterator
from io import BytesIO

MAXIMUM = 256 << 20
"""Bytes a module may have when unpacked: more than ten times the largest of Linux. A bomb stops here."""

GZIP, XZ, ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
_STEP = 1 << 20
_PIECE = 1 << 16
_XZ_MEMORY = 128 << 20
"""Bytes a dictionary may want; the kernel's own decompressor takes far less."""

Read = Callable[[int], bytes]
"""The next bytes, at most so many; empty at the end."""


class Damaged(ValueError):
    """The data does not unpack, or ends early."""


class TooLarge(Damaged):
    """The data unpacks to more than allowed."""


class Unsupported(ValueError):
    """This machine has no library for the format."""


def is_compressed(start: bytes) -> bool:
    """Tell by the first six bytes."""
    return start.startswith((GZIP, XZ, ZSTD))


def decompress(data: bytes, maximum: int = MAXIMUM) -> bytes:
    """Unpack a whole file of any of the three formats; Damaged, Unsupported."""
    return b"".join(unpack(BytesIO(data).read, data[:6], maximum))


def unpack(read: Read, start: bytes, maximum: int = MAXIMUM) -> Iterator[bytes]:
    """Unpack what `read` gives piece by piece, in little memory; `start` are its first six bytes. Damaged, Unsupported."""
    unpacker = _zstd if start.startswith(ZSTD) else _xz if start.startswith(XZ) else _gzip
    return bounded(unpacker(read), maximum)


def bounded(pieces: Iterator[bytes], maximum: int, what: str = "a module") -> Iterator[bytes]:
    """The same pieces, as long as they are at most so many bytes together; TooLarge."""
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > maximum:
            raise TooLarge(f"unpacks to more than {what} can have")
        yield piece


def _gzip(read: Read) -> Iterator[bytes]:
    import zlib

    stream = zlib.decompressobj(wbits=31)
    data = read(_PIECE)
    while not stream.eof:
        try:
            plain = stream.decompress(data, _STEP)
        except zlib.error as error:
            raise Damaged(str(error)) from error
        if plain:
            yield plain
        data = stream.unconsumed_tail
        # A full step may have left output behind that needs no further input.
        if not data and len(plain) < _STEP and not stream.eof:
            data = _more(read)


def _xz(read: Read) -> Iterator[bytes]:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    while not stream.eof:
        data = _more(read) if stream.needs_input else b""
        try:
            plain = stream.decompress(data, _STEP)
        except (lzma.LZMAError, EOFError) as error:
            raise Damaged(str(error)) from error
        if plain:
            yield plain


def _more(read: Read) -> bytes:
    data = read(_PIECE)
    if not data:
        raise Damaged("ends early")
    return data


class _Buffer(ctypes.Structure):
    # ZSTD_inBuffer and ZSTD_outBuffer of zstd.h have the same layout.
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


def _zstd(read: Read) -> Iterator[bytes]:
    # libkmod is linked with libzstd wherever modules are compressed with it; Python has its own only since 3.14.
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError as error:
        raise Unsupported("libzstd is not installed") from error
    library.ZSTD_createDStream.restype = ctypes.c_void_p
    library.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
    step = library.ZSTD_decompressStream
    step.restype, step.argtypes = ctypes.c_size_t, [ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer)]
    library.ZSTD_isError.argtypes = [ctypes.c_size_t]
    stream = library.ZSTD_createDStream()
    if stream is None:
        raise MemoryError("ZSTD_createDStream failed")
    space = ctypes.create_string_buffer(_STEP)
    data = read(_PIECE)
    source = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
    try:
        while True:
            target = _Buffer(ctypes.cast(space, ctypes.c_void_p), _STEP, 0)
            expected = step(stream, ctypes.byref(target), ctypes.byref(source))
            if library.ZSTD_isError(expected):
                raise Damaged("zstd data is damaged")
            if target.position:
                yield bytes(memoryview(space)[: target.position])
            # A full step may have left output behind that needs no further input, unless the frame is at its end (0).
            if source.position < source.size or (target.position == _STEP and expected != 0):
                continue
            data = read(_PIECE)
            if not data:
                if expected == 0:
                    return
                raise Damaged("ends early")
            source = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
    finally:
        library.ZSTD_freeDStream(stream)
