# SPDX-License-Identifier: LGPL-2.1-or-later
"""The watcher: lines of the trace, the process behind them, and its messages read as a stranger's."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kmodd.kernel.watcher.watcher import INSTANCE, messages, overruns, place, set_up, split
from kmodd.kernel.watcher.watcher_client import Watcher, read
from kmodd.model import ModuleLoad, ModuleRequest, Requester

REQUEST = b"           mount-812     [000] ..... 12.345678: module_request: nls_ascii wait=1 call_site=load_nls"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "proc/812"
    folder.mkdir(parents=True)
    (folder / "status").write_text("Name:\tmount\nUid:\t1000\t0\t0\t0\n")
    (folder / "cgroup").write_text("0::/user.slice/user-1000.slice/session-3.scope\n")
    (folder / "exe").symlink_to("/usr/bin/mount")
    (folder / "cmdline").write_bytes(b"/sbin/modprobe\0-q\0--\0nls_ascii\0")
    return tmp_path


def test_request_names_alias_and_process(root: Path) -> None:
    (message,) = messages(REQUEST, root)
    assert message == {
        "request": {
            "alias": "nls_ascii",
            "site": "load_nls",
            "pid": 812,
            "uid": 1000,
            "name": "mount",
            "exe": "/usr/bin/mount",
            "unit": "session-3.scope",
            "container": "",
            "device": "",
        }
    }


def udev(root: Path, exe: str, uid: int, *links: str) -> str:
    """The device of a request of this process, which has these files open."""
    folder = root / "proc/900"
    (folder / "fd").mkdir(parents=True)
    (folder / "status").write_text(f"Uid:\t{uid}\t0\t0\t0\n")
    (folder / "exe").symlink_to(exe)
    for number, link in enumerate(links):
        (folder / f"fd/{number}").symlink_to(link)
    request = b"module_request: char-major-10-234 wait=1 call_site=misc_open"
    (message,) = messages(b" (udev-worker)-900 [001] d..2. 1.500000: " + request, root)
    device: str = message["request"]["device"]
    (message,) = messages(b" (udev-worker)-900 [001] d..2. 1.500000: module_load: btrfs ", root)
    assert message["load"]["device"] == "", "it may be at another device already"
    return device


@pytest.mark.parametrize(
    ("exe", "uid", "links", "device"),
    [
        ("/usr/bin/udevadm", 0, ("/dev/null", "socket:[1]", "/dev/vdb", "anon_inode:inotify"), "/dev/vdb"),
        ("/usr/lib/systemd/systemd-udevd", 0, ("/dev/null", "/dev/vdb", "/dev/vdb"), "/dev/vdb"),
        ("/usr/bin/udevadm", 0, ("/dev/vdb", "/dev/vdc"), ""),
        ("/usr/bin/udevadm", 0, ("/dev/null", "/dev/kmsg"), ""),
        ("/usr/bin/udevadm", 1000, ("/dev/vdb",), ""),
        ("/usr/bin/cat", 0, ("/dev/vdb",), ""),
    ],
)
def test_disk_that_udev_examines_is_the_one_it_has_open(
    root: Path, exe: str, uid: int, links: tuple[str, ...], device: str
) -> None:
    assert udev(root, exe, uid, *links) == device


def test_load_names_module_and_what_modprobe_was_started_for(root: Path) -> None:
    (message,) = messages(b" modprobe-812 [001] d..2. 1.500000: module_load: nls_ascii OE", root)
    assert (message["load"]["module"], message["load"]["alias"]) == ("nls_ascii", "nls_ascii")


def test_alias_with_the_words_of_the_trace_is_not_cut(root: Path) -> None:
    line = REQUEST.replace(b"nls_ascii", b"x wait=1 call_site=y")
    (message,) = messages(line, root)
    assert (message["request"]["alias"], message["request"]["site"]) == ("x wait=1 call_site=y", "load_nls")


@pytest.mark.parametrize("name", [b"a-1 [0]", b"x-99  [000] . 1:", b"\x1b[31m", b"\xff\xfe"])
def test_name_of_a_process_names_no_other_process(root: Path, name: bytes) -> None:
    line = REQUEST.replace(b"           mount", name)
    (message,) = messages(line, root)
    assert message["request"]["pid"] == 812
    assert message["request"]["name"].isprintable()


@pytest.mark.parametrize("line", [b"", b"# tracer: nop", b"bash-1 [0] ..... 1.0: sched_switch: x", b"\x00" * 40])
def test_other_lines_tell_nothing(root: Path, line: bytes) -> None:
    assert list(messages(line, root)) == []


def test_request_of_a_module_names_it_beside_the_function(root: Path) -> None:
    (message,) = messages(REQUEST.replace(b"load_nls", b"alg_bind [af_alg]"), root)
    assert message["request"]["site"] == "alg_bind [af_alg]"


def test_lost_events_are_counted_by_the_kernels_own_count(tmp_path: Path) -> None:
    for number, count in enumerate((12, 3)):
        stats = tmp_path / INSTANCE / f"per_cpu/cpu{number}/stats"
        stats.parent.mkdir(parents=True)
        stats.write_text(f"entries: 4\noverrun: {count}\ncommit overrun: 7\nbytes: 88\n")
    assert overruns(tmp_path) == 15


ATTACKS = (
    b"\n", b"x", b" ", b" wait=1 call_site=y", b" wait=1 call_site=", b"-1 [000] .... 1.000000: ", b"module_load: e ",
    b"module_request: e", b"CPU:0 [LOST 9 EVENTS]", b"a-1     [000] ..... 12.345678: module_load: vfat ", b"OE",
)  # fmt: skip
MODULE_NAME_LEN = 56


@given(st.lists(st.sampled_from(ATTACKS), max_size=12), st.sampled_from([b"crypto-", b"fs-", b""]))
@example([b"\n", b"-1 [000] .... 1.000000: ", b"module_load: e ", b"\n"], b"crypto-")
@example([b" wait=1 call_site=y", b"\n", b"-1 [000] .... 1.000000: ", b"module_load: e "], b"")
def test_no_alias_writes_a_line_of_its_own(pieces: list[bytes], prefix: bytes) -> None:
    """Any user chooses an alias of 55 bytes, line feeds included: it tells of one request, its own."""
    alias = (prefix + b"".join(pieces))[: MODULE_NAME_LEN - 1]
    lines, rest = split(REQUEST.replace(b"nls_ascii", alias) + b"\n" + REQUEST + b"\n")
    assert rest == b""
    told = [message for line in lines for message in messages(line, Path("/nowhere"))]
    assert {kind for message in told for kind in message} == {"request"}
    assert [message["request"]["pid"] for message in told] == [812, 812]
    assert told[-1]["request"]["alias"] == "nls_ascii"
    assert all(message["request"]["alias"].isprintable() for message in told)


def test_an_alias_that_has_what_a_line_ends_with_is_whole() -> None:
    alias = b"c wait=1 call_site=y\nCPU:0 [LOST 9 EVENTS]"
    lines, _ = split(REQUEST.replace(b"nls_ascii", alias) + b"\n" + REQUEST + b"\n")
    told = [message["request"]["alias"] for line in lines for message in messages(line, Path("/nowhere"))]
    assert told == ["c wait=1 call_site=y\\x0aCPU:0 [LOST 9 EVENTS]", "nls_ascii"]


def test_a_line_that_has_not_come_whole_is_kept() -> None:
    line = REQUEST.replace(b"nls_ascii", b"crypto-a\nb") + b"\n"
    for cut in range(len(line)):
        lines, rest = split(line[:cut])
        assert lines == []
        assert split(rest + line[cut:]) == ([line[:-1]], b"")


def test_process_that_has_ended_leaves_its_name_and_number(root: Path) -> None:
    (message,) = messages(REQUEST.replace(b"812", b"813"), root)
    assert message["request"]["uid"] is None
    assert (message["request"]["exe"], message["request"]["name"]) == ("", "mount")


@pytest.mark.parametrize(
    ("cgroup", "unit", "container"),
    [
        ("0::/system.slice/cron.service", "cron.service", ""),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/evil.service", "user@1000.service", ""),
        (f"0::/system.slice/docker-{'a' * 64}.scope/x", f"docker-{'a' * 64}.scope", "a" * 64),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{'b' * 64}.scope", f"cri-containerd-{'b' * 64}.scope", "b" * 64),
        ("0::/machine.slice/machine-my\\x2dbox.scope", "machine-my\\x2dbox.scope", "my-box"),
        ("0::/", "", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_unit_and_container_of_a_process(cgroup: str, unit: str, container: str) -> None:
    assert place(cgroup) == (unit, container)


def test_set_up_says_what_is_missing(tmp_path: Path) -> None:
    assert "No such file" in set_up(tmp_path)
    (tmp_path / INSTANCE).parent.mkdir(parents=True)
    assert "events/module" in set_up(tmp_path)  # a folder that is no tracefs has none


PROCESS = {"pid": 9, "uid": 0, "name": "n", "exe": "/e", "unit": "u", "container": "", "device": "/dev/vdb"}


def test_messages_are_read_with_the_time() -> None:
    request = read(json.dumps({"request": {"alias": "a", "site": "s", **PROCESS}}).encode(), 7)
    assert request == ModuleRequest("a", Requester(9, 0, "n", "/e", "u", device="/dev/vdb"), "s", 7)
    load = read(json.dumps({"load": {"module": "m", "alias": "a", **PROCESS}}).encode(), 7)
    assert isinstance(load, ModuleLoad)
    assert (load.module, load.alias, load.time) == ("m", "a", 7)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b'{"off": 3}', b'{"lost": -1}', b'{"lost": true}', b'{"a": 1, "b": 2}',
        json.dumps({"request": {"alias": "a\n", "site": "", **PROCESS}}).encode(),
        json.dumps({"request": {"alias": "a", "site": "", **PROCESS, "pid": "9"}}).encode(),
        json.dumps({"load": {"module": "../x", "alias": "", **PROCESS}}).encode(),
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_odd_messages_are_refused(data: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, RecursionError)):
        read(data, 0)


async def test_watcher_that_says_something_odd_is_let_go_and_named(tmp_path: Path) -> None:
    path = tmp_path / "watcher.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        watcher = Watcher(str(path), lambda: 7)
        requests: list[ModuleRequest] = []
        watcher.start(requests.append, lambda _: None)
        theirs = await asyncio.to_thread(lambda: listening.accept()[0])
        with theirs:
            theirs.send(b"ready 0")
            theirs.send(json.dumps({"request": {"alias": "a", "site": "s", **PROCESS}}).encode())
            theirs.send(b"nonsense")
            for _ in range(1000):
                if watcher.off:
                    break
                await asyncio.sleep(0.01)
        assert [request.alias for request in requests] == ["a"]
        assert watcher.off == "its message was invalid"
        watcher.close()


async def test_without_a_socket_nothing_is_traced_and_that_is_said(tmp_path: Path) -> None:
    assert Watcher("", lambda: 7).off == "no watcher is installed"
    watcher = Watcher(str(tmp_path / "none"), lambda: 7)
    watcher.start(lambda _: None, lambda _: None)
    assert "not started" in watcher.off
    watcher.close()
