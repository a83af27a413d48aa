# SPDX-License-Identifier: LGPL-2.1-or-later
"""Advice is code: what is printed is run by root, beside text that somebody else chose."""

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd.core.diagnosis.advice import SETTLE, advised, command, free
from kmodd.model import Remedy, User

ROOT = Path(__file__).resolve().parents[2]
LEGACY = {Remedy.DELETE_LEGACY_RULE, Remedy.FLUSH_LEGACY_TABLE, Remedy.DELETE_LEGACY_CHAIN}
PROGRAMS = {
    "umount": {Remedy.UNMOUNT, Remedy.UNMOUNT_TREE},
    "swapoff": {Remedy.SWAP_OFF},
    "losetup": {Remedy.DETACH_LOOP},
    "ip": {Remedy.DELETE_LINK, Remedy.SET_LINK_DOWN, Remedy.DELETE_STATE},
    "dmsetup": {Remedy.REMOVE_MAPPING},
    "mdadm": {Remedy.STOP_ARRAY},
    "nbd-client": {Remedy.DISCONNECT_DISK},
    "zramctl": {Remedy.RESET_DISK},
    "kill": {Remedy.KILL},
    "systemctl": {Remedy.STOP_UNIT, Remedy.RESTART_UNIT},
    "machinectl": {Remedy.TERMINATE_MACHINE},
    "podman": {Remedy.STOP_PODMAN},
    "docker": {Remedy.STOP_DOCKER},
    "crun": {Remedy.DELETE_CRUN},
    "runc": {Remedy.DELETE_RUNC},
    "sysctl": {Remedy.SET_SYSCTL},
    "tc": {Remedy.DELETE_FILTER, Remedy.DELETE_QDISC, Remedy.REPLACE_QDISC, Remedy.DELETE_ACTION},
    "nft": {
        *(Remedy.DELETE_RULE, Remedy.DELETE_SET, Remedy.DELETE_OBJECT, Remedy.DELETE_FLOWTABLE),
        *(Remedy.DELETE_CHAIN, Remedy.DELETE_TABLE),
    },
    "ipset": {Remedy.DESTROY_SET},
    "unlink": {Remedy.UNLINK},
    "rmdir": {Remedy.REMOVE_FOLDER},
    "ipvsadm": {Remedy.DELETE_SERVICE},
    "iptables-legacy": LEGACY,
    "ip6tables-legacy": LEGACY,
    "arptables-legacy": LEGACY,
    "ebtables-legacy": LEGACY,
    "exportfs": {Remedy.UNEXPORT},
    "iscsiadm": {Remedy.LOG_OUT},
    "sh": {Remedy.STOP_WATCHDOG, Remedy.WRITE_SETTING, Remedy.STOP_CACHE},
    "udevadm": set(Remedy),
    "kmodctl": set(Remedy),
}
OPTIONS = {
    "--internal-only",
    "--namespace",
    "--detach",
    "--stop",
    "--dependents",
    "--disconnect",
    "--recursive",
    "--reset",
    "--force",
}
WRITTEN = {
    r"/dev/watchdog[0-9]+": ("V",),
    r"/sys/block/[^/.]+/queue/scheduler": ("none",),
    r"/sys/devices/system/cpu/cpufreq/policy[0-9]+/scaling_governor": ("schedutil", "performance"),
    r"/sys/kernel/livepatch/[^/.]+/enabled": ("0",),
    r"/proc/sys/fs/binfmt_misc/[^/]+": ("-1",),
    r"/proc/fs/nfsd/threads": ("0",),
    r"/sys/(block/bcache[0-9]+/bcache|fs/bcache/[0-9a-f-]+)/stop": ("1",),
}
"""Files that commands write into, and what they write."""
HOSTILE = (
    "/mnt/$(touch pwned)",
    "/mnt/`id`",
    "/mnt/a b;reboot",
    "/mnt/'; reboot #",
    '/mnt/"$HOME"',
    "/mnt/\n/usr/bin/umount /",
    "/mnt/\x1b[2K\rumount /boot",
    "/mnt/\u202egpj.x",
    "/m\\040x",
    "/mnt/*",
    "/mnt/~root",
    "-rf",
    "--all",
    "-- x",
    "x, in the mount namespace of pid 4242",
    "/",
    "",
    "a.service b.service",
    "../../x",
    "eth0 up",
    "\udcff/x",
    "c; flush ruleset",
    "c\nflush ruleset",
    "t { } ; list ruleset",
    "net.core.default_qdisc=x kernel.core_pattern=|/tmp/x",
    "/sys/kernel/config/../../../etc",
    "/sys/kernel/config/nullb/./x",
    "/sys/kernel/configx/a",
    "lo root",
)
PLAIN = (
    "/dev/watchdog0",
    "lo",
    "root",
    "parent",
    "1:10",
    "inet",
    "t",
    "c",
    "handle",
    "7",
    "gact",
    "net.core.default_qdisc=pfifo_fast",
)
LISTS = (
    ("/sys/block/vda/queue/scheduler", "none"),
    ("/proc/sys/fs/binfmt_misc/python 3.11", "-1"),
    ("/sys/fs/bcache/6a2cd2cd-c9ae-4fd1-9cd9-9d8f2a0f2b0c/stop",),
    ("iptables-legacy", "filter", "INPUT", "3"),
    ("iptables-legacy", "filter"),
    ("iptables-legacy", "filter", "mine"),
    ("--tcp-service", "10.0.0.1:80"),
    ("ebtables-legacy", "filter", "FORWARD", "2"),
    ("*.example", "/srv/share"),
    ("iqn.2026-01.example:disk", "[fd00::1]:3260"),
    ("src", "10.0.0.1", "dst", "10.0.0.2", "proto", "esp", "spi", "0x00000100"),
    ("src", "fd00::1", "dst", "fd00::2", "proto", "ah", "spi", "0x00000100", "mark", "0x1", "mask", "0xff"),
)
"""What commands with several words are about; each word is also taken for another."""
ITEM = re.compile(r"/sys/kernel/config/[^/].*")
text = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=40), st.text(alphabet=" -'\"\\$`;&|<>*?~#!()\n\r\t/a=", max_size=20)
)
users = st.builds(
    User,
    kind=st.sampled_from(
        ["mount", "block", "netdev", "process", "device", "loop", "qdisc", "rule", "configfs", "module", "kernel"]
    ),
    name=text,
    detail=text,
    pid=st.one_of(st.none(), st.integers(0, 1 << 22)),
    exe=text,
    owner=st.one_of(st.none(), st.integers(0, 1 << 16)),
    remedy=st.sampled_from(Remedy),
    target=st.one_of(text, text.map(lambda name: f"/dev/{name}"), text.map(lambda name: f"/{name}")),
    words=st.one_of(
        st.lists(
            st.one_of(
                st.sampled_from(PLAIN),
                st.sampled_from(PLAIN),
                text,
                text.map(lambda name: f"/sys/kernel/config/{name}"),
                text.map(lambda name: f"/proc/sys/fs/binfmt_misc/{name}"),
            ),
            max_size=6,
        ).map(tuple),
        st.tuples(st.sampled_from(LISTS), st.integers(0, 12), text).map(
            lambda each: (*each[0][: each[1]], each[2], *each[0][each[1] + 1 :])
        ),
        st.sampled_from(LISTS),
    ),
    pids=st.lists(st.integers(0, 1 << 22), max_size=4).map(tuple),
)


def check(line: str, user: User | None) -> None:
    """The command names a program of the machine, and what a stranger chose is one word of it."""
    words = shlex.split(line)
    assert words[0] in PROGRAMS
    assert user is None or user.remedy in PROGRAMS[words[0]]
    assert line.isprintable()
    assert shlex.join(words) == line, "nothing but quoted words: no operator, no expansion"
    if words[0] == "sh":
        path = words.pop()
        values = next(values for pattern, values in WRITTEN.items() if re.fullmatch(pattern, path))
        assert words in [["sh", "-c", f'echo {value} >"$1"', "sh"] for value in values]
        assert user is None or user.words[0] == path
        assert os.path.normpath(path) == path
        assert not path.endswith(("/register", "/status"))
        return
    if words[0] == "exportfs":
        assert words[1] == "-u"
        assert re.fullmatch(r"[^-:][^:]*:/.*", words[2])
        assert user is None or words[2:] == [":".join(user.words)]
        return
    if words[0] == "iscsiadm":
        assert words[1:4:2] == ["--mode", "--targetname"]
        assert words[5:] == ["--portal", words[6], "--logout"]
        assert user is None or (words[4], words[6]) == user.words
        assert not [word for word in (words[4], words[6]) if word.startswith("-")]
        return
    if words[0].endswith("tables-legacy") or words[0] == "ipvsadm" or words[1] == "xfrm":
        check_network_words(words, user)
        return
    if words[0] in {"sysctl", "tc", "nft", "ipset", "unlink", "rmdir"}:
        check_words(words, user)
        return
    chosen = [word for word in words[1:] if user is not None and word == user.target]
    assert len(chosen) <= 1
    assert not [word for word in words[1:] if word.startswith("-") and word not in OPTIONS]
    if user is not None and user.target and user.remedy is not Remedy.KILL:
        assert chosen == [user.target], "the very thing that is meant, and nothing near it"
    if "--namespace" in words:
        assert words[1:3] == ["--internal-only", "--namespace"], "no program of the namespace is run as a helper"
        assert user is None or words[3] == str(user.pid)


def check_words(words: list[str], user: User | None) -> None:
    """A command about several words: these very words at its end, and none that its program would read as more than one."""
    if user is not None:
        assert words[-len(user.words) :] == list(user.words)
        assert len(words) - len(user.words) == {"nft": 3, "tc": 4, "ipset": 2}.get(words[0], 1) - (
            user.remedy is Remedy.DELETE_OBJECT
        )
    if words[0] == "nft":
        assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", word) for word in words), "nft parses them as a script"
    if words[0] == "sysctl":
        assert len(words) == 2
        assert words[1].startswith("net.")
    if words[0] in {"unlink", "rmdir"}:
        assert ITEM.fullmatch(words[1])
        assert os.path.normpath(words[1]) == words[1].rstrip("/"), "nothing leads out of configfs"
    assert not [word for word in words[1:] if word.startswith("-")]


def check_network_words(words: list[str], user: User | None) -> None:
    """Of a service, a state or a rule with a number: the options are kmodd's, and nothing else can be taken for one."""
    if words[0] == "ip":
        assert words[1:4] == ["xfrm", "state", "delete"]
        assert user is None or words[4:] == list(user.words)
        assert not [word for word in words if word.startswith("-")]
    elif words[0] == "ipvsadm":
        assert words[1] == "--delete-service"
        assert user is None or words[2:] == list(user.words)
        assert re.fullmatch(r"--(tcp|udp|sctp|fwmark)-service", words[2])
        assert len(words) == 4
        assert not words[3].startswith("-")
    else:
        assert (words[1], words[3], len(words)) in [("-t", "-D", 6), ("-t", "-F", 4), ("-t", "-X", 5)]
        assert user is None or (words[0], words[2], *words[4:]) == user.words
        assert not [word for word in (words[2], *words[4:]) if word.startswith(("-", "!"))]


@given(users)
@settings(max_examples=1500)
@example(User("mount", "x", "source x, in the mount namespace of pid 4242", remedy=Remedy.UNMOUNT, target="/m"))
def test_a_command_is_fixed_but_for_one_quoted_word(user: User) -> None:
    line = command(user)
    if line:
        check(line, user)


@given(st.lists(users, max_size=5), st.booleans())
@settings(max_examples=300)
def test_commands_in_order_are_those_of_the_users_and_the_unloading(given_users: list[User], dependents: bool) -> None:
    known = advised(given_users)
    lines = free("m", known, dependents=dependents)
    if lines:
        assert {line for line in lines[:-1] if line != SETTLE} == {
            u.command for u in known if u.kind != "module" and u.remedy is not Remedy.NOT_NEEDED
        }
        assert lines[-1] == f"kmodctl unload m{' --dependents' if dependents else ''}"
        for line in lines:
            check(line, None)
    else:
        assert any(not user.command for user in known)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs that write down how they were called, and an empty folder to be in."""
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "bin").mkdir()
    (folder / "cwd").mkdir()
    recorder = folder / "recorder"
    recorder.write_text('#!/bin/sh\nfor word in "${0##*/}" "$@"; do printf "%s\\0" "$word"; done >>"$RECORD"\n')
    recorder.chmod(0o755)
    for program in PROGRAMS:
        (folder / "bin" / program).symlink_to(recorder)
    return folder


@given(users)
@settings(max_examples=150, deadline=None)
def test_a_shell_runs_it_as_it_reads(sandbox: Path, user: User) -> None:
    line = command(user)
    # Built into the shell: numbers alone, as the property above has it. And what writes, to files that are not here.
    if not line or line.startswith(("kill", "sh -c")):
        return
    record = sandbox / "record"
    record.unlink(missing_ok=True)
    environment = {"PATH": str(sandbox / "bin"), "RECORD": str(record), "HOME": str(sandbox)}
    subprocess.run(["/bin/sh", "-c", line], cwd=sandbox / "cwd", env=environment, check=True, timeout=10)
    assert record.read_bytes().decode(errors="surrogateescape").split("\0")[:-1] == shlex.split(line)
    assert not os.listdir(sandbox / "cwd")  # noqa: PTH208 - names


@pytest.mark.parametrize(
    ("user", "line"),
    [
        (User("mount", "/mnt", "", remedy=Remedy.UNMOUNT, target="/mnt"), "umount /mnt"),
        (User("mount", "/a b", "", remedy=Remedy.UNMOUNT, target="/a b"), "umount '/a b'"),
        (
            User("mount", "/a b", "", pid=77, remedy=Remedy.UNMOUNT, target="/a b"),
            "umount --internal-only --namespace 77 '/a b'",
        ),
        (User("mount", "/", "", remedy=Remedy.UNMOUNT, target="/"), ""),
        (User("mount", "/a\\x0ab", "", remedy=Remedy.UNMOUNT, target="/a\nb"), ""),
        (User("mount", "/a", "", pid=77, remedy=Remedy.KILL, pids=(77, 78)), "kill 77 78"),
        (User("process", "init", "", pid=1, remedy=Remedy.KILL, pids=(1,)), ""),
        (User("loop", "/dev/loop3", "", remedy=Remedy.DETACH_LOOP, target="/dev/loop3"), "losetup --detach /dev/loop3"),
        (User("block", "/dev/vdb2", "", remedy=Remedy.SWAP_OFF, target="/dev/vdb2"), "swapoff /dev/vdb2"),
        (User("block", "/dev/vdb", "", remedy=Remedy.REMOVE_MAPPING, target="vg-root"), "dmsetup remove vg-root"),
        (User("block", "/dev/vdb", "", remedy=Remedy.STOP_ARRAY, target="/dev/md0"), "mdadm --stop /dev/md0"),
        (User("netdev", "dummy0", "", remedy=Remedy.DELETE_LINK, target="dummy0"), "ip link delete dev dummy0"),
        (User("netdev", "eth0", "", remedy=Remedy.SET_LINK_DOWN, target="eth0"), "ip link set dev eth0 down"),
        (User("netdev", "-x", "", remedy=Remedy.DELETE_LINK, target="-x"), ""),
        (User("process", "/x", "", remedy=Remedy.STOP_UNIT, target="a@b.service"), "systemctl stop a@b.service"),
        (User("mount", "/x", "", remedy=Remedy.RESTART_UNIT, target="a@b.service"), "systemctl restart a@b.service"),
        (User("mount", "/x", "", remedy=Remedy.TERMINATE_MACHINE, target="web-1"), "machinectl terminate web-1"),
        (User("mount", "/x", "", remedy=Remedy.STOP_PODMAN, target="ab12"), "podman stop ab12"),
        (User("mount", "/x", "", remedy=Remedy.STOP_DOCKER, target="ab12"), "docker stop ab12"),
        (User("qdisc", "", "", remedy=Remedy.DELETE_QDISC, words=("lo", "root")), "tc qdisc del dev lo root"),
        (
            User("qdisc", "", "", remedy=Remedy.DELETE_QDISC, words=("e$x", "parent", "1:10")),
            "tc qdisc del dev 'e$x' parent 1:10",
        ),
        (User("qdisc", "", "", remedy=Remedy.DELETE_QDISC, words=("-all", "root")), ""),
        (User("qdisc", "", "", remedy=Remedy.DELETE_QDISC, words=("lo", "root; x")), ""),
        (
            User("filter", "", "", remedy=Remedy.DELETE_FILTER, words=("lo", "parent", "1:", "pref", "3")),
            "tc filter del dev lo parent 1: pref 3",
        ),
        (
            User("rule", "", "", remedy=Remedy.DELETE_RULE, words=("inet", "t", "DOCKER-USER", "handle", "4")),
            "nft delete rule inet t DOCKER-USER handle 4",
        ),
        (User("rule", "", "", remedy=Remedy.DELETE_RULE, words=("inet", "t", "c;flush", "handle", "4")), ""),
        (
            User("object", "", "", remedy=Remedy.DELETE_OBJECT, words=("ct", "helper", "inet", "t", "h")),
            "nft delete ct helper inet t h",
        ),
        (
            User("configfs", "", "", remedy=Remedy.REMOVE_FOLDER, words=("/sys/kernel/config/nullb/a b",)),
            "rmdir '/sys/kernel/config/nullb/a b'",
        ),
        (User("configfs", "", "", remedy=Remedy.REMOVE_FOLDER, words=("/sys/kernel/config/../x",)), ""),
        (
            User("watchdog", "", "", remedy=Remedy.STOP_WATCHDOG, words=("/dev/watchdog0",)),
            """sh -c 'echo V >"$1"' sh /dev/watchdog0""",
        ),
        (User("watchdog", "", "", remedy=Remedy.STOP_WATCHDOG, words=("/dev/vda",)), ""),
        (
            User("format", "", "", remedy=Remedy.WRITE_SETTING, words=("/proc/sys/fs/binfmt_misc/a b", "-1")),
            """sh -c 'echo -1 >"$1"' sh '/proc/sys/fs/binfmt_misc/a b'""",
        ),
        (User("format", "", "", remedy=Remedy.WRITE_SETTING, words=("/proc/sys/fs/binfmt_misc/status", "-1")), ""),
        (User("format", "", "", remedy=Remedy.WRITE_SETTING, words=("/proc/sys/fs/binfmt_misc/..", "-1")), ""),
        (
            User("scheduler", "", "", remedy=Remedy.WRITE_SETTING, words=("/sys/block/vda/queue/scheduler", "none")),
            """sh -c 'echo none >"$1"' sh /sys/block/vda/queue/scheduler""",
        ),
        (User("scheduler", "", "", remedy=Remedy.WRITE_SETTING, words=("/sys/block/../x", "none")), ""),
        (
            User("block", "", "", remedy=Remedy.STOP_CACHE, words=("/sys/block/bcache0/bcache/stop",)),
            """sh -c 'echo 1 >"$1"' sh /sys/block/bcache0/bcache/stop""",
        ),
        (User("block", "", "", remedy=Remedy.DISCONNECT_DISK, target="/dev/nbd0"), "nbd-client --disconnect /dev/nbd0"),
        (User("block", "", "", remedy=Remedy.RESET_DISK, target="/dev/zram0"), "zramctl --reset /dev/zram0"),
        (
            User(
                "rule", "", "", remedy=Remedy.DELETE_LEGACY_RULE, words=("iptables-legacy", "filter", "DOCKER;x", "3")
            ),
            "iptables-legacy -t filter -D 'DOCKER;x' 3",
        ),
        (User("rule", "", "", remedy=Remedy.DELETE_LEGACY_RULE, words=("iptables-legacy", "filter", "-F", "3")), ""),
        (User("table", "", "", remedy=Remedy.FLUSH_LEGACY_TABLE, words=LISTS[4]), "iptables-legacy -t filter -F"),
        (User("chain", "", "", remedy=Remedy.DELETE_LEGACY_CHAIN, words=LISTS[5]), "iptables-legacy -t filter -X mine"),
        (
            User("rule", "", "", remedy=Remedy.DELETE_LEGACY_RULE, words=LISTS[7]),
            "ebtables-legacy -t filter -D FORWARD 2",
        ),
        (User("export", "", "", remedy=Remedy.UNEXPORT, words=("*", "/srv/a b")), "exportfs -u '*:/srv/a b'"),
        (User("export", "", "", remedy=Remedy.UNEXPORT, words=("-a", "/srv")), ""),
        (
            User("session", "", "", remedy=Remedy.LOG_OUT, words=LISTS[9]),
            "iscsiadm --mode node --targetname iqn.2026-01.example:disk --portal '[fd00::1]:3260' --logout",
        ),
        (User("session", "", "", remedy=Remedy.LOG_OUT, words=("-x", "10.0.0.1:3260")), ""),
        (User("export", "", "", remedy=Remedy.UNEXPORT, words=("fd00::1", "/srv")), ""),
        (User("process", "", "", remedy=Remedy.DELETE_CRUN, target="web.1"), "crun delete --force web.1"),
        (User("process", "", "", remedy=Remedy.DELETE_RUNC, target="-a"), ""),
        (User("rule", "", "", remedy=Remedy.DELETE_LEGACY_RULE, words=("bash", "filter", "INPUT", "3")), ""),
        (
            User("service", "", "", remedy=Remedy.DELETE_SERVICE, words=("--tcp-service", "[fd00::1]:80")),
            "ipvsadm --delete-service --tcp-service '[fd00::1]:80'",
        ),
        (
            User("state", "", "", remedy=Remedy.DELETE_STATE, words=LISTS[-2]),
            "ip xfrm state delete src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x00000100",
        ),
        (User("state", "", "", remedy=Remedy.DELETE_STATE, words=("src", "10.0.0.1")), ""),
        (User("kernel", "kernel", "1 reference"), ""),
    ],
)
def test_command(user: User, line: str) -> None:
    assert command(user) == line


def test_disks_are_not_taken_away_while_a_use_of_them_stays() -> None:
    """iscsiadm does not refuse, so its command alone would be run."""
    logout = User("session", "", "", remedy=Remedy.LOG_OUT, words=("iqn.2026-01.example:disk", "10.0.0.1:3260"))
    bound = User("device", "3:0:0:0", "", remedy=Remedy.NOT_NEEDED)
    mount = User("mount", "/m", "", remedy=Remedy.UNMOUNT, target="/m")
    assert [user.command[:8] for user in advised((logout, bound, mount))] == ["iscsiadm", "", "umount /"]
    assert freed(logout, bound, mount)[0] == "umount /m", "and goes last"
    for other in (User("mount", "/", ""), User("mount", "/\n", "", remedy=Remedy.UNMOUNT, target="/\n")):
        assert [user.command[:8] for user in advised((logout, other, mount))] == ["", "", "umount /"]


def freed(*held: User, dependents: bool = False) -> tuple[str, ...]:
    return free("m", advised(held), dependents=dependents)


def test_what_is_on_top_is_freed_before_what_it_stands_on() -> None:
    loop = User("loop", "/dev/loop0", "/srv/x.img", remedy=Remedy.DETACH_LOOP, target="/dev/loop0")
    block = User("block", "/dev/loop0", "mounted at /mnt", remedy=Remedy.UNMOUNT, target="/mnt")
    process = User("process", "/usr/bin/tail", "pid 7", remedy=Remedy.KILL, pids=(7,))
    lines = ("umount /mnt", "kill 7", SETTLE, "losetup --detach /dev/loop0", SETTLE, "kmodctl unload m")
    assert freed(loop, block, process, block) == lines


def test_the_last_rule_of_a_chain_goes_first() -> None:
    """The modules that hold another one have rules of their own between those of the other one."""
    rules = [
        User(
            "rule", "", "", remedy=Remedy.DELETE_LEGACY_RULE, words=("iptables-legacy", "filter", "INPUT", str(number))
        )
        for number in (5, 9, 2, 10)
    ]
    assert [line.rpartition(" ")[2] for line in freed(*rules)[:-1]] == ["10", "9", "5", "2"]


def test_a_format_goes_before_its_file_system_and_a_cache_after() -> None:
    mount = User("mount", "/mnt", "", remedy=Remedy.UNMOUNT, target="/mnt")
    binary = User("format", "", "", remedy=Remedy.WRITE_SETTING, words=("/proc/sys/fs/binfmt_misc/x", "-1"))
    cache = User("block", "", "", remedy=Remedy.STOP_CACHE, words=("/sys/block/bcache0/bcache/stop",))
    commands = freed(cache, mount, binary)
    assert [line for line in commands if line.startswith(("sh", "umount"))] == [
        command(binary), "umount /mnt", command(cache)
    ]  # fmt: skip


def test_udev_is_waited_for_between_devices_on_top_of_each_other() -> None:
    upper = User("loop", "/dev/loop6", "/dev/dm-0", remedy=Remedy.DETACH_LOOP, target="/dev/loop6")
    mapping = User("block", "/dev/loop5", "part of /dev/dm-0", remedy=Remedy.REMOVE_MAPPING, target="low")
    lower = User("loop", "/dev/loop5", "/dev/ram0", remedy=Remedy.DETACH_LOOP, target="/dev/loop5")
    assert freed(upper, mapping, lower) == (
        "losetup --detach /dev/loop6",
        SETTLE,
        "dmsetup remove low",
        SETTLE,
        "losetup --detach /dev/loop5",
        SETTLE,
        "kmodctl unload m",
    )
    assert freed(lower) == ("losetup --detach /dev/loop5", "kmodctl unload m")


def test_what_ends_with_another_use_needs_no_command() -> None:
    loop = User("loop", "/dev/loop0", "/srv/x.img, detaches itself", remedy=Remedy.NOT_NEEDED)
    device = User("device", "0000:00:03.0", "driver e1000, bus pci", remedy=Remedy.NOT_NEEDED)
    assert freed(loop, device, User("module", "x", "uses it"), dependents=True) == ("kmodctl unload m --dependents",)


def test_with_a_use_that_no_command_ends_there_are_no_commands() -> None:
    mount = User("mount", "/srv", "", remedy=Remedy.UNMOUNT, target="/srv")
    root = User("mount", "/", "", remedy=Remedy.NONE, target="/")
    assert freed(mount, root) == ()
    assert freed(mount, User("kernel", "kernel", "1 reference")) == ()


# --- hints ------------------------------------------------------------------------------------------------------------

# What an expression in a hint may end in: canonical names of modules and of parameters (letters, digits, `_`), files and lines of
# the administrator's, numbers of processes, constants.
HARMLESS = {
    "module",
    "name",
    "parameter",
    "file",
    "folder",
    "line",
    "worker",
    "path",
    "_path",
    "place",
    "hint",
    "APPLY",
}
IN_WORDS = {
    "self._document.reload": "a command that the program which reads the file gives",
    "match.release": "follows words, where no command stands",
    "shown": "lines of a file, after words",
    "space": "a symbol namespace in C, which nobody runs",
    "' or '.join(close)": "names of modules",
    "' or '.join(modules)": "names of modules that exist, after a word",
    "modules[0]": "the name of a module that exists, in a line of a settings file",
    "load": "a command for a name of a module",
    "lease.modules[0]": "the name of a module that a lease has",
    "words": "surface or config",
    "several": "a command for names of modules",
    "meant": "a name of a module, after words",
    "clean(quote(path))": "the caller's own argument, quoted",
}


def interpolations(path: Path) -> Iterator[str]:
    """What stands in braces in each `hint=f"…"` and in what `_hint` functions return."""
    for node in ast.walk(ast.parse(path.read_text())):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            values = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "hint" for t in node.targets):
            values = [node.value]
        for value in values:
            for inner in ast.walk(value):
                if isinstance(inner, ast.FormattedValue):
                    yield ast.unparse(inner.value)


def is_harmless(expression: str) -> bool:
    if expression in IN_WORDS or expression.startswith("shlex.quote("):
        return True
    inner = expression.removeprefix("clean(").removeprefix("shown(").removeprefix("str(").rstrip(")")
    return inner.rpartition(".")[2] in HARMLESS


def test_what_others_chose_stands_in_no_hint_unquoted() -> None:
    """A hint is run by root as much as a command; a new value in one is looked at by somebody, or quoted."""
    expressions = [(path, each) for path in sorted((ROOT / "kmodd").rglob("*.py")) for each in interpolations(path)]
    assert len(expressions) > 20
    assert not [f"{path.relative_to(ROOT)}: {each}" for path, each in expressions if not is_harmless(each)]


def test_nothing_enters_a_namespace_to_run_what_is_there() -> None:
    kinds = {".py", ".md", ".1", ".5", ".8", ".js", ".html"}
    places = [ROOT / "README.md", *(ROOT / "kmodd").rglob("*"), *(ROOT / "docs").rglob("*")]
    texts = [path for path in places if path.is_file() and path.suffix in kinds]
    # A network namespace has no files, so that nothing in it can be run.
    entered = [path for path in texts if "nsenter" in path.read_text(errors="replace").replace("nsenter --net=", "")]
    assert not [str(path) for path in entered]
