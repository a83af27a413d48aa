# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answering a vulnerability on the stock kernel: what an unprivileged user could have loaded is refused, and it is known to whom."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.client import soon

if TYPE_CHECKING:
    from tests.vm.channel import Result
    from tests.vm.machine import Machine

CVE = "CVE-2099-0001"
RECORD = "/etc/kmodd/responses.d/local.toml"
"""The administrator's: the stock kernel has the corrections of the shipped ones."""
FILE = "/etc/modprobe.d/kmodd-blacklist.conf"
BIND = (
    "import socket, sys\n"
    "s = socket.socket(38, socket.SOCK_SEQPACKET)\n"
    "s.bind(('aead', 'gcm(aes)'))\n"
    "print('bound', flush=True)\n"
    "sys.stdin.read()\n"
)


def loaded(vm: Machine, module: str) -> bool:
    return vm.run(["test", "-e", f"/sys/module/{module}"]).code == 0


def bind(vm: Machine) -> Result:
    """A user without any right binds an AF_ALG socket, which has the kernel ask for algif-aead by name."""
    return vm.run(["/usr/bin/python3", "-c", BIND], user="alice", input="")


def kmodctl(vm: Machine, *words: str) -> tuple[int, Any]:
    done = vm.run(["kmodctl", *words, "--json"], timeout=180)
    print(done.stdout, done.stderr)
    return done.code, json.loads(done.stdout) if done.stdout else None


@pytest.fixture(autouse=True)
def _none_left(vm: Machine) -> None:
    for row in kmodctl(vm, "respond", "list")[1]:
        vm.check(["kmodctl", "respond", "end", row["id"]])
    vm.run(f"rm -f {FILE}; modprobe -r algif_aead")
    vm.write_file(RECORD, f'[response.{CVE}]\nmodules = ["algif_aead"]\nfixed = ["6.1.9999"]\n')


def test_a_corrected_kernel_is_told_by_its_own_text_and_left_alone(vm: Machine) -> None:
    status, done = kmodctl(vm, "respond", "CVE-2026-31431")
    (kernel,) = done["kernels"]
    assert (status, done["stage"], kernel["verdict"]) == (0, "assessed", "fixed")
    assert kernel["version"].removeprefix("Debian ") in vm.check("uname -v")
    assert vm.run(["test", "-e", FILE]).code != 0
    # No version is known of this one, so nothing is called fixed.
    status, done = kmodctl(vm, "respond", "CVE-2026-43033", "--dry-run")
    assert (status, done["kernels"][0]["verdict"], done["proven"]) == (14, "unknown", False)


def test_what_any_user_had_loaded_is_refused_and_known_by_whom(vm: Machine) -> None:
    assert bind(vm).stdout == "bound\n"
    assert loaded(vm, "algif_aead")
    status, done = kmodctl(vm, "respond", CVE, "--probe")
    (kernel,) = [row for row in done["kernels"] if row["running"]]
    assert (status, done["stage"], done["proven"], kernel["verdict"]) == (0, "responded", True, "affected")
    assert done["unloaded"] == ["algif_aead"]
    assert [(row["request"], row["loaded"]) for row in done["attempts"]] == [("algif-aead", False)]
    refused = bind(vm)
    assert refused.code != 0
    assert not loaded(vm, "algif_aead")
    assert vm.run(["modprobe", "algif_aead"]).code != 0, "by name, as root"

    def attempts() -> list[dict[str, Any]]:
        rows = kmodctl(vm, "surface", "refused")[1]
        return [row for row in rows if row["exe"].startswith("/usr/bin/python3") and row["alias"] == "algif-aead"]

    uid = int(vm.check(["id", "-u", "alice"]))
    soon(lambda: any(row.get("uid") == uid for row in attempts()), "the attempt of alice is recorded")
    (mine,) = [row for row in attempts() if row.get("uid") == uid]
    assert (mine["modules"], mine["response"]) == (["algif_aead"], CVE)
    assert mine["allow"] == f"kmodctl respond end {CVE}"
    status, again = kmodctl(vm, "respond", "status", CVE)
    assert (status, again[0]["proven"]) == (0, True)
    vm.check(["systemctl", "restart", "kmodd"], timeout=90)
    assert kmodctl(vm, "respond", "list")[1][0]["id"] == CVE, "the kernel is not corrected"
    vm.check(mine["allow"])
    assert bind(vm).stdout == "bound\n"


def test_what_is_in_use_stops_it_and_names_the_command(vm: Machine) -> None:
    holder = vm.start(["/usr/bin/python3", "-c", BIND], user="alice")
    holder.wait_for_output("bound", 60)
    status, done = kmodctl(vm, "respond", CVE)
    assert (status, done["stage"]) == (5, "in-use")
    (use,) = done["uses"]
    assert use["in-use"]
    assert use["references"] == 1
    assert kmodctl(vm, "respond", "list")[1] == []
    assert vm.run(["test", "-e", FILE]).code != 0
    status, done = kmodctl(vm, "respond", CVE, "--force-in-use")
    assert (status, done["proven"], list(done["still-loaded"])) == (14, False, ["algif_aead"])
    holder.kill()
    soon(lambda: vm.run(["kmodctl", "unload", "algif_aead"]).code == 0, "it is unloaded")
    assert kmodctl(vm, "respond", "status")[0] == 0


def test_the_end_removes_its_own_rules_alone_and_comes_with_the_fixed_kernel(vm: Machine) -> None:
    vm.check(["kmodctl", "config", "blacklist", "--hard", "algif_rng", "--reason", "policy"])
    before = vm.check(f"cat {FILE}")
    vm.check(["kmodctl", "respond", "--module", "algif_aead", "algif_rng"])
    assert "install algif_aead /bin/false" in vm.check(f"cat {FILE}")
    vm.check(["kmodctl", "respond", "end", "module:algif_aead,algif_rng"])
    assert vm.check(f"cat {FILE}") == before
    # As if the kernel had been upgraded: by what is kept, the running one is corrected.
    vm.check(["kmodctl", "respond", CVE])
    state = "/var/lib/kmodd/responses.json"
    kept = json.loads(vm.check(f"cat {state}"))
    kept[0]["vulnerability"]["fixed"] = [[6, 1, 1]]
    vm.write_file(state, json.dumps(kept))
    vm.check(["systemctl", "restart", "kmodd"], timeout=90)
    soon(lambda: kmodctl(vm, "respond", "list")[1] == [], "the response has ended by itself")
    assert vm.check(f"cat {FILE}") == before


def test_a_rule_that_would_not_act_is_refused_and_nothing_is_written(vm: Machine) -> None:
    vm.write_file("/etc/modprobe.d/00-local.conf", "install algif_aead /sbin/modprobe --ignore-install algif_aead\n")
    try:
        done = vm.run(["kmodctl", "respond", CVE])
        assert done.code == 5
        assert "00-local.conf" in done.stderr
        assert kmodctl(vm, "respond", "list")[1] == []
    finally:
        vm.check("rm -f /etc/modprobe.d/00-local.conf")
