# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy for the attack surface on the stock kernel: what it blocks no unprivileged user has loaded any more, and the system
boots and works with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.service import serves, wait_until
from tests.system.test_surface import _traced, attempt, ranked, report, tries

if TYPE_CHECKING:
    from tests.system.client import Client, Kmodctl
    from tests.vm.machine import Machine

__all__ = ["_traced"]
POLICY = "/etc/kmodd/surface.d/10.toml"
FILE = "/etc/modprobe.d/00-kmodd-surface.conf"
TRIAL = "/run/modprobe.d/00-kmodd-surface-trial.conf"
EARLIER = "/etc/modprobe.d/00-a.conf"
HOOK = "/etc/kernel/postinst.d/zz-kmodd-surface"
SECONDS = 600.0
FLOOR = {"ext4", "virtio_net", "virtio_blk", "virtio_pci"}
"""What the machine boots and is reached by, where it is a module."""


def plan_of(kmodctl: Kmodctl) -> dict[str, Any]:
    done = kmodctl("--json", "surface", "plan", seconds=SECONDS)
    assert done.code == 0, done.err
    made: dict[str, Any] = json.loads(done.out)
    return made


@pytest.mark.timeout(1500)
def test_what_the_policy_blocks_no_user_loads_and_the_system_boots(
    vm: Machine, client: Client, kmodctl: Kmodctl
) -> None:
    vm.check("modprobe -r algif_rng; mkdir -p /etc/kmodd/surface.d")
    before, _ = attempt(vm, [("algorithm-type", "algif-rng", False)])
    assert "algif_rng" in before.loads, "the attempt works where nothing forbids it"
    vm.check("modprobe -r algif_rng")
    # It is in the history now, which is a reason to allow it.
    text = '[surface]\nmode = "enforce"\nprofile = ["base", "cis-debian12-l1"]\n[block.algif_rng]\n[allow.sctp]\n'
    vm.write_file(POLICY, text)
    routes = report(client).routes
    plan = plan_of(kmodctl)
    decided = {row["module"]: row for row in plan["modules"]}
    blocked = {name for name, row in decided.items() if row["blocked"]}
    print(f"{len(blocked)} of {len(decided)} blocked; remarks {plan['remarks']}")
    assert plan["remarks"] == []
    assert len(blocked) > 300
    assert {"algif_rng", "usb_storage", "btrfs", "esp4"} <= blocked
    loaded = set(vm.check("cut -d' ' -f1 /proc/modules").split())
    assert blocked & ({"sctp"} | FLOOR | loaded) == set()
    done = kmodctl("surface", "apply", "--reason", "a test", seconds=SECONDS)
    assert done.code == 0, done.err
    assert set(vm.check("cut -d' ' -f1 /proc/modules").split()) == loaded, "nothing is unloaded"
    assert kmodctl("surface", "check", seconds=SECONDS).code == 0
    rows = ranked(client)
    assert {name for name in blocked if name in rows and rows[name]["reach"] != "none"} == set()
    # modprobe itself, by name: with and without soft dependencies.
    refused = [name for name in ("btrfs", "esp4", "algif_rng", "usb-storage") if vm.run(["modprobe", name]).code == 0]
    assert refused == []
    assert vm.run(["modprobe", "sctp"]).code == 0
    # Each takes a modprobe; every one of them is tried where nothing is blocked (test_surface.py).
    wanted = [route for route in routes.values() if route["open"] and route["reach"] == "unprivileged"][::4]
    trace, _ = attempt(vm, tries(wanted))
    print(f"{len(wanted)} routes, {len(trace.requests)} requests, loads {sorted(trace.loads)}")
    assert trace.requests
    assert trace.loads & blocked == set()

    vm.reboot()
    assert vm.check("systemctl is-system-running --wait || true", timeout=SECONDS).strip() in ("running", "degraded")
    assert vm.run(["modprobe", "btrfs"]).code != 0
    assert kmodctl("surface", "check", seconds=SECONDS).code == 0


def test_what_undoes_a_rule_is_named_with_its_line(vm: Machine, kmodctl: Kmodctl) -> None:
    # It depends on nothing: a module that depends on blocked ones stays out, whatever an earlier line says.
    assert vm.run(["modprobe", "dummy"]).code != 0
    vm.write_file(EARLIER, "\ninstall dummy /sbin/modprobe --ignore-install dummy $CMDLINE_OPTS\n")
    try:
        done = kmodctl("surface", "check", seconds=SECONDS)
        assert done.code == 14
        assert f"{EARLIER}, line 2" in done.out
        # The same before a new kernel is booted, which must not fail the installation of that kernel.
        hook = vm.run(f'{HOOK} "$(uname -r)" /boot/vmlinuz', timeout=SECONDS)
        assert (hook.code, f"{EARLIER}, line 2" in hook.stderr) == (0, True)
        assert vm.run(["modprobe", "dummy"]).code == 0
    finally:
        vm.check(f"rm {EARLIER}; modprobe -r dummy")
    hook = vm.run(f'{HOOK} "$(uname -r)" /boot/vmlinuz', timeout=SECONDS)
    assert (hook.code, hook.stdout, hook.stderr) == (0, "", "")


def test_nothing_is_allowed_again_unless_that_is_said(vm: Machine, kmodctl: Kmodctl) -> None:
    text = vm.read_file(FILE)
    vm.write_file(POLICY, '[surface]\nmode = "off"\n')
    done = kmodctl("surface", "apply", seconds=SECONDS)
    assert (done.code, vm.read_file(FILE)) == (5, text)
    done = kmodctl("surface", "apply", "--weaken", seconds=SECONDS)
    assert done.code == 0, done.err
    assert vm.run(["test", "-e", FILE]).code != 0
    assert vm.run(["modprobe", "btrfs"]).code == 0
    assert vm.run(["modprobe", "algif_rng"]).code == 0


def test_a_trial_takes_itself_back(vm: Machine, kmodctl: Kmodctl) -> None:
    """After silence, in spite of a crash; with kmodd's end; and by a reboot, at which nothing of it is obeyed."""

    def kept_out(module: str = "dummy") -> bool:
        return vm.run(f"modprobe {module} && modprobe -r {module}").code != 0

    def begin(span: str) -> None:
        done = kmodctl("surface", "apply", "--try", span, seconds=SECONDS)
        assert done.code == 0, done.err
        assert "kmodctl surface confirm" in done.out
        assert kept_out()

    vm.check("modprobe -r dummy")
    vm.write_file(POLICY, '[surface]\nmode = "enforce"\nscope = []\n[block.dummy]\n')
    assert not kept_out()
    begin("30s")
    vm.check("systemctl kill --signal=KILL kmodd.service")
    wait_until(lambda: serves(vm), "another daemon", 60)
    wait_until(lambda: not kept_out(), "the rules are taken back", 90)
    assert "the trial was not confirmed in time" in vm.journal("KMODD_ACTION=surface-revert", "-o", "verbose")

    begin("1h")
    vm.reboot(force=True)
    assert not kept_out()

    begin("10m")
    vm.check(["systemctl", "stop", "kmodd.service"], timeout=90)
    assert not kept_out()
    vm.check(["systemctl", "start", "kmodd.service"], timeout=90)

    begin("10m")
    done = kmodctl("surface", "confirm", seconds=SECONDS)
    assert (done.code, "dummy" in done.out) == (0, True), done.err
    vm.check(["systemctl", "restart", "kmodd.service"], timeout=90)
    assert kept_out()
    assert vm.run(["test", "-e", TRIAL]).code != 0
    assert kmodctl("surface", "check", seconds=SECONDS).code == 0
