# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parts of `kmodd.kernel` that only a real kernel can answer for, each driven by itself, without the daemon."""

import errno
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.client import soon
from tests.vm.machine import Machine

REPOSITORY = Path(__file__).resolve().parents[2]
TREE = "/tmp/parts"
BROKEN = "/usr/lib/kmodd-test/broken"

Probe = Callable[..., Any]


@pytest.fixture(scope="module")
def probe(clean_vm: Machine) -> Iterator[Probe]:
    """Calls a function of kernel_probe.py in the machine."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in (REPOSITORY / "kmodd").rglob("*.py"):
            tar.add(path, path.relative_to(REPOSITORY))
        tar.add(Path(__file__).with_name("kernel_probe.py"), "kernel_probe.py")
    clean_vm.unpack(archive.getvalue(), TREE)

    server = clean_vm.start(["/usr/bin/python3", "-B", f"{TREE}/kernel_probe.py", TREE])
    numbers = iter(range(1_000_000))

    def call(function: str, *arguments: Any, timeout: float = 90) -> Any:
        number = next(numbers)
        server.write(json.dumps([number, function, arguments]).encode() + b"\n")
        output = server.wait_for_output(f"end {number}\n", timeout)
        answered, result, fault = json.loads(output.splitlines()[-2])
        assert answered == number
        assert not fault, fault
        return result

    yield call
    server.kill()


@pytest.fixture(scope="module")
def file(clean_vm: Machine) -> Callable[[str], str]:
    """Path of a module's file."""
    return lambda name: clean_vm.check(f"modinfo -n {name}").strip()


File = Callable[[str], str]


# --- who keeps a module busy ------------------------------------------------------------------------------------------


def test_overlay_mount_keeps_overlay_busy(clean_vm: Machine, probe: Probe) -> None:
    clean_vm.check("mkdir -p /tmp/o/l /tmp/o/u /tmp/o/w '/tmp/o/merged here'")
    clean_vm.check(
        "mount -t overlay layers -o lowerdir=/tmp/o/l,upperdir=/tmp/o/u,workdir=/tmp/o/w '/tmp/o/merged here'"
    )
    assert probe("users", "overlay") == [["mount", "/tmp/o/merged here", "type overlay, source layers"]]
    clean_vm.check("umount '/tmp/o/merged here'")
    assert probe("users", "overlay") == []
    clean_vm.check("modprobe -r overlay")


def test_mount_in_another_namespace_is_found(clean_vm: Machine, probe: Probe) -> None:
    clean_vm.check("mkdir -p /tmp/n/l /tmp/n/u /tmp/n/w /tmp/n/m")
    mount = "mount -t overlay o -o lowerdir=/tmp/n/l,upperdir=/tmp/n/u,workdir=/tmp/n/w /tmp/n/m"
    hidden = clean_vm.start(["unshare", "--mount", "sh", "-c", f"{mount}; echo ready; exec sleep 60"])
    hidden.wait_for_output("ready")
    [[kind, name, detail]] = probe("users", "overlay")
    assert (kind, name) == ("mount", "/tmp/n/m")
    assert "in the mount namespace of pid" in detail
    hidden.kill()
    soon(lambda: clean_vm.run("modprobe -r overlay").code == 0, "the namespace is gone")


def test_loop_device_names_its_file_and_its_mount(clean_vm: Machine, probe: Probe) -> None:
    clean_vm.check("truncate -s 8M /tmp/disk.img && mkfs.ext4 -q /tmp/disk.img && mkdir -p /tmp/mnt")
    device = clean_vm.check("losetup --find --show /tmp/disk.img").strip()
    clean_vm.check("udevadm settle")  # udev opens a new device to look at it, and is named as a user while it does.
    assert probe("users", "loop") == [["loop", device, "/tmp/disk.img"]]
    clean_vm.check(f"mount {device} /tmp/mnt")
    assert ["loop", device, "/tmp/disk.img"] in probe("users", "loop")
    assert ["block", device, "mounted at /tmp/mnt"] in probe("users", "loop")
    # While udev looks at it the kernel detaches the file later, when the last one closes the device.
    clean_vm.check(f"umount /tmp/mnt && udevadm settle && losetup -d {device}")
    soon(lambda: clean_vm.run("modprobe -r loop").code == 0, "the file is detached")


def test_process_with_a_device_open_is_named(clean_vm: Machine, probe: Probe) -> None:
    for name, path in (("tun", "/dev/net/tun"), ("kmodd_test_chardev", "/dev/kmodd_test_chardev")):
        clean_vm.check(f"modprobe {name}; udevadm settle; test -c {path}")
        holder = clean_vm.start(f"exec 3<>{path}; echo ready; exec sleep 60")
        holder.wait_for_output("ready")
        assert "in use" in clean_vm.run(f"rmmod {name}").stderr
        [[kind, executable, detail]] = probe("users", name)
        assert (kind, executable) == ("process", "/usr/bin/sleep")
        assert detail.startswith("pid ")
        assert detail.endswith(path)
        holder.kill()
        holder.wait()
        clean_vm.check(f"modprobe -r {name}")


def test_interfaces_are_found_by_their_link_kind(clean_vm: Machine, probe: Probe) -> None:
    clean_vm.check(
        "ip link add dummy7 type dummy && ip link add va type veth peer name vb && ip link add br7 type bridge"
    )
    assert ["netdev", "dummy7", "link kind dummy, state down"] in probe("users", "dummy")
    assert {name for kind, name, _ in probe("users", "veth") if kind == "netdev"} == {"va", "vb"}
    assert ["netdev", "br7", "link kind bridge, state down"] in probe("users", "bridge")
    clean_vm.check("ip link del dummy7; ip link del va; ip link del br7; modprobe -r dummy veth bridge")


def test_disk_the_machine_runs_from_is_found_by_its_driver(clean_vm: Machine, probe: Probe) -> None:
    found = probe("users", "virtio_blk")
    assert any(kind == "block" and detail == "mounted at /" for kind, _, detail in found), found
    assert any(kind == "device" and "virtio" in detail for kind, _, detail in found), found


def test_reference_of_the_kernel_itself_has_no_user(clean_vm: Machine, probe: Probe) -> None:
    clean_vm.check("modprobe kmodd_test_self_ref hold=1")
    assert probe("module", "kmodd_test_self_ref")["references"] == 1
    assert probe("users", "kmodd_test_self_ref") == []
    clean_vm.check("echo 0 > /sys/module/kmodd_test_self_ref/parameters/hold && modprobe -r kmodd_test_self_ref")


# --- what is loaded ---------------------------------------------------------------------------------------------------


def test_loaded_module_is_described_as_the_kernel_has_it(clean_vm: Machine, probe: Probe) -> None:
    clean_vm.check("modprobe vfat && modprobe kmodd_test_permanent")
    assert probe("module", "fat")["holders"] == ["vfat"]
    permanent = probe("module", "kmodd_test_permanent")
    assert (permanent["permanent"], permanent["taint"], permanent["state"]) == (True, "OE", "live")
    assert permanent["attributes"]["taint"] == "OE"
    assert probe("module", "kmodd_no_such_module") is None
    assert probe("builtin", "kernel")
    assert not probe("builtin", "fat")


def test_parameters_are_normalised_refused_and_withheld_by_the_kernel(clean_vm: Machine, probe: Probe) -> None:
    clean_vm.check("modprobe kmodd_test_params")
    name = "kmodd_test_params"
    assert probe("write", name, "level", "7") == [0, "6"]
    assert probe("write", name, "level", "12") == [errno.ERANGE, "6"]
    assert probe("write", name, "an_int", "x") == [errno.EINVAL, "-3"]
    assert probe("write", name, "a_bool", "1") == [0, "Y"]
    assert probe("write", name, "a_charp", "two words") == [0, "two words"]
    assert probe("write", name, "a_charp", "") == [0, ""]
    assert probe("write", name, "an_array", "4,5,6") == [0, "4,5,6"]
    assert probe("write", name, "read_only", "1") == [errno.EACCES, "6"]
    assert probe("write", name, "secret", "1") == [0, "1"]
    assert probe("write", name, "hidden", "1") == [errno.ENOENT, None]
    assert probe("write", name, "../initstate", "1") == [errno.ENOENT, None]
    shown = probe("parameters", name)
    assert shown["secret"] == [None, 0o600]
    assert shown["read_only"] == ["6", 0o444]
    assert "hidden" not in shown


def test_facts_are_this_kernels(clean_vm: Machine, probe: Probe) -> None:
    facts = probe("facts")
    assert facts["release"] == clean_vm.check("uname -r").strip()
    assert facts["taint"] == int(clean_vm.check("cat /proc/sys/kernel/tainted"))
    assert {flag[0] for flag in facts["flags"]} >= {"O", "E"}
    assert (facts["lockdown"], facts["tree_present"], facts["modules_disabled"]) == ("none", True, False)
    assert "root=" in facts["command_line"]


# --- events -----------------------------------------------------------------------------------------------------------


def test_what_others_load_and_unload_is_heard(probe: Probe) -> None:
    events = probe("events", "modprobe kmodd_test_good; rmmod kmodd_test_good", 2)
    assert events == [["add", "kmodd_test_good"], ["remove", "kmodd_test_good"]]


def test_overflow_is_reported_and_listening_goes_on(clean_vm: Machine, probe: Probe) -> None:
    clean_vm.check("modprobe kmodd_test_good")
    actions = probe("overflow", "kmodd_test_good", 1_000)
    assert actions["overflow"] >= 1
    assert actions["remove"] == 1
    clean_vm.check("modprobe -r kmodd_test_good")


# --- calls into the kernel --------------------------------------------------------------------------------------------


def test_calls_answer_the_kernels_errno(probe: Probe, file: File, clean_vm: Machine) -> None:
    good = file("kmodd_test_good")
    tree = good.rpartition("/")[0]
    clean_vm.check(
        f"modprobe vfat; mkfifo /tmp/fifo.ko {tree}/fifo.ko; cp {BROKEN}/*.ko {tree}; cp {good} {tree}/open.ko"
    )
    clean_vm.check(f"chmod 666 {tree}/open.ko; cp {good} /tmp/outside.ko; ln -s /tmp/outside.ko {tree}/link.ko")
    answers = probe(
        "calls",
        [
            ["insert", good, "", 30],
            ["insert", good, "", 30],
            ["remove", "kmodd_test_good", "", 30],
            ["remove", "kmodd_test_good", "", 30],
            ["remove", "fat", "", 30],
            ["insert", "/no/such/file.ko", "", 30],
            ["insert", f"{tree}/none.ko", "", 30],
            ["insert", f"{tree}/dummy_not_elf.ko", "", 30],
            ["insert", f"{tree}/dummy_tampered_signature.ko", "", 30],
            ["insert", "/tmp/fifo.ko", "", 30],
            ["insert", f"{tree}/fifo.ko", "", 30],
            ["insert", f"{tree}/open.ko", "", 30],
            ["insert", f"{tree}/link.ko", "", 30],
            ["insert", f"{tree}/../kmodd-test/kmodd_test_good.ko", "", 30],
        ],
    )
    assert all(answer["kind"] == "done" for answer in answers)
    assert [answer["errno"] for answer in answers] == [
        0,
        errno.EEXIST,
        0,
        errno.ENOENT,
        errno.EAGAIN,
        errno.EACCES,
        errno.ENOENT,
        errno.ENOEXEC,
        errno.EKEYREJECTED,
        *[errno.EACCES] * 5,
    ]
    assert [answer["refusal"] for answer in answers[9:]] == ["place", "kind", "owner", "owner", "place"]
    assert answers[5]["refusal"] == "place"
    clean_vm.check(f"cd {tree}; rm fifo.ko open.ko link.ko dummy*.ko kmodd_test_vermagic*; ls")
    assert any("ELF" in line for line in answers[7]["log"]), answers[7]["log"]


def test_parameters_reach_the_module(probe: Probe, file: File, clean_vm: Machine) -> None:
    clean_vm.run("rmmod kmodd_test_params")
    [answer] = probe("calls", [["insert", file("kmodd_test_params"), 'an_int=42 a_charp="two words"', 30]])
    assert answer["errno"] == 0
    shown = probe("parameters", "kmodd_test_params")
    assert (shown["an_int"][0], shown["a_charp"][0]) == ("42", "two words")
    clean_vm.check("rmmod kmodd_test_params")


@pytest.mark.parametrize("name", ["kmodd_test_xz", "kmodd_test_zst"])
def test_compressed_modules_are_inserted(probe: Probe, file: File, name: str) -> None:
    path = file(name)
    assert not path.endswith(".ko")
    answers = probe("calls", [["insert", path, "", 30], ["insert", path, "", 30], ["remove", name, "", 30]])
    assert [answer["errno"] for answer in answers] == [0, errno.EEXIST, 0]


def test_refusing_init_is_reported_with_the_kernels_log(probe: Probe, file: File) -> None:
    [answer] = probe("calls", [["insert", file("kmodd_test_fail"), f"error=-{errno.ENOMEM}", 30]])
    assert (answer["kind"], answer["errno"]) == ("done", errno.ENOMEM)
    assert "kmodd_test_fail: the flux capacitor is not charged" in answer["log"]


def test_slow_inits_run_side_by_side(probe: Probe, file: File, clean_vm: Machine) -> None:
    paths = [file("kmodd_test_good"), file("kmodd_test_slow"), file("kmodd_test_info")]
    answer = probe("side_by_side", paths, "ms=3000")
    assert answer["errnos"] == [0, 0, 0]
    assert answer["remaining"] == 1
    clean_vm.check("rmmod kmodd_test_good kmodd_test_slow kmodd_test_info")


def test_worker_is_small_and_adds_little_to_the_call(probe: Probe, file: File) -> None:
    measured = probe("cost", file("kmodd_test_good"), "kmodd_test_good", 20)
    print(f"worker: {measured['rss']} kB; {measured['extra']} µs beyond a call of {measured['bare']} µs")
    assert measured["rss"] <= 15 * 1024
    assert measured["extra"] <= max(measured["bare"] / 2, 150)  # The least of each: a busy machine adds to the rest.


def test_hung_init_is_abandoned_and_its_end_is_reported(probe: Probe, file: File) -> None:
    release = "/sys/kernel/kmodd_test_init_wait/release"
    answer = probe("let_go", file("kmodd_test_init_wait"), release)
    assert answer["stuck"]["kind"] == "timed-out"
    assert (answer["abandoned"], answer["state"]) == (1, "coming")
    assert (answer["other"]["kind"], answer["other"]["errno"]) == ("done", errno.ENOENT)
    assert answer["told"]["worker"] == answer["stuck"]["worker"]
    assert answer["left"] == 0


def test_init_that_oopses_is_a_crash_and_others_are_served(probe: Probe, file: File) -> None:
    """Last: the kernel is not the same afterwards."""
    good = file("kmodd_test_good")
    orders = [
        ["insert", file("kmodd_test_init_oops"), "", 30],
        ["insert", good, "", 30],
        ["remove", "kmodd_test_good", "", 30],
    ]
    oops, insert, remove = probe("calls", orders)
    assert oops["kind"] == "crashed"
    assert any("NULL pointer" in line for line in oops["log"]), oops["log"]
    assert (insert["errno"], remove["errno"]) == (0, 0)
    assert probe("module", "kmodd_test_init_oops")["state"] == "coming"
