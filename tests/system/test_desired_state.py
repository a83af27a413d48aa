# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wanted state on a real machine: loads by itself, drift, apply, a reboot, and what the next boot will find."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clock import clock
from tests.system.service import main_pid
from tests.vm.machine import Machine

FOLDER = "/etc/kmodd/modules.d"
CONFIGURATION = "busctl --json=short call org.kmodd1 /org/kmodd1 org.kmodd1.Configuration"
MANAGER = "busctl --json=short call org.kmodd1 /org/kmodd1 org.kmodd1.Manager"
FORBIDDEN = 11
MODULES = "good params dep_c dep_b dep_a soft soft_pre soft_post slow alias_twin"


@pytest.fixture(autouse=True)
def _clean(vm: Machine) -> Iterator[None]:
    """Each test starts with nothing wanted and none of the test modules loaded."""
    reset(vm)
    yield
    assert "Traceback" not in vm.journal("-u", "kmodd*")


def reset(vm: Machine) -> None:
    vm.check(
        f"rm -rf {FOLDER} /etc/kmodd/kmodd.toml /etc/modprobe.d/kmodd-* /etc/modules-load.d/kmodd.conf; mkdir -p {FOLDER}"
    )
    vm.check(f"systemctl reload kmodd; for m in {MODULES}; do rmmod kmodd_test_$m 2>/dev/null; done; true")


def want(vm: Machine, text: str, *, reload: bool = True) -> None:
    vm.write_file(f"{FOLDER}/test.toml", text)
    if reload:
        vm.check("systemctl reload kmodd")


def is_loaded(vm: Machine, name: str) -> bool:
    return vm.run(f"grep -q '^kmodd_test_{name} ' /proc/modules").code == 0


def until(condition: Callable[[], bool], *, seconds: float = 15.0) -> bool:
    end = clock() + seconds
    while not condition():
        if clock() > end:
            return False
        time.sleep(0.2)
    return True


def rows(vm: Machine, command: str) -> list[dict[str, Any]]:
    (data,) = json.loads(vm.check(command))["data"]
    return [{key: value["data"] for key, value in row.items()} for row in data]


def drift(vm: Machine) -> set[tuple[str, str]]:
    return {(row["module"], row["kind"]) for row in rows(vm, f"{CONFIGURATION} GetDrift")}


def apply(vm: Machine) -> dict[str, str]:
    return {row["module"]: row["result"] for row in rows(vm, f"{CONFIGURATION} Apply 'a{{sv}}' 0")}


def health(vm: Machine, name: str) -> list[dict[str, Any]]:
    (data,) = json.loads(vm.check(f"{MANAGER} GetHealth"))["data"]
    found = [{key: value["data"] for key, value in row.items()} for row in data["checks"]["data"]]
    return [check for check in found if check["name"] == name]


def test_a_module_follows_those_it_comes_after(vm: Machine) -> None:
    want(
        vm,
        '[module.kmodd_test_good]\nstate = "loaded"\nafter = ["kmodd_test_dep_a", "kmodd-test-soft-pre"]\n'
        "unload-when-gone = true\n",
    )
    vm.check("modprobe kmodd_test_dep_a")
    time.sleep(1)
    assert not is_loaded(vm, "good")
    assert drift(vm) == set()
    vm.check("modprobe kmodd_test_soft_pre")
    assert until(lambda: is_loaded(vm, "good"))
    vm.check("rmmod kmodd_test_dep_a")
    assert until(lambda: not is_loaded(vm, "good"))
    vm.check("modprobe kmodd_test_dep_a")
    assert until(lambda: is_loaded(vm, "good"))


def test_conditions_on_kernel_and_hardware(vm: Machine) -> None:
    want(
        vm,
        '[module.kmodd_test_good]\nstate = "loaded"\nwhen = { kernel = ">=99" }\n'
        '[module.kmodd_test_dep_a]\nstate = "loaded"\nwhen = { kernel = ">=6.1", alias = "cpu:type:*" }\n'
        '[module.kmodd_test_slow]\nstate = "loaded"\nwhen = { alias = "pci:v0000dead*" }\n',
    )
    assert drift(vm) == {("kmodd_test_dep_a", "presence")}
    assert apply(vm) == {"kmodd_test_dep_a": "changed"}


def test_a_device_that_is_plugged_in_loads_its_module(vm: Machine) -> None:
    """The machine's SMBus controller, taken out and found again as a hot-plugged card is; nothing uses it."""
    device = next(
        path
        for path in vm.check("grep -l 0x0c0500 /sys/bus/pci/devices/*/class").split()
        if vm.run(["test", "-e", path]).code == 0
    ).removesuffix("/class")
    alias = vm.check(["cat", f"{device}/modalias"]).strip()
    vm.check(f"echo 1 > {device}/remove")
    want(vm, f'[module.kmodd_test_good]\nstate = "loaded"\nwhen = {{ alias = "{alias[:24]}*" }}\n')
    assert drift(vm) == set()
    pid = main_pid(vm)
    vm.check("echo 1 > /sys/bus/pci/rescan")
    assert until(lambda: is_loaded(vm, "good"))
    vm.check(f"rmmod kmodd_test_good; echo 1 > {device}/remove; echo 1 > /sys/bus/pci/rescan")
    assert until(lambda: is_loaded(vm, "good")), "it came anew"
    assert main_pid(vm) == pid


def test_a_changed_file_is_noticed_without_asking(vm: Machine) -> None:
    """Nobody reloads anything: a module that depmod finds at last, and a file of wishes that is mended."""
    file = vm.check("modinfo -n kmodd_test_good").strip()
    vm.check(f"mv {file} /root/ && depmod -a", timeout=120)
    want(vm, '[module.kmodd_test_good]\nstate = "loaded"\nafter = ["kmodd_test_dep_a"]\n')
    vm.check("modprobe kmodd_test_dep_a")
    assert until(lambda: [check["status"] for check in health(vm, "desired-state")] == ["degraded"])
    vm.check(f"mv /root/kmodd_test_good.ko {file} && depmod -a", timeout=120)
    assert until(lambda: is_loaded(vm, "good")), "tried again when its file came"
    assert [check["status"] for check in health(vm, "desired-state")] == ["ok"]
    pid, before = main_pid(vm), wakes(vm)
    vm.check("sleep 10")
    assert wakes(vm) - before <= 3, "who watches does not look"
    want(vm, '[module.kmodd_test_soft]\nstate = "loaded"\nafter = "kmodd_test_dep_a"\n', reload=False)
    assert until(
        lambda: (
            "test.toml, line 3: module.kmodd_test_soft.after must be a list" in vm.journal("-u", "kmodd", "-p", "err")
        )
    )
    want(vm, '[module.kmodd_test_soft]\nstate = "loaded"\nafter = ["kmodd_test_dep_a"]\n', reload=False)
    assert until(lambda: is_loaded(vm, "soft"))
    assert main_pid(vm) == pid


def wakes(vm: Machine) -> int:
    """How often the daemon's loop was woken since it started."""
    return int(vm.check(f"awk '/^voluntary/ {{ print $2 }}' /proc/{main_pid(vm)}/status"))


def test_drift_and_apply_of_everything(vm: Machine) -> None:
    vm.check("modprobe kmodd_test_params")
    want(
        vm,
        '[module.kmodd_test_params]\nstate = "loaded"\nparameters = { level = 6 }\noptions = { level = 6 }\n'
        "autoload = true\n"
        '[module.kmodd_test_slow]\nblacklist = "hard"\n'
        '[module.kmodd_test_good]\nstate = "loaded"\nblacklist = "soft"\n',
    )
    assert drift(vm) == {
        ("kmodd_test_params", "parameter"),
        ("kmodd_test_params", "options"),
        ("kmodd_test_params", "autoload"),
        ("kmodd_test_slow", "blacklist"),
        ("kmodd_test_good", "blacklist"),
        ("kmodd_test_good", "presence"),
    }
    assert health(vm, "drift")[0]["status"] == "degraded"
    assert set(apply(vm).values()) == {"changed"}
    assert drift(vm) == set()
    assert vm.check("cat /sys/module/kmodd_test_params/parameters/level") == "6\n"
    assert vm.run("modprobe kmodd_test_slow").code != 0
    assert apply(vm) == {}
    assert health(vm, "drift")[0]["status"] == "ok"


def test_apply_is_undone_when_the_disk_is_full_in_between(vm: Machine) -> None:
    vm.check("modprobe kmodd_test_params level=2 && modprobe kmodd_test_soft_pre")
    level = "cat /sys/module/kmodd_test_params/parameters/level"
    vm.check("cp -a /etc/modprobe.d /root/kept && mount -t tmpfs -o size=8k none /etc/modprobe.d")
    try:
        # A mount of before its start is what the daemon sees.
        vm.check("cp /root/kept/* /etc/modprobe.d/; cat /dev/zero > /etc/modprobe.d/filler; systemctl restart kmodd")
        want(
            vm,
            '[module.kmodd_test_params]\nstate = "loaded"\nparameters = { level = 6 }\nautoload = true\n'
            '[module.kmodd_test_dep_a]\nstate = "loaded"\n'
            '[module.kmodd_test_soft_pre]\nstate = "absent"\n'
            '[module.kmodd_test_slow]\nblacklist = "soft"\n',
        )
        before = drift(vm)
        assert len(before) == 5
        assert set(json.loads(vm.check("kmodctl config apply --dry-run --json"))[0]) >= {"module", "result"}
        shown = vm.run("kmodctl config apply")
        assert shown.code == FORBIDDEN, shown
        assert "no space left" in " ".join(shown.stdout.split())
        assert drift(vm) == before
        assert [vm.check(level), is_loaded(vm, "dep_a"), is_loaded(vm, "dep_c"), is_loaded(vm, "soft_pre")] == [
            "2\n", False, False, True,
        ]  # fmt: skip
        assert vm.run("ls /etc/modules-load.d/kmodd.conf /etc/modprobe.d/kmodd-*").stdout == ""
        assert "earlier changes were rolled back" in vm.journal("KMODD_EVENT=desired.applied")
        vm.check("rm /etc/modprobe.d/filler")
        assert set(apply(vm).values()) == {"changed"}
        assert drift(vm) == set()
        assert [vm.check(level), is_loaded(vm, "dep_a"), is_loaded(vm, "soft_pre")] == ["6\n", True, False]
        assert vm.check("grep -l kmodd_test /etc/modules-load.d/kmodd.conf /etc/modprobe.d/kmodd-blacklist.conf")
    finally:
        vm.check("umount /etc/modprobe.d; rm -rf /root/kept; systemctl restart kmodd")


def test_bad_files_leave_the_old_settings_in_force(vm: Machine) -> None:
    want(vm, '[module.kmodd_test_good]\nstate = "loaded"\nafter = ["kmodd_test_dep_a"]\n')
    pid = main_pid(vm)
    want(vm, '[module.kmodd_test_good]\nstate = "loaded"\nafte = []\n', reload=False)
    refused = vm.run(f"{CONFIGURATION} Reload")
    assert refused.code != 0
    assert f"{FOLDER}/test.toml, line 3: unknown setting module.kmodd_test_good.afte" in refused.stderr
    assert "did you mean after?" in refused.stderr
    vm.check("systemctl reload kmodd")
    assert health(vm, "settings")[0]["status"] == "degraded"
    assert f"{FOLDER}/test.toml, line 3" in vm.journal("-u", "kmodd", "-p", "err")
    vm.check("modprobe kmodd_test_dep_a")
    assert until(lambda: is_loaded(vm, "good")), "the wishes from before hold"
    loop = '[module.a]\nstate = "loaded"\nafter = ["b"]\n[module.b]\nstate = "loaded"\nafter = ["a"]\n'
    for garbage in ("\0\0", "[[[[", "x = '" + "y" * 4000, "[" * 10_000, loop):
        want(vm, garbage)
        assert health(vm, "settings")[0]["status"] == "degraded"
    assert main_pid(vm) == pid


def test_daemon_settings_are_taken_over_while_it_runs(vm: Machine) -> None:
    vm.write_file("/etc/kmodd/kmodd.toml", "[operations]\ntimeout-max = 60\n")
    vm.check("systemctl reload kmodd")
    refused = vm.run(f"{MANAGER} Load 'sa{{ss}}a{{sv}}' kmodd_test_good 0 1 timeout u 61")
    assert "from 1 to 60" in refused.stderr
    vm.check(f"{MANAGER} Load 'sa{{ss}}a{{sv}}' kmodd_test_good 0 1 timeout u 60")
    # A bad one is told by file, line and the nearest key there is, and what it said before holds.
    vm.write_file("/etc/kmodd/kmodd.toml", "[operations]\ntimeout-max = 90\ntimout = 9\n")
    refused = vm.run(f"{CONFIGURATION} Reload")
    assert "/etc/kmodd/kmodd.toml, line 3: unknown setting operations.timout; did you mean timeout?" in refused.stderr
    assert "from 1 to 60" in vm.run(f"{MANAGER} Load 'sa{{ss}}a{{sv}}' kmodd_test_good 0 1 timeout u 61").stderr
    # A drop-in that nobody reloads is taken over once it is there, and the last one wins.
    vm.write_file("/etc/kmodd/kmodd.toml", "[operations]\ntimeout-max = 60\n")
    vm.write_file("/etc/kmodd/kmodd.toml.d/50-lab.toml", "[operations]\ntimeout-max = 70\n")
    over = f"{MANAGER} Load 'sa{{ss}}a{{sv}}' kmodd_test_good 0 1 timeout u 71"
    assert until(lambda: "from 1 to 70" in vm.run(over).stderr)
    vm.check("rm -r /etc/kmodd/kmodd.toml.d")


def test_after_a_reboot_the_machine_is_as_it_was_meant_to_be(fresh_vm: Machine) -> None:
    vm = fresh_vm
    vm.check(f"mkdir -p {FOLDER}")
    want(vm, "[module.kmodd_test_dep_a]\nautoload = true\n")
    assert apply(vm) == {"kmodd_test_dep_a": "changed"}
    want(
        vm,
        '[module.kmodd_test_fail]\nstate = "loaded"\n'
        '[module.no_such_module]\nstate = "loaded"\n'
        '[module.kmodd_test_params]\nstate = "loaded"\nparameters = { level = 6 }\n'
        "[module.kmodd_test_dep_a]\nautoload = true\n"
        '[module.kmodd_test_good]\nstate = "loaded"\nafter = ["kmodd_test_dep_a", "kmodd_test_params"]\n'
        '[module.loop]\nstate = "absent"\n',
    )
    vm.check("echo loop > /etc/modules-load.d/other.conf; sync")
    vm.reboot()
    assert until(lambda: is_loaded(vm, "good"), seconds=60)
    assert vm.check("cat /sys/module/kmodd_test_params/parameters/level") == "6\n"
    assert until(lambda: vm.run("grep -q '^loop ' /proc/modules").code != 0)
    assert is_loaded(vm, "dep_a")
    failed = {check["module"] for check in health(vm, "desired-state") if check["status"] == "degraded"}
    assert failed == {"kmodd_test_fail", "no_such_module"}
    time.sleep(5)
    tried = vm.journal("-u", "kmodd", "KMODD_EVENT=desired.failed", "KMODD_MODULE=kmodd_test_fail", "-o", "cat")
    assert len(tried.splitlines()) == 1, "nothing happened that could have helped"
    vm.check("rmmod kmodd_test_good; systemctl restart kmodd")
    time.sleep(2)
    assert not is_loaded(vm, "good"), "a restart of the daemon is no boot"


def test_what_the_next_boot_will_find(fresh_vm: Machine) -> None:
    vm = fresh_vm
    release = vm.check("uname -r").strip()
    assert health(vm, "newer-kernel") == []
    vm.check(f"cp -a /lib/modules/{release} /lib/modules/99.{release}")
    (newer,) = health(vm, "newer-kernel")
    assert f"99.{release}" in newer["message"]
    # A small image in the form of Debian's: mkinitramfs itself takes minutes under emulation.
    vm.check(
        "set -e; cd $(mktemp -d); mkdir -p etc/modprobe.d usr/lib/modprobe.d;"
        " cp /etc/modprobe.d/*.conf etc/modprobe.d/ 2>/dev/null || true;"
        " cp /lib/modprobe.d/*.conf usr/lib/modprobe.d/ 2>/dev/null || true;"
        f" find . | cpio -o -H newc 2>/dev/null | xz --check=crc32 > /boot/initrd.img-{release}"
    )
    assert until(lambda: "up to date" in health(vm, "initramfs")[0]["message"])
    vm.check(f"{CONFIGURATION} SetBlacklisted 'sba{{sv}}' pcspkr true 0")
    assert until(lambda: health(vm, "initramfs")[0]["status"] == "degraded")
    (finding,) = health(vm, "initramfs")
    assert "by its contents" in finding["message"]
    assert "it lacks /etc/modprobe.d/kmodd-blacklist.conf" in finding["message"]
    assert finding["hint"] == f"update-initramfs -u -k {release}"
    (row,) = rows(vm, f"{CONFIGURATION} GetDrift")
    assert (row["kind"], row["hint"]) == ("initramfs", finding["hint"])
    vm.check(f"mv /lib/modules/{release} /lib/modules/gone; systemctl reload kmodd")
    (tree,) = health(vm, "module-tree")
    assert tree["status"] == "failing"
