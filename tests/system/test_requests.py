# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who asks the kernel for modules: requests of real processes on the real kernel, as the watcher reads them from its trace."""

from collections.abc import Callable, Mapping
from time import monotonic, sleep
from typing import Any

import pytest

from tests.system.client import Client, Kmodctl, named, soon
from tests.vm.machine import Machine

INSTANCE = "/sys/kernel/tracing/instances/kmodd"
RULE = "/etc/modprobe.d/requests.conf"
HASH = "import socket; socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).bind(('hash', 'sha256'))"
"""Makes the kernel ask for `net-pf-38` and then for `algif-hash`, with no right at all."""


def requests(client: Client) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = client.history(requests=True, limit=1000)
    return found


def wait_for(client: Client, fits: Callable[[Mapping[str, Any]], bool], seconds: float = 60.0) -> Mapping[str, Any]:
    deadline = monotonic() + seconds
    while True:
        for row in requests(client):
            if fits(row):
                return row
        assert monotonic() < deadline, f"no such request: {requests(client)}"
        sleep(0.5)


def uid(vm: Machine, user: str) -> int:
    return int(vm.check(["id", "-u", user]))


@pytest.fixture(scope="module", autouse=True)
def _watched(vm: Machine) -> None:
    """As installed: the daemon starts the watcher."""
    vm.check("systemctl restart kmodd", timeout=120)


@pytest.fixture(autouse=True)
def _nothing_loaded(vm: Machine) -> None:
    vm.run("modprobe -r algif_hash; modprobe -r af_alg; rm -f " + RULE)
    deadline = monotonic() + 60
    while vm.run(f"test -d {INSTANCE} && pgrep -f '[w]atcher/watcher.py$'").code != 0:
        assert monotonic() < deadline, vm.run("systemctl status 'kmodd-watcher*' kmodd").stdout
        sleep(0.5)


def test_request_of_a_user_names_process_and_module(vm: Machine, client: Client, kmodctl: Kmodctl) -> None:
    vm.check(f'python3 -c "{HASH}"', user="alice")
    row = wait_for(client, lambda row: "net-pf-38" in row["message"])
    assert (row["event"], row["result"], row["module"], row["uid"]) == (
        "module.requested",
        "loaded",
        "af_alg",
        uid(vm, "alice"),
    )
    assert "/python3" in row["exe"]
    assert (row["alias"], row["comm"]) == ("net-pf-38", "python3")
    assert row["pid"] > 1
    # The kernel asks for it after the first one.
    wait_for(client, lambda row: "algif-hash" in row["message"])
    told = client.explain("algif_hash")
    assert told["loaded-by"]["alias"] == "algif-hash"
    assert told["loaded-by"]["uid"] == uid(vm, "alice")
    assert told["because"].startswith("loaded for alias algif-hash, requested by python3")
    answer = kmodctl("why", "algif_hash")
    assert "algif-hash" in answer.out
    listed = kmodctl("log", "--requests")
    assert "needed alias net-pf-38: af_alg is loaded" in listed.out


@pytest.mark.parametrize(
    "name",
    [
        "a\\n-1 [000] ..... 1.000000: module_load: dm_mod ",
        "b\\nCPU:0 [LOST 99999999999 EVENTS]\\n",
        "c wait=1 call_site=y\\nCPU:0 [LOST 9 EVENTS]",
    ],
)
def test_an_alias_of_several_lines_tells_of_no_other_process(vm: Machine, client: Client, name: str) -> None:
    """Any user names the algorithm that the kernel asks for: it is one request, of that user."""
    bind = f"import socket; socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).bind(('hash', '{name}'))"
    watcher = vm.check("pgrep -f '[w]atcher/watcher.py$'")
    assert vm.run(["python3", "-c", bind], user="alice").code != 0
    alias = f"crypto-{name}".replace("\\n", "\\x0a")
    row = wait_for(client, lambda row: row.get("alias") == alias)
    assert (row["uid"], row["comm"]) == (uid(vm, "alice"), "python3")
    assert row["call-site"].startswith("crypto_")
    assert vm.check("pgrep -f '[w]atcher/watcher.py$'") == watcher, "it is the same process as before"
    assert next(row for row in client.call("GetMetrics") if "requests_lost" in row[0])[-1] == 0.0
    assert "pid" not in client.explain("dm_mod").get("loaded-by", {})


def test_request_that_a_rule_refuses_names_the_line(vm: Machine, client: Client) -> None:
    vm.write_file(RULE, "# not here\ninstall algif_hash /bin/false\n")
    done = vm.run(f'python3 -c "{HASH}"', user="alice")
    assert done.code != 0
    row = wait_for(client, lambda row: row["event"] == "module.refused" and "algif-hash" in row["message"])
    assert (row["file"], row["line"], row["uid"]) == (RULE, 2, uid(vm, "alice"))


def test_request_for_nothing_is_absent(vm: Machine, client: Client) -> None:
    vm.run("mkdir -p /mnt/request && mount -t strangefilesystem none /mnt/request")
    row = wait_for(client, lambda row: "fs-strangefilesystem" in row["message"])
    assert (row["result"], row["uid"]) == ("absent", 0)
    assert row["exe"].endswith("/mount")


def test_load_by_another_program_is_told_to_those_who_may_know(vm: Machine, client: Client) -> None:
    vm.run("modprobe -r dummy")
    vm.check("modprobe dummy")
    deadline = monotonic() + 30
    while "pid" not in client.explain("dummy")["because"]:
        assert monotonic() < deadline, client.explain("dummy")
        sleep(0.5)
    told = client.explain("dummy")
    assert told["loaded-by"]["uid"] == 0
    assert told["loaded-by"]["client"].rpartition("/")[2] in ("kmod", "modprobe")
    public = client.call("Explain", "dummy", named({"public": True}))
    assert "loaded-by" not in public
    assert "pid" not in public["because"]
    vm.check("modprobe -r dummy")


def because(client: Client, module: str, begins: str) -> str:
    told: str = soon(
        lambda: text if (text := client.explain(module)["because"]).startswith(begins) else "", f"{module}: {begins}"
    )
    return told


def test_load_for_udev_names_the_disk_that_it_examines(vm: Machine, client: Client) -> None:
    vm.check("modprobe -r btrfs; modprobe loop; truncate -s 4M /var/tmp/udev.img; losetup /dev/loop3 /var/tmp/udev.img")
    # What 64-btrfs.rules does with a disk that has such a file system: udev's worker itself opens /dev/btrfs-control.
    rule = 'ACTION=="change", KERNEL=="loop3", IMPORT{builtin}="btrfs ready $devnode"\n'
    vm.write_file("/run/udev/rules.d/99-kmodd-test.rules", rule)
    vm.check("udevadm settle; udevadm control --reload; udevadm trigger --action=change /dev/loop3; udevadm settle")
    told = because(client, "btrfs", "loaded for alias")
    assert told.endswith(", requested by udev, for /dev/loop3")
    assert client.explain("btrfs")["loaded-by"]["devices"] == ["/dev/loop3"]
    assert client.call("Explain", "btrfs", named({"public": True}))["because"] == told
    vm.check("rm /run/udev/rules.d/99-kmodd-test.rules; udevadm control --reload; losetup -d /dev/loop3")
    vm.check("udevadm settle; rm /var/tmp/udev.img; modprobe -r btrfs")


def test_load_before_kmodd_started_is_told_by_the_journal(vm: Machine, client: Client) -> None:
    vm.write_file("/etc/modules-load.d/kmodd-test.conf", "# one\nkmodd_test_good\n")
    vm.check("systemctl stop kmodd && systemctl restart systemd-modules-load && modprobe kmodd_test_params", timeout=90)
    vm.check("journalctl --sync; systemctl start kmodd", timeout=90)
    told = because(client, "kmodd_test_good", "loaded by systemd-modules-load (pid ")
    assert told.endswith(", uid 0, systemd-modules-load.service)")
    unknown = "loaded before kmodd started, by what is not known"
    assert client.explain("kmodd_test_params")["because"] == unknown
    vm.write_file("/etc/modules-load.d/kmodd-test.conf", "# one\nkmodd_test_params\n")
    listed = "loaded before kmodd started; /etc/modules-load.d/kmodd-test.conf, line 2, lists it"
    assert client.explain("kmodd_test_params")["because"] == listed
    vm.check("rm /etc/modules-load.d/kmodd-test.conf; modprobe -r kmodd_test_good kmodd_test_params")


def test_load_in_the_initramfs_is_told_by_what_it_has(vm: Machine, client: Client) -> None:
    """A module that is older than everything the image does not have was there first; here the image is made afterwards."""
    rows = [line.split() for line in vm.check("tac /proc/modules").splitlines()]
    oldest = next(
        name for name, _, count, *_ in rows if count == "0" and vm.run(f"test -d /sys/module/{name}/drivers").code
    )
    older = vm.check(f"tac /proc/modules | cut -d' ' -f1 | sed '/^{oldest}$/q'").split()
    release = vm.check("uname -r").strip()
    image = f"/boot/initrd.img-{release}"
    vm.check(
        f"set -e; cd $(mktemp -d); mkdir -p usr/lib/modules; for name in {' '.join(older)}; do : >usr/lib/modules/$name.ko; done; "
        f"find . | cpio -o -H newc 2>/dev/null | gzip >{image}"
    )
    begins = "loaded before kmodd started, most likely in the initramfs, which has it"
    vm.check("systemctl stop kmodd; modprobe kmodd_test_xz; systemctl start kmodd", timeout=90)
    try:
        assert because(client, oldest, "loaded before kmodd started") == begins
        assert client.explain("virtio_pci")["because"].endswith(
            f"; {begins}; /usr/share/initramfs-tools/modules.d/kmodd, line 1, lists it"
        )
        listed = f"{begins}; /etc/initramfs-tools/modules, line 2, lists it"
        vm.write_file("/etc/initramfs-tools/modules", f"# early\n{oldest}\n")
        assert because(client, oldest, begins) == listed
        assert client.explain("kmodd_test_xz")["because"] == "loaded before kmodd started, by what is not known"
    finally:
        vm.check(
            f"rm -f {image} /etc/initramfs-tools/modules; modprobe -r kmodd_test_xz; systemctl restart kmodd",
            timeout=90,
        )


def test_watcher_has_two_capabilities_and_cannot_write(vm: Machine) -> None:
    pid = vm.check("pgrep -f '[w]atcher/watcher.py$' | head -1").strip()
    status = vm.check(f"cat /proc/{pid}/status")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    assert int(effective, 16) == (1 << 2) | (1 << 19)  # CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE
    assert vm.run(f"nsenter -t {pid} -m -- sh -c 'echo 1 > {INSTANCE}/tracing_on'").code != 0
    uid = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
    assert uid != "0"


def test_watcher_that_is_killed_comes_back(vm: Machine, client: Client) -> None:
    vm.check("pkill -KILL -f '[w]atcher/watcher.py$'")
    deadline = monotonic() + 60
    while vm.run("pgrep -f '[w]atcher/watcher.py$'").code != 0:
        assert monotonic() < deadline
        sleep(0.5)
    vm.run("mount -t secondfilesystem none /mnt")
    wait_for(client, lambda row: "fs-secondfilesystem" in row["message"])


def test_nothing_of_it_is_left_when_kmodd_stops(vm: Machine) -> None:
    vm.check("systemctl stop kmodd", timeout=90)
    deadline = monotonic() + 30
    while vm.run(f"test -d {INSTANCE}").code == 0:
        assert monotonic() < deadline
        sleep(0.5)
    vm.check("systemctl start kmodd", timeout=90)
