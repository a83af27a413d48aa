# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program that reads a stranger's module file, in a process without any right.

It is handed three descriptors: the caller's file, and two files in the daemon's spool. It copies the first into the second,
unpacks it into the third where it is compressed, and examines the result. Nobody else ever reads the caller's file: one on a
file system of the caller's own making can answer what it likes and hang as long as it likes, and costs this process alone.

Protocol on descriptor 3 (SOCK_SEQPACKET): `ready 0` from here; one order, JSON with the descriptors attached; one answer,
JSON with the fields of `kmodd.model.store.Examination`. Then it ends.

Run as `python3 -I -S /path/of/this/file`: it finds the package by its own place.
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

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kmodd.kernel.compression import Damaged, TooLarge, Unsupported, is_compressed, unpack
from kmodd.kernel.elf import ElfError, ElfObject
from kmodd.kernel.kernel_symbols import KernelSymbols, first_fact
from kmodd.kernel.signature_block import split_signature
from kmodd.kernel.worker import READY, SOCKET
from kmodd.model.store import Examination, FileFault, KernelMatch

ORDER_MAX = 4096
ANSWER_MAX = 64 << 10
TEXT_MAX = 1024
LIST_MAX = 32
_MEMORY = 512 << 20
_MODINFO_MAX = 2 << 20
_NEEDED_MAX = 1 << 16
_CHUNK = 1 << 20
_IGNORED = {b"_GLOBAL_OFFSET_TABLE_"}  # as simplify_symbols() of the kernel does
_MODULE_NAME = 24 - 12, 24  # offset of name in struct module, 32 and 64 bit: after a state and a list head


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
        # From the start, wherever the caller has read to; and to the end that is found, whatever its size was said to be.
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
        for piece in unpack(read, os.pread(copy, 6, 0), maximum):
            _write(plain, piece)
    except TooLarge as error:
        raise FaultError(FileFault.UNPACKS_TOO_LARGE) from error
    except Damaged as error:
        raise FaultError(FileFault.NOT_UNPACKABLE) from error
    except Unsupported as error:
        raise FaultError(FileFault.UNSUPPORTED) from error


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
    modinfo = elf.section(b".modinfo", _MODINFO_MAX)
    if modinfo is None:
        raise FaultError(FileFault.NOT_A_MODULE)
    vermagic = first_fact(modinfo, b"vermagic")
    return Examination(
        name=_name(elf, modinfo),
        machine=elf.machine,
        version=_shown(first_fact(modinfo, b"version")),
        description=_shown(first_fact(modinfo, b"description")),
        vermagic=_shown(vermagic),
        depends=tuple(_shown(name) for name in first_fact(modinfo, b"depends").split(",") if name)[:LIST_MAX],
        versions=elf.section(b"__versions") is not None or elf.section(b"__version_ext_crcs") is not None,
        signed=signature.signed,
        signer=_shown(signature.signer),
        unpacked=unpacked,
        match=_match(elf, vermagic.partition(" ")[0], root, release),
    )


def _name(elf: ElfObject, modinfo: bytes) -> str:
    """The name by modinfo, which has to be the one that the kernel will go by: that in its struct module."""
    said = first_fact(modinfo, b"name")
    this = elf.section(b".gnu.linkonce.this_module")
    if this is None:
        raise FaultError(FileFault.NOT_A_MODULE)
    start = _MODULE_NAME[elf.bits - 1]
    if not said:  # modpost writes it since Linux 4.13
        said = this[start : start + 56].partition(b"\0")[0].decode("utf-8", "replace")
    if not said:
        raise FaultError(FileFault.NO_NAME)
    # Anywhere: the fields of struct module are shuffled in kernels that were built so (RANDSTRUCT).
    if said.encode().replace(b"-", b"_") + b"\0" not in this:
        raise FaultError(FileFault.NAMES_DIFFER)
    return _shown(said)


def _match(elf: ElfObject, built_for: str, root: Path, running: str) -> KernelMatch:
    plain = built_for.replace(".", "").replace("-", "").replace("_", "").replace("+", "").replace("~", "")
    kernel = KernelSymbols(root, running, running=True)
    if built_for != running and plain.isalnum() and plain.isascii() and not built_for.startswith("."):
        own = KernelSymbols(root, built_for, running=False)
        kernel, running = (own, built_for) if own.present else (kernel, running)
    sums = elf.versions()
    needed = _needed(elf)
    kernel.consult(sums)
    names = kernel.names()
    known = {name: kernel.sum_of(name) for name in sums}
    return KernelMatch(
        release=running,
        tree=kernel.present,
        vermagic=kernel.vermagic,
        machine=kernel.machine,
        unknown=_listed(needed - names) if names is not None else (),
        mismatched=_listed({name for name, found in known.items() if found is not None and found != sums[name]}),
        unchecked=sum(found is None for found in known.values()),
    )


def _needed(elf: ElfObject) -> set[bytes]:
    """Symbols that somebody else has to export."""
    found: set[bytes] = set()
    for symbol in elf.symbols():
        if symbol.section == 0 and not symbol.weak:
            found.add(symbol.name)
            if len(found) > _NEEDED_MAX:
                raise FaultError(FileFault.DAMAGED)
    return found - _IGNORED


def _listed(symbols: set[bytes]) -> tuple[str, ...]:
    return tuple(_shown(name.decode("utf-8", "replace"))[:128] for name in sorted(symbols)[:LIST_MAX])


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:TEXT_MAX])


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
            return  # nobody wants anything any more
        wanted = json.loads(order)
        found = examine(
            *files,
            maximum=wanted["maximum"],
            unpacked=wanted["unpacked"],
            root=Path(wanted["root"]),
            release=wanted["release"],
        )
        channel.send(json.dumps(asdict(found)).encode()[:ANSWER_MAX])


if __name__ == "__main__":
    main()
