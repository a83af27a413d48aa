# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parser of strangers' files: in its own process, and under mutation."""

import asyncio
import errno
import gzip
import json
import os
import random
import signal
import struct
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from kmodd.core.store.compatibility import check_file, check_kernel
from kmodd.errors import KmoddError
from kmodd.kernel.modules import parser as module_parser
from kmodd.kernel.modules.parser import examine
from kmodd.kernel.modules.parser_client import ModuleParser, read_examination
from kmodd.model.store import Examination, FileFault
from kmodd.names import is_module_name
from tests.kernel.elf import module_file, pkcs7_message, sign
from tests.kernel.test_worker_unit import SocketUnit

RELEASE = "6.1.0-9-amd64"
VERMAGIC = f"vermagic={RELEASE} SMP preempt mod_unload modversions "


def module(name: str = "special", **more: object) -> bytes:
    return module_file(
        [f"name={name}", "version=1", VERMAGIC, "depends=fat,vfat", "softdep=pre: a b post: c", "softdep=post: a d-e"], this_module=name,
        versions={"module_layout": 0x1234, "fat_attach": 7}, imports=["module_layout", "fat_attach"], **more,  # type: ignore[arg-type]
    )  # fmt: skip


@contextmanager
def files(folder: Path, content: bytes) -> Iterator[tuple[int, int, int]]:
    """The three descriptors of an order."""
    (folder / "source").write_bytes(content)
    opened = [os.open(folder / "source", os.O_RDONLY)]
    opened += [os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for name in ("copy", "plain")]
    try:
        yield opened[0], opened[1], opened[2]
    finally:
        for file in opened:
            os.close(file)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def look(folder: Path, content: bytes, *, maximum: int = 1 << 20, unpacked: int = 1 << 20) -> Examination:
    with files(folder, content) as three:
        return examine(*three, maximum=maximum, unpacked=unpacked, root=folder, release=RELEASE)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A kernel with a module that uses the same symbols."""
    made = tmp_path / "lib/modules" / RELEASE
    (made / "kernel").mkdir(parents=True)
    witness = module_file([VERMAGIC], this_module="vfat", versions={"module_layout": 0x1234, "fat_attach": 7})
    (made / "kernel/vfat.ko").write_bytes(witness)
    (made / "modules.dep").write_text("kernel/vfat.ko:\n")
    (made / "modules.symbols").write_text("alias symbol:fat_attach fat\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/kallsyms").write_text("0000 r __ksymtab_module_layout\n0000 T secret\n")
    return tmp_path


@pytest.mark.parametrize("bits", [32, 64])
def test_the_name_is_the_one_where_the_kernel_looks_for_it(tree: Path, bits: int) -> None:
    offset = 24 if bits == 64 else 12
    elsewhere = bytes(offset) + b"evilname".ljust(56, b"\0") + b"mydrv\0" + bytes(58)
    made = module_file(["name=mydrv", VERMAGIC], bits=bits, this_module=elsewhere)
    assert look(tree, made).fault is FileFault.NAMES_DIFFER
    longer = bytes(offset) + b"mydrv_and_more".ljust(56, b"\0") + bytes(64)
    assert (
        look(tree, module_file(["name=mydrv", VERMAGIC], bits=bits, this_module=longer)).fault is FileFault.NAMES_DIFFER
    )
    assert look(tree, module_file(["name=my-drv", VERMAGIC], bits=bits, this_module="my_drv")).name == "my-drv"


def test_the_name_may_be_anywhere_where_the_structure_is_shuffled(tree: Path) -> None:
    elsewhere = bytes(80) + b"mydrv".ljust(56, b"\0")
    shuffled = f"{VERMAGIC}RANDSTRUCT_0123 "
    assert look(tree, module_file(["name=mydrv", shuffled], this_module=elsewhere)).name == "mydrv"
    assert look(tree, module_file(["name=other", shuffled], this_module=elsewhere)).fault is FileFault.NAMES_DIFFER
    assert look(tree, module_file([shuffled], this_module=elsewhere)).fault is FileFault.NO_NAME


@pytest.mark.parametrize("section", [b".modinfo", b".gnu.linkonce.this_module"])
def test_a_second_section_that_the_kernel_might_take_instead_is_refused(tree: Path, section: bytes) -> None:
    second = (section, b"name=evilname\0" + bytes(64))
    made = module_file(["name=mydrv", VERMAGIC], this_module="mydrv", sections_more=[second])
    assert look(tree, made).fault is FileFault.DAMAGED


def test_a_module_is_examined(tree: Path) -> None:
    found = look(tree, sign(module(), pkcs7_message("ACME")))
    assert not found.fault
    assert (found.name, found.version, found.depends) == ("special", "1", ("fat", "vfat"))
    assert found.softdeps == ("a", "b", "c", "d-e")
    assert (found.signed, found.signer, found.versions, found.unpacked) == (True, "ACME", True, False)
    assert found.match.tree
    assert found.match.vermagic == VERMAGIC.partition("=")[2]
    assert found.match.machine == found.machine
    assert (found.match.unknown, found.match.mismatched, found.match.unchecked) == ((), (), 0)


def test_symbols_are_compared_with_what_the_kernels_own_modules_use(tree: Path) -> None:
    other = module_file(
        ["name=x", VERMAGIC],
        this_module="x",
        versions={"module_layout": 5, "nobody_knows": 1},
        imports=["nobody_knows"],
    )
    match = look(tree, other).match
    assert match.mismatched == ("module_layout",)
    assert match.unknown == ("nobody_knows",)
    assert match.unchecked == 1


def test_another_installed_kernel_is_compared_with_its_own_files(tree: Path) -> None:
    (tree / "lib/modules/6.2.0").symlink_to(RELEASE)
    found = look(tree, module_file(["name=x", "vermagic=6.2.0 SMP "], this_module="x", imports=["nobody_knows"]))
    assert found.match.release == "6.2.0"
    assert found.match.unknown == ()  # nothing tells the symbols of a kernel that does not run


def headers(tree: Path, release: str, **sums: int) -> None:
    """What the headers of a kernel bring."""
    made = tree / "lib/modules" / release
    (made / "build").mkdir(parents=True, exist_ok=True)
    rows = "".join(f"0x{value:08x}\t{name}\tvmlinux\tEXPORT_SYMBOL\t\n" for name, value in sums.items())
    (made / "build/Module.symvers").write_text(rows)


def for_another_kernel(**versions: int) -> bytes:
    return module_file(["name=x", "vermagic=6.2.0 SMP "], this_module="x", versions=versions, imports=sorted(versions))


@pytest.fixture
def second(tree: Path) -> Path:
    """Another installed kernel, with headers."""
    made = tree / "lib/modules/6.2.0"
    (made / "kernel").mkdir(parents=True)
    witness = module_file(["vermagic=6.2.0 SMP "], this_module="vfat", versions={"module_layout": 9})
    (made / "kernel/vfat.ko").write_bytes(witness)
    (made / "modules.dep").write_text("kernel/vfat.ko:\n")
    headers(tree, "6.2.0", module_layout=9, printk=5)
    return tree


def test_the_headers_of_another_kernel_tell_its_symbols(second: Path) -> None:
    match = look(second, for_another_kernel(module_layout=9, printk=5)).match
    assert (match.release, match.unknown, match.mismatched, match.unchecked) == ("6.2.0", (), (), 0)
    match = look(second, for_another_kernel(module_layout=9, printk=6)).match
    assert (match.unknown, match.mismatched) == ((), ("printk",))
    match = look(second, for_another_kernel(module_layout=9, gone=1)).match
    assert (match.unknown, match.mismatched, match.unchecked) == (("gone",), (), 1)


def test_headers_of_another_build_are_not_believed(second: Path) -> None:
    headers(second, "6.2.0", module_layout=10, printk=5)
    match = look(second, for_another_kernel(module_layout=9, printk=6, gone=1)).match
    assert (match.unknown, match.mismatched, match.unchecked) == ((), (), 2)


@pytest.mark.parametrize("place", ["boot/symvers-6.2.0.gz", "lib/modules/6.2.0/symvers.gz"])
def test_packed_symvers_are_read(second: Path, place: str) -> None:
    plain = second / "lib/modules/6.2.0/build/Module.symvers"
    (second / "boot").mkdir()
    (second / place).write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert look(second, for_another_kernel(module_layout=9, printk=6)).match.mismatched == ("printk",)


def test_a_system_map_tells_the_names_alone(second: Path) -> None:
    (second / "lib/modules/6.2.0/build/Module.symvers").unlink()
    (second / "boot").mkdir()
    for text, unknown in (
        ("ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n", ()),
        ("ffffffff81000000 r __ksymtab_printk\nffffffff81000008 T gone\n", ("gone",)),
    ):
        (second / "boot/System.map-6.2.0").write_text(text)
        match = look(second, for_another_kernel(module_layout=9, printk=6, gone=1)).match
        assert (match.unknown, match.mismatched, match.unchecked) == (unknown, (), 2)


def test_who_exports_a_symbol_says_its_checksum(second: Path) -> None:
    """Also a module that came with no kernel: nobody else can know it."""
    made = second / "lib/modules/6.2.0"
    (made / "updates").mkdir()
    (made / "updates/my-bus.ko").write_bytes(module_file(this_module="my_bus", sums={"my_attach": 0x77}))
    (made / "modules.dep").write_text("kernel/vfat.ko:\nupdates/my-bus.ko:\n")
    (made / "modules.symbols").write_text("# Aliases for symbols\nalias symbol:my_attach my_bus\n")
    match = look(second, for_another_kernel(module_layout=9, my_attach=0x77)).match
    assert (match.unknown, match.mismatched, match.unchecked) == ((), (), 0)
    assert look(second, for_another_kernel(module_layout=9, my_attach=0x78)).match.mismatched == ("my_attach",)


def test_a_kernel_that_hides_its_symbols_cannot_be_compared(tree: Path) -> None:
    (tree / "proc/kallsyms").write_text("0000 T secret\n")
    assert look(tree, module_file(["name=x", VERMAGIC], this_module="x", imports=["nobody_knows"])).match.unknown == ()


@pytest.mark.parametrize("name", ["../../../etc", "a b", ".", ""])
def test_a_release_is_never_a_path(tree: Path, name: str) -> None:
    found = look(tree, module_file(["name=x", f"vermagic={name} SMP"], this_module="x"))
    assert found.match.release == RELEASE


def test_limits_hold_for_what_is_found_and_not_for_what_is_said(tmp_path: Path) -> None:
    assert look(tmp_path, bytes(2 << 20)).fault == FileFault.TOO_LARGE
    assert look(tmp_path, gzip.compress(module() + bytes(2 << 20))).fault == FileFault.UNPACKS_TOO_LARGE


@pytest.mark.parametrize(
    ("start", "fault"),
    [
        (b"", FileFault.NOT_ELF),
        (b"\x7fEL\0", FileFault.NOT_ELF),
        (module_file(["name=x"], kind=2)[:64], FileFault.NOT_A_MODULE),
    ],
    ids=["zeros", "nearly", "executable"],
)
def test_what_begins_as_no_module_is_not_unpacked(tmp_path: Path, start: bytes, fault: FileFault) -> None:
    assert look(tmp_path, gzip.compress(start + bytes(900_000))).fault == fault
    assert (tmp_path / "plain").stat().st_size == 0


def test_a_big_driver_with_all_its_debug_information_is_taken(tree: Path) -> None:
    """As amdgpu.ko before it is stripped: sections of 100 MiB that nobody reads, and symbol tables of some MiB."""
    content = bytearray(module())
    table, count = struct.unpack_from("<Q", content, 0x28)[0], struct.unpack_from("<H", content, 0x3C)[0]
    heads = [content[table + 64 * index : table + 64 * (index + 1)] for index in range(count)]
    symbols = next(index for index, head in enumerate(heads) if head[4] == 2)
    texts = symbols - 1
    offsets = [struct.unpack_from("<QQ", heads[index], 0x18) for index in (texts, symbols)]
    text, rows = (content[start : start + size] for start, size in offsets)
    for number in range(100_000):
        rows += struct.pack("<IBBHQQ", len(text), 0x02, 0, 1, 16 * number, 16)
        text += f"dcn32_calculate_wm_and_dlg_fpu_{number}.isra.0\0".encode()
    for index, added in ((texts, text), (symbols, rows)):
        struct.pack_into("<QQ", heads[index], 0x18, len(content), len(added))
        content += added
    debug = 100 << 20
    for _ in range(8):
        heads.append(bytearray(64))
        struct.pack_into("<IIQQQQ", heads[-1], 0, 0, 1, 0, 0, len(content), debug // 8)
    struct.pack_into("<Q", content, 0x28, len(content) + debug)
    struct.pack_into("<H", content, 0x3C, len(heads))
    # Packed it is small: what it takes is what it has when it is unpacked.
    packed = gzip.compress(bytes(content) + bytes(debug) + b"".join(heads), 1)
    tracemalloc.start()
    try:
        found = look(tree, packed, maximum=64 << 20, unpacked=256 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.fault, found.name, found.match.unknown) == ("", "special", ())
    assert peak < 96 << 20


@pytest.mark.parametrize("defined", [False, True])
def test_names_without_an_end_take_neither_time_nor_memory(tree: Path, *, defined: bool) -> None:
    """Each symbol points into one text of megabytes; read to its end for each of them, it would be copied a million times."""
    content = bytearray(module())
    table = struct.unpack_from("<Q", content, 0x28)[0]
    symbols = next(index for index in range(1, 16) if content[table + 64 * index + 4] == 2)
    texts = symbols - 1
    count = 300_000
    rows = b"".join(struct.pack("<IBBHQQ", at + 1, 0x10, 0, int(defined), 0, 0) for at in range(count))
    text = random.Random(1).randbytes(8 << 20).replace(b"\0", b"a")  # noqa: S311 - the same names every time
    for section, added in ((texts, b"\0" + text), (symbols, rows)):
        struct.pack_into("<QQ", content, table + 64 * section + 0x18, len(content), len(added))
        content += added
    tracemalloc.start()
    try:
        found = look(tree, bytes(content), maximum=64 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.fault == ("" if defined else FileFault.DAMAGED)
    assert peak < 160 << 20


def test_mutated_files_are_answered_and_nothing_else(tree: Path) -> None:
    """Ten thousand small damages: an answer each time, and never one that takes long."""
    whole = sign(module(exports=["a", "b"]), pkcs7_message("ACME"))
    chance = random.Random(1)  # noqa: S311 - the same damages every time
    faults = set()
    with files(tree, whole) as (source, copy, plain):
        for number in range(10_000):
            content = bytearray(whole)
            for _ in range(chance.choice((1, 1, 2, 8))):
                where = chance.randrange(min(len(content), 64) if number % 3 == 0 else len(content))
                content[where] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            if number % 10 == 0:
                content = content[: chance.randrange(len(content))]
            if number % 17 == 0:
                struct.pack_into("<I", content, max(0, len(content) - 32), chance.randrange(1 << 32)) if len(
                    content
                ) > 32 else None
            for file in (copy, plain):
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
            (tree / "source").write_bytes(content)
            begun = time.process_time()
            found = examine(source, copy, plain, maximum=1 << 20, unpacked=1 << 20, root=tree, release=RELEASE)
            assert time.process_time() - begun < 2
            faults.add(found.fault)
            # The daemon takes every answer apart again: none may be one that it does not understand.
            assert read_examination(json.dumps(asdict(found)).encode()) == found
            with suppress(KmoddError):
                name = check_file(found, maximum=1 << 20, unpacked=1 << 20)
                assert is_module_name(name)
                assert check_kernel(name, found) == RELEASE
    assert {"", FileFault.NOT_ELF, FileFault.TRUNCATED, FileFault.DAMAGED, FileFault.NOT_A_MODULE} <= faults


async def test_the_process_answers_and_is_gone(tree: Path) -> None:
    with files(tree, module()) as three:
        found = await ModuleParser(tree, RELEASE).examine(*three, maximum=1 << 20, unpacked=1 << 20)
    assert found.name == "special"


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        (("/bin/false",), FileFault.PARSER_DIED),
        (("/bin/sleep", "60"), FileFault.TIMED_OUT),
        (("/bin/sh", "-c", "echo '{\"fault\": 3}' >&3"), FileFault.PARSER_DIED),
    ],
)
async def test_a_process_that_dies_hangs_or_lies_is_a_fault(
    tree: Path, program: tuple[str, ...], fault: FileFault
) -> None:
    before = descriptors()
    with files(tree, module()) as three:
        found = await ModuleParser(tree, RELEASE, program=program, timeout=0.5).examine(*three, maximum=1, unpacked=1)
    assert found.fault == fault
    await asyncio.sleep(0)
    assert descriptors() == before


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_parser_with_a_user_of_its_own_is_not_killed(
    tree: Path, monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    """kill(2) answers EPERM to a daemon without CAP_KILL, though it is root's."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not its own user")

    unit = SocketUnit(tree / "socket")
    hanging = ("/bin/sh", "-c", "printf 'ready 0' >&3; exec sleep 1")
    unit.program = hanging if hangs else (sys.executable, "-I", "-S", module_parser.__file__)
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    try:
        with files(tree, module()) as three:
            parser = ModuleParser(tree, RELEASE, unit_socket=unit.path, timeout=0.5 if hangs else 60)
            found = await parser.examine(*three, maximum=1 << 20, unpacked=1 << 20)
    finally:
        unit.close()
    assert (found.name, found.fault) == (("", FileFault.TIMED_OUT) if hangs else ("special", ""))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"[" * 60_000, b'{"fault": "x"}', b'{"match": {}, "fault": ""}', b"\xff", b'"' * 999]
)
def test_an_odd_answer_is_a_fault(data: bytes) -> None:
    assert read_examination(data).fault == FileFault.PARSER_DIED
