# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who keeps a module busy, told to root and to everyone else alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.system.client import Client, Kmodctl, named, soon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

T = "kmodd_test_"


@pytest.fixture(scope="module")
def alice(vm: Machine) -> Iterator[Client]:
    """A client without any rights."""
    made = Client(vm, user="alice")
    yield made
    made.process.end()


def holds(client: Client, alice: Client, module: str, *expected: tuple[str, str, str]) -> dict[str, Any]:
    """The users as everyone sees them; a module that is busy cannot be unloaded."""
    explained: dict[str, Any] = client.explain(module)
    assert explained["state"] == "live"
    assert sorted(tuple(user) for user in explained["users"]) == sorted(expected)
    assert alice.explain(module) == explained
    if explained["references"]:
        assert not explained["removable"]
        assert len(explained["blockers"]) >= 1
        assert client.refused("Unload", module, {}).name == "InUse"
    else:
        assert (explained["removable"], explained["blockers"]) == (True, [])
    return explained


def test_mount(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("modprobe overlay; mkdir -p /tmp/l /tmp/u /tmp/w '/tmp/with space'")
    vm.check("mount -t overlay stacked -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w '/tmp/with space'")
    holds(client, alice, "overlay", ("mount", "/tmp/with space", "type overlay, source stacked"))
    vm.check("umount '/tmp/with space'")
    assert soon(lambda: client.explain("overlay")["removable"], "nothing holds it")
    assert client.unload("overlay") == ["overlay"]


def test_mount_of_another_mount_namespace(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("modprobe overlay; mkdir -p /tmp/l /tmp/u /tmp/w /tmp/m")
    mount = "mount -t overlay hidden -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w /tmp/m"
    other = vm.start(["unshare", "--mount", "sh", "-c", f"{mount} && echo mounted && exec sleep 600"])
    other.wait_for_output("mounted")
    assert "/tmp/m" not in vm.check("cat /proc/mounts")
    pid = vm.check("pgrep --exact --newest sleep").strip()
    where = f"type overlay, source hidden, in the mount namespace of pid {pid}"
    holds(client, alice, "overlay", ("mount", "/tmp/m", where))
    other.kill()
    other.wait()
    soon(lambda: client.explain("overlay")["removable"], "nothing holds it")
    client.unload("overlay")


def test_loop_device(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("modprobe loop; truncate -s 4M /var/tmp/disk.img; losetup /dev/loop3 /var/tmp/disk.img; udevadm settle")
    holds(client, alice, "loop", ("loop", "/dev/loop3", "/var/tmp/disk.img"))
    vm.check("losetup --detach /dev/loop3")
    soon(lambda: client.explain("loop")["removable"], "nothing holds it")


def test_process_of_somebody_else(vm: Machine, client: Client, alice: Client, kmodctl: Kmodctl) -> None:
    vm.check(f"modprobe {T}chardev; udevadm settle; chmod 0666 /dev/{T}chardev")
    process = vm.start(f"exec 9</dev/{T}chardev; echo $$; exec sleep 600", user="bob")
    pid = process.wait_for_output("\n").strip()
    soon(
        lambda: (
            client.explain(f"{T}chardev")["users"][:1] == [["process", "/usr/bin/sleep", f"pid {pid} /dev/{T}chardev"]]
        ),
        "it",
    )
    holds(client, alice, f"{T}chardev", ("process", "/usr/bin/sleep", f"pid {pid} /dev/{T}chardev"))
    ended = kmodctl("why", f"{T}chardev")
    assert f"kill {pid}" in ended.out
    process.kill()
    process.wait()
    soon(lambda: client.explain(f"{T}chardev")["removable"], "nothing holds it")
    assert client.unload(f"{T}chardev") == [f"{T}chardev"]


def test_many_processes(vm: Machine, client: Client) -> None:
    vm.check(f"modprobe {T}chardev; udevadm settle")
    holder = vm.start(f"for n in $(seq 20); do sleep 600 </dev/{T}chardev & done; echo open; wait")
    holder.wait_for_output("open")
    soon(lambda: len(client.explain(f"{T}chardev")["users"]) == 20, "all of them are named")
    error = client.refused("Unload", f"{T}chardev", {})
    assert error.message == f"{T}chardev is kept busy by 20 processes"
    vm.run(f"fuser -k /dev/{T}chardev || pkill -x sleep")
    soon(lambda: client.explain(f"{T}chardev")["removable"], "nothing holds it")
    client.unload(f"{T}chardev")


def test_network_interfaces(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("modprobe dummy numdummies=1; ip link set dummy0 up")
    holds(client, alice, "dummy", ("netdev", "dummy0", "link kind dummy, state unknown"))
    vm.check("ip link add left type veth peer name right; ip link set left up; ip link set right up")
    soon(
        lambda: (
            sorted(map(tuple, client.explain("veth")["users"]))
            == [("netdev", "left", "link kind veth, state up"), ("netdev", "right", "link kind veth, state up")]
        ),
        "both ends",
    )
    vm.check("ip link add bridge0 type bridge; ip link set left master bridge0; ip link set bridge0 up")
    users = soon(lambda: client.explain("bridge")["users"], "the bridge")
    assert ["netdev", "bridge0"] in [user[:2] for user in users]
    vm.check("ip link delete bridge0; ip link delete left")
    assert soon(lambda: not client.explain("veth")["users"], "no interface")
    # The kernel takes the interface of a module without references away with it.
    assert client.unload("dummy") == ["dummy"]


def test_module_below_another(vm: Machine, client: Client, alice: Client) -> None:
    client.load(f"{T}dep_c", reason="the top")
    explained = holds(client, alice, f"{T}dep_a", ("module", f"{T}dep_b", "uses it"))
    assert explained["holders"] == [f"{T}dep_b"]
    assert explained["because"] == f"needed by {T}dep_b"
    top = client.explain(f"{T}dep_c")
    assert (top["loaded-by"]["uid"], top["loaded-by"]["reason"]) == (0, "the top")
    assert "python3" in top["loaded-by"]["client"]
    client.unload(f"{T}dep_a", dependents=True)
    vm.check(["modprobe", f"{T}dep_a"])
    soon(lambda: client.explain(f"{T}dep_a")["because"] == "loaded by something other than kmodd", "it was seen")
    client.unload(f"{T}dep_a")


def test_block_device(vm: Machine, client: Client, alice: Client) -> None:
    vm.check(
        f"modprobe {T}blockdev; udevadm settle; mkfs.ext4 -q /dev/{T}blk0; mount /dev/{T}blk0 /mnt; udevadm settle"
    )
    soon(lambda: client.explain(f"{T}blockdev")["references"] == 1, "udev has let go")
    holds(client, alice, f"{T}blockdev", ("block", f"/dev/{T}blk0", "mounted at /mnt"))
    vm.check("umount /mnt; udevadm settle")
    process = vm.start(f"exec 9</dev/{T}blk0; echo $$; exec sleep 600")
    pid = process.wait_for_output("\n").strip()
    soon(lambda: [user[2] for user in client.explain(f"{T}blockdev")["users"]] == [f"pid {pid} /dev/{T}blk0"], "it")
    process.kill()
    process.wait()
    soon(lambda: client.explain(f"{T}blockdev")["removable"], "nothing holds it")
    client.unload(f"{T}blockdev")


def test_kernel_itself(vm: Machine, client: Client, alice: Client) -> None:
    client.load(f"{T}self_ref", {"hold": "1"})
    detail = "1 reference that nothing in user space explains"
    holds(client, alice, f"{T}self_ref", ("kernel", "kernel", detail))
    vm.check(f"echo 0 > /sys/module/{T}self_ref/parameters/hold")
    holds(client, alice, f"{T}self_ref")
    client.unload(f"{T}self_ref")


def test_module_that_is_not_there(client: Client, alice: Client) -> None:
    for name, state, loadable in (
        (f"{T}good", "available", True),
        ("ext4", "builtin", True),
        ("no_such_module", "absent", False),
    ):
        explained = alice.explain(name)
        assert (explained["state"], explained["loadable"], explained["removable"]) == (state, loadable, False)
        assert explained == client.explain(name)
    assert alice.refused("Explain", "../etc").name == "InvalidArgs"
    assert client.refused("Unload", "no_such_module", named({"dry-run": True})).name == "NoSuchModule"
