# SPDX-License-Identifier: LGPL-2.1-or-later
"""The signature at the end of a module behind a descriptor: there, whole, and whose. The kernel alone verifies it."""

import os
from dataclasses import dataclass

from kmodd.kernel.signature import MAGIC, PKCS7, SIGNATURE_HEADER, pkcs7_signer

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
