# SPDX-License-Identifier: LGPL-2.1-or-later
"""The signature appended to a module file: whether it is present and complete, and its signer. Only the kernel verifies it."""

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from kmodd.fast_dataclass import dataclass

if TYPE_CHECKING:  # it reads signatures
    from kmodd.kernel.modules.module_file import ModuleFile

MAGIC = b"~Module signature appended~\n"
# struct module_signature of include/linux/module_signature.h: algo, hash, id_type, signer_len, key_id_len, pad, sig_len.
SIGNATURE_HEADER = struct.Struct(">BBBBB3xI")
PKCS7 = 2
_COMMON_NAME = b"\x55\x04\x03"  # 2.5.4.3

_SEQUENCE, _SET, _INTEGER = 0x30, 0x31, 0x02


def read_signature(file: "ModuleFile", signer_of: Callable[[bytes], str] | None = None) -> tuple[bool, str]:
    """Answer (signed, signer); the signer is empty when the signature does not say it in a way that can be read.

    `signer_of` answers the signer of a PKCS#7 message; `pkcs7_signer` unless given.
    """
    signer_of = signer_of or pkcs7_signer
    trailer = file.trailer()
    if len(trailer) != SIGNATURE_HEADER.size + len(MAGIC) or not trailer.endswith(MAGIC):
        return False, ""
    _, _, kind, signer_length, key_length, length = SIGNATURE_HEADER.unpack_from(trailer)
    if kind == PKCS7:
        return True, signer_of(file.before_trailer(length))
    # Before Linux 4.3: the signer's name, the key's identifier and the signature follow each other.
    names = file.before_trailer(signer_length + key_length + length)
    return True, names[:signer_length].decode("utf-8", "replace")


class Signers:
    """`pkcs7_signer`, once for each key: what one key signed differs in the last bytes alone, which are the signature.

    May be called from any thread.
    """

    def __init__(self) -> None:
        self._last = 0, b"", ""
        """Length and beginning of the last message, and its signer; replaced in one assignment."""

    def __call__(self, message: bytes) -> str:
        """The signer."""
        length, start, signer = self._last
        if start and len(message) == length and message.startswith(start):
            return signer
        signer, end = _find_signer(message)
        # DER says the length of everything before it comes: what begins alike up to here is read alike.
        self._last = len(message), message[:end], signer
        return signer


def pkcs7_signer(message: bytes) -> str:
    """Find the issuer's common name of the first signer in a PKCS#7 SignedData (RFC 2315); empty for anything else."""
    return _find_signer(message)[0]


def _find_signer(message: bytes) -> tuple[str, int]:
    """The name, and how much of the message decides it."""
    try:
        content = _Der(_Der(message).enter(_SEQUENCE))
        content.skip()  # contentType
        signed = _Der(_Der(content.enter(0xA0)).enter(_SEQUENCE))
        signed.skip()  # version
        signed.skip()  # digestAlgorithms
        signed.skip()  # contentInfo
        while signed.tag in (0xA0, 0xA1):  # certificates, revocation lists
            signed.skip()
        signer = _Der(_Der(signed.enter(_SET)).enter(_SEQUENCE))
        signer.enter(_INTEGER)  # version
        names = _Der(signer.enter(_SEQUENCE)).enter(_SEQUENCE)
        issuer, value = _Der(names), b""
        while issuer.tag == _SET:
            attribute = _Der(_Der(issuer.enter(_SET)).enter(_SEQUENCE))
            kind, value = attribute.enter(0x06), attribute.skip()
            if kind == _COMMON_NAME:
                break
    except ValueError:
        return "", len(message)
    return value.decode("utf-8", "replace"), message.rindex(names) + len(names)


class _Der:
    """Walks over the elements of one level of DER (X.690); ValueError where the bytes are something else."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def tag(self) -> int:
        """The next element's tag, -1 at the end."""
        return self._data[self._position] if self._position < len(self._data) else -1

    def enter(self, tag: int) -> bytes:
        """Take the next element, which must have this tag, and answer its content."""
        if self.tag != tag:
            raise ValueError("unexpected element")
        return self.skip()

    def skip(self) -> bytes:
        """Take the next element, whatever it is, and answer its content."""
        start = self._position + 2
        if start > len(self._data):
            raise ValueError("ends early")
        length = self._data[start - 1]
        if length & 0x80:
            octets = length & 0x7F
            if not 1 <= octets <= 4:
                raise ValueError("unusable length")
            length = int.from_bytes(self._data[start : start + octets])
            start += octets
        self._position = start + length
        if self._position > len(self._data):
            raise ValueError("ends early")
        return self._data[start : self._position]


_SIGNATURE_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class SignatureBlock:
    """What was found."""

    signed: bool = False
    signer: str = ""
    broken: bool = False
    """The mark of a signature is there, and no signature fits before it."""


def split_signature(file: int) -> SignatureBlock:
    """Look at the end of an open file."""
    size = os.fstat(file).st_size
    trailer = SIGNATURE_HEADER.size + len(MAGIC)
    end = os.pread(file, trailer, max(0, size - trailer))
    if len(end) != trailer or not end.endswith(MAGIC):
        return SignatureBlock()
    _, _, kind, signer_length, key_length, length = SIGNATURE_HEADER.unpack_from(end)
    length += 0 if kind == PKCS7 else signer_length + key_length
    start = size - trailer - length
    if not length or length > _SIGNATURE_MAX or start < 0:
        return SignatureBlock(signed=True, broken=True)
    data = os.pread(file, length, start)
    signer = pkcs7_signer(data) if kind == PKCS7 else data[:signer_length].decode("utf-8", "replace")
    return SignatureBlock(signed=True, signer=signer)
