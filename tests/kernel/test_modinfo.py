# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts from module files, whole, compressed, signed, damaged and mutated."""

import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

from kmodd.errors import BadModule
from kmodd.kernel.modules.compression import Damaged, decompress
from kmodd.kernel.modules.module_file import ModuleFile, parse_modinfo
from kmodd.kernel.modules.param_section import FoundParameter
from kmodd.kernel.modules.signature import MAGIC, Signers, pkcs7_signer, read_signature
from kmodd.model import ModuleInfo, ParameterInfo
from kmodd.names import ModuleName
from tests.kernel.elf import ELF_HEADER, module_file, pkcs7_message, sign
from tests.kernel.fakeroot import compressed

NAME = ModuleName("plain")
STRINGS = ["description=A module", "license=GPL", "parm=debug:How much", "parmtype=debug:int", "depends=a-b,c"]


def info_of(path: Path) -> ModuleInfo:
    with ModuleFile(NAME, str(path)) as file:
        strings = [string for string in file.modinfo().split(b"\0") if string]
        signed, signer = read_signature(file)
    return parse_modinfo(NAME, str(path), strings, signed=signed, signer=signer)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return tmp_path / "plain.ko"


# --- what the strings mean --------------------------------------------------------------------------------------------


def test_every_fact() -> None:
    strings = [
        b"version=1.2",
        b"author=One <one@example.org>",
        b"author=Two",
        b"license=GPL v2",
        b"license=GPL v2",
        b"license=BSD",
        b"description=Text = more text",
        b"description=ignored",
        b"srcversion=0123ABCD",
        b"firmware=a.bin",
        b"firmware=b.bin",
        b"alias=pci:v*",
        b"alias=net-pf-1",
        b"softdep=pre: x-y post: z",
        b"softdep=pre: w",
        b"depends=a-b,c",
        b"intree=Y",
        b"vermagic=6.1.0 SMP ",
        b"retpoline=Y",
        b"nothing",
    ]
    assert parse_modinfo(NAME, "/x.ko", strings, signed=True, signer="Me") == ModuleInfo(
        name=NAME,
        filename="/x.ko",
        description="Text = more text",
        license="GPL v2, BSD",
        author="One <one@example.org>, Two",
        version="1.2",
        srcversion="0123ABCD",
        vermagic="6.1.0 SMP",
        signer="Me",
        signed=True,
        intree=True,
        firmware=("a.bin", "b.bin"),
        depends=(ModuleName("a_b"), ModuleName("c")),
        softdep_pre=("x-y", "w"),
        softdep_post=("z",),
        aliases=("pci:v*", "net-pf-1"),
    )


def test_nothing_said_is_nothing_known() -> None:
    assert parse_modinfo(NAME, "/x.ko", []) == ModuleInfo(name=NAME, filename="/x.ko")


def test_parameters_with_type_description_or_both() -> None:
    strings = [
        b"parm=both:First: with a colon",
        b"parmtype=both:int",
        b"parmtype=typed:array of int",
        b"parm=described: text",
        b"parm=late:x",
        b"parmtype=late:bool",
        b"parmtype=with-dash:charp",
    ]
    assert parse_modinfo(NAME, "", strings).parameters == (
        ParameterInfo("both", "int", "First: with a colon"),
        ParameterInfo("typed", "array of int", ""),
        ParameterInfo("late", "bool", "x"),
        ParameterInfo("with_dash", "charp", ""),
        ParameterInfo("described", "", "text"),
    )


def test_text_that_is_not_utf8_is_replaced() -> None:
    assert parse_modinfo(NAME, "", [b"author=J\xf6rg"]).author == "J\ufffdrg"


def test_what_is_built_in_is_in_tree() -> None:
    assert parse_modinfo(NAME, "", [], builtin=True).intree


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("suffix", [".ko", ".ko.gz", ".ko.xz", ".ko.zst"])
def test_files_of_every_kind(module: Path, bits: int, big_endian: bool, suffix: str) -> None:
    module.write_bytes(compressed(module_file(STRINGS, bits=bits, big_endian=big_endian), suffix))
    info = info_of(module)
    assert (info.description, info.license, info.signed) == ("A module", "GPL", False)
    assert info.parameters == (ParameterInfo("debug", "int", "How much"),)
    assert info.depends == ("a_b", "c")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "is not an ELF file"),
        (bytes(4096), "is not an ELF file"),
        (b"\x7fELF", "has a damaged ELF header"),
        (b"\x7fELF\x02\x01" + bytes(20), "is truncated"),
        (b"\x7fELF\x07\x01" + bytes(80), "has a damaged ELF header"),
        (b"\x7fELF\x02\x00" + bytes(80), "has a damaged ELF header"),
        (module_file(STRINGS)[:-1], "is truncated"),
        (module_file(STRINGS)[:200], "is truncated"),
        (module_file(STRINGS, kind=2), "is an ELF file but not a module"),
        (module_file(modinfo=False), "has no .modinfo section"),
        (b"\x1f\x8b" + bytes(50), "is damaged: its compressed data does not unpack"),
        (compressed(module_file(STRINGS), ".gz")[:-9], "is damaged: its compressed data does not unpack"),
        (compressed(module_file(STRINGS), ".xz")[:-9], "is damaged: its compressed data does not unpack"),
        (compressed(module_file(STRINGS), ".zst")[:-9], "is damaged: its compressed data does not unpack"),
        (compressed(b"text", ".xz"), "is not an ELF file"),
    ],
)
def test_faults_are_distinguished(module: Path, data: bytes, fault: str) -> None:
    module.write_bytes(data)
    with pytest.raises(BadModule) as caught:
        info_of(module)
    assert str(caught.value) == f"the file of module plain {fault}"
    assert str(module) in caught.value.evidence.hint
    assert caught.value.module == "plain"


def header_with(**fields: int) -> bytes:
    """A module whose ELF header says something else."""
    data = bytearray(module_file(STRINGS))
    places = {"e_shoff": (40, "<Q"), "e_shentsize": (58, "<H"), "e_shnum": (60, "<H"), "e_shstrndx": (62, "<H")}
    for name, value in fields.items():
        offset, form = places[name]
        struct.pack_into(form, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (header_with(e_shstrndx=0), "has a damaged ELF header"),  # libkmod ends the process: assert(idx != SHN_UNDEF)
        (header_with(e_shstrndx=99), "has a damaged ELF header"),  # libkmod: assert(idx < count)
        (header_with(e_shentsize=63), "has a damaged ELF header"),
        (header_with(e_shnum=0), "has a damaged ELF header"),
        (header_with(e_shnum=0xFFFF), "is truncated"),
        (header_with(e_shoff=2**64 - 64), "is truncated"),
        (header_with(e_shoff=2**63), "is truncated"),
    ],
)
def test_headers_that_libkmod_does_not_survive(module: Path, data: bytes, fault: str) -> None:
    module.write_bytes(data)
    with pytest.raises(BadModule, match=fault):
        info_of(module)


def test_a_section_of_impossible_size(module: Path) -> None:
    data = bytearray(module_file(STRINGS))
    table = int.from_bytes(data[40:48], "little")
    struct.pack_into("<Q", data, table + ELF_HEADER + 32, 1 << 40)  # sh_size of the first section, .modinfo
    module.write_bytes(data)
    with pytest.raises(BadModule, match="has a section of impossible size"):
        info_of(module)


def test_what_is_no_file(tmp_path: Path, module: Path) -> None:
    with pytest.raises(BadModule, match="does not exist") as caught:
        info_of(module)
    assert caught.value.evidence.errno == 2
    with pytest.raises(BadModule, match="is not a regular file"):
        info_of(tmp_path)
    os.mkfifo(module)
    with pytest.raises(BadModule, match="is not a regular file"):
        info_of(module)
    loop = tmp_path / "loop.ko"
    loop.symlink_to(loop)
    with pytest.raises(BadModule, match="cannot be read"):
        info_of(loop)


def test_no_descriptor_stays_open_after_a_fault(tmp_path: Path, module: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for data in (b"", b"text", b"\x1f\x8b" + bytes(50), module_file(STRINGS)[:-1]):
        module.write_bytes(data)
        with pytest.raises(BadModule):
            info_of(module)
    with pytest.raises(BadModule):
        info_of(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_bomb_stops_at_the_limit(suffix: str) -> None:
    bomb = compressed(bytes(4 << 20), suffix)
    assert len(decompress(bomb, 4 << 20)) == 4 << 20
    with pytest.raises(Damaged, match="more than a module can have"):
        decompress(bomb, (4 << 20) - 1)


# --- signatures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz"])
def test_the_signer_is_the_issuers_common_name(module: Path, suffix: str) -> None:
    message = pkcs7_message("Build time key", organisation="Somebody", certificates=True)
    module.write_bytes(compressed(sign(module_file(STRINGS), message), suffix))
    info = info_of(module)
    assert (info.signed, info.signer) == (True, "Build time key")


def test_a_signature_of_old_kernels_names_its_signer(module: Path) -> None:
    module.write_bytes(sign(module_file(STRINGS), bytes(256), kind=1, signer=b"Old key", key=b"\x01\x02"))
    info = info_of(module)
    assert (info.signed, info.signer) == (True, "Old key")


@pytest.mark.parametrize("message", [b"", b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", bytes(300), b"\x30" * 300])
def test_a_signature_that_cannot_be_read_has_no_signer(module: Path, message: bytes) -> None:
    module.write_bytes(sign(module_file(STRINGS), message))
    info = info_of(module)
    assert (info.signed, info.signer, info.license) == (True, "", "GPL")


def test_a_signature_longer_than_the_file(module: Path) -> None:
    data = bytearray(sign(module_file(STRINGS), pkcs7_message("Me")))
    struct.pack_into(">I", data, len(data) - len(MAGIC) - 4, 0xFFFFFFFF)
    module.write_bytes(data)
    assert (info_of(module).signed, info_of(module).signer) == (True, "")


def test_every_cut_of_a_signature_is_harmless() -> None:
    message = pkcs7_message("Me", certificates=True)
    assert pkcs7_signer(message) == "Me"
    assert {pkcs7_signer(message[:length]) for length in range(len(message))} == {""}


def test_what_many_files_have_in_common_is_read_once_and_never_mistaken() -> None:
    signers = Signers()
    one, other = pkcs7_message("Me"), pkcs7_message("Us")
    assert len(one) == len(other)
    signed_again = one[:-200] + bytes(range(200))  # the signature proper stands at the end
    for message, signer in ((one, "Me"), (signed_again, "Me"), (other, "Us"), (one, "Me"), (one[:-1], ""), (b"", "")):
        assert signers(message) == signer == pkcs7_signer(message)


@pytest.mark.parametrize("place", range(0, 330, 7))
def test_a_changed_byte_is_read_as_if_nothing_had_been_read_before(place: int) -> None:
    message = pkcs7_message("Me", organisation="Ours")
    changed = bytearray(message)
    changed[place] ^= 0x15
    signers = Signers()
    signers(message)
    assert signers(bytes(changed)) == pkcs7_signer(bytes(changed))


# --- mutations --------------------------------------------------------------------------------------------------------


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change, cut, insert or move something, most often where the headers are."""
    copy = bytearray(data)
    table = int.from_bytes(data[40:48], "little")
    for _ in range(chance.randrange(1, 5)):
        where = chance.choice((chance.randrange(64), table + chance.randrange(320), chance.randrange(len(data))))
        where = min(where, len(copy) - 9)
        match chance.randrange(5):
            case 0:
                copy[where] = chance.randrange(256)
            case 1:
                struct.pack_into("<Q", copy, where, chance.choice((0, 1, 2**64 - 1, 2**63, len(data), len(data) - 1)))
            case 2:
                struct.pack_into("<I", copy, where, chance.getrandbits(32))
            case 3:
                del copy[where : where + chance.randrange(1, 40)]
            case _:
                copy[where:where] = chance.randbytes(chance.randrange(1, 40))
        if len(copy) < 64:
            break
    return bytes(copy)


@pytest.mark.parametrize("suffix", [".ko", ".ko.gz", ".ko.xz", ".ko.zst"])
def test_mutated_files_give_facts_or_bad_module(module: Path, suffix: str) -> None:
    packed = compressed(sign(module_file(STRINGS, exports=["a"], imports=["b"]), pkcs7_message("Me")), suffix)
    chance = random.Random(6)  # noqa: S311 - no secret
    facts = faults = 0
    for _ in range(1500 if suffix == ".ko" else 300):
        module.write_bytes(mutated(packed, chance))
        try:
            info = info_of(module)
        except BadModule as error:
            assert str(error).startswith("the file of module plain ")  # noqa: PT017 - either outcome is right
            faults += 1
        else:
            assert info.name == NAME
            facts += 1
    assert facts > 10 or suffix != ".ko"
    assert faults > 100


def test_a_file_that_shrinks_while_it_is_read(module: Path) -> None:
    module.write_bytes(module_file(STRINGS))
    with ModuleFile(NAME, str(module)) as file:
        module.write_bytes(module_file(STRINGS)[:100])
        with pytest.raises(BadModule, match="is truncated"):
            file.modinfo()


# --- parameters that the kernel finds -----------------------------------------------------------------------------------

# As module_param() and module_param_call() of include/linux/moduleparam.h leave them: only the first is in modinfo.
SOURCE = """
struct module;
struct kernel_param_ops;
struct kernel_param {
	const char *name; struct module *mod; const struct kernel_param_ops *ops;
	const unsigned short perm; signed char level; unsigned char flags; void *arg;
};
extern struct module __this_module;
extern const struct kernel_param_ops param_ops_int, param_array_ops;
struct kernel_param_ops { unsigned int flags; int (*set)(void); int (*get)(void); void (*free)(void); };
extern int param_get_int(void), param_get_bool(void), param_set_int(void);
static int own(void) { return 0; }
static const struct kernel_param_ops own_ops = { 0, own, param_get_int, 0 }, flag_ops = { 1, own, param_get_bool, 0 };
static const struct kernel_param_ops words_ops = { 0, param_set_int, own, 0 };
#define PARAM(what, ops) \\
	static int what; static const char __param_str_##what[] = #what; \\
	static const struct kernel_param __param_##what __attribute__((used, section("__param"), aligned(sizeof(void *)))) = \\
		{ __param_str_##what, &__this_module, &ops, 0644, -1, 0, &what }
PARAM(debug, param_ops_int);
PARAM(start_ro, own_ops);
PARAM(a_flag, flag_ops);
PARAM(a_word, words_ops);
PARAM(a_name_of_some_length, param_array_ops);
static const char info[] __attribute__((used, section(".modinfo"))) = "parmtype=debug:int";
"""


def found_in(path: Path) -> dict[str, FoundParameter]:
    """What is found, by name."""
    with ModuleFile(NAME, str(path)) as file:
        return {found.name: found for found in file.parameters()}


def by_name(*found: FoundParameter) -> dict[str, FoundParameter]:
    return {each.name: each for each in found}


def test_names_that_a_compiler_left_are_found_without_local_symbols_too(module: Path) -> None:
    source = module.with_suffix(".c")
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-O2", "-c", "-o", module, source], check=True)
    expected = by_name(
        FoundParameter("debug", own=False),
        FoundParameter("start_ro", own=True, shown_as="int", flag=False),
        FoundParameter("a_flag", own=True, flag=True),
        FoundParameter("a_word", own=True, flag=False),
        FoundParameter("a_name_of_some_length", own=False),
    )
    assert found_in(module) == expected
    subprocess.run(["strip", "--strip-unneeded", module], check=True)
    assert b"__param_str" not in module.read_bytes()
    assert found_in(module) == expected


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("big_endian", [False, True])
def test_names_in_every_layout(module: Path, bits: int, big_endian: bool) -> None:
    data = module_file(
        STRINGS,
        bits=bits,
        big_endian=big_endian,
        parameters=["start_ro", "max-part"],
        imports=["printk"],
        own_parameters=["start_ro"],
    )
    module.write_bytes(data)
    assert found_in(module) == by_name(
        FoundParameter("start_ro", own=True, flag=False), FoundParameter("max-part", own=False)
    )
    module.write_bytes(compressed(data, "xz"))
    assert found_in(module) == by_name(
        FoundParameter("start_ro", own=True, flag=False), FoundParameter("max-part", own=False)
    )


def test_a_module_without_parameters_has_none(module: Path) -> None:
    module.write_bytes(module_file(STRINGS))
    assert found_in(module) == {}


def test_what_modinfo_does_not_know_is_a_parameter_of_unknown_type() -> None:
    strings = [b"parm=max_part:Partitions", b"parmtype=max_part:int", b"parmtype=nx:bool"]
    found = [
        FoundParameter("max_part", own=False),
        FoundParameter("start-ro", own=True, shown_as="int", flag=False),
        FoundParameter("nx", own=True),
    ]
    assert parse_modinfo(NAME, "x.ko", strings, parameters=found).parameters == (
        ParameterInfo("max_part", "int", "Partitions"),
        ParameterInfo("nx", "bool", own=True),
        ParameterInfo("start_ro", "", own=True, shown_as="int", flag=False),
    )


def test_damaged_arrays_of_parameters_end_in_names_or_a_sentence(module: Path) -> None:
    whole = module_file(STRINGS, parameters=["one", "two", "three"])
    chance = random.Random(40)  # noqa: S311 - no secret
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(20, len(data))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        module.write_bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
        try:
            names = found_in(module)
        except BadModule:
            continue
        assert len(names) <= 3
        assert all(len(name) <= 64 for name in names)
