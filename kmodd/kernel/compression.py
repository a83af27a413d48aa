# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compressed module files (.ko.gz, .ko.xz, .ko.zst), recognised by their first bytes as libkmod does.

Most machines have plain files: the decompressors are imported when the first compressed one is met.
"""

import ctypes

MAXIMUM = 256 << 20
"""Bytes a module may have when unpacked: more than ten times the largest of Linux. A bomb stops here."""

GZIP, XZ, ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
_STEP = 1 << 20


class Damaged(ValueError):
    """The data does not unpack, ends early, or unpacks to more than MAXIMUM."""


class Unsupported(ValueError):
    """This machine has no library for the format."""


def is_compressed(start: bytes) -> bool:
    """Tell by the first six bytes."""
    return start.startswith((GZIP, XZ, ZSTD))


def decompress(data: bytes, maximum: int = MAXIMUM) -> bytes:
    """Unpack a whole file of any of the three formats; Damaged, Unsupported."""
    if data.startswith(ZSTD):
        return _zstd(data, maximum)
    if data.startswith(XZ):
        return _xz(data, maximum)
    return _gzip(data, maximum)


def _gzip(data: bytes, maximum: int) -> bytes:
    import zlib

    stream = zlib.decompressobj(wbits=31)
    try:
        plain = stream.decompress(data, maximum + 1)
    except zlib.error as error:
        raise Damaged(str(error)) from error
    return _checked(plain, maximum, ended=stream.eof)


def _xz(data: bytes, maximum: int) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAXIMUM)
    try:
        plain = stream.decompress(data, maximum + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise Damaged(str(error)) from error
    return _checked(plain, maximum, ended=stream.eof)


def _checked(plain: bytes, maximum: int, *, ended: bool) -> bytes:
    if len(plain) > maximum:
        raise Damaged("unpacks to more than a module can have")
    if not ended:
        raise Damaged("ends early")
    return plain


class _Buffer(ctypes.Structure):
    # ZSTD_inBuffer and ZSTD_outBuffer of zstd.h have the same layout.
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


def _zstd(data: bytes, maximum: int) -> bytes:
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
    source = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
    plain = bytearray()
    try:
        while True:
            target = _Buffer(ctypes.cast(space, ctypes.c_void_p), _STEP, 0)
            expected = step(stream, ctypes.byref(target), ctypes.byref(source))
            if library.ZSTD_isError(expected):
                raise Damaged("zstd data is damaged")
            plain += memoryview(space)[: target.position]
            if len(plain) > maximum:
                raise Damaged("unpacks to more than a module can have")
            if expected == 0 and source.position == len(data):
                return bytes(plain)
            if target.position == 0 and source.position == len(data):
                raise Damaged("ends early")
    finally:
        library.ZSTD_freeDStream(stream)
