# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signing a module before it is handed over."""

import gzip
import lzma
import os
import subprocess
from pathlib import Path

import pytest

from kmodd.cli.commands.store import signed
from kmodd.errors import BadModule, InvalidArgs
from kmodd.kernel.modules.signature import split_signature
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


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8b\x08" + bytes(40), gzip.compress(CONTENT)[:-9], gzip.compress(CONTENT).replace(b"\x08\x00", b"\x08\x07", 1),
     lzma.compress(CONTENT)[:50], b"\x28\xb5\x2f\xfd" + bytes(9)],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_words(pair: tuple[Path, Path], content: bytes) -> None:
    with pytest.raises(InvalidArgs, match="does not unpack"):
        sign(content, *pair)


def test_a_machine_without_zstd(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidArgs, match="zstd is not installed"):
        sign(b"\x28\xb5\x2f\xfd" + bytes(9), *pair)


def test_what_is_signed_and_packed_is_not_signed_twice(pair: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidArgs, match="signed already"):
        sign(gzip.compress(sign(CONTENT, *pair)), *pair)


def test_a_folder_and_a_certificate_that_cannot_be_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BadModule, match="not a regular file"):
        signed(os.open(tmp_path, os.O_RDONLY), str(pair[0]), str(pair[1]), ())
    file = os.memfd_create("x")
    os.write(file, CONTENT)
    with pytest.raises(InvalidArgs, match="certificate to sign with cannot be read: No such file"):
        signed(file, str(pair[0]), "pkcs11:object=x", ())


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
    with pytest.raises(InvalidArgs, match="key to sign with does not exist"):
        sign(CONTENT, tmp_path / "none", pair[1])
    for pack in (bytes, lzma.compress, gzip.compress):
        with pytest.raises(InvalidArgs, match="signed already"):
            sign(pack(sign(CONTENT, *pair)), *pair)
    damaged = bytearray(gzip.compress(CONTENT))
    damaged[20] ^= 0xFF
    with pytest.raises(InvalidArgs, match="does not unpack"):
        sign(bytes(damaged), *pair)
    with pytest.raises(InvalidArgs, match="does not unpack"):
        sign(lzma.compress(CONTENT)[:-20], *pair)


def test_what_has_no_end_is_not_read(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(BadModule, match="not a regular file"):
            signed(os.open(path, os.O_RDONLY), str(pair[0]), str(pair[1]), ())
    monkeypatch.setattr("kmodd.cli.commands.store.MAXIMUM", 1 << 20)
    for pack in (bytes, lzma.compress, gzip.compress):
        with pytest.raises(InvalidArgs, match="at most 1 MiB"):
            sign(pack(bytes(2 << 20)), *pair)


def test_zstd_is_unpacked_by_its_own_program(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packed = b"\x28\xb5\x2f\xfd" + CONTENT
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidArgs, match="zstd is not installed"):
        sign(packed, *pair)
    program = tmp_path / "zstd"
    monkeypatch.setenv("PATH", f"{tmp_path}:{path}")
    program.write_text("#!/bin/sh\nexec tail -c +5\n")
    program.chmod(0o755)
    assert sign(packed, *pair).startswith(CONTENT)
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(InvalidArgs, match="does not unpack"):
        sign(packed, *pair)
    program.write_text("#!/bin/sh\nexec cat /dev/zero\n")
    with pytest.raises(InvalidArgs, match="at most"):
        sign(packed, *pair)
