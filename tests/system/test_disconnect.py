# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes with a module that holds no reference: the kernel takes it, kmodd asks first."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.system.client import BusError, Client, Kmodctl, soon
from tests.vm import snapshot
from tests.vm.qemu import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

LIVE = "Something that goes with it is in use: end that use first, or unload it with --disconnect."


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    """A machine with a network card, over which its default route leads."""
    with snapshot.start_with_kmodd(Options(network=True)) as machine:
        yield machine


@pytest.fixture(scope="module")
def alice(vm: Machine) -> Iterator[Client]:
    """A client without any rights."""
    made = Client(vm, user="alice")
    yield made
    made.process.end()


def refused(client: Client, module: str, **options: bool) -> str:
    """The message of the refusal, by which nothing was unloaded."""
    with pytest.raises(BusError) as found:
        client.unload(module, **options)
    assert found.value.name == "InUse"
    return found.value.message


def is_loaded(vm: Machine, module: str) -> bool:
    return vm.run(f"grep -q '^{module} ' /proc/modules").code == 0


@contextmanager
def namespace(vm: Machine, name: str) -> Iterator[None]:
    vm.check(f"ip netns add {name}")
    try:
        yield
    finally:
        vm.check(f"ip netns delete {name}")


def test_interface_in_another_network_namespace(vm: Machine, client: Client, alice: Client, kmodctl: Kmodctl) -> None:
    with namespace(vm, "blue"):
        vm.check("modprobe dummy numdummies=0; ip netns exec blue ip link add d0 type dummy")
        sentence = "Network interface d0 in network namespace blue goes with it."
        explained = client.explain("dummy")
        assert (explained["references"], explained["users"]) == (0, [])
        assert explained["consequences"] == [sentence]
        assert (explained["removable"], explained["disconnects"], explained["blockers"]) == (False, True, [LIVE])
        assert explained["free"] == ["kmodctl unload dummy --disconnect"]
        assert refused(client, "dummy") == "unloading dummy takes away network interface d0 in network namespace blue"
        (step,) = client.plan(("unload", "dummy", {}))
        assert (step["error"], step["consequences"]) == ("InUse", [sentence])
        # Others learn that there is one, and not its name.
        hidden = "1 network interface of other network namespaces"
        seen = alice.explain("dummy")
        assert seen["consequences"] == [f"{hidden} goes with it."]
        assert (seen["removable"], seen["withheld"]) == (False, ["consequences", "loaded-by"])
        assert "d0" not in repr(alice.plan(("unload", "dummy", {})))
        assert refused(alice, "dummy") == f"unloading dummy takes away {hidden}"
        shown = kmodctl("why", "dummy").out
        assert "Can be removed: no" in shown
        assert "d0 in network namespace blue" in shown
        failed = kmodctl("unload", "dummy")
        assert failed.code == 5
        assert "d0 in network namespace blue" in failed.err
        assert "kmodctl unload dummy --disconnect" in failed.err
        assert vm.check("ip netns exec blue ip -o link show d0")
        assert kmodctl("unload", "dummy", "--disconnect").code == 0
        assert vm.run("ip netns exec blue ip link show d0").code != 0
    assert not is_loaded(vm, "dummy")


def test_interface_in_the_namespace_of_a_process(vm: Machine, client: Client) -> None:
    process = vm.start(["unshare", "--net", "sh", "-c", "ip link add d1 type dummy && echo made && exec sleep 600"])
    process.wait_for_output("made")
    pid = vm.check("pgrep --exact --newest sleep").strip()
    assert (
        refused(client, "dummy")
        == f"unloading dummy takes away network interface d1 in the network namespace of pid {pid}"
    )
    process.kill()
    process.wait()
    soon(lambda: client.explain("dummy")["removable"], "the namespace is gone")
    assert client.unload("dummy") == ["dummy"]


def test_a_tunnel_that_is_up(vm: Machine, client: Client) -> None:
    vm.check("ip link add wg9 type wireguard; ip addr add 10.9.0.1/24 dev wg9; ip link set wg9 up")
    message = "unloading wireguard takes away network interface wg9, which is up and has 10.9.0.1/24"
    assert refused(client, "wireguard") == message
    assert refused(client, "wireguard", unused_dependencies=True) == message
    with pytest.raises(BusError, match="wg9"):
        client.reload("wireguard")
    with pytest.raises(BusError, match="wg9"):
        client.batch(("unload", "wireguard", {}))
    vm.check("ip link set wg9 down; ip addr flush dev wg9")
    (step,) = client.plan(("unload", "wireguard", {}))
    assert step["consequences"] == ["Network interface wg9 goes with it: it is down and has no address."]
    assert client.unload("wireguard") == ["wireguard"]
    assert vm.run("ip link show wg9").code != 0


def test_a_bridge_with_a_port(vm: Machine, client: Client) -> None:
    vm.check(
        "modprobe dummy numdummies=0; ip link add d2 type dummy; ip link add br2 type bridge; ip link set d2 master br2"
    )
    assert "br2, which is down and has the port d2" in refused(client, "bridge")
    assert "d2, which is down and carries br2" in refused(client, "dummy")
    vm.check("ip link set d2 nomaster")
    assert client.unload("dummy") == ["dummy"]
    assert client.unload("bridge") == ["bridge"]


def test_interfaces_that_the_kernel_makes_in_every_namespace_have_no_owner(vm: Machine, client: Client) -> None:
    with namespace(vm, "green"):
        vm.check("modprobe ipip; ip netns exec green ip link show tunl0")
        assert "tunl0 in network namespace green" in " ".join(client.explain("ipip")["consequences"])
        assert client.unload("ipip") == ["ipip"]


def test_the_network_card_with_the_default_route(vm: Machine, client: Client, kmodctl: Kmodctl) -> None:
    """Looked at and never done."""
    soon(lambda: "inet " in vm.check("ip -4 addr show dev eth0"), "an address", 120)
    # The guest's network has no way out, and so names no router.
    vm.check("ip route replace default dev eth0")
    address = vm.check("ip -o -4 addr show dev eth0 | tr -s ' ' | cut -d' ' -f4").strip()
    (step,) = client.plan(("unload", "virtio_net", {}))
    (sentence,) = step["consequences"]
    assert sentence.startswith("Network interface eth0 goes with it: it is up and has ")
    assert address in sentence
    assert "carries the default route" in sentence
    assert (step["error"], step["interfaces"]) == ("InUse", ["eth0"])
    assert address in step["addresses"]
    with pytest.raises(BusError, match="carries the default route"):
        client.unload("virtio_net", dry_run=True)
    assert client.unload("virtio_net", dry_run=True, disconnect=True)[0] == "virtio_net"
    assert kmodctl("unload", "virtio_net", "--dry-run").code == 5
    # The driver of the bus takes the card and the disk along, whoever drives them.
    gone = " ".join(client.explain("virtio_pci")["consequences"])
    assert "eth0" in gone
    assert "Disk /dev/vda goes with it: it is mounted at /" in gone


def test_a_disk_that_is_not_empty(vm: Machine, client: Client) -> None:
    vm.check("modprobe scsi_debug dev_size_mb=8 && udevadm settle", timeout=120)
    disk = "/dev/" + vm.check("ls /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block").strip()
    soon(lambda: client.explain("scsi_debug")["references"] == 0, "udev has let go")
    assert client.explain("scsi_debug")["consequences"] == [f"Disk {disk} goes with it: it is not in use."]
    vm.check(f"mkfs.ext4 -q {disk} && udevadm trigger --settle {disk}", timeout=120)
    soon(lambda: client.explain("scsi_debug")["references"] == 0, "udev has let go")
    assert refused(client, "scsi_debug") == f"unloading scsi_debug takes away disk {disk}, which holds ext4"
    vm.check(f"mount {disk} /mnt && udevadm settle")
    explained = client.explain("scsi_debug")
    assert explained["consequences"] == [f"Disk {disk} goes with it: it is mounted at /mnt."]
    assert not explained["removable"]
    refused(client, "scsi_debug", disconnect=True)  # a reference is never forced
    vm.check("umount /mnt && udevadm settle")
    soon(lambda: client.explain("scsi_debug")["references"] == 0, "udev has let go")
    assert client.unload("scsi_debug", disconnect=True)[0] == "scsi_debug"


def test_a_disk_in_memory(vm: Machine, client: Client) -> None:
    vm.check("modprobe brd rd_nr=1 rd_size=1024 && udevadm settle")
    soon(lambda: client.explain("brd")["references"] == 0, "udev has let go")
    assert client.explain("brd")["removable"]
    vm.check("echo data | dd of=/dev/ram0 conv=fsync 2>/dev/null; udevadm settle")
    soon(lambda: client.explain("brd")["references"] == 0, "udev has let go")
    assert refused(client, "brd") == "unloading brd takes away disk /dev/ram0, which holds data in memory"
    assert client.unload("brd", disconnect=True) == ["brd"]


def test_buttons(vm: Machine, client: Client) -> None:
    """Looked at and never done: what is bound to an ACPI driver, with the keys that it has."""
    if not is_loaded(vm, "button"):
        vm.check("modprobe button")
    (sentence, *_) = client.explain("button")["consequences"]
    assert sentence.startswith("Input device input")
    assert not client.explain("button")["removable"]


def test_a_watchdog_that_was_not_started(vm: Machine, client: Client) -> None:
    vm.check("modprobe softdog")
    assert client.unload("softdog") == ["softdog"]


def test_the_wanted_state_cuts_nothing_by_itself(vm: Machine, client: Client, kmodctl: Kmodctl) -> None:
    vm.check("mkdir -p /etc/kmodd/modules.d; ip link add wg7 type wireguard; ip link set wg7 up")
    vm.write_file("/etc/kmodd/modules.d/off.toml", '[module.wireguard]\nstate = "absent"\n')
    vm.check("systemctl reload kmodd")
    failed = kmodctl("config", "apply")
    assert failed.code == 5
    assert vm.check("ip -o link show wg7")
    assert kmodctl("config", "apply", "--dry-run").code == 5
    assert kmodctl("config", "apply", "--disconnect").code == 0
    assert not is_loaded(vm, "wireguard")
    vm.check("rm /etc/kmodd/modules.d/off.toml; systemctl reload kmodd")


def test_without_its_right_nothing_is_taken_for_nothing(vm: Machine, client: Client) -> None:
    """The inspector's CAP_NET_ADMIN: without it interfaces of other namespaces are not known, and so not given up."""
    with namespace(vm, "red"):
        vm.check("modprobe dummy numdummies=0")
        assert client.explain("dummy")["removable"]
        folder = "/run/systemd/system/kmodd-inspector@.service.d"
        rights = "CAP_SYS_PTRACE CAP_DAC_READ_SEARCH"
        vm.write_file(
            f"{folder}/less.conf",
            f"[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet={rights}\nAmbientCapabilities=\nAmbientCapabilities={rights}\n",
        )
        vm.check("systemctl daemon-reload; systemctl stop 'kmodd-inspector@*'")
        message = refused(client, "dummy")
        assert message == (
            "unloading dummy takes away items that cannot be examined (the interfaces of 1 network namespace cannot be listed)"
        )
        vm.check(f"rm -r {folder}; systemctl daemon-reload; systemctl stop 'kmodd-inspector@*'")
        assert client.unload("dummy") == ["dummy"]


def test_nothing_went_wrong(vm: Machine) -> None:
    journal = vm.journal("-u", "kmodd*")
    assert "Traceback" not in journal
    assert 'apparmor="DENIED"' not in vm.kernel_log()
