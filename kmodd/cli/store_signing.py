# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signs a module as the kernel build does: with the kernel's sign-file if installed, otherwise with openssl.

The format is that of scripts/sign-file.c: the module, a detached CMS signature without attributes and certificates in DER,
struct module_signature, and a magic string. The program that uses the key asks for its passphrase; kmodctl never sees it.
"""

import gzip
import lzma
import os
import stat
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from kmodd.errors import BadModule, InvalidArgs

HASH = "sha256"
MAXIMUM = 256 << 20
"""Bytes that are read, and unpacked: what the daemon would take at most."""
MARK = b"~Module signature appended~\n"
_PKCS7 = 2
_TRAILER = struct.Struct(">BBBBB3xI")
_SIGN_FILE = (
    "/lib/modules/*/build/scripts/sign-file",
    "/usr/lib/linux-kbuild-*/scripts/sign-file",
    "/usr/src/linux-headers-*/scripts/sign-file",
    "/usr/src/kernels/*/scripts/sign-file",
)


def signed(file: int, key: str, certificate: str, programs: Sequence[str] = _SIGN_FILE) -> int:
    """A new descriptor of the signed module; `file` is closed.

    InvalidArgs says what is wrong with file, key or program, BadModule that it is no file at all.
    """
    if not stat.S_ISREG(os.fstat(file).st_mode):  # a device may have no end
        os.close(file)
        raise BadModule("the descriptor is not a regular file")
    with os.fdopen(file, "rb") as source, tempfile.TemporaryDirectory(prefix="kmodctl-") as name:
        folder = Path(name)
        plain = folder / "plain.ko"
        content = _unpacked(source)
        if content.endswith(MARK):
            raise InvalidArgs("the module is signed already")
        plain.write_bytes(content)
        for what, path in (("key", key), ("certificate", certificate)):
            if not Path(path).is_file() and not path.startswith("pkcs11:"):
                raise InvalidArgs(f"the {what} to sign with does not exist")
        candidates = sorted(
            str(path)
            for pattern in programs
            for path in Path("/").glob(pattern.lstrip("/"))
            if os.access(path, os.X_OK)
        )
        if candidates:
            _run([candidates[-1], HASH, key, certificate, str(plain)])
            content = plain.read_bytes()
        else:
            content = plain.read_bytes() + _with_openssl(plain, key, certificate, folder)
        result = os.memfd_create("module", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(result), "wb") as target:
            target.write(content)
        return result


def _with_openssl(plain: Path, key: str, certificate: str, folder: Path) -> bytes:
    pem = folder / "certificate.pem"
    try:
        own = Path(certificate).read_bytes()
    except OSError as error:
        raise InvalidArgs(f"the certificate to sign with cannot be read: {error.strerror}") from error
    if own.startswith(b"-----BEGIN"):
        pem = Path(certificate)
    else:  # as mokutil wants it
        _run(["openssl", "x509", "-inform", "DER", "-in", certificate, "-out", str(pem)])
    signature = folder / "signature"
    form = ["-binary", "-noattr", "-nosmimecap", "-nocerts", "-md", HASH, "-outform", "DER"]
    files = ["-signer", str(pem), "-inkey", key, "-in", str(plain), "-out", str(signature)]
    _run(["openssl", "cms", "-sign", *form, *files])
    data = signature.read_bytes()
    return data + _TRAILER.pack(0, 0, _PKCS7, 0, 0, len(data)) + MARK


def _run(command: list[str]) -> None:
    program = command[0].rpartition("/")[2]
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise InvalidArgs(
            f"the module cannot be signed: {program} and the kernel's sign-file are not installed"
        ) from error
    if done.returncode != 0:
        raise InvalidArgs(f"the module cannot be signed: {program} failed")


def _unpacked(source: IO[bytes]) -> bytes:
    """The module itself: the signature is of what the kernel loads."""
    start = os.pread(source.fileno(), 6, 0)
    try:
        if start.startswith(b"\x1f\x8b"):
            return _bounded(gzip.GzipFile(fileobj=source))
        if start.startswith(b"\xfd7zXZ\0"):
            return _bounded(lzma.LZMAFile(source))
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InvalidArgs("the file does not unpack") from error
    return _zstd(source) if start.startswith(b"\x28\xb5\x2f\xfd") else _bounded(source)


def _zstd(source: IO[bytes]) -> bytes:
    # Python has it only since 3.14.
    try:
        process = subprocess.Popen(["zstd", "-dcq"], stdin=source.fileno(), stdout=subprocess.PIPE)
    except OSError as error:
        raise InvalidArgs("the file cannot be unpacked: zstd is not installed") from error
    with process:
        try:
            content = _bounded(cast("IO[bytes]", process.stdout))
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise InvalidArgs("the file does not unpack")
    return content


def _bounded(source: IO[bytes] | lzma.LZMAFile | gzip.GzipFile) -> bytes:
    content = source.read(MAXIMUM + 1)
    if len(content) > MAXIMUM:
        raise InvalidArgs(f"a module is at most {MAXIMUM >> 20} MiB")
    return content
