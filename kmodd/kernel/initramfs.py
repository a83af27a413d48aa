# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads an initramfs of Debian's initramfs-tools or dracut, and compares it with the files it was made from.

Times are compared first, which costs a few stat(2) calls. Only if a file is newer is the image read, in a thread of the
caller: a file rewritten with the same content makes nothing stale.

Everything is streamed: an initramfs unpacks to some hundred megabytes, of which a few kilobytes are needed.

Every compression that the kernel takes an initramfs in (lib/decompress.c); modules have three of them only.

bzip2 and lzma are Python's own. lz4 and lzo are unpacked by their libraries, called directly: no program is run. liblz4 is
on every machine with systemd, liblzo2 comes with the lzop that made the image. libarchive, which reads all of these, is not
used: Debian's runs the program `lzop -d` for an lzo image, its Python binding imports subprocess, and together with libxml2
and ICU, which it is linked with, it costs the idle daemon 7 MB.
"""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from kmodd.kernel.files import is_public, listdir, read_bytes, read_text
from kmodd.kernel.modprobe.modprobe_d import ModprobeFolders
from kmodd.kernel.modules.compression import GZIP, XZ, ZSTD, Damaged, Read, Unsupported, bounded, unpack
from kmodd.model.modules import BootImage, Rule
from kmodd.names import ModuleName, canonical

BZIP2, LZMA, LZ4, LZO = b"BZh", b"\x5d\x00\x00", b"\x02\x21\x4c\x18", b"\x89LZO\x00\r"
_PIECE = 1 << 17
_LZ4_BLOCK = 8 << 20
"""Bytes a block of the legacy format unpacks to at most, as the kernel has it (lib/decompress_unlz4.c)."""
_LZO_BLOCK = 64 << 20
"""Bytes of a block that lzop itself takes; it makes them of 256 KiB."""
_LZMA_MEMORY = 128 << 20
# Flags of lzop's header: checksums of the plain and of the packed data, an extra field, a filter.
_PLAIN_SUMS, _PACKED_SUMS, _EXTRA, _FILTER = (0x001, 0x100), (0x002, 0x200), 0x040, 0x800
_RULES = (
    "etc/modprobe.d",
    "usr/local/lib/modprobe.d",
    "usr/lib/modprobe.d",
    "lib/modprobe.d",
    "etc/modules-load.d",
    "usr/lib/modules-load.d",
)
"""Folders whose files are compared. Which of them an image has is its maker's choice; only those it has count."""
_ALWAYS = "etc/modprobe.d"
"""The one folder that initramfs-tools takes even when it is empty, and dracut when it makes an image for this machine."""
_TOLD = 8
"""Differences listed individually."""
_KEPT_MAX = 8 << 20
"""Bytes of names and rules that are remembered of an image."""
_TOOLS, _DRACUT = "initramfs-tools", "dracut"
# Debian's dracut writes the first as well; what is inside tells the two apart.
_NAMES = ("boot/initrd.img-{}", "boot/initramfs-{}.img")
_MARKS = ("usr/lib/dracut/", "lib/dracut/")
"""Where dracut says in its images what it made them of."""
_FOR_THIS_MACHINE = "hostonly-files"
_LIST, _LISTS = "etc/initramfs-tools/modules", "usr/share/initramfs-tools/modules.d"
_OWN = {"initramfs-tools": ("etc/initramfs-tools/modules",), "dracut": ("etc/dracut.conf", "etc/dracut.conf.d")}
_COMPRESSED = (".gz", ".xz", ".zst")
_MODULES = (".ko", *(f".ko{end}" for end in _COMPRESSED))


def unpack_image(read: Read, start: bytes, maximum: int) -> Iterator[bytes]:
    """Unpack what `read` gives piece by piece; `start` are its first six bytes. Damaged, TooLarge, Unsupported.

    Unsupported is also for data that is in none of these formats, and where a library is missing.
    """
    if start.startswith((GZIP, XZ, ZSTD)):
        return unpack(read, start, maximum)
    unpacker = next((unpack for magic, unpack in _UNPACKERS if start.startswith(magic)), None)
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


class Initramfs:
    """The initramfs of one kernel release below a root folder."""

    def __init__(self, root: Path, release: str) -> None:
        self._root = root
        self._release = release
        self._known: tuple[object, BootImage | None] | None = None

    def stamp(self) -> object:
        """Changes when anything does that decides; some dozen stats."""
        return tuple((str(path), _time(path)) for path in (*self._images(), *self._sources()))

    def look(self) -> BootImage | None:
        """Compare; None where this kernel has no initramfs. May read the image, some hundred milliseconds: use a thread."""
        stamp = self.stamp()
        if self._known is None or self._known[0] != stamp:
            self._known = stamp, self._look()
        return self._known[1]

    def modules(self) -> frozenset[ModuleName] | None:
        """The modules that the image has; None where there is none, it cannot be read, or not everyone may read it, for `Explain`
        is public. Reads the image: use a thread.
        """
        path = next((path for path in self._images() if _time(path)), None)
        if path is None or not is_public(path, self._root):
            return None
        try:
            names = self._contents(path)
        except (OSError, Damaged, Unsupported):
            return None
        files = (_plain(name).rpartition("/")[2] for name in names if name.endswith(_MODULES))
        return frozenset(canonical(file.removesuffix(".ko")) for file in files)

    def listed(self) -> tuple[Rule, ...]:
        """The modules that initramfs-tools is to load early in boot, of initramfs-tools(7); OSError where that cannot be known."""
        paths = [self._root / _LIST, *(self._root / _LISTS / name for name in listdir(self._root / _LISTS))]
        return tuple(
            Rule("autoload", canonical(words[0]), "", self._shown(path), number, line)
            for path in paths
            if path.exists()
            for number, line in enumerate((read_text(path) or "").splitlines(), 1)
            if (words := line.partition("#")[0].split())
        )

    def _images(self) -> list[Path]:
        return [self._root / name.format(self._release) for name in _NAMES]

    def _sources(self) -> Iterator[Path]:
        # As libkmod finds them; a tree that is the root's has no modules.softdep.
        for folders in (_RULES[:4], _RULES[4:]):
            yield from map(Path, ModprobeFolders(self._root, [self._root / folder for folder in folders]).files())
        for names in _OWN.values():
            for name in names:
                path = self._root / name
                yield path
                yield from (path / inner for inner in listdir(path))
        yield self._root / "lib/modules" / self._release / "modules.dep"

    def _look(self) -> BootImage | None:
        path = next((path for path in self._images() if _time(path)), None)
        if path is None:
            return None
        kind, shown, made = self._maker(path), self._shown(path), _time(path)
        newer = [source for source in self._sources() if _time(source) > made and self._concerns(source, kind)]
        if not newer and not self._vanished(made):
            return BootImage(self._release, shown, kind)
        try:
            members = self._contents(path)
        except (OSError, Damaged, Unsupported):
            changed = tuple(f"{self._shown(source)} is newer" for source in newer)
            return BootImage(self._release, shown, kind, _bounded(changed))
        if any(name.startswith(_MARKS) for name in members):
            kind = _DRACUT
        newer = [source for source in newer if self._concerns(source, kind)]
        differences = (*self._rules(members, kind), *self._modules(members), *self._lists(newer))
        return BootImage(self._release, shown, kind, _bounded(differences), by_content=True)

    def _maker(self, path: Path) -> str:
        """Who makes it, by its name and what is installed."""
        if path.name.startswith("initramfs-"):
            return _DRACUT
        tools = any(_time(self._root / folder / "update-initramfs") for folder in ("usr/sbin", "sbin"))
        return _DRACUT if not tools and _time(self._root / "usr/bin/dracut") else _TOOLS

    def _concerns(self, source: Path, kind: str) -> bool:
        others = [name for other, names in _OWN.items() if other != kind for name in names]
        return not any(source.is_relative_to(self._root / name) for name in others)

    def _vanished(self, made: int) -> bool:
        """A folder of rules changed since: perhaps a file was removed, which leaves no file that is newer."""
        return any(_time(self._root / folder) > made for folder in _RULES)

    def _contents(self, path: Path) -> Mapping[str, tuple[int, bytes]]:
        """(size, content where it is a rules file) of the members that matter, by name."""
        members_found: dict[str, tuple[int, bytes]] = {}
        kept = 0
        for name, size, content in members(path, _is_rules):
            if _is_rules(name) or name.startswith(_MARKS) or name.endswith(_MODULES):
                members_found[name] = (size, content or b"")
                kept += len(name) + len(content or b"")
            if kept > _KEPT_MAX:
                raise Damaged("too many rules and modules")
        return members_found

    def _rules(self, members: Mapping[str, tuple[int, bytes]], kind: str) -> Iterator[str]:
        inside = {_below_usr(name): value for name, value in members.items() if _is_rules(name)}
        taken = {name.rpartition("/")[0] for name in inside}
        if kind != _DRACUT or any(name.startswith(_MARKS) and name.endswith(_FOR_THIS_MACHINE) for name in members):
            taken.add(_ALWAYS)
        there = set()
        for folder in _RULES:
            if _below_usr(f"{folder}/").rstrip("/") not in taken:
                continue
            for name in listdir(self._root / folder):
                path = self._root / folder / name
                if not name.endswith(".conf") or name.startswith("."):
                    continue
                key = _below_usr(f"{folder}/{name}")
                if key in there:
                    continue
                there.add(key)
                # Path.resolve() raises for a link to itself, realpath() does not.
                content = read_bytes(os.path.realpath(path)) or b""
                if key not in inside:
                    yield f"it lacks {self._shown(path)}"
                elif inside[key][1] != content:
                    yield f"{self._shown(path)} has changed"
        yield from (f"it still has /{key}" for key in sorted(inside.keys() - there))

    def _modules(self, members: Mapping[str, tuple[int, bytes]]) -> Iterator[str]:
        """Modules whose file on disk changed, by place and size."""
        prefix = f"lib/modules/{self._release}/"
        index = self._index()
        for name, (size, _) in members.items():
            place = name.removeprefix("usr/")
            if not place.startswith(prefix) or not name.endswith(_MODULES):
                continue
            inside = place.removeprefix(prefix)
            module = _plain(inside).rpartition("/")[2]
            now = index.get(module)
            if now is None:
                yield f"it has {module}, which no longer exists"
            elif _plain(now) != _plain(inside):
                yield f"it has {module} from {inside}, but {now} is in effect"
            # Where it is packed otherwise than on the disk, sizes say nothing.
            elif now == inside and _size(self._root / prefix / now) != size:
                yield f"{module} has changed"

    def _index(self) -> dict[str, str]:
        """The file of each module in effect, from modules.dep: `NAME.ko` to its path below the tree."""
        text = read_bytes(self._root / "lib/modules" / self._release / "modules.dep", 16 << 20) or b""
        files = {}
        for line in text.decode("utf-8", "replace").splitlines():
            path = line.partition(":")[0]
            files[_plain(path).rpartition("/")[2]] = path
        return files

    def _lists(self, newer: list[Path]) -> Iterator[str]:
        own = [self._root / name for names in _OWN.values() for name in names]
        for source in newer:
            if any(source == path or source.is_relative_to(path) for path in own):
                yield f"{self._shown(source)} is newer"

    def _shown(self, path: Path) -> str:
        return "/" + str(path.relative_to(self._root))


def _is_rules(name: str) -> bool:
    return name.endswith(".conf") and name.rpartition("/")[0] in _RULES


def _plain(path: str) -> str:
    """A module's path as if it were not compressed."""
    return next((path.removesuffix(end) for end in _COMPRESSED if path.endswith(end)), path)


def _below_usr(name: str) -> str:
    return name.removeprefix("usr/") if name.startswith("usr/lib/") else name


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _bounded(texts: tuple[str, ...]) -> tuple[str, ...]:
    more = len(texts) - _TOLD
    return texts if more <= 0 else (*texts[:_TOLD], f"and {more} more")
