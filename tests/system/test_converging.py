# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names and files that are not what they seem, on the real kernel: a renamed file, an alias, a driver that was rebuilt."""

from collections.abc import Iterator

import pytest

from tests.system.client import Kmodctl
from tests.system.test_desired_state import apply, drift, health, reset, want
from tests.vm.machine import Machine

UPDATES = "/lib/modules/$(uname -r)/updates"
# A module with a version of its own: others have no srcversion.
REBUILD = (
    "import re, subprocess as s; path = s.check_output(['modinfo', '-n', 'kmodd_test_info'], text=True).strip(); "
    "data = open(path, 'rb').read(); found = re.search(rb'srcversion=(\\w)', data); at = found.start(1); "
    "open(path, 'wb').write(data[:at] + (b'0' if data[at:at+1] != b'0' else b'1') + data[at+1:])"
)


@pytest.fixture(autouse=True)
def _clean(vm: Machine) -> Iterator[None]:
    reset(vm)
    yield
    reset(vm)
    vm.check(f"rm -f {UPDATES}/acme_nic.ko; depmod -a", timeout=120)
    assert "Traceback" not in vm.journal("-u", "kmodd*")


def done(kmodctl: Kmodctl, *arguments: str) -> str:
    """What a run that has to succeed prints."""
    ended = kmodctl(*arguments)
    assert ended.code == 0, ended
    return ended.out


def test_a_renamed_file_is_the_module_in_it(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.check(f"cp $(modinfo -n kmodd_test_good) {UPDATES}/acme_nic.ko && depmod -a", timeout=120)

    assert "kmodd_test_good" in done(kmodctl, "load", "acme_nic")
    vm.check("grep -q '^kmodd_test_good ' /proc/modules")
    done(kmodctl, "load", "acme_nic")
    assert "acme_nic.ko holds the module kmodd_test_good" in done(kmodctl, "why", "acme_nic")
    assert "kmodd_test_good" in done(kmodctl, "reload", "acme_nic")
    done(kmodctl, "unload", "acme_nic")
    assert vm.run("grep -q '^kmodd_test_good ' /proc/modules").code == 1


def test_a_wish_for_an_alias_is_met(vm: Machine) -> None:
    want(vm, '[module.ip_conntrack]\nstate = "loaded"\n')
    assert "failed" not in apply(vm).values()
    vm.check("grep -q '^nf_conntrack ' /proc/modules")
    assert drift(vm) == set()
    assert apply(vm) == {}
    (named,) = health(vm, "desired-name")
    assert "write [module.nf_conntrack]" in named["hint"]


def test_a_rebuilt_driver_is_reported(vm: Machine, kmodctl: Kmodctl) -> None:
    done(kmodctl, "load", "kmodd_test_info")
    vm.check("cp $(modinfo -n kmodd_test_info) /root/kept_info.ko")
    assert "On disk" not in done(kmodctl, "why", "kmodd_test_info")
    try:
        vm.check(f'python3 -c "{REBUILD}"')
        assert "not the loaded one: srcversion" in " ".join(done(kmodctl, "why", "kmodd_test_info").split())
        assert "Differs" in done(kmodctl, "show", "kmodd_test_info")
        assert [row["module"] for row in health(vm, "loaded-file")] == ["kmodd_test_info"]
    finally:
        vm.check("mv /root/kept_info.ko $(modinfo -n kmodd_test_info)")
