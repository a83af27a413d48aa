# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading an initramfs: cpio archives one after another, the last of them compressed (Documentation/driver-api/early-userspace).

Everything is streamed: an initramfs unpacks to some hundred megabytes, of which a few kilobytes are wanted.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from kmodd.kernel.compression import Damaged
from kmodd.kernel.initramfs_compression import unpack_image

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
            raise Damaged("no number in a cpio header") from error
        # int() takes a sign as well.
        if not 0 < length <= NAME_MAX or size < 0 or reader.at + size > UNPACKED_MAX:
            raise Damaged("a cpio member that cannot be")
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
