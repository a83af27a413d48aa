# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel facts on a made-up root."""

import os
from pathlib import Path

import pytest

from kmodd.kernel.facts import ProcFacts
from kmodd.model import KernelFacts

RELEASE = "6.1.0-test-amd64"
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def put(root: Path, path: str, content: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)


def test_bare_machine_has_nothing(tmp_path: Path) -> None:
    assert ProcFacts(tmp_path, RELEASE).read() == KernelFacts(RELEASE, tree_present=False)


def test_release_is_the_running_kernels_when_none_is_given(tmp_path: Path) -> None:
    assert ProcFacts(tmp_path).read().release == os.uname().release


def test_everything_is_read(tmp_path: Path) -> None:
    put(tmp_path, "sys/kernel/security/lockdown", b"none [integrity] confidentiality\n")
    put(tmp_path, "sys/module/module/parameters/sig_enforce", b"Y\n")
    put(tmp_path, "proc/sys/kernel/modules_disabled", b"1\n")
    put(tmp_path, "proc/sys/kernel/tainted", b"12288\n")
    put(tmp_path, "proc/cmdline", b"BOOT_IMAGE=/vmlinuz root=/dev/vda quiet\n")
    put(tmp_path, SECURE_BOOT, b"\x06\0\0\0\x01")
    put(tmp_path, f"lib/modules/{RELEASE}/modules.dep.bin", b"")
    assert ProcFacts(tmp_path, RELEASE).read() == KernelFacts(
        RELEASE, "integrity", True, True, True, 12288, "BOOT_IMAGE=/vmlinuz root=/dev/vda quiet", True
    )


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (b"[none] integrity confidentiality\n", "none"),
        (b"none integrity [confidentiality]\n", "confidentiality"),
        (b"", "none"),
        (b"nonsense\n", "none"),
    ],
)
def test_lockdown_in_force_is_the_one_in_brackets(tmp_path: Path, text: bytes, mode: str) -> None:
    put(tmp_path, "sys/kernel/security/lockdown", text)
    assert ProcFacts(tmp_path, RELEASE).read().lockdown == mode


@pytest.mark.parametrize(("text", "enforced"), [(b"Y\n", True), (b"1\n", True), (b"N\n", False), (b"0\n", False)])
def test_enforcement_is_spelled_two_ways(tmp_path: Path, text: bytes, enforced: bool) -> None:
    put(tmp_path, "sys/module/module/parameters/sig_enforce", text)
    assert ProcFacts(tmp_path, RELEASE).read().signature_enforced is enforced


@pytest.mark.parametrize("content", [b"\x06\0\0\0\0", b"\x06\0\0\0", b"", b"\x01"])
def test_secure_boot_needs_the_whole_variable_and_a_one(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, SECURE_BOOT, content)
    assert not ProcFacts(tmp_path, RELEASE).read().secure_boot


def test_every_taint_bit_has_its_letter(tmp_path: Path) -> None:
    flags = ProcFacts(tmp_path, RELEASE).taint_flags((1 << 19) - 1)
    assert "".join(flag[0] for flag in flags) == "PFSRMBUDAWCIOELKXTN"
    assert all(flag[1:3] == ": " for flag in flags)


def test_taint_names_what_is_set_and_admits_what_is_new(tmp_path: Path) -> None:
    facts = ProcFacts(tmp_path, RELEASE)
    assert facts.taint_flags(0) == ()
    assert facts.taint_flags(1 << 13) == ("E: unsigned module was loaded",)
    assert facts.taint_flags(1 << 12 | 1 << 25)[1] == "bit 25: unknown to this version"
