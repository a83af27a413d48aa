# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config apply --try` on the real kernel: after silence, a crash, the end of kmodd and a reboot it is as it was before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.system.service import serves, wait_until

if TYPE_CHECKING:
    from tests.system.client import Kmodctl
    from tests.vm.machine import Machine

WISHES = "/etc/kmodd/modules.d/trial.toml"
RULES = "/etc/modprobe.d/kmodd-blacklist.conf"
LEVEL = "/sys/module/kmodd_test_params/parameters/an_int"
SECONDS = 300.0


def loaded(vm: Machine, name: str) -> bool:
    return vm.run(f"grep -q '^{name} ' /proc/modules").code == 0


def as_before(vm: Machine) -> bool:
    return not loaded(vm, "dummy") and loaded(vm, "kmodd_test_good") and vm.read_file(LEVEL) == b"7\n"


def begin(vm: Machine, kmodctl: Kmodctl, span: str) -> None:
    done = kmodctl("config", "apply", "--try", span, seconds=SECONDS)
    assert done.code == 0, done.err
    assert "kmodctl config confirm" in done.out
    assert loaded(vm, "dummy")
    assert not loaded(vm, "kmodd_test_good")
    assert vm.read_file(LEVEL) == b"9\n"
    assert vm.run(["test", "-e", RULES]).code != 0, "it would act in the next boot"


def test_a_trial_takes_itself_back(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.check("mkdir -p /etc/kmodd/modules.d; modprobe -r dummy; modprobe kmodd_test_good")
    vm.check("modprobe kmodd_test_params an_int=7")
    vm.write_file(
        WISHES,
        '[module.dummy]\nstate = "loaded"\n[module.kmodd_test_good]\nstate = "absent"\nblacklist = "hard"\n'
        '[module.kmodd_test_params]\nstate = "loaded"\nparameters = { an_int = 9 }\n',
    )
    assert as_before(vm)

    begin(vm, kmodctl, "30s")
    # What the trial brought is live: an interface of dummy, which an unload would take away, and it goes.
    vm.check("ip link add trial0 type dummy; ip link set trial0 up")
    vm.check("systemctl kill --signal=KILL kmodd.service")
    wait_until(lambda: serves(vm), "another daemon", 60)
    wait_until(lambda: as_before(vm), "it is taken back", 90)
    assert "the trial was not confirmed in time" in vm.journal("KMODD_ACTION=apply-revert", "-o", "verbose")

    begin(vm, kmodctl, "10m")
    assert kmodctl("config", "apply", seconds=SECONDS).code == 5
    vm.check(["systemctl", "restart", "kmodd.service"], timeout=90)
    assert as_before(vm)

    begin(vm, kmodctl, "10m")
    assert kmodctl("config", "revert", seconds=SECONDS).code == 0
    assert as_before(vm)

    begin(vm, kmodctl, "1h")
    vm.reboot(force=True)
    wait_until(lambda: serves(vm), "the daemon of the next boot", 120)
    vm.check("udevadm settle")
    assert not loaded(vm, "dummy"), "it was not confirmed"
    assert "dummy" in kmodctl("config", "drift", seconds=SECONDS).out
    assert vm.run(["test", "-e", RULES]).code != 0

    vm.check("modprobe kmodd_test_good; modprobe kmodd_test_params an_int=7")
    begin(vm, kmodctl, "10m")
    done = kmodctl("config", "confirm", seconds=SECONDS)
    assert done.code == 0, done.err
    assert "install kmodd_test_good /bin/false" in vm.read_file(RULES).decode().replace("\t", " ")
    vm.reboot()
    wait_until(lambda: loaded(vm, "dummy"), "what was confirmed is applied at boot", 120)
    vm.check(f"rm -f {WISHES} {RULES}")
