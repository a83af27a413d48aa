"""Module files that the kernel must refuse, each for one reason, made from whole ones."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# include/linux/module_signature.h: the file ends with a PKCS#7 blob, a 12-byte trailer and this text.
_SIGNED = b"~Module signature appended~\n"
_TRAILER = struct.Struct(">BBBBB3xI")
_E_MACHINE = 18  # offset in the ELF header, two bytes
_AARCH64 = 183


def make(signed: Path, own: Path, folder: Path) -> None:
    """Write the set into ``folder``: ``signed`` is a module of the distribution, ``own`` an unsigned one."""
    folder.mkdir()
    whole = signed.read_bytes()
    stripped = _without_signature(whole)
    files = {
        "dummy_tampered_signature.ko": _flip(whole, len(stripped) + 200),
        "dummy_tampered_code.ko": _flip(whole, whole.index(b"numdummies")),
        "dummy_unsigned.ko": stripped,
        "dummy_truncated.ko": whole[: len(stripped) // 2],
        "dummy_empty.ko": b"",
        "dummy_not_elf.ko": b"#!/bin/sh\necho this is not a module\n" * 40,
        "dummy_foreign_architecture.ko": stripped[:_E_MACHINE]
        + struct.pack("<H", _AARCH64)
        + stripped[_E_MACHINE + 2 :],
        "kmodd_test_vermagic_flags.ko": _vermagic(own.read_bytes(), rb" SMP preempt", b" SMQ preempt"),
        "kmodd_test_vermagic_release.ko": _vermagic(own.read_bytes(), rb"vermagic=\d", b"vermagic=5"),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _without_signature(whole: bytes) -> bytes:
    if not whole.endswith(_SIGNED):
        raise ValueError("the distribution's module is not signed")
    end = len(whole) - len(_SIGNED)
    length = _TRAILER.unpack(whole[end - _TRAILER.size : end])[-1]
    return whole[: end - _TRAILER.size - length]


def _flip(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def _vermagic(data: bytes, old: bytes, new: bytes) -> bytes:
    replaced, count = re.subn(old, new, data)
    if not count:
        raise ValueError(f"no {old!r} in the module: its vermagic looks different now")
    return replaced
