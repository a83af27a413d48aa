# SPDX-License-Identifier: LGPL-2.1-or-later
"""From what holds a module to the command that frees it."""

import shlex

import pytest

from kmodd.cli.advice import ROOT, Advice, to_remove
from kmodd.model import Explanation, State, User
from kmodd.names import ModuleName

UNLOAD = Advice("kmodctl unload m")


def held_by(*users: User) -> list[Advice]:
    """What is advised for a module with these users."""
    return to_remove(Explanation(ModuleName("m"), State.LIVE, len(users), users=users), {})


@pytest.mark.parametrize(
    ("kind", "name", "detail", "command"),
    [
        ("mount", "/mnt", "type vfat, source /dev/vdb", "umount /mnt"),
        (
            "mount",
            "/a b",
            "type vfat, source x, in the mount namespace of pid 77",
            "nsenter --mount --target 77 umount '/a b'",
        ),
        ("loop", "/dev/loop3", "/srv/x.img", "losetup --detach /dev/loop3"),
        ("loop", "loop3", "/srv/x.img", "losetup --detach /dev/loop3"),
        ("process", "/usr/bin/qemu", "pid 4312 /dev/kvm", "kill 4312"),
        ("netdev", "dummy0", "link kind dummy, state down", "ip link delete dummy0"),
        ("netdev", "eth0", "driver e1000, state up", "ip link set eth0 down"),
        ("block", "/dev/vdb1", "mounted at /srv", "umount /srv"),
        (
            "block",
            "/dev/vdb1",
            "mounted at /a b, in the mount namespace of pid 77",
            "nsenter --mount --target 77 umount '/a b'",
        ),
        ("block", "/dev/vdb2", "swap", "swapoff /dev/vdb2"),
        ("block", "/dev/vdb3", "part of /dev/dm-0", "lsblk /dev/vdb3"),
    ],
)
def test_what_holds_it_is_freed_first(kind: str, name: str, detail: str, command: str) -> None:
    first, last = held_by(User(kind, name, detail))
    assert first.command == command
    assert last == UNLOAD


def test_what_is_on_top_is_freed_before_what_it_stands_on() -> None:
    loop, block = User("loop", "/dev/loop0", "/srv/x.img"), User("block", "/dev/loop0", "mounted at /mnt")
    process = User("process", "/usr/bin/tail", "pid 7, /dev/loop0")
    assert [step.command for step in held_by(loop, block, process)] == [
        "umount /mnt",
        "kill 7",
        "losetup --detach /dev/loop0",
        UNLOAD.command,
    ]


def test_loop_devices_that_detach_themselves_are_left_to_do_so() -> None:
    loop = User("loop", "/dev/loop0", "/srv/x.img, detaches itself")
    assert held_by(loop, User("block", "/dev/loop0", "mounted at /mnt")) == [Advice("umount /mnt"), UNLOAD]


def test_names_chosen_by_others_cannot_become_commands() -> None:
    evil = "/mnt/$(reboot);x"
    for kind in ("mount", "loop", "netdev"):
        first, _ = held_by(User(kind, evil, ""))
        assert any(evil in word for word in shlex.split(first.command))
        assert "'/mnt/$(reboot);x'" in first.command or "'" in first.command


def test_what_is_shared_is_freed_once() -> None:
    user = User("mount", "/mnt", "type vfat, source x")
    assert held_by(user, user) == [Advice("umount /mnt"), UNLOAD]


@pytest.mark.parametrize(
    "user", [User("mount", "/", "type ext4, source x"), User("block", "/dev/vda1", "mounted at /")]
)
def test_the_root_file_system_cannot_go(user: User) -> None:
    assert held_by(User("mount", "/srv", ""), user) == [ROOT]


def test_the_kernel_cannot_be_told() -> None:
    (only,) = held_by(User("kernel", "kernel", "1 reference"))
    assert only.command == ""
    assert "the kernel itself uses m" in only.words


def test_a_driven_device_is_named_and_nothing_is_advised_about_it() -> None:
    first, last = held_by(User("device", "0000:00:03.0", "driver e1000, bus pci"))
    assert (first.command, last) == ("", UNLOAD)
    assert "0000:00:03.0" in first.words


@pytest.mark.parametrize("state", [State.BUILTIN, State.AVAILABLE, State.COMING, State.ABSENT])
def test_what_is_not_live_needs_nothing(state: State) -> None:
    assert to_remove(Explanation(ModuleName("m"), state, 0), {}) == []


def test_what_is_removable_needs_nothing() -> None:
    assert to_remove(Explanation(ModuleName("m"), State.LIVE, 0, removable=True), {}) == []


def test_holders_are_freed_before_what_they_hold_even_in_a_circle() -> None:
    a, b = ModuleName("a"), ModuleName("b")
    mine = Explanation(ModuleName("m"), State.LIVE, 1, holders=(a,), users=(User("mount", "/m", ""),))
    others = {
        "a": Explanation(a, State.LIVE, 1, holders=(b,), users=(User("mount", "/a", ""),)),
        "b": Explanation(b, State.LIVE, 1, holders=(a,), users=(User("mount", "/b", ""),)),
    }
    commands = [step.command for step in to_remove(mine, others)]
    assert commands == ["umount /b", "umount /a", "umount /m", "kmodctl unload m --dependents"]
