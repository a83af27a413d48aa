# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which modules an open device holds, where sysfs has no driver beside it; sockets bound to a part of netfilter; modes of teams."""

from pathlib import Path

import pytest

from kmodd.kernel.users import process as usage_process
from kmodd.kernel.users.devices import DeviceOwners, is_linear, target_module
from kmodd.kernel.users.extensions import further_aliases, referred_sets
from kmodd.kernel.users.inspector_client import _settled
from kmodd.kernel.users.netfilter import Expression, Firewall, IpSet, Rule
from kmodd.kernel.users.process import Inode, SocketModules, SocketUse
from kmodd.model import Remedy, User
from tests.kernel.usage_root import ALIASES, FakeRoot


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path)


def owners(root: FakeRoot, kind: str, number: tuple[int, int], *loaded: str) -> set[str]:
    return set(DeviceOwners(root.path, lambda _: (), loaded).modules(kind, *number))


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "module"),
    [("input/event0", "evdev"), ("input/mouse1", "mousedev"), ("input/mice", "mousedev"), ("input/js0", "joydev")],
)
def test_an_input_device_holds_what_hands_its_events_out(root: FakeRoot, node: str, module: str) -> None:
    root.put("sys/dev/char/13:64/uevent", f"DEVNAME={node}\n")
    root.link("sys/dev/char/13:64/subsystem", "/sys/class/input")
    root.link("sys/dev/char/13:64/device/device/driver/module", "/sys/module/psmouse")
    assert owners(root, "char", (13, 64), "evdev", "mousedev", "joydev", "psmouse") == {module}


def test_a_sound_device_holds_the_driver_of_its_card(root: FakeRoot) -> None:
    root.link("sys/dev/char/116:3/subsystem", "/sys/class/sound")
    root.link("sys/dev/char/116:3/device/device/driver/module", "/sys/module/snd_hda_intel")
    assert owners(root, "char", (116, 3), "snd_hda_intel", "snd_usb_audio") == {"snd_hda_intel"}


def test_a_disk_of_nvme_holds_the_driver_of_its_controller(root: FakeRoot) -> None:
    root.link("sys/dev/block/259:0/device/device/driver/module", "/sys/module/nvme")
    assert owners(root, "block", (259, 0), "nvme", "nvme_core") == {"nvme"}


@pytest.mark.parametrize(
    ("registered", "module"), [("cpu/msr", "msr"), ("hidraw", "hid"), ("ipmidev", "ipmi_devintf"), ("sg", "sg")]
)
def test_a_driver_by_the_name_that_it_registered(root: FakeRoot, registered: str, module: str) -> None:
    root.put("proc/devices", f"Character devices:\n202 {registered}\n")
    assert owners(root, "char", (202, 0), "msr", "hid", "ipmi_devintf", "sg") == {module}


def test_terminals_that_share_a_major_number_are_told_apart(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n  5 ttyprintk\n")
    root.put(
        "proc/tty/drivers",
        "/dev/tty             /dev/tty        5       0 system:/dev/tty\n"
        "/dev/ptmx            /dev/ptmx       5       2 system\n"
        "ttyprintk            /dev/ttyprintk   5       3 console\n"
        "usbserial            /dev/ttyUSB   188 0-511 serial\n",
    )
    assert owners(root, "char", (5, 3), "ttyprintk") == {"ttyprintk"}
    assert owners(root, "char", (5, 2), "ttyprintk") == set()
    assert owners(root, "char", (188, 7), "usbserial") == {"usbserial"}


# --- sockets bound to a part of netfilter -----------------------------------------------------------------------------

NETLINK = """\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000000000000 12  4242       00000000 0        0        0     2        0        777
0000000000000000 12  4243       00000000 0        0        0     2        0        778
0000000000000000 0   4242       00000000 0        0        0     2        0        779
"""


@pytest.mark.parametrize("module", ["nfnetlink_queue", "nfnetlink_log"])
def test_a_socket_bound_to_a_queue_or_a_group_holds_its_module(tmp_path: Path, module: str) -> None:
    root = FakeRoot(tmp_path)
    root.put("proc/net/netlink", NETLINK)
    root.put(f"proc/net/netfilter/{module}", "    7   4242     0 2 65531     0     0        0  1\n")
    sockets = SocketModules(tmp_path, {module: 1})
    assert sockets.uses("/nothing", "socket:[777]") == [SocketUse("NETLINK", frozenset({module}))]
    assert sockets.uses("/nothing", "socket:[778]") == []
    assert sockets.uses("/nothing", "socket:[779]") == []


# --- what extensions of x_tables take ---------------------------------------------------------------------------------


def test_extensions_take_loggers_helpers_and_sets() -> None:
    assert further_aliases("LOG", 2, b"") == ("nf-logger-2-0",)
    assert further_aliases("NFLOG", 1, b"") == ("nf-logger-2-1", "nf-logger-10-1")
    helper = bytes(12) + b"ftp".ljust(16, b"\0")
    assert further_aliases("CT", 2, helper) == ("nfct-helper-ftp",)
    assert further_aliases("CT", 2, bytes(28)) == further_aliases("CT", 2, helper[:20]) == ()
    assert further_aliases("conntrack", 2, helper) == ()
    assert referred_sets("set", (3).to_bytes(2, "little") + bytes(6)) == (3,)
    assert referred_sets("SET", b"\x03\0\1\0\xff\xff\0\0\4\0\0\0") == (3, 4)
    assert referred_sets("set", b"\1") == referred_sets("owner", bytes(8)) == ()


def test_a_rule_goes_before_the_set_that_it_refers_to(root: FakeRoot) -> None:
    root.put("proc/modules", "ip_set 1 1 - Live 0x0\nnf_tables 1 1 - Live 0x0\n")
    match = Expression("match", extension="set", data=(3).to_bytes(2, "little") + bytes(6))
    root.firewall = Firewall(rules=[Rule(2, "filter", "INPUT", 9, (match,))])
    rule = (Remedy.DELETE_RULE, ("ip", "filter", "INPUT", "handle", "9"))
    for references in (0, 1):
        root.sets = (IpSet("hosts", "hash:ip", 3, references), IpSet("all", "list:set", 4))
        found = [(user.remedy, user.words) for user in root.found("ip_set_hash_ip")]
        assert found == [rule, (Remedy.DESTROY_SET, ("hosts",))]
    # One more, which a rule of iptables-legacy may be, seen by another process; without one, to destroy the set would fail.
    root.sets = (IpSet("hosts", "hash:ip", 3, 2),)
    seen = [(("ip_set_hash_ip",), user) for user in root.found("ip_set_hash_ip")]
    assert [user.references for _, user in seen if user.kind == "set"] == [1]
    assert [(user.remedy, user.words) for _, user in _settled(seen)] == [rule, (Remedy.NONE, ())]
    legacy = User("rule", "filter INPUT 1", "", remedy=Remedy.DELETE_LEGACY_RULE, words=("iptables-legacy",), sets=(3,))
    settled = [user for _, user in _settled([*seen, (("ip_set_hash_ip",), legacy)])]
    assert settled == [seen[0][1], legacy, seen[1][1], legacy]


# --- teams ------------------------------------------------------------------------------------------------------------


def test_the_mode_of_a_team(root: FakeRoot) -> None:
    root.put("sys/class/net/team0/operstate", "up\n")
    root.kinds = {"team0": "team"}
    (user,) = root.found("team_mode_roundrobin")
    assert (user.kind, user.name, user.remedy, user.target) == ("netdev", "team0", Remedy.DELETE_LINK, "team0")
    root.put("sys/class/net/team1/operstate", "up\n")
    root.kinds = {"team0": "team", "team1": "team"}
    assert {user.remedy for user in root.found("team_mode_roundrobin")} == {Remedy.NONE}


# --- mappings by what made them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uuid", "below", "module"),
    [
        ("CRYPT-LUKS2-1-home", ("", ""), "dm_crypt"),
        ("CRYPT-VERITY-1-root", ("", ""), "dm_verity"),
        ("mpath-1", ("", ""), "dm_multipath"),
        ("LVM-ab", ("vg-lv-cow", "LVM-ab-cow"), "dm_snapshot"),
        ("LVM-ab", ("vg-pool-tpool", "LVM-ab-tpool"), "dm_thin_pool"),
        ("LVM-ab-tpool", ("vg-pool_tmeta", "LVM-ab-tmeta"), "dm_thin_pool"),
        ("LVM-ab", ("vg-lv_rimage_0", "LVM-cd"), "dm_raid"),
        ("LVM-ab", ("vda1", ""), ""),
        ("", ("vg-lv-cow", "LVM-ab-cow"), ""),
    ],
)
def test_target_of_a_mapping(root: FakeRoot, uuid: str, below: tuple[str, str], module: str) -> None:
    root.put("sys/block/dm-1/dm/uuid", f"{uuid}\n")
    root.put("sys/block/dm-1/slaves/dm-0/dm/name", f"{below[0]}\n")
    root.put("sys/block/dm-1/slaves/dm-0/dm/uuid", f"{below[1]}\n")
    assert target_module(root.path / "sys/block/dm-1") == module


def test_origin_of_a_cache_is_no_snapshot(root: FakeRoot) -> None:
    root.put("sys/block/dm-4/dm/uuid", "LVM-ab\n")
    for number, part in enumerate(("real", "cdata", "cmeta")):
        root.put(f"sys/block/dm-4/slaves/dm-{number}/dm/uuid", f"LVM-ab-{part}\n")
    assert target_module(root.path / "sys/block/dm-4") == "dm_cache"


def test_volume_of_a_kind_that_is_not_known_is_not_taken_for_linear(root: FakeRoot) -> None:
    root.put("sys/block/dm-1/dm/uuid", "LVM-ab\n")
    assert is_linear(root.path / "sys/block/dm-1")
    root.put("sys/block/dm-1/slaves/dm-0/dm/uuid", "LVM-ab-vpool\n")
    assert not is_linear(root.path / "sys/block/dm-1")


def test_mappings_of_lvm_are_no_candidates_for_a_target(root: FakeRoot) -> None:
    root.put("proc/devices", "Block devices:\n253 device-mapper\n")
    for number, name in enumerate(("vg-root", "vg-swap", "zeros")):
        root.put(f"sys/block/dm-{number}/dev", f"253:{number}\n")
        root.put(f"sys/block/dm-{number}/dm/name", f"{name}\n")
        root.put(f"sys/block/dm-{number}/dm/uuid", "\n" if name == "zeros" else f"LVM-{number}\n")
    assert [(user.target, user.remedy) for user in root.found("dm_zero")] == [("zeros", Remedy.REMOVE_MAPPING)]


# --- line disciplines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exe", "remedy"),
    [
        *(("/usr/sbin/ldattach", Remedy.KILL), ("/usr/bin/minicom", None), ("/usr/sbin/agetty", None)),
        ("/usr/sbin/pppd", None),  # which gives other ones
    ],
)
def test_a_terminal_with_a_line_discipline(
    root: FakeRoot, monkeypatch: pytest.MonkeyPatch, exe: str, remedy: Remedy | None
) -> None:
    """Of most programs that have a terminal open, it is not known whether its discipline is another than that of terminals."""
    monkeypatch.setitem(ALIASES, "tty-ldisc-18", ("pps_ldisc",))
    monkeypatch.setattr(
        usage_process, "inode", lambda link: Inode("char", (4, 65), (0, 5)) if "fd" in str(link) else None
    )
    root.put("proc/tty/drivers", "serial               /dev/ttyS       4 64-95 serial\n")
    root.process(1, "/sbin/init")
    root.process(7, exe, ("/dev/ttyS1",))
    assert [user.remedy for user in root.found("pps_ldisc")] == ([] if remedy is None else [remedy])
