# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every check of health provoked for real, its signal and property, and every metric with its unit and type.

The others are where they belong: module trees, initramfs, drift and settings in test_desired_state, the store in test_store,
lockdown and modules_disabled in test_diagnosis, lost events in test_events.
"""

import json
import re
from itertools import pairwise
from typing import Any

from tests.system.client import Kmodctl
from tests.system.service import main_pid, wait_until
from tests.vm.machine import Machine

MANAGER = "busctl --json=short call org.kmodd1 /org/kmodd1 org.kmodd1.Manager"
BLACKLIST = "/etc/modprobe.d/kmodd-blacklist.conf"
COUNTERS = {
    "kmodd_uevents_total", "kmodd_uevent_overflows_total", "kmodd_operations_total", "kmodd_kernel_calls_total",
    "kmodd_kernel_call_duration_seconds_bucket", "kmodd_kernel_call_duration_seconds_sum",
    "kmodd_kernel_call_duration_seconds_count", "kmodd_denials_total", "kmodd_requests_total",
    "kmodd_audit_records_lost_total", "kmodd_audit_records_collapsed_total", "kmodd_module_loads_total",
    "kmodd_module_failures_total", "kmodd_module_load_duration_seconds_bucket", "kmodd_module_load_duration_seconds_sum",
    "kmodd_module_load_duration_seconds_count", "kmodd_module_requests_total", "kmodd_module_requests_lost_total",
}  # fmt: skip
GAUGES = {
    "kmodd_build_info", "kmodd_health_status", "kmodd_kernel_tainted", "kmodd_modules_disabled", "kmodd_jobs",
    "kmodd_stuck_calls", "kmodd_drift", "kmodd_desired_modules", "kmodd_desired_failures", "kmodd_settings_valid",
    "kmodd_modules_loaded", "kmodd_module_size_bytes", "kmodd_module_references", "kmodd_module_state", "kmodd_module_taint",
    "kmodd_module_last_change_timestamp_seconds", "kmodd_leases",
}  # fmt: skip


def checks(vm: Machine) -> dict[str, list[dict[str, str]]]:
    """What `kmodctl status` is made of, by the name of the check."""
    (data,) = json.loads(vm.check(f"{MANAGER} GetHealth"))["data"]
    found: dict[str, list[dict[str, str]]] = {}
    for row in data["checks"]["data"]:
        check = {key: value["data"] for key, value in row.items()}
        found.setdefault(check["name"], []).append(check)
    return found


def status(vm: Machine) -> str:
    data: str = json.loads(
        vm.check("busctl --json=short get-property org.kmodd1 /org/kmodd1 org.kmodd1.Manager Health")
    )["data"]
    return data


def degraded(vm: Machine, name: str, module: str = "") -> list[dict[str, str]]:
    rows = checks(vm).get(name, [])
    return [row for row in rows if row["status"] != "ok" and row.get("module", "") == module]


def test_checks_about_modules(vm: Machine, kmodctl: Kmodctl) -> None:
    assert status(vm) == "ok"
    # Somebody else brings the flag; who is named, and what it means.
    vm.check("modprobe kmodd_test_good")
    (unsigned,) = degraded(vm, "unsigned-module", "kmodd_test_good")
    assert "signature" in unsigned["message"]
    (taint,) = checks(vm)["taint"]
    assert "O: externally-built (out-of-tree) module was loaded" in taint["message"]
    assert "E: unsigned module was loaded" in taint["message"]
    wait_until(lambda: status(vm) == "degraded", "the property follows")
    assert "health is degraded" in vm.journal("-t", "kmodd", "KMODD_EVENT=health.changed")
    # A failed load; an answer to who asked, until it says that something is wrong with the module.
    assert kmodctl("load", "kmodd_test_fail").code == 10
    (failed,) = degraded(vm, "failed-operation", "kmodd_test_fail")
    assert "InitFailed" in failed["message"]
    assert failed["hint"]
    assert kmodctl("reset-failed", "kmodd_test_fail").code == 0
    assert not degraded(vm, "failed-operation", "kmodd_test_fail")
    # Loaded, and then blacklisted by somebody's file.
    vm.write_file("/etc/modprobe.d/admin.conf", "blacklist kmodd_test_good\n")
    (forbidden,) = degraded(vm, "forbidden-module", "kmodd_test_good")
    assert "/etc/modprobe.d/admin.conf" in forbidden["message"]
    vm.check("rm /etc/modprobe.d/admin.conf")
    # Our own file, edited by hand.
    assert kmodctl("config", "blacklist", "kmodd_test_info").code == 0
    vm.check(f"echo blacklist x >> {BLACKLIST}")
    wait_until(lambda: bool([row for row in checks(vm)["rules"] if row["status"] == "degraded"]), "the edit is found")
    (edited,) = [row for row in checks(vm)["rules"] if row["status"] == "degraded"]
    assert BLACKLIST in edited["message"]
    assert "+blacklist x" in edited["message"]
    vm.check(f"rm {BLACKLIST}; rmmod kmodd_test_good")
    wait_until(lambda: not [row for row in checks(vm)["rules"] if row["status"] == "degraded"], "it is gone")
    wait_until(lambda: status(vm) == "ok", "all is well again: a taint that was brought on purpose is no alarm")


def test_a_module_that_takes_the_place_of_the_kernels_own(vm: Machine) -> None:
    file = "/lib/modules/$(uname -r)/updates/dummy.ko"
    vm.check(f"cp $(modinfo -n dummy) {file} && depmod -a", timeout=120)
    (replaced,) = [row for row in checks(vm)["replaced-module"] if row["module"] == "dummy"]
    assert "/updates/dummy.ko replaces" in replaced["message"]
    vm.check(f"rm {file} && depmod -a", timeout=120)
    assert "replaced-module" not in checks(vm)


def test_a_daemon_that_is_not_well_says_so(vm: Machine) -> None:
    """A change of the store that cannot be undone, and a daemon that is short of descriptors."""
    folder = "/var/lib/kmodd/store/kmodd_test_good/6.99.0"
    vm.check(f"systemctl stop kmodd; mkdir -p {folder}; touch {folder}/changing; systemctl start kmodd", timeout=90)
    (left,) = degraded(vm, "store-change-interrupted", "kmodd_test_good")
    assert "6.99.0" in left["message"]
    vm.check("systemctl stop kmodd; rm -r /var/lib/kmodd/store/kmodd_test_good; systemctl start kmodd", timeout=90)
    assert "store-change-interrupted" not in checks(vm)
    pid = main_pid(vm)
    few = int(vm.check(f"ls /proc/{pid}/fd | wc -l")) + 5
    vm.check(f"prlimit --pid {pid} --nofile={few}:4096")
    wait_until(lambda: checks(vm)["daemon"][0]["status"] == "failing", "its self-check finds few descriptors left", 90)
    vm.check(f"prlimit --pid {pid} --nofile=4096:4096")
    wait_until(lambda: checks(vm)["daemon"][0]["status"] == "ok", "and that they are there again", 90)


def test_a_change_of_health_is_a_signal(vm: Machine) -> None:
    follow = "busctl --json=short monitor --match type=signal,sender=org.kmodd1 > /root/signals 2> /root/began"
    watch = vm.start(f"timeout 90 {follow}")
    wait_until(lambda: "Monitoring" in vm.run("cat /root/began").stdout, "somebody listens")
    vm.check("modprobe kmodd_test_good")
    wait_until(lambda: status(vm) == "degraded", "an unsigned module is there")
    vm.check("rmmod kmodd_test_good")
    wait_until(lambda: status(vm) == "ok", "and gone")
    vm.check("pkill -x busctl; cat /root/signals")
    watch.wait(90)
    said = vm.check("cat /root/signals")
    values = re.findall(r'"Health":\{"type":"s","data":"(\w+)"\}', said)
    assert values[:2] == ["degraded", "ok"], said[-2000:]


def test_every_metric_is_there_with_its_type(vm: Machine, kmodctl: Kmodctl) -> None:
    for words in (("load", "kmodd_test_slow"), ("unload", "kmodd_test_slow"), ("load", "kmodd_test_fail")):
        kmodctl(*words)
    vm.run(["kmodctl", "--no-ask-password", "load", "dummy"], user="alice", timeout=60)
    vm.check("modprobe kmodd_test_good")
    (rows,) = json.loads(vm.check(f"{MANAGER} GetMetrics"))["data"]
    types: dict[str, set[str]] = {}
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, kind, labels, value in rows:
        types.setdefault(name, set()).add(kind)
        samples.setdefault(name, []).append((labels, value))
    assert {name for name, kinds in types.items() if kinds == {"counter"}} == COUNTERS
    assert {name for name, kinds in types.items() if kinds == {"gauge"}} == GAUGES
    # Samples of one family stand together, each once.
    order = [name for number, (name, *_) in enumerate(rows) if number == 0 or rows[number - 1][0] != name]
    families = [re.sub("_(bucket|sum|count)$", "", name) for name in order]
    assert sum(a != b for a, b in pairwise(families)) + 1 == len(set(families))
    assert len({(name, json.dumps(labels, sort_keys=True)) for name, _, labels, _ in rows}) == len(rows)

    def of(name: str, **labels: str) -> Any:
        return next((value for has, value in samples[name] if labels.items() <= has.items()), None)

    seconds = of("kmodd_module_load_duration_seconds_sum", module="kmodd_test_slow")
    assert 0.5 < seconds < 60, "in seconds, as its init sleeps"
    assert of("kmodd_module_load_duration_seconds_count", module="kmodd_test_slow") == 1
    assert of("kmodd_module_load_duration_seconds_bucket", module="kmodd_test_slow", le="+Inf") == 1
    assert of("kmodd_module_load_duration_seconds_bucket", module="kmodd_test_slow", le="0.005") == 0
    assert of("kmodd_module_loads_total", module="kmodd_test_slow") == 1
    assert of("kmodd_module_failures_total", module="kmodd_test_fail", error="InitFailed") == 1
    assert of("kmodd_denials_total", method="Load") == 1
    assert of("kmodd_module_size_bytes", module="kmodd_test_good") == int(
        vm.check("awk '$1 == \"kmodd_test_good\" { print $2 }' /proc/modules")
    )
    assert of("kmodd_module_taint", module="kmodd_test_good", flag="E") == 1
    changed = of("kmodd_module_last_change_timestamp_seconds", module="kmodd_test_good")
    assert abs(changed - float(vm.check("date +%s"))) < 120
    assert of("kmodd_health_status", status="degraded") == 1
    vm.check("rmmod kmodd_test_good")


def test_a_call_that_hangs_is_counted(fresh_vm: Machine) -> None:
    vm = fresh_vm
    assert vm.run("kmodctl load kmodd_test_init_hang --timeout 2", timeout=90).code == 12
    (hung,) = degraded(vm, "stuck-module", "kmodd_test_init_hang")
    assert "its init() does not return" in hung["message"]
    (calls,) = degraded(vm, "stuck-calls")
    assert "1 call into the kernel did not return" in calls["message"]
    assert status(vm) == "degraded"
