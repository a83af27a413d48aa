# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program that reads the kernel's trace of module requests and loads, and looks at the process behind each.

`module:module_request` is traced in the process that needs the module, before the kernel starts modprobe, and that process
sleeps until modprobe has ended (`__request_module` in kernel/module/kmod.c), so /proc/PID still tells who it is.
`module:module_load` is traced in the process that called finit_module(2). Both are read from a separate tracefs instance
(Documentation/trace/ftrace.rst, "Instances"), so no other user of tracefs is disturbed or seen.

Protocol on descriptor 3 (SOCK_SEQPACKET), JSON: `ready 0` from here, then

    {"request": {"alias": …, "site": …, PROCESS}}      the kernel asks for an alias, on behalf of this process
    {"load": {"module": …, "alias": …, PROCESS}}       this process loads a module; `alias` if it is the kernel's own modprobe
    {"lost": N}                                        the kernel dropped events
    {"off": "…"}                                       there is nothing to read, and why

with PROCESS = `pid`, `uid`, `name` (what the process calls itself), `exe`, `unit`, `container`, `device` (of a request by udev, the
node of the disk that its process has open); what cannot be read is empty.
End of file means that the daemon is gone: it exits.

Run as `python3 -I -S /path/of/this/file`; with the argument `set-up`, by root, it makes the instance and exits, with `remove` it
removes it.
"""

import ctypes
import json
import os
import re
import resource
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kmodd.kernel.files import read_text, readlink
from kmodd.kernel.worker.worker import READY, SOCKET
from kmodd.text import shown

INSTANCE = "sys/kernel/tracing/instances/kmodd"
"""Below the root."""
MESSAGE_MAX = 8 << 10
"""Bytes of one message."""
EVENTS = ("module_request", "module_load")
_SETTINGS = {
    "buffer_size_kb": "64",
    # Report each event when it comes, not when half of the buffer is full.
    "buffer_percent": "0",
}
_MEMORY = 256 << 20
_PATH_MAX = 1024
_TEXT_MAX = 256
_CHUNK = 64 << 10
# `modprobe-812     [000] ..... 12.345678: module_request: nls_ascii wait=1 call_site=load_nls`. A process chooses what it calls
# itself, up to 15 bytes: too few to write the rest of such a line.
_LINE = re.compile(
    rb"\s*(?P<name>.{0,16})-(?P<pid>\d+)\s+(?:\(\s*[\d-]+\)\s+)?\[\d{3,}\]\s+\S{4,6}\s+\d+\.\d{6}:\s"
    rb"(?P<event>module_\w+):\s(?P<rest>.*)",
    re.DOTALL,
)
_REQUEST = re.compile(rb"(?P<alias>.*) wait=\d+ call_site=(?P<site>\S+(?: \[\w+\])?)", re.DOTALL)
# `nls_ascii ` or `nls_ascii OE`: the name, then the taint flags.
_LOAD = re.compile(rb"(?P<module>\S+) [A-Z]*")
_LOST = re.compile(rb"CPU:\d+ \[LOST (?:\d+ )?EVENTS\]")
_OVERRUN = re.compile(r"^overrun: (\d+)$", re.MULTILINE)
_LINE_MAX = 1024
_LOST_MAX = 1 << 31
_CONTAINER = re.compile(
    r"(?:docker|libpod|crio|cri-containerd)-([0-9a-f]{12,64})\.scope|machine-(.{1,128})\.scope|(?:crun|runc)-(.{1,128})\.scope"
)
_CGROUP_MAX = 1 << 14
_UDEV = ("systemd-udevd", "udevadm")
_DESCRIPTORS_MAX = 256
_NO_DISK = re.compile(r"/dev/(?:null|kmsg|console|u?random|pts/.*|tty.*)")


def set_up(root: Path) -> str:
    """Make the instance and enable its events; the reason where that is not possible. As root."""
    instance = root / INSTANCE
    try:
        instance.mkdir(exist_ok=True)
        for name, value in _SETTINGS.items():
            if (instance / name).exists():  # buffer_percent is younger than the rest
                (instance / name).write_text(value)
        for event in EVENTS:
            (instance / "events/module" / event / "enable").write_text("1")
        (instance / "tracing_on").write_text("1")
    except OSError as error:
        return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    return ""


def remove(root: Path) -> None:
    """Remove the instance; one that is open in another watcher stays."""
    try:
        (root / INSTANCE).rmdir()
    except OSError:
        return


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines of the trace, and what follows the last of them.

    A line of a request continues to its end: any user can have an alias with line feeds requested, such as `crypto-NAME` by
    bind(2) of an AF_ALG socket. The kernel takes 55 bytes of it (MODULE_NAME_LEN), too few to end one line and begin another.
    """
    *parts, rest = data.split(b"\n")
    lines: list[bytes] = []
    begun = b""
    for part in parts:
        # An alias may also contain what a line of a request ends with: then its last line does so too.
        if lines and not begun and _is_request(lines[-1]) and not _LINE.fullmatch(part) and _REQUEST.fullmatch(part):
            lines[-1] += b"\n" + part
            continue
        line = begun + part
        match = _LINE.fullmatch(line)
        if (
            match is not None
            and match["event"] == b"module_request"
            and not _REQUEST.fullmatch(match["rest"])
            and len(line) < _LINE_MAX
        ):
            begun = line + b"\n"
        else:
            lines.append(line)
            begun = b""
    return lines, begun + rest


def _is_request(line: bytes) -> bool:
    match = _LINE.fullmatch(line)
    return match is not None and match["event"] == b"module_request"


def overruns(root: Path) -> int:
    """Events that the kernel overwrote before they were read: a line of the trace that says so could be part of an alias."""
    stats = (root / INSTANCE / "per_cpu").glob("cpu*/stats")
    return sum(int(count) for path in stats for count in _OVERRUN.findall(read_text(path) or ""))


def messages(line: bytes, root: Path) -> Iterator[dict[str, Any]]:
    """What one line of the trace tells."""
    match = _LINE.fullmatch(line)
    if match is None:
        return
    process = _process(int(match["pid"]), match["name"], root)
    if match["event"] == b"module_request":
        request = _REQUEST.fullmatch(match["rest"])
        if request is not None:
            # It waits for the module. Who loads one itself may be at another device when this is read.
            if process["uid"] == 0 and process["exe"].rpartition("/")[2] in _UDEV:
                process["device"] = shown(_disk(root / f"proc/{process['pid']}"), _TEXT_MAX)
            yield {"request": {"alias": _text(request["alias"]), "site": _text(request["site"]), **process}}
    elif match["event"] == b"module_load" and (load := _LOAD.fullmatch(match["rest"])):
        yield {
            "load": {"module": _text(load["module"]), "alias": _alias(root / f"proc/{int(match['pid'])}"), **process}
        }


def _process(pid: int, name: bytes, root: Path) -> dict[str, Any]:
    folder = root / f"proc/{pid}"
    uid = None
    for line in (read_text(folder / "status") or "").splitlines():
        if line.startswith("Uid:"):
            uid = int(line.split()[1])
    unit, container = place(read_text(folder / "cgroup", _CGROUP_MAX) or "")
    return {
        "pid": pid,
        "uid": uid,
        "name": _text(name.lstrip(b" ")),
        "exe": shown(readlink(folder / "exe"), _PATH_MAX),
        "unit": shown(unit, _TEXT_MAX),
        "container": shown(container, _TEXT_MAX),
        "device": "",
    }


def _disk(folder: Path) -> str:
    """The node that a worker of udev has open: it locks a disk while it examines it or a partition of it.

    See worker_lock_whole_disk in systemd's src/udev/udevd.c. Empty for other devices, and where several are open.
    """
    nodes: set[str] = set()
    try:
        with os.scandir(folder / "fd") as entries:
            for number, entry in enumerate(entries):
                if number == _DESCRIPTORS_MAX:
                    return ""
                link = readlink(entry.path)
                if link.startswith("/dev/") and not _NO_DISK.fullmatch(link):
                    nodes.add(link)
    except OSError:
        return ""
    return nodes.pop() if len(nodes) == 1 else ""


def place(cgroup: str) -> tuple[str, str]:
    """The unit and the container of a process, from /proc/PID/cgroup (cgroups(7)); empty where there is none.

    Only the first name below the slices counts, which systemd made: what is below a unit is named by its owner.
    """
    path = next((line.removeprefix("0::") for line in cgroup.splitlines() if line.startswith("0::")), "")
    unit = next((name for name in path.split("/") if name and not name.endswith(".slice")), "")
    container = _CONTAINER.fullmatch(unit)
    return unit, (container[1] or container[2] or container[3]).replace("\\x2d", "-") if container else ""


def _alias(folder: Path) -> str:
    """What the kernel started this modprobe for (`call_modprobe` in kernel/module/kmod.c); empty for another process."""
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return _text(words[3]) if words[1:3] == [b"-q", b"--"] and len(words) >= 4 else ""


def _text(data: bytes) -> str:
    return shown(data.decode("utf-8", "surrogateescape"), _TEXT_MAX)


def follow(channel: socket.socket, root: Path) -> None:
    """Send what the trace tells, until the daemon has gone."""
    try:
        pipe = os.open(root / INSTANCE / "trace_pipe", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        _send(channel, {"off": f"{error.strerror}: {error.filename}"})
        return
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(channel, select.POLLIN)
    rest, lost = b"", overruns(root)
    while True:
        ready = dict(poll.poll())
        if channel.fileno() in ready:
            return  # the daemon sends nothing: it has gone
        try:
            rest += os.read(pipe, _CHUNK)
        except BlockingIOError:
            continue
        lines, rest = split(rest)
        rest = rest[-_CHUNK:]
        for line in lines:
            if _LOST.fullmatch(line):
                before, lost = lost, overruns(root)
                if lost > before:
                    _send(channel, {"lost": min(lost - before, _LOST_MAX)})
            for message in messages(line, root):
                _send(channel, message)


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) <= MESSAGE_MAX:
        channel.send(data)


def main() -> None:
    """Set up or remove the instance, or follow it."""
    root = Path("/")
    if sys.argv[1:] == ["set-up"]:
        if reason := set_up(root):
            # No failure of the unit: the watcher itself tells the daemon.
            sys.stderr.write(f"kmodd-watcher: {reason}\n")
        return
    if sys.argv[1:] == ["remove"]:
        remove(root)
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(15, ctypes.c_char_p(b"kmodd-watcher"), *[ctypes.c_ulong(0)] * 3)  # PR_SET_NAME
    with socket.socket(fileno=SOCKET) as channel:
        try:
            channel.send(READY)
            follow(channel, root)
        except (BrokenPipeError, ConnectionResetError):
            return


if __name__ == "__main__":
    main()
