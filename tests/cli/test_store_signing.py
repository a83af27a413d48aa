# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signing a module before it is handed over."""

import lzma
import os
import subprocess
from pathlib import Path

import pytest

from kmodd.cli.store_signing import signed
from kmodd.errors import InvalidArgs
from kmodd.kernel.signature_block import split_signature
from tests.kernel.elf import module_file

CONTENT = module_file(["name=x"], this_module="x")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private key and its certificate, as the kernel's documentation makes them."""
    folder = tmp_path_factory.mktemp("keys")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ACME modules",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


def sign(content: bytes, key: Path, certificate: Path, programs: tuple[str, ...] = ()) -> bytes:
    file = os.memfd_create("x")
    os.write(file, content)
    os.lseek(file, 0, os.SEEK_SET)
    result = signed(file, str(key), str(certificate), programs)
    block = split_signature(result)
    assert (block.signed, block.broken, block.signer) == (True, False, "ACME modules")
    with os.fdopen(result, "rb") as target:
        target.seek(0)
        return target.read()


@pytest.mark.parametrize("pack", [bytes, lzma.compress], ids=["plain", "xz"])
def test_the_signature_verifies(pair: tuple[Path, Path], tmp_path: Path, pack: type[bytes]) -> None:
    found = sign(pack(CONTENT), *pair)
    assert found.startswith(CONTENT)
    (tmp_path / "signature").write_bytes(found[len(CONTENT) : -40])
    (tmp_path / "content").write_bytes(CONTENT)
    verified = subprocess.run(
        ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", tmp_path / "signature", "-content",
         tmp_path / "content", "-certfile", pair[1], "-noverify", "-out", os.devnull],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr


def test_a_certificate_in_der_will_do(pair: tuple[Path, Path], tmp_path: Path) -> None:
    der = tmp_path / "cert.der"
    subprocess.run(["openssl", "x509", "-in", pair[1], "-outform", "DER", "-out", der], check=True)
    assert sign(CONTENT, pair[0], der).startswith(CONTENT)


def test_the_kernels_own_program_goes_first(pair: tuple[Path, Path], tmp_path: Path) -> None:
    program = tmp_path / "sign-file"
    log = tmp_path / "log"
    program.write_text(f'#!/bin/sh\necho "$@" > {log}\nexit 1\n')
    program.chmod(0o755)
    with pytest.raises(InvalidArgs, match="sign-file failed"):
        sign(CONTENT, *pair, (str(tmp_path / "sign-*"),))
    assert log.read_text().split()[:3] == ["sha256", str(pair[0]), str(pair[1])]


def test_what_is_wrong_is_said(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidArgs, match="key to sign with is not there"):
        sign(CONTENT, tmp_path / "none", pair[1])
    with pytest.raises(InvalidArgs, match="signed already"):
        sign(sign(CONTENT, *pair), *pair)
    with pytest.raises(InvalidArgs, match="does not unpack"):
        sign(lzma.compress(CONTENT)[:-20], *pair)
