# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program that reads an untrusted module file, in a process without privileges.

It receives three descriptors: the caller's file, and two files in memory. It copies the first into the second, unpacks it
into the third if it is compressed, and examines the result. No other process reads the caller's file: on a file system
controlled by the caller it can return any data and hang forever, which affects this process only.

Protocol on descriptor 3 (SOCK_SEQPACKET): `ready 0` from here; one order, JSON with the descriptors attached; one answer,
JSON with the fields of `kmodd.model.store.Examination`. Then it exits.

Run as `python3 -I -S /path/of/this/file`: it finds the package by its own path.
"""

import ctypes
import errno
import json
import os
import resource
import socket
import stat
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kmodd.kernel.modules.compression import Damaged, TooLarge, Unsupported, is_compressed, unpack
from kmodd.kernel.modules.elf import ElfError, ElfObject
from kmodd.kernel.modules.kernel_symbols import KernelSymbols, first_fact
from kmodd.kernel.modules.module_file import NAME_LENGTH, NAME_OFFSET, SHUFFLED, THIS_MODULE
from kmodd.kernel.modules.signature import split_signature
from kmodd.kernel.worker.worker import READY, SOCKET
from kmodd.model.store import Examination, FileFault, KernelMatch
from kmodd.text import shown

ORDER_MAX = 4096
ANSWER_MAX = 64 << 10
TEXT_MAX = 1024
LIST_MAX = 32
_MEMORY = 512 << 20
_MODINFO_MAX = 2 << 20
_NEEDED_MAX = 1 << 16
_CHUNK = 1 << 20
_HEADER = 64
"""Bytes of the ELF header of a 64 bit file; that of a 32 bit file is shorter."""
_MAGIC = b"\x7fELF"
_ET_REL = 1
_ORDER: dict[int, Literal["little", "big"]] = {1: "little", 2: "big"}
_IGNORED = {b"_GLOBAL_OFFSET_TABLE_"}  # as simplify_symbols() of the kernel does


class FaultError(Exception):
    """The file is no module we take."""

    def __init__(self, fault: FileFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def examine(
    source: int, copy: int, plain: int, *, maximum: int, unpacked: int, root: Path, release: str
) -> Examination:
    """Copy, unpack and examine; `maximum` and `unpacked` are the most bytes of either. Never raises for what is in a file."""
    try:
        _copy(source, copy, maximum)
        compressed = is_compressed(os.pread(copy, 6, 0))
        if compressed:
            _unpack(copy, plain, unpacked)
        return _examine(plain if compressed else copy, root, release, unpacked=compressed)
    except FaultError as error:
        return Examination(error.fault)
    except ElfError as error:
        return Examination(error.fault)
    except MemoryError:
        return Examination(FileFault.UNPACKS_TOO_LARGE)


def _copy(source: int, copy: int, maximum: int) -> None:
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise FaultError(FileFault.NOT_A_FILE)
        offset = 0
        # From the start, whatever the position of the descriptor; and to the real end, whatever the stated size was.
        while data := os.pread(source, _CHUNK, offset):
            offset += len(data)
            if offset > maximum:
                raise FaultError(FileFault.TOO_LARGE)
            _write(copy, data)
    except OSError as error:
        raise FaultError(FileFault.UNREADABLE) from error
    if not offset:
        raise FaultError(FileFault.EMPTY)


def _unpack(copy: int, plain: int, maximum: int) -> None:
    offset = 0

    def read(length: int) -> bytes:
        nonlocal offset
        data = os.pread(copy, length, offset)
        offset += len(data)
        return data

    try:
        start = b""
        for piece in unpack(read, os.pread(copy, 6, 0), maximum):
            # The rest of what begins as no module is not unpacked.
            if len(start) < _HEADER:
                start += piece[:_HEADER]
                _check_start(start)
            _write(plain, piece)
    except TooLarge as error:
        raise FaultError(FileFault.UNPACKS_TOO_LARGE) from error
    except Damaged as error:
        raise FaultError(FileFault.NOT_UNPACKABLE) from error
    except Unsupported as error:
        raise FaultError(FileFault.UNSUPPORTED) from error


def _check_start(start: bytes) -> None:
    """Raise FaultError for the first bytes of what is certainly no relocatable ELF file."""
    if not start.startswith(_MAGIC[: len(start)]):
        raise FaultError(FileFault.NOT_ELF)
    if len(start) >= _HEADER and int.from_bytes(start[16:18], _ORDER.get(start[5], "little")) != _ET_REL:
        raise FaultError(FileFault.NOT_A_MODULE)


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise FaultError(FileFault.NO_SPACE if full else FileFault.UNREADABLE) from error


def _examine(file: int, root: Path, release: str, *, unpacked: bool) -> Examination:
    signature = split_signature(file)
    if signature.broken:
        raise FaultError(FileFault.BAD_SIGNATURE_BLOCK)
    elf = ElfObject(file)
    elf.check_extents()
    for name in (b".modinfo", THIS_MODULE):
        # Of several the kernel takes the first that is to be loaded (find_sec() in kernel/module/main.c), or refuses the file.
        if elf.count(name) > 1:
            raise FaultError(FileFault.DAMAGED)
    modinfo = elf.section(b".modinfo", _MODINFO_MAX)
    if modinfo is None:
        raise FaultError(FileFault.NOT_A_MODULE)
    vermagic = first_fact(modinfo, b"vermagic")
    return Examination(
        name=_name(elf, modinfo, shuffled=SHUFFLED in vermagic),
        machine=elf.machine,
        version=shown(first_fact(modinfo, b"version"), TEXT_MAX),
        description=shown(first_fact(modinfo, b"description"), TEXT_MAX),
        vermagic=shown(vermagic, TEXT_MAX),
        depends=tuple(shown(name, TEXT_MAX) for name in first_fact(modinfo, b"depends").split(",") if name)[:LIST_MAX],
        softdeps=_softdeps(modinfo),
        versions=elf.section(b"__versions") is not None or elf.section(b"__version_ext_crcs") is not None,
        signed=signature.signed,
        signer=shown(signature.signer, TEXT_MAX),
        unpacked=unpacked,
        match=_match(elf, vermagic.partition(" ")[0], root, release),
    )


def _softdeps(modinfo: bytes) -> tuple[str, ...]:
    """The modules of every `softdep=pre: … post: …` (modprobe.d(5)), each once."""
    words = (
        word
        for fact in modinfo.split(b"\0")
        if fact.startswith(b"softdep=")
        for word in fact.partition(b"=")[2].decode("utf-8", "replace").split()
    )
    return tuple(dict.fromkeys(shown(word, TEXT_MAX) for word in words if not word.endswith(":")))[:LIST_MAX]


def _name(elf: ElfObject, modinfo: bytes, *, shuffled: bool) -> str:
    """The name by modinfo, which has to be the one that the kernel will go by: that in its struct module.

    Where the fields of that structure are `shuffled`, the name may stand anywhere in it.
    """
    modinfo_name = first_fact(modinfo, b"name")
    this = elf.section(THIS_MODULE)
    if this is None:
        raise FaultError(FileFault.NOT_A_MODULE)
    start = NAME_OFFSET[elf.bits]
    held = this[start : start + NAME_LENGTH].partition(b"\0")[0]
    if not modinfo_name and not shuffled:  # modpost writes it since Linux 4.13
        modinfo_name = held.decode("utf-8", "replace")
    if not modinfo_name:
        raise FaultError(FileFault.NO_NAME)
    spelled = modinfo_name.encode().replace(b"-", b"_")
    if spelled + b"\0" not in this if shuffled else held != spelled:
        raise FaultError(FileFault.NAMES_DIFFER)
    return shown(modinfo_name, TEXT_MAX)


def _match(elf: ElfObject, built_for: str, root: Path, running: str) -> KernelMatch:
    plain = built_for.replace(".", "").replace("-", "").replace("_", "").replace("+", "").replace("~", "")
    kernel = KernelSymbols(root, running, running=True)
    if built_for != running and plain.isalnum() and plain.isascii() and not built_for.startswith("."):
        own = KernelSymbols(root, built_for, running=False)
        kernel, running = (own, built_for) if own.present else (kernel, running)
    sums = elf.versions()
    needed = _needed(elf)
    kernel.collect(sums)
    names = kernel.names()
    kernel_sums = {name: kernel.sum_of(name) for name in sums}
    return KernelMatch(
        release=running,
        tree=kernel.present,
        vermagic=kernel.vermagic,
        machine=kernel.machine,
        unknown=_listed(needed - names) if names is not None else (),
        mismatched=_listed(
            {name for name, checksum in kernel_sums.items() if checksum is not None and checksum != sums[name]}
        ),
        unchecked=sum(checksum is None for checksum in kernel_sums.values()),
    )


def _needed(elf: ElfObject) -> set[bytes]:
    """Symbols that another module or the kernel has to export."""
    symbols: set[bytes] = set()
    for symbol in elf.symbols():
        if symbol.section == 0 and not symbol.weak:
            symbols.add(symbol.name)
            if len(symbols) > _NEEDED_MAX:
                raise FaultError(FileFault.DAMAGED)
    return symbols - _IGNORED


def _listed(symbols: set[bytes]) -> tuple[str, ...]:
    return tuple(shown(name.decode("utf-8", "replace"), 128) for name in sorted(symbols)[:LIST_MAX])


def main() -> None:
    """Serve the one order."""
    # For where nothing else limits this process.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(15, ctypes.c_char_p(b"kmodd-parser"), *[ctypes.c_ulong(0)] * 3)  # PR_SET_NAME
    with socket.socket(fileno=SOCKET) as channel:
        channel.send(READY)
        order, files, _, _ = socket.recv_fds(channel, ORDER_MAX, 3)
        if not order:
            return  # no further orders
        wanted = json.loads(order)
        examination = examine(
            *files,
            maximum=wanted["maximum"],
            unpacked=wanted["unpacked"],
            root=Path(wanted["root"]),
            release=wanted["release"],
        )
        channel.send(json.dumps(asdict(examination)).encode()[:ANSWER_MAX])


if __name__ == "__main__":
    main()
