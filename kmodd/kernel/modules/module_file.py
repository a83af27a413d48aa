# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads a module's file: the strings of its .modinfo section, as `ModuleInfo`, and what is appended to it; and keeps them.

libkmod's reader ends the process on some damaged files (assert() in libkmod-elf.c, an unchecked index in
libkmod-signature.c); here every offset is checked. A few small pieces of the file are read instead of mapping it, so a file
that shrinks in the meantime is an error, not a SIGBUS.

One object for each module; a thousand modules take about a megabyte. Entries are valid as long as the file's stamp is the
same.
"""

import os
import stat
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from types import TracebackType

from kmodd.errors import BadModule, Evidence
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.modprobe.modprobe_d import softdep_names
from kmodd.kernel.modules.compression import MAXIMUM, Damaged, Unsupported, decompress, is_compressed
from kmodd.kernel.modules.param_section import FoundParameter, Header, find_parameters
from kmodd.kernel.modules.signature import Signers, read_signature
from kmodd.model import ModuleInfo, ParameterInfo
from kmodd.model.arguments import key
from kmodd.names import ModuleName, canonical, is_module_name

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
THIS_MODULE = b".gnu.linkonce.this_module"
"""The section of struct module, which the kernel takes the name from (setup_load_info in kernel/module/main.c)."""
NAME_OFFSET = {1: 12, 2: 24}
"""Of the name in struct module, of a 32 and a 64 bit file: after a state and a list head."""
NAME_LENGTH = 56
SHUFFLED = "RANDSTRUCT"
"""In the vermagic of kernels that shuffle the fields of struct module (include/linux/vermagic.h)."""
BYTES_MAX = 4 << 20
"""Bytes kept. More than enough for a distribution's kernel; the facts used longest ago go first."""
_OVERHEAD = 400
"""Bytes of an entry beside its strings."""

Stamp = tuple[int, int, int, int] | None


class ModuleFile:
    """One open module file, unpacked if need be. Every fault is BadModule, with a sentence that tells which."""

    def __init__(self, name: ModuleName, path: str) -> None:
        """Open it; BadModule when it cannot be read, is not a regular file or is damaged as a compressed file."""
        self.name = name
        self._path = path
        self._data: bytes | None = None
        self._pieces: list[tuple[int, bytes]] = []
        """What was read already, with its place in the file."""
        self._sections: list[Header] = []
        self._bits, self._order, self._machine = 2, "<", 0
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
        for section in self._headers()[1:]:
            if section.name == b".modinfo":
                return self._read(section.offset, section.size, limit=MODINFO_MAX)
        raise self._bad("has no .modinfo section")

    def parameters(self) -> tuple[FoundParameter, ...]:
        """The parameters that the kernel finds in it, whether modinfo has them or not."""
        headers = self._headers()
        return find_parameters(headers, self._read, bits=self._bits, order=self._order, machine=self._machine)

    def module_name(self, modinfo: bytes) -> str:
        """The name that the kernel registers, canonical; empty if unknown.

        It stands in struct module; in files for kernels that shuffle the fields of that structure, in `name=` of `modinfo`,
        which modpost writes there since Linux 4.13.
        """
        facts = modinfo.split(b"\0")
        if any(fact.startswith(b"vermagic=") and SHUFFLED.encode() in fact for fact in facts):
            name = next((fact[5:] for fact in facts if fact.startswith(b"name=")), b"")
        else:
            section = next((header for header in self._headers()[1:] if header.name == THIS_MODULE), None)
            offset = NAME_OFFSET[self._bits]
            if section is None or section.size < offset + NAME_LENGTH:
                return ""
            name = self._read(section.offset + offset, NAME_LENGTH).partition(b"\0")[0]
        text = name.decode("ascii", "replace")
        return canonical(text) if is_module_name(text) else ""

    def trailer(self) -> bytes:
        """Read the end of the file, where a signature is appended: 40 bytes, or fewer of a smaller file."""
        length = min(_TRAILER, self._size)
        return self._read(self._size - length, length)

    def before_trailer(self, length: int) -> bytes:
        """Read `length` bytes that stand before the trailer; empty when there are not so many, or more than 64 KiB."""
        start = self._size - _TRAILER - length
        return self._read(start, length) if start >= 0 and length <= _SIGNATURE_MAX else b""

    def _headers(self) -> list[Header]:
        """The section headers, read once."""
        if self._sections:
            return self._sections
        start = self._read(0, min(_START, self._size))
        if not start.startswith(b"\x7fELF"):
            raise self._bad("is not an ELF file")
        if len(start) < 20 or start[4] not in _HEADER or start[5] not in (1, 2):
            raise self._bad("has a damaged ELF header")
        self._bits, self._order = start[4], "<" if start[5] == 1 else ">"
        header = struct.Struct(self._order + _HEADER[self._bits])
        if len(start) < 16 + header.size:
            raise self._bad("is truncated")
        fields = header.unpack_from(start, 16)
        kind, self._machine, table, entry_size, count, names_index = (fields[index] for index in (0, 1, 5, 10, 11, 12))
        section = struct.Struct(self._order + _SECTION[self._bits])
        if kind != _ET_REL:
            raise self._bad("is an ELF file but not a module")
        if entry_size != section.size or not 0 < names_index < count:
            raise self._bad("has a damaged ELF header")
        self._read_ahead(table)
        rows = list(section.iter_unpack(self._read(table, count * entry_size)))
        names = self._read(rows[names_index][4], rows[names_index][5], limit=MODINFO_MAX)
        self._sections = [
            Header(names[row[0] : names.find(b"\0", row[0])], row[1], row[4], row[5], row[6], row[7]) for row in rows
        ]
        return self._sections

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
            raise self._bad("is too large for a module")
        try:
            self._data = decompress(self._read(0, self._size))
        except Damaged as error:
            raise self._bad("is damaged: its compressed data does not unpack") from error
        except Unsupported as error:
            raise self._bad("is compressed in a format this machine cannot unpack") from error
        self._size = len(self._data)

    def _bad(self, fault: str) -> BadModule:
        hint = f"reinstall the package that contains {self._path}, or run 'depmod -a' if the file was changed by hand"
        return BadModule(f"the file of module {self.name} {fault}", module=self.name, evidence=Evidence(hint=hint))

    def _unreadable(self, error: OSError) -> BadModule:
        bad = self._bad("does not exist" if isinstance(error, FileNotFoundError) else "cannot be read")
        bad.evidence = Evidence(errno=error.errno, hint=bad.evidence.hint)
        return bad


def parse_modinfo(
    name: ModuleName,
    filename: str,
    strings: Iterable[bytes],
    *,
    parameters: Sequence[FoundParameter] = (),
    builtin: bool = False,
    signed: bool = False,
    signer: str = "",
    holds: str = "",
) -> ModuleInfo:
    """Gather `key=value` strings, and `parameters`, which the kernel finds in the file whether they stand there or not.

    Text that is not UTF-8 gets replacement characters, unknown keys count for nothing. Several authors or licenses are joined
    by `, `; of other single facts the first counts, and `intree` is true for what is built in. `holds` is the name of the module
    in the file.
    """
    facts: dict[str, list[str]] = {}
    for string in strings:
        fact, _, value = string.decode("utf-8", "replace").partition("=")
        facts.setdefault(fact, []).append(value)

    def first(fact: str) -> str:
        return facts[fact][0].strip() if fact in facts else ""

    pre: list[str] = []
    post: list[str] = []
    for line in facts.get("softdep", ()):
        before, after = softdep_names(line)
        pre += before
        post += after
    return ModuleInfo(
        name=name,
        filename=filename,
        description=first("description"),
        license=", ".join(dict.fromkeys(facts.get("license", ()))),
        author=", ".join(facts.get("author", ())),
        version=first("version"),
        srcversion=first("srcversion"),
        vermagic=first("vermagic"),
        signer=signer,
        signed=signed,
        intree=builtin or first("intree") == "Y",
        firmware=tuple(facts.get("firmware", ())),
        depends=tuple(canonical(needed) for needed in first("depends").split(",") if needed),
        softdep_pre=tuple(pre),
        softdep_post=tuple(post),
        aliases=tuple(facts.get("alias", ())),
        holds=None if holds in ("", name) else ModuleName(holds),
        parameters=_parameters(facts.get("parm", ()), facts.get("parmtype", ()), parameters),
    )


def _parameters(
    descriptions: Iterable[str], types: Iterable[str], found: Sequence[FoundParameter]
) -> tuple[ParameterInfo, ...]:
    """Merge `parm` (NAME:DESCRIPTION), `parmtype` (NAME:TYPE) and other names, in the order in which they are first met.

    Either may stand alone: descriptions are optional, and some describe a parameter the build left out, which
    then has no type.
    """
    own = {key(each.name): each for each in found if each.own}
    described = dict(_split(text) for text in descriptions)
    typed = dict(_split(text) for text in types)
    return tuple(
        ParameterInfo(name, typed.get(name, ""), described.get(name, ""))
        if (each := own.get(name)) is None
        else ParameterInfo(
            name, typed.get(name, ""), described.get(name, ""), own=True, shown_as=each.shown_as, flag=each.flag
        )
        for name in dict.fromkeys((*typed, *described, *(key(each.name) for each in found)))
    )


def _split(text: str) -> tuple[str, str]:
    name, _, rest = text.partition(":")
    return name.strip().replace("-", "_"), rest.strip()


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What was read of one file, or why it could not be read."""

    stamp: Stamp
    modinfo: bytes = b""
    signed: bool = False
    signer: str = ""
    parameters: tuple[FoundParameter, ...] = ()
    """The parameters that the kernel finds in it."""
    holds: str = ""
    """Name of the module in it, whatever the file is called; empty if unknown."""
    error: BadModule | None = None


class ModuleFacts:
    """Facts by path. `read` may be called from any thread, everything else from the one that owns the index."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, FileFacts] = OrderedDict()
        self._bytes = 0
        self._signers = Signers()

    def read(self, name: ModuleName, path: str) -> FileFacts:
        """Read a file now; nothing is kept. A file that is damaged or cannot be read is an answer too."""
        # Taken before anything is read: what changes meanwhile is seen the next time.
        stamp = file_stamp(path)
        try:
            with ModuleFile(name, path) as file:
                modinfo = file.modinfo()
                parameters = file.parameters()
                holds = file.module_name(modinfo)
                signed, signer = read_signature(file, self._signers)
        except BadModule as error:
            return FileFacts(stamp, error=error.with_traceback(None))
        return FileFacts(stamp, modinfo, signed, signer, parameters, holds)

    def keep(self, path: str, facts: FileFacts) -> None:
        """Keep what was read of a file."""
        self._drop(path)
        self._kept[path] = facts
        self._bytes += _size(facts)
        while self._bytes > BYTES_MAX and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def forget(self) -> None:
        """Keep nothing: what is needed again is read again."""
        self._kept.clear()
        self._bytes = 0

    def find(self, path: str, stamp: Stamp) -> FileFacts | None:
        """The facts of a file that has this stamp; None where they have to be read."""
        facts = self._kept.get(path)
        if facts is None or facts.stamp != stamp:
            return None
        self._kept.move_to_end(path)
        return facts

    def used(self, path: str) -> None:
        """Forget a fault of the machine (EMFILE, EIO) once it was reported: only what the file says stays true."""
        facts = self._kept.get(path)
        if facts is not None and facts.error is not None and facts.error.evidence.errno is not None:
            self._drop(path)

    def _drop(self, path: str) -> None:
        facts = self._kept.pop(path, None)
        if facts is not None:
            self._bytes -= _size(facts)


def _size(facts: FileFacts) -> int:
    return len(facts.modinfo) + sum(len(each.name) for each in facts.parameters) + _OVERHEAD


def file_stamp(path: str) -> Stamp:
    """What changes when a regular file does; None where there is none that can be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 - for each file at every refresh
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return (0, 0, status.st_ino, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)
