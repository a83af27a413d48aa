# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside the virtual machine, as a user without any right: does what makes the kernel ask for modules, kind by kind.

Standard input: JSON, a list of [kind, request, user namespace]. Each is tried by the system call that the kind names, spoken
to the kernel directly, so that no tool loads a module on its own. What fails does not matter: the kernel asks before it fails.
Standard output: JSON, the requests that no way to try is known for.
"""

import ctypes
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
FSOPEN = 430
AF_ALG, NETLINK_RDMA, NETLINK_GENERIC, NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 38, 20, 16, 4, 12
REQUEST, ACK, CREATE = 1, 4, 0x400
SECONDS = 60


class UntriedError(Exception):
    """No way to cause this request is known here."""


def attribute(kind: int, data: bytes, *, nested: bool = False) -> bytes:
    whole = struct.pack("=HH", 4 + len(data), kind | (0x8000 if nested else 0)) + data
    return whole + b"\0" * (-len(whole) % 4)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, payload: bytes, flags: int = REQUEST | ACK) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload


def netlink(protocol: int, *messages: bytes) -> bytes:
    """Send the messages at once, and answer what comes back first."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as connection:
        connection.settimeout(5)
        connection.send(b"".join(messages))
        with suppress(OSError):
            return connection.recv(65536)
    return b""


# --- any user ---------------------------------------------------------------------------------------------------------


def family(request: str) -> None:
    number = int(request.rpartition("-")[2])
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        with suppress(OSError):
            socket.socket(number, kind).close()


def protocol(request: str) -> None:
    numbers = [int(word) for word in re.findall(r"\d+", request)]
    kinds = numbers[2:] or range(1, 7)
    for kind in kinds:
        with suppress(OSError):
            socket.socket(numbers[0], kind, numbers[1]).close()


def netlink_protocol(request: str) -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, int(request.rpartition("-")[2])).close()


def genl_family(name: str) -> int:
    reply = netlink(NETLINK_GENERIC, message(16, struct.pack("=BBH", 3, 1, 0) + text(2, name)))
    position = 20
    while position + 4 <= len(reply):
        size, kind = struct.unpack_from("=HH", reply, position)
        if kind == 1 and size == 6:
            return int(struct.unpack_from("=H", reply, position + 4)[0])
        position += (size + 3) & ~3 or 4
    return 0


def generic(request: str) -> None:
    genl_family(request.partition("family-")[2])


def diagnostics(request: str) -> None:
    numbers = [int(word) for word in request.partition("type-")[2].split("-")]
    number = numbers[1] if len(numbers) > 1 else 0
    body = struct.pack("=BBBBI", numbers[0], number & 0xFF, 0, 0, 0xFFFFFFFF) + b"\0" * 48
    if number > 255:
        body += attribute(3, struct.pack("=I", number))
    netlink(NETLINK_SOCK_DIAG, message(20, body, REQUEST | 0x300))


def algorithm_type(request: str) -> None:
    with socket.socket(AF_ALG, socket.SOCK_SEQPACKET) as connection:
        connection.bind((request.partition("-")[2], "none"))


def algorithm(request: str) -> None:
    # As one of another type than it is: the kernel then asks for it, although it has it.
    name = request.partition("-")[2]
    kind = "hash" if re.search("rng|drbg|jitter", name) else "rng"
    with socket.socket(AF_ALG, socket.SOCK_SEQPACKET) as connection:
        connection.bind((kind, name))


def discipline(request: str) -> None:
    ends = pty.openpty()
    with suppress(OSError):
        fcntl.ioctl(ends[1], 0x5423, struct.pack("i", int(request.rpartition("-")[2])))
    for end in ends:
        os.close(end)


def rdma(request: str) -> None:
    if "subsys" in request:
        netlink(NETLINK_RDMA, message((int(request.rpartition("-")[2]) << 10), b""))
    else:
        netlink(NETLINK_RDMA, message((5 << 10) + 15, text(69, request.removeprefix("rdma-client-"))))


def ioctl(request: str) -> None:
    code = {"bridge": 0x8940, "8021q": 0x8982}.get(request)
    if code is None:
        raise UntriedError
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        fcntl.ioctl(connection, code, b"\0" * 64)


# --- any user in a namespace ------------------------------------------------------------------------------------------


def file_system(request: str) -> None:
    LIBC.syscall(FSOPEN, request.removeprefix("fs-").encode(), 0)


def subsystem(request: str) -> None:
    netlink(NETLINK_NETFILTER, message(int(request.rpartition("-")[2]) << 8, struct.pack("=BBH", 0, 0, 0)))


def batch(*parts: tuple[int, int, bytes]) -> None:
    """nf_tables messages as (number, family, attributes) in one transaction."""
    begin = message(0x10, struct.pack("=BBH", 0, 0, socket.htons(10)), REQUEST)
    end = message(0x11, struct.pack("=BBH", 0, 0, socket.htons(10)), REQUEST)
    inner = [
        message(10 << 8 | number, struct.pack("=BBH", of, 0, 0) + data, REQUEST | ACK | CREATE)
        for number, of, data in parts
    ]
    netlink(NETLINK_NETFILTER, begin, *inner, end)


def table(of: int) -> tuple[int, int, bytes]:
    return 0, of, text(1, "t")


def chain(of: int) -> tuple[int, int, bytes]:
    return 3, of, text(1, "t") + text(3, "c")


def expression(of: int, name: str, data: bytes = b"") -> None:
    one = attribute(1, text(1, name) + attribute(2, data, nested=True), nested=True)
    batch(table(of), chain(of), (6, of, text(1, "t") + text(2, "c") + attribute(4, one, nested=True)))


def object_of(number: int, data: bytes = b"") -> None:
    rows = text(1, "t") + text(2, "o") + attribute(3, struct.pack(">I", number)) + attribute(4, data, nested=True)
    batch(table(2), (18, 2, rows))


def nftables(request: str) -> None:
    words = request.split("-")
    match words:
        case ["nft", "expr", of, name] if of.isdecimal():
            expression(int(of), name, attribute(1, struct.pack(">I", 1)) + attribute(2, struct.pack(">I", 0)))
        case ["nft", "expr", *name]:
            expression(2, "-".join(name))
        case ["nft", "obj", number]:
            object_of(int(number))
        case ["nft", "chain", of, name]:
            hook = attribute(1, struct.pack(">I", 0)) + attribute(2, struct.pack(">i", 0))
            rows = text(1, "t") + text(3, "c") + attribute(4, hook, nested=True) + text(7, name)
            batch(table(int(of)), (3, int(of), rows))
        case ["nf", "flowtable", of]:
            hook = attribute(1, struct.pack(">I", 0)) + attribute(2, struct.pack(">i", 0))
            batch(table(int(of)), (22, int(of), text(1, "t") + text(2, "f") + attribute(3, hook, nested=True)))
        case ["nf_conntrack_bridge"]:
            expression(7, "ct", attribute(1, struct.pack(">I", 1)) + attribute(2, struct.pack(">I", 0)))
        case _:
            raise UntriedError


def log(request: str) -> None:
    _, _, of, kind = request.split("-")
    expression(int(of), "log", attribute(1, struct.pack(">H", 1)) if kind == "1" else b"")


def helper(request: str) -> None:
    if not request.startswith("nfct-helper-"):
        raise UntriedError  # only Open vSwitch and tc ask for it, with a connection at hand
    name = request.removeprefix("nfct-helper-")
    for protocol_number in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        object_of(3, text(1, name) + attribute(2, struct.pack(">H", 2)) + attribute(3, bytes([protocol_number])))


TABLES = {"iptable": (0, 64), "ip6table": (41, 64), "arptable": (0, 96), "ebtable": (0, 128)}
FAMILIES = {"ipt": 2, "ip6t": 10, "arpt": 3, "ebt": 7}


def xtables(request: str) -> None:
    prefix, _, name = request.partition("_")
    if prefix in TABLES:
        level, option = TABLES[prefix]
        value = ctypes.create_string_buffer(name.encode(), 512)
        size = ctypes.c_uint32(120 if prefix == "ebtable" else 88 if prefix == "arptable" else 84)
        kind = socket.AF_INET6 if prefix == "ip6table" else socket.AF_INET
        with socket.socket(kind, socket.SOCK_RAW, 255) as connection:
            LIBC.getsockopt(connection.fileno(), level, option, value, ctypes.byref(size))
        return
    for target in (0, 1):
        rows = text(1, name) + attribute(2, struct.pack(">I", 0)) + attribute(3, struct.pack(">I", target))
        netlink(NETLINK_NETFILTER, message(11 << 8, struct.pack("=BBH", FAMILIES[prefix], 0, 0) + rows))


def ip_set(request: str) -> None:
    rows = attribute(1, b"\6") + text(3, request.removeprefix("ip_set_")) + attribute(5, b"\2")
    netlink(NETLINK_NETFILTER, message(6 << 8 | 13, struct.pack("=BBH", 2, 0, 0) + rows))


def link(request: str) -> None:
    body = b"\0" * 16 + text(3, "x0") + attribute(18, text(1, request.removeprefix("rtnl-link-")), nested=True)
    netlink(0, message(16, body, REQUEST | ACK | CREATE))


ENCAPSULATIONS = {"MPLS": 1, "ILA": 3, "SEG6": 5, "BPF": 6, "SEG6LOCAL": 7, "RPL": 8, "IOAM6": 9, "XFRM": 10}


def encapsulation(request: str) -> None:
    number = ENCAPSULATIONS[request.removeprefix("rtnl-lwt-")]
    route = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 3, 0, 1, 0) + attribute(1, bytes([10, 9, 8, 7]))
    route += attribute(4, struct.pack("=I", 1)) + attribute(22, b"", nested=True)
    netlink(0, message(24, route + attribute(21, struct.pack("=H", number)), REQUEST | ACK | CREATE))


def ip(*words: str) -> None:
    subprocess.run(["/sbin/ip", *words], capture_output=True, check=False, timeout=SECONDS)


def ipsec(request: str) -> None:
    _, kind, of, number = request.split("-")
    ends = ("127.0.0.1", "127.0.0.2") if of == "2" else ("::1", "::2")
    state = ["xfrm", "state", "add", "src", ends[0], "dst", ends[1]]
    key = "0x" + "11" * 20
    given = {
        "50": ["proto", "esp", "spi", "1", "auth", "hmac(sha1)", key, "enc", "ecb(cipher_null)", ""],
        "51": ["proto", "ah", "spi", "1", "auth", "hmac(sha1)", key],
        "108": ["proto", "comp", "spi", "1", "comp", "deflate"],
        # A compressed tunnel makes the state of the plain one.
        "4": ["proto", "comp", "spi", "1", "mode", "tunnel", "comp", "deflate"],
        "41": ["proto", "comp", "spi", "1", "mode", "tunnel", "comp", "deflate"],
        "43": ["proto", "route2", "coa", "::3", "mode", "ro"],
        "60": ["proto", "hao", "coa", "::3", "mode", "ro"],
    }.get(number)
    if given is None:
        raise UntriedError  # states of the protocol are made by other states alone
    if kind == "offload":
        given += ["offload", "dev", "lo", "dir", "in"]
    ip(*state, *given)


ROOT_HANDLE, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1


def qdisc(name: str, parent: int = ROOT_HANDLE, handle: int = 0) -> None:
    netlink(0, message(36, struct.pack("=BxxxiIII", 0, 1, handle, parent, 0) + text(1, name), REQUEST | ACK | CREATE))


def tc_filter(name: str, options: bytes = b"") -> None:
    qdisc("ingress", INGRESS, 0xFFFF0000)
    info = 1 << 16 | socket.htons(3)
    body = struct.pack("=BxxxiIII", 0, 1, 0, 0xFFFF0000, info) + text(1, name) + attribute(2, options, nested=True)
    netlink(0, message(44, body, REQUEST | ACK | CREATE))


def action(name: str, options: bytes = b"") -> None:
    """As part of a filter: actions by themselves take the capability of the system."""
    one = attribute(1, text(1, name) + (attribute(2, options, nested=True) if options else b""), nested=True)
    tc_filter("basic", attribute(3, one, nested=True))


METADATA = {"skbmark": 1, "skbprio": 3, "tcindex": 5}


def text_search(request: str) -> None:
    tree = attribute(1, struct.pack("=HH", 1, 0))
    search = struct.pack("=16sHHHBB", request.removeprefix("ts_").encode(), 0, 9, 1, 0, 0) + b"x"
    one = attribute(1, struct.pack("=HHHH", 0, 5, 0, 0) + search)
    tc_filter("basic", attribute(2, tree + attribute(2, one, nested=True), nested=True))


def traffic(request: str) -> None:
    name = re.sub(r"^(net-)?(sch|cls|act)[-_]", "", request)
    if request.startswith("ematch-kind-"):
        tree = attribute(1, struct.pack("=HH", 1, 0))
        one = attribute(1, struct.pack("=HHHH", 0, int(request.rpartition("-")[2]), 0, 0) + b"\0" * 32)
        tc_filter("basic", attribute(2, tree + attribute(2, one, nested=True), nested=True))
    elif request.startswith("ife-meta-"):
        number = METADATA[request.removeprefix("ife-meta-")]
        chosen = attribute(6, attribute(number, struct.pack("=I", 1)), nested=True)
        action("ife", attribute(1, struct.pack("=IIIIIHxx", 0, 0, 3, 0, 0, 1)) + chosen)
    elif re.match(r"(net-)?sch", request):
        qdisc(name)
    elif re.match(r"(net-)?cls", request):
        tc_filter(name)
    else:
        action(name)


def ipvs(request: str) -> None:
    name = request.removeprefix("ip_vs_").encode()
    service = struct.pack(
        "=HxxIHxxI16sIII", socket.IPPROTO_TCP, 0x0100000A, socket.htons(80), 0, name, 0, 0, 0xFFFFFFFF
    )
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 255) as connection:
        connection.setsockopt(0, 64 + 1024 + 64 + 2, service)


def vport(request: str) -> None:
    """A datapath in this namespace, then a port of the type."""
    datapath = struct.pack("=BBHi", 1, 2, 0, 0) + text(1, "dp0") + attribute(2, struct.pack("=I", 0))
    netlink(NETLINK_GENERIC, message(genl_family("ovs_datapath"), datapath))
    index = socket.if_nametoindex("dp0")
    port = struct.pack("=BBHi", 1, 1, 0, index) + attribute(2, struct.pack("=I", int(request.rpartition("-")[2])))
    port += text(3, "p0") + attribute(5, struct.pack("=I", 0))
    netlink(NETLINK_GENERIC, message(genl_family("ovs_vport"), port))


def l2tp(_: str) -> None:
    ip("link", "set", "lo", "up")
    tunnel = [
        "l2tp",
        "add",
        "tunnel",
        "tunnel_id",
        "1",
        "peer_tunnel_id",
        "1",
        "encap",
        "udp",
        "local",
        "127.0.0.1",
        "remote",
        "127.0.0.1",
    ]
    ip(*tunnel, "udp_sport", "5000", "udp_dport", "6000")
    ip(*["l2tp", "add", "session", "tunnel_id", "1", "session_id", "1", "peer_session_id", "1"])


def node(path: str) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


WAYS: dict[str, Callable[[str], None]] = {
    "socket-family": family,
    "socket-protocol": protocol,
    "netlink-protocol": netlink_protocol,
    "generic-netlink": generic,
    "socket-diagnostics": diagnostics,
    "algorithm-type": algorithm_type,
    "algorithm": algorithm,
    "line-discipline": discipline,
    "rdma": rdma,
    "socket-ioctl": ioctl,
    "file-system": file_system,
    "character-set": lambda _: file_system("fs-cifs"),
    "netfilter-subsystem": subsystem,
    "nftables": nftables,
    "netfilter-log": log,
    "connection-helper": helper,
    "xtables": xtables,
    "ip-set": ip_set,
    "text-search": text_search,
    "link-kind": link,
    "tunnel-encapsulation": encapsulation,
    "ipsec": ipsec,
    "traffic-control": traffic,
    "ipvs-scheduler": ipvs,
    "openvswitch-port": vport,
    "l2tp-session": l2tp,
    "device-node": node,
}


def enter() -> None:
    """New namespaces, root in them; OSError where the system does not allow that."""
    user, group = os.getuid(), os.getgid()
    if LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for file, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", file).write_text(line)


def try_one(kind: str, request: str, *, namespace: bool) -> bool:
    """In a process of its own, in new namespaces where that is asked; False for what cannot be tried."""
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            signal.alarm(SECONDS)
            if namespace:
                enter()
            WAYS[kind](request)
        except UntriedError:
            status = 3
        except Exception as error:  # noqa: BLE001 - the kernel's refusal, after it asked
            if not isinstance(error, OSError):
                sys.stderr.write(f"{kind} {request}: {error!r}\n")
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 3


def main() -> None:
    assert os.geteuid() != 0
    untried = [
        request
        for kind, request, namespace in json.load(sys.stdin)
        if kind not in WAYS or not try_one(kind, request, namespace=namespace)
    ]
    json.dump(untried, sys.stdout)


if __name__ == "__main__":
    main()
