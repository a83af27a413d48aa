# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parameters from callers and from `options` lines, on the real kernel and beside the real modprobe."""

import json
from collections.abc import Iterator

import pytest

from tests.system.client import Kmodctl
from tests.vm.machine import Machine

LINES = "/etc/modprobe.d/zz-parameters.conf"
WISH = "/etc/kmodd/modules.d/rounded.toml"
VALUES = "/sys/module/kmodd_test_params/parameters"


@pytest.fixture(autouse=True)
def clean(vm: Machine) -> Iterator[None]:
    """No lines and no modules of the test before."""
    yield
    vm.run(["rm", "-f", LINES, WISH])
    vm.check("systemctl reload kmodd")
    for module in ("kmodd_test_params", "md_mod", "lockd", "loop", "nbd"):
        vm.run(["modprobe", "-r", module])


def value(vm: Machine, name: str) -> bytes:
    return vm.read_file(f"{VALUES}/{name}").removesuffix(b"\n")


def test_parameters_that_modinfo_does_not_list_are_taken(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.write_file(LINES, "options md_mod start_ro=1\noptions nf_conntrack hashsize=65536\n")
    for module, given, file in (
        ("md_mod", "start_ro=1", "md_mod/parameters/start_ro"),
        ("lockd", "nlm_tcpport=32768", "lockd/parameters/nlm_tcpport"),
        ("nf_conntrack", "hashsize=65536", "nf_conntrack/parameters/hashsize"),
    ):
        assert "parm" not in vm.check(f"modinfo -p {module} | grep {given.partition('=')[0]} || true")
        ended = kmodctl("load", module, given)
        assert ended.code == 0, ended
        assert vm.read_file(f"/sys/module/{file}").decode().strip() == given.partition("=")[2]
    ended = kmodctl("load", "kmodd_test_params", "start_ro=1")
    assert ended.code == 9, "nobody has it here"
    findings = [row for row in json.loads(kmodctl("--json", "config", "show").out) if row["file"] == LINES]
    assert [row["findings"] for row in findings] == [[], []]
    assert LINES not in kmodctl("--json", "status").out


def test_spaces_around_the_equals_sign_are_refused_as_the_kernel_does(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.write_file(LINES, "# disks\noptions loop max_loop = 64\n")
    plain = vm.run(["modprobe", "loop"])
    assert plain.code == 1
    assert "Invalid argument" in str(plain)
    for dry in ((), ("--dry-run",)):
        ended = kmodctl("load", *dry, "loop")
        assert ended.code == 9, ended
        words = " ".join((ended.out + ended.err).split())  # as the terminal's width breaks them
        assert f"{LINES}, line 2: parameter max_loop of loop is given no value" in words
        assert "write options loop max_loop=64" in words
    vm.write_file(LINES, "options loop max_loop=64\n")
    assert kmodctl("load", "loop").code == 0


def test_a_flag_needs_no_value(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.write_file(LINES, "options kmodd_test_params a_bool\n")
    assert kmodctl("load", "kmodd_test_params").code == 0
    assert value(vm, "a_bool") == b"Y"


@pytest.mark.parametrize(
    "line",
    [
        b"a_charp=\xe4\xff",
        b"a_charp=x\xc2\xa0an_int=7",
        "a_charp=x\u2003an_int=7".encode(),
        b"a_charp=x\x1can_int=7",
        b'a_charp="x y" an_int=7',
        b'"a_charp=x y" an_int=7',
        b"an_int=7 -- a_charp=x",
        b"an_int=7 --\noptions kmodd_test_params a_charp=x",
        b'a_charp="x\noptions kmodd_test_params an_int=7',
        b"a_charp=x\tan_int=7",
        b"a_charp=x # an_int=7",
    ],
)
def test_a_line_means_to_kmodd_what_it_means_to_modprobe(vm: Machine, kmodctl: Kmodctl, line: bytes) -> None:
    vm.write_file(LINES, b"options kmodd_test_params " + line + b"\n")
    vm.check(["modprobe", "kmodd_test_params"])
    wanted = [value(vm, name) for name in ("a_charp", "an_int", "level")]
    vm.check(["rmmod", "kmodd_test_params"])
    ended = kmodctl("load", "kmodd_test_params")
    assert ended.code == 0, ended
    assert [value(vm, name) for name in ("a_charp", "an_int", "level")] == wanted


@pytest.mark.parametrize("smuggled", ["a_charp=x\u2020an_int=7", "dyndbg=+p\xe0an_int=7", "a_charp=x\xa0an_int=7"])
def test_a_value_with_another_parameter_in_it_is_refused(vm: Machine, kmodctl: Kmodctl, smuggled: str) -> None:
    ended = kmodctl("load", "kmodd_test_params", smuggled)
    assert ended.code == 2
    assert vm.run(["test", "-e", VALUES]).code == 1


@pytest.mark.parametrize("given", ["a_charp=x an_int=7", "a_charp=x -- an_int=7", "a_charp=a=b", "a_charp=\\\\x#"])
def test_a_value_reaches_the_kernel_as_it_was_said(vm: Machine, kmodctl: Kmodctl, given: str) -> None:
    assert kmodctl("load", "kmodd_test_params", given).code == 0
    assert value(vm, "a_charp").decode() == given.partition("=")[2]
    assert value(vm, "an_int") == b"-3"


def test_a_value_that_the_module_rounds_is_applied_once(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.check("mkdir -p /etc/kmodd/modules.d")
    vm.write_file(WISH, '[module.nbd]\nstate = "loaded"\nparameters = { max_part = 8 }\n')
    vm.check("systemctl reload kmodd")
    assert kmodctl("config", "apply").code == 0
    vm.check("for i in $(seq 100); do grep -q '^nbd .* Live' /proc/modules && break; sleep 0.1; done")
    assert vm.read_file("/sys/module/nbd/parameters/max_part") == b"15\n"
    first = vm.check("stat -c %i /sys/module/nbd")
    for _ in range(2):
        assert json.loads(kmodctl("--json", "config", "drift").out) == []
        assert kmodctl("config", "apply").code == 0
        assert kmodctl("load", "nbd", "max_part=8").code == 0
        assert vm.check("stat -c %i /sys/module/nbd") == first, "it was not loaded again"
        vm.check("systemctl restart kmodd")
    assert kmodctl("load", "nbd", "max_part=7").code == 5, "another value is a conflict"


def test_parameters_lost_as_something_else_loaded_the_module_are_found_after_a_restart(
    vm: Machine, kmodctl: Kmodctl
) -> None:
    """dummy shows none of its parameters: what it was given is known to who gave it alone."""

    def drift() -> list[tuple[str, str]]:
        return [(row["wanted"], row["hint"]) for row in json.loads(kmodctl("--json", "config", "drift").out)]

    vm.check("mkdir -p /etc/kmodd/modules.d")
    vm.write_file(WISH, '[module.dummy]\nstate = "loaded"\nparameters = { numdummies = 2 }\n')
    vm.check("systemctl reload kmodd")
    assert kmodctl("config", "apply").code == 0
    try:
        vm.check("ip link show dummy1")
        vm.check("systemctl restart kmodd", timeout=90)
        assert drift() == [], "kmodd gave it, and knows it still"
        vm.check("systemctl stop kmodd; rmmod dummy; modprobe dummy; systemctl start kmodd", timeout=90)
        lost = [("numdummies=2", "kmodctl config apply reloads it")]
        assert drift() == lost
        vm.check("systemctl restart kmodd", timeout=90)
        assert drift() == lost
        assert kmodctl("config", "apply").code == 0
        vm.check("ip link show dummy1")
        assert drift() == []
    finally:
        vm.check(f"rm -f {WISH}; systemctl reload kmodd; rmmod dummy || true")
