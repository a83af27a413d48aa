# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which modules fit, row by row."""

from dataclasses import replace

import pytest

from kmodd.core.store.compatibility import check_file, check_kernel, check_place, check_signature
from kmodd.errors import (
    BadModule,
    BadSignature,
    KmoddError,
    LimitsExceeded,
    Lockdown,
    Shadows,
    UnknownSymbol,
    WrongKernel,
)
from kmodd.model.store import Examination, FileFault, KernelMatch
from kmodd.names import ModuleName
from tests.unit.fakes import facts

NAME = ModuleName("special")
MAGIC = "6.1.0-9 SMP preempt mod_unload modversions "
MATCH = KernelMatch(release="6.1.0-9", tree=True, vermagic=MAGIC, machine=7)
FOUND = Examination(name="special", machine=7, vermagic=MAGIC, versions=True, match=MATCH)


@pytest.mark.parametrize("fault", list(FileFault))
def test_every_fault_is_an_error_with_a_sentence(fault: FileFault) -> None:
    with pytest.raises(KmoddError) as raised:
        check_file(Examination(fault), maximum=1 << 20, unpacked=2 << 20)
    assert len(raised.value.message) > 15
    assert raised.value.exit_code != 1


@pytest.mark.parametrize("name", ["", "a/b", "x" * 56, "../x", "ä"])
def test_a_name_has_to_be_one(name: str) -> None:
    with pytest.raises(BadModule) as raised:
        check_file(replace(FOUND, name=name), maximum=1, unpacked=1)
    assert not name or name not in raised.value.message


def test_a_name_is_made_canonical() -> None:
    assert check_file(replace(FOUND, name="virtio-net"), maximum=1, unpacked=1) == "virtio_net"


def test_a_module_of_this_kernel_fits() -> None:
    assert check_kernel(NAME, FOUND) == "6.1.0-9"


def test_versions_of_symbols_make_up_for_another_release() -> None:
    near = replace(FOUND, vermagic=MAGIC.replace("-9", "-8"))
    assert check_kernel(NAME, near) == "6.1.0-9"
    with pytest.raises(WrongKernel, match=r"6\.1\.0-8"):
        check_kernel(NAME, replace(near, versions=False))


@pytest.mark.parametrize(
    ("found", "error", "said"),
    [
        (replace(FOUND, machine=8), BadModule, "another architecture"),
        (replace(FOUND, vermagic="6.1.0-9 SMP preempt mod_unload "), WrongKernel, "other options"),
        (replace(FOUND, match=replace(MATCH, tree=False)), WrongKernel, "no modules of kernel"),
        (replace(FOUND, match=replace(MATCH, mismatched=("module_layout",))), WrongKernel, "module_layout"),
        (
            replace(FOUND, match=replace(MATCH, unknown=("a", "b", "c", "d", "e"))),
            UnknownSymbol,
            "a, b, c, d and 1 more",
        ),
        (replace(FOUND, match=replace(MATCH, unknown=("rm -rf /",))), UnknownSymbol, "1 of them"),
        (replace(FOUND, vermagic="$(id) SMP", versions=False), WrongKernel, "names no kernel"),
    ],
)
def test_what_does_not_fit_says_why(found: Examination, error: type[KmoddError], said: str) -> None:
    with pytest.raises(error) as raised:
        check_kernel(NAME, found)
    assert said in raised.value.message
    assert "rm -rf" not in raised.value.message
    assert "$(id)" not in raised.value.message


def test_unknown_compatibility_is_no_fault() -> None:
    assert check_kernel(NAME, replace(FOUND, match=replace(MATCH, vermagic="", machine=0, unchecked=9))) == "6.1.0-9"


def test_an_unsigned_module_fits_where_nothing_asks_for_signatures() -> None:
    check_signature(NAME, FOUND, facts())
    check_signature(NAME, replace(FOUND, signed=True), facts(lockdown="integrity", signature_enforced=True))


def test_an_unsigned_module_says_how_to_sign_and_enrol() -> None:
    for kernel, error in ((facts(lockdown="integrity"), Lockdown), (facts(signature_enforced=True), BadSignature)):
        with pytest.raises(error) as raised:
            check_signature(NAME, FOUND, kernel)
        assert "mokutil --import" in raised.value.evidence.hint
        assert "--sign KEY CERT" in raised.value.evidence.hint


def test_a_module_with_the_name_of_a_builtin_needs_an_option() -> None:
    check_place(NAME, "6.1.0-9", "", shadow=False)
    for another in ("kernel/special.ko", "built-in"):
        check_place(NAME, "6.1.0-9", another, shadow=True)
        with pytest.raises(Shadows, match="shadow"):
            check_place(NAME, "6.1.0-9", another, shadow=False)


def test_limits_are_said_in_mebibytes() -> None:
    with pytest.raises(LimitsExceeded, match="64 MiB"):
        check_file(Examination(FileFault.TOO_LARGE), maximum=64 << 20, unpacked=1)
