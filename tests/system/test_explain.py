# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who keeps a module busy, told to root and to everyone else alike."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.client import Client, Kmodctl, named, soon
from tests.system.explains import explains

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


def triples(explained: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Kind, name and detail of each user."""
    return [(user["kind"], user["name"], user["detail"]) for user in explained["users"]]


def holds(
    client: Client, alice: Client, module: str, *expected: tuple[str, str, str], public: bool = True
) -> dict[str, Any]:
    """The users as root sees them, and unless they are not `public` everyone; a module that is busy cannot be unloaded."""
    time.sleep(0.5)  # What was just set up is not in an answer that is still kept.
    explained: dict[str, Any] = client.explain(module)
    assert explained["state"] == "live"
    assert sorted(triples(explained)) == sorted(expected)
    answer = alice.explain(module)
    if public:
        assert triples(answer) == triples(explained)
    else:
        assert "users" in answer["withheld"]
        assert all(name == "" for kind, name, _ in triples(answer) if kind in {"process", "mount"})
    if explained["references"]:
        assert not explained["removable"]
        assert len(explained["blockers"]) >= 1
        assert client.refused("Unload", module, {}).name == "InUse"
    else:
        assert (explained["removable"], explained["blockers"]) == (True, [])
    return explained


@explains("a mount", "umount")
def test_mount(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("modprobe overlay; mkdir -p /tmp/l /tmp/u /tmp/w '/tmp/with space'")
    vm.check("mount -t overlay stacked -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w '/tmp/with space'")
    holds(client, alice, "overlay", ("mount", "/tmp/with space", "type overlay, source stacked"))
    vm.check("umount '/tmp/with space'")
    assert soon(lambda: client.explain("overlay")["removable"], "nothing holds it")
    assert client.unload("overlay") == ["overlay"]


@explains("a mount in another mount namespace", "umount --internal-only --namespace")
def test_mount_of_another_mount_namespace(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("modprobe overlay; mkdir -p /tmp/l /tmp/u /tmp/w /tmp/m")
    mount = "mount -t overlay hidden -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w /tmp/m"
    vm.check(r"printf '#!/bin/sh\nid >>/tmp/pwned\n' >/tmp/recorder; chmod 755 /tmp/recorder; rm -f /tmp/pwned")
    replaced = "mount --bind /tmp/recorder /usr/bin/umount"
    other = vm.start(["unshare", "--mount", "sh", "-c", f"{mount} && {replaced} && echo mounted && exec sleep 600"])
    other.wait_for_output("mounted")
    assert "/tmp/m" not in vm.check("cat /proc/mounts")
    pid = vm.check("pgrep --exact --newest sleep").strip()
    where = f"type overlay, source hidden, in the mount namespace of pid {pid}"
    explained = holds(client, alice, "overlay", ("mount", "/tmp/m", where), public=False)
    command, unload = explained["free"]
    assert command == f"umount --internal-only --namespace {pid} /tmp/m"
    vm.check(command)
    vm.check("test ! -e /tmp/pwned")
    vm.check(unload)
    assert "overlay" not in vm.check("lsmod")
    other.kill()
    other.wait()


COPIES = {
    # An umount of the original reaches a slave, as systemd makes it, and what is private not.
    "kmodd-test-slave": "PrivateTmp=yes",
    "kmodd-test-private": "PrivateTmp=yes\nMountFlags=private",
    "kmodd-test-folder": "ProtectSystem=strict\nReadWritePaths=/srv/merged/state",
}


def test_copies_of_a_mount_in_sandboxed_services(vm: Machine, client: Client) -> None:
    vm.check("modprobe overlay; mkdir -p /tmp/l /tmp/u /tmp/w /srv/merged")
    vm.check("mount -t overlay copied -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w /srv/merged")
    vm.check("mkdir -p /srv/merged/state")
    for unit, sandbox in COPIES.items():
        vm.write_file(f"/run/systemd/system/{unit}.service", f"[Service]\nExecStart=sleep infinity\n{sandbox}\n")
    vm.check(f"systemctl daemon-reload && systemctl start {' '.join(COPIES)}")
    soon(
        lambda: len(client.explain("overlay")["users"]) == 4,
        "the mount, one private copy, and two that hold each other",
    )
    explained = client.explain("overlay")
    commands = explained["free"]
    assert commands[0] == "umount /srv/merged"
    assert sorted(commands[1:-1]) == [
        "systemctl restart kmodd-test-private.service",
        "systemctl stop kmodd-test-folder.service",
    ]
    for command in commands:
        vm.check(command)
    assert "overlay" not in vm.check("lsmod")
    assert vm.check("systemctl is-active kmodd-test-slave kmodd-test-private").split() == ["active", "active"]
    vm.check(f"systemctl stop {' '.join(COPIES)}; rm -f /run/systemd/system/kmodd-test-*; systemctl daemon-reload")


ATTACK = r"""
mkdir -p /tmp/evil/l /tmp/evil/t /tmp/evil/m
mount -t tmpfs tmpfs /tmp/evil/t && mkdir /tmp/evil/t/u /tmp/evil/t/w
printf '#!/bin/sh\nid >>/tmp/pwned\n' >/tmp/evil/umount && chmod 755 /tmp/evil/umount
mount --bind /tmp/evil/umount /usr/bin/umount
mount -t overlay 'x, in the mount namespace of pid 1' \
    -o lowerdir=/tmp/evil/l,upperdir=/tmp/evil/t/u,workdir=/tmp/evil/t/w /tmp/evil/m && echo mounted
exec sleep 600
"""


def test_mount_namespace_of_a_user_is_ended_from_outside(vm: Machine, client: Client) -> None:
    """Its user has put a program of their own in the place of umount: root must not run it."""
    vm.check("modprobe overlay; rm -rf /tmp/evil /tmp/pwned")
    attacker = vm.start(["unshare", "-Urm", "sh", "-c", ATTACK], user="alice")
    attacker.wait_for_output("mounted")
    assert "pwned" in vm.check(["nsenter", "--mount", f"--target={_last(vm, 'sleep')}", "cat", "/usr/bin/umount"])
    explained = soon(lambda: client.explain("overlay"), "the mount is seen")
    assert triples(explained)[0][:2] == ("mount", "/tmp/evil/m")
    *commands, unload = explained["free"]
    assert [command.split()[0] for command in commands] == ["kill"]
    for command in commands:
        vm.check(command)
    soon(lambda: client.explain("overlay")["removable"], "nothing holds it")
    vm.check(unload)
    vm.check("test ! -e /tmp/pwned")
    attacker.wait()


def test_namespaces_full_of_mounts_cost_no_more_than_allowed(vm: Machine, client: Client, alice: Client) -> None:
    """Twenty namespaces with some thousand mounts each, by somebody without any rights."""
    fill = (
        "mount -t tmpfs t /mnt && d=$(printf 'x%.0s' $(seq 200)) && for n in $(seq 11); do mkdir -p /mnt/$d$n && "
        "mount --rbind /mnt /mnt/$d$n; done; wc -l </proc/self/mountinfo; echo full; exec sleep 600"
    )
    vm.check("modprobe overlay")
    daemon = vm.check("systemctl show kmodd -p MainPID --value").strip()
    others = [vm.start(["unshare", "-Urm", "sh", "-c", fill], user="alice") for _ in range(20)]
    for other in others:
        other.wait_for_output("full", 300)
    explained = alice.explain("overlay")
    assert explained["partial"], "it says that not everything was looked at"
    assert vm.check("systemctl show kmodd -p MainPID --value").strip() == daemon
    memory = int(vm.check("systemctl show kmodd -p MemoryCurrent --value"))
    assert memory < 128 << 20, f"{memory >> 20} MiB"
    for other in others:
        other.kill()
        other.wait()
    soon(lambda: not client.explain("overlay")["partial"], "all of it is looked at again", 60)
    client.unload("overlay")


def test_file_server_that_does_not_answer_blocks_no_search(vm: Machine, client: Client) -> None:
    # Where it is built in nothing is searched for it; the search for another one meets the server too.
    module = "fuse" if vm.run("modprobe fuse; lsmod | grep '^fuse '").code == 0 else "overlay"
    vm.check(f"modprobe {module}; mkdir -p /tmp/silent")
    vm.copy_in(Path(__file__).with_name("guest_fuse.py"), "/tmp")
    server = vm.start(["python3", "/tmp/guest_fuse.py", "/tmp/silent"])
    server.wait_for_output("open")
    explained = client.explain(module)
    users = [user[:2] for user in triples(explained)]
    assert ("mount", "/tmp/silent") in users if module == "fuse" else users == []
    assert explained["partial"] == ""
    vm.check("umount --force --lazy /tmp/silent")  # It ends what waits for the server, which cannot be killed before.
    server.kill()
    server.wait()


def test_daemon_has_no_capabilities(vm: Machine) -> None:
    status = vm.check("cat /proc/$(systemctl show kmodd -p MainPID --value)/status")
    held = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Cap")}
    assert set(held.values()) == {"0" * 16}, held


def _last(vm: Machine, name: str) -> str:
    return vm.check(["pgrep", "--exact", "--newest", name]).strip()


@explains("a loop device", "losetup --detach")
def test_loop_device(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("modprobe loop; truncate -s 4M /var/tmp/disk.img; losetup /dev/loop3 /var/tmp/disk.img; udevadm settle")
    holds(client, alice, "loop", ("loop", "/dev/loop3", "/var/tmp/disk.img"))
    vm.check("losetup --detach /dev/loop3")
    soon(lambda: client.explain("loop")["removable"], "nothing holds it")


@explains("a process with an open device", "kill")
def test_process_of_another_user(vm: Machine, client: Client, alice: Client, kmodctl: Kmodctl) -> None:
    vm.check(f"modprobe {T}chardev; udevadm settle; chmod 0666 /dev/{T}chardev")
    process = vm.start(f"exec 9</dev/{T}chardev; echo $$; exec sleep 600", user="bob")
    pid = process.wait_for_output("\n").strip()
    soon(
        lambda: (
            triples(client.explain(f"{T}chardev"))[:1] == [("process", "/usr/bin/sleep", f"pid {pid} /dev/{T}chardev")]
        ),
        "it",
    )
    holds(client, alice, f"{T}chardev", ("process", "/usr/bin/sleep", f"pid {pid} /dev/{T}chardev"), public=False)
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
    assert error.message == f"{T}chardev is in use by 20 processes"
    vm.run(f"fuser -k /dev/{T}chardev || pkill -x sleep")
    soon(lambda: client.explain(f"{T}chardev")["removable"], "nothing holds it")
    client.unload(f"{T}chardev")


def test_network_interfaces(vm: Machine, client: Client, alice: Client) -> None:
    vm.check("modprobe dummy numdummies=1")
    holds(client, alice, "dummy", ("netdev", "dummy0", "link kind dummy, state down"))
    vm.check("ip link add left type veth peer name right; ip link set left up; ip link set right up")
    soon(
        lambda: (
            sorted(triples(client.explain("veth")))
            == [("netdev", "left", "link kind veth, state up"), ("netdev", "right", "link kind veth, state up")]
        ),
        "both ends",
    )
    vm.check("ip link add bridge0 type bridge; ip link set left master bridge0; ip link set bridge0 up")
    users = soon(lambda: triples(client.explain("bridge")), "the bridge")
    assert ("netdev", "bridge0") in [user[:2] for user in users]
    vm.check("ip link delete bridge0; ip link delete left")
    assert soon(lambda: not client.explain("veth")["users"], "no interface")
    # The kernel takes the interface of a module without references away with it; one that is up is asked for.
    vm.check("ip link set dummy0 up")
    assert client.refused("Unload", "dummy", {}).name == "InUse"
    assert client.unload("dummy", disconnect=True) == ["dummy"]


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
    soon(lambda: client.explain(f"{T}dep_a")["because"].startswith("loaded by kmod (pid "), "it was seen")
    assert alice.explain(f"{T}dep_a")["because"] == "loaded by something other than kmodd"
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
    soon(lambda: [user[2] for user in triples(client.explain(f"{T}blockdev"))] == [f"pid {pid} /dev/{T}blk0"], "it")
    process.kill()
    process.wait()
    soon(lambda: not client.explain(f"{T}blockdev")["references"], "nothing holds it")
    # The file system on it would be gone: that holds no reference.
    assert client.explain(f"{T}blockdev")["disconnects"]
    client.unload(f"{T}blockdev", disconnect=True)


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
    assert alice.refused("Explain", "../etc", {}).name == "InvalidArgs"
    assert client.refused("Unload", "no_such_module", named({"dry-run": True})).name == "NoSuchModule"
