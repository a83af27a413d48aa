# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl surface lock`: what is pending refuses it, and then not even root loads or unloads a module until the next boot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.service import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.client import Client, Kmodctl
    from tests.vm.machine import Machine

SWITCH = "/proc/sys/kernel/modules_disabled"
WISH = "/etc/kmodd/modules.d/lock.toml"
POLICY = "/etc/kmodd/surface.d/10.toml"
SECONDS = 600.0


@pytest.fixture(scope="module", autouse=True)
def _settled(vm: Machine) -> Iterator[None]:
    vm.check("mkdir -p /etc/kmodd/modules.d /etc/kmodd/surface.d; udevadm settle")
    yield
    vm.run(f"rm -f {WISH} {POLICY}")


def plan_of(kmodctl: Kmodctl) -> tuple[int, dict[str, Any]]:
    done = kmodctl("--json", "surface", "lock", "--dry-run", seconds=SECONDS)
    assert done.code in (0, 14), done.err
    plan: dict[str, Any] = json.loads(done.out)
    return done.code, plan


def kinds(plan: dict[str, Any]) -> set[str]:
    return {row["kind"] for row in plan["pending"]}


def refused(vm: Machine, kmodctl: Kmodctl, kind: str) -> None:
    code, plan = plan_of(kmodctl)
    print(plan["pending"])
    assert (code, kinds(plan)) == (14, {kind})
    done = kmodctl("surface", "lock", "--yes", seconds=SECONDS)
    assert done.code == 5, done
    assert "while something is pending" in done.err
    assert vm.read_file(SWITCH) == b"0\n"


def test_what_may_be_needed_later_is_named_with_its_evidence(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.check("modprobe -r vfat usb_storage 2>/dev/null; echo 'LABEL=stick /media/stick vfat noauto 0 0' >> /etc/fstab")
    code, plan = plan_of(kmodctl)
    print(plan)
    assert (code, plan["pending"], plan["locked"]) == (0, [], False)
    evidence = {row["module"]: (row["source"], row["evidence"]) for row in plan["breaks"] if "module" in row}
    assert evidence["vfat"][0] == "fstab"
    assert "/media/stick" in evidence["vfat"][1]
    loaded = set(vm.check("cut -d' ' -f1 /proc/modules").split())
    assert not loaded & evidence.keys()


def test_a_wish_that_is_not_met_refuses_it(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.write_file(WISH, '[module.dummy]\nstate = "loaded"\nafter = ["softdog"]\n')
    try:
        vm.check("modprobe -r softdog dummy")
        refused(vm, kmodctl, "desired-state")
    finally:
        vm.check(f"rm {WISH}")


def test_a_lease_a_trial_and_a_response_refuse_it(vm: Machine, kmodctl: Kmodctl) -> None:
    holder = vm.start(["kmodctl", "hold", "dummy", "--", "sleep", "3000"])
    wait_until(lambda: vm.run("grep -q ^dummy /proc/modules").code == 0, "the lease", 60)
    refused(vm, kmodctl, "lease")
    vm.check("pkill -x sleep")
    holder.wait(60)
    wait_until(lambda: vm.run("grep -q ^dummy /proc/modules").code != 0, "the end of the lease", 90)

    vm.write_file(POLICY, '[surface]\nmode = "enforce"\nscope = []\n[block.softdog]\n')
    assert kmodctl("surface", "apply", "--try", "1h", seconds=SECONDS).code == 0
    refused(vm, kmodctl, "trial")
    assert kmodctl("surface", "revert", seconds=SECONDS).code == 0

    vm.check("modprobe dummy && ip link add dummy7 type dummy && ip link set dummy7 up")
    kmodctl("respond", "--module", "dummy", "--force-in-use", seconds=SECONDS)
    refused(vm, kmodctl, "response")
    vm.check("ip link del dummy7; modprobe -r dummy")
    assert plan_of(kmodctl)[0] == 0
    assert kmodctl("respond", "end", "module:dummy", seconds=SECONDS).code == 0


def test_it_is_confirmed_and_authorized(vm: Machine, kmodctl: Kmodctl) -> None:
    assert vm.run(["kmodctl", "surface", "lock", "--yes"], user="alice", timeout=SECONDS).code == 4
    done = kmodctl("surface", "lock", seconds=SECONDS)
    assert (done.code, "--yes" in done.err) == (2, True)
    typed = vm.run("echo n | script -qec 'kmodctl --no-ask-password surface lock' /dev/null", timeout=SECONDS)
    assert "Only a reboot takes this back" in typed.stdout
    assert "vfat" in typed.stdout
    assert vm.read_file(SWITCH) == b"0\n"


@pytest.mark.timeout(900)
def test_then_no_module_is_loaded_or_unloaded_until_the_next_boot(
    vm: Machine, client: Client, kmodctl: Kmodctl
) -> None:
    vm.check("modprobe softdog; modprobe -r dummy")
    done = kmodctl("surface", "lock", "--yes", "--reason", "hardening", seconds=SECONDS)
    assert done.code == 0, done.err
    assert vm.read_file(SWITCH) == b"1\n"
    assert "Operation not permitted" in vm.run(["modprobe", "dummy"]).stderr
    assert "Operation not permitted" in vm.run(["rmmod", "softdog"]).stderr
    assert kmodctl("load", "dummy").code == 11
    assert "disabled until reboot" in kmodctl("status").out
    assert client.properties("/org/kmodd1", "org.kmodd1.Manager")["ModulesDisabled"] is True
    record = vm.journal("KMODD_EVENT=policy.locked", "-o", "verbose")
    for field in ("KMODD_UID=0", "KMODD_REASON=hardening", "KMODD_ACTION=surface-lock", "vfat"):
        assert field in record
    again = kmodctl("surface", "lock", "--yes", seconds=SECONDS)
    assert (again.code, plan_of(kmodctl)[1]["locked"]) == (0, True)
    vm.reboot()
    assert vm.read_file(SWITCH) == b"0\n"
    vm.check(["modprobe", "dummy"])
