# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps modules busy without a file that is open: mappings, ciphers, tracing, BPF. The printed commands end it, in their order."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.system.client import soon
from tests.system.explains import explains
from tests.system.test_users import freed
from tests.system.test_users_kinds import hold

if TYPE_CHECKING:
    from tests.system.client import Client
    from tests.vm.machine import Machine

MAP = """
import fcntl, mmap, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[1] == "/dev/kvm":
    size, vm = fcntl.ioctl(file, 0xAE04, 0), fcntl.ioctl(file, 0xAE01, 0)
    closed = [file, vm]
    file = fcntl.ioctl(vm, 0xAE41, 0)
else:
    closed, size = [], 4096
memory = mmap.mmap(file, size)
# Python keeps a copy of the descriptor.
os.closerange(3, 64)
print("open", flush=True)
time.sleep(600)
"""


def mapped(vm: Machine, path: str) -> str:
    """The pid of a process that has mapped a file and closed it."""
    vm.write_file("/tmp/map.py", MAP)
    process = vm.start(["python3", "/tmp/map.py", path])
    process.wait_for_output("open")
    pid = vm.check("pgrep -nf '^python3 /tmp/map.py'").strip()
    assert path not in vm.check(f"ls -l /proc/{pid}/fd")
    return pid


# --- mappings ---------------------------------------------------------------------------------------------------------


@explains("a device that a process has mapped and closed", "kill")
def test_mapping_of_a_device(vm: Machine, client: Client) -> None:
    vm.check("modprobe brd rd_nr=1; udevadm settle")
    pid = mapped(vm, "/dev/ram0")
    soon(lambda: client.explain("brd")["references"] == 1, "udev has let go")
    explained = freed(vm, client, "brd", f"kill {pid}")
    assert [user["detail"] for user in explained["users"] if user["kind"] == "process"] == [
        f"pid {pid} /dev/ram0, mapped"
    ]


def test_mapping_of_a_virtual_machine(vm: Machine, client: Client) -> None:
    vm.check("modprobe kvm_amd; udevadm settle")
    pid = mapped(vm, "/dev/kvm")
    explained = freed(vm, client, "kvm_amd", f"kill {pid}")
    assert [user["detail"] for user in explained["users"]] == [f"pid {pid} anon_inode:kvm-vcpu:0, mapped"]


@explains("a file of what is mounted that a process has mapped and closed", "umount")
def test_mapping_of_a_file(vm: Machine, client: Client) -> None:
    vm.check(
        "truncate -s 8M /var/tmp/fat; mkfs.vfat /var/tmp/fat >/dev/null; mount -o loop /var/tmp/fat /mnt; "
        "truncate -s 4096 '/mnt/a b'; udevadm settle"
    )
    pid = mapped(vm, "/mnt/a b")
    explained = freed(vm, client, "vfat", f"kill {pid}", "umount /mnt")
    assert [user["detail"] for user in explained["users"] if user["kind"] == "process"] == [
        f"pid {pid} /mnt/a b, mapped"
    ]


# --- algorithms of the crypto API -------------------------------------------------------------------------------------

AES = "aesni_intel"
"""The driver of AES on the machine's processor."""
HASH = "xxhash_generic"


@explains("the cipher of an encrypted disk", "dmsetup remove")
def test_cipher_of_an_encrypted_disk(vm: Machine, client: Client) -> None:
    """What is on the disk keeps it too."""
    vm.check(
        f"modprobe {AES}; truncate -s 8M /var/tmp/secret; losetup /dev/loop5 /var/tmp/secret; dmsetup create secret "
        f"--uuid CRYPT-PLAIN-secret --table '0 16384 crypt aes-xts-plain64 {'01' * 32}{'02' * 32} 0 /dev/loop5 0'; "
        "udevadm settle; mkfs.ext4 -q /dev/mapper/secret; mount /dev/mapper/secret /mnt; udevadm settle"
    )
    freed(vm, client, AES, "umount /mnt", "udevadm settle", "dmsetup remove secret", "udevadm settle")
    vm.check("losetup --detach /dev/loop5")


def test_cipher_of_several_encrypted_disks(vm: Machine, client: Client) -> None:
    """Which disk has which cipher the kernel says to nobody but root: what may be it is said, and no command printed."""
    vm.check(
        f"modprobe {AES}; modprobe brd rd_nr=2; for n in 0 1; do dmsetup create secret$n --uuid CRYPT-PLAIN-secret$n "
        f'--table "0 2048 crypt aes-xts-plain64 {"01" * 32}{"02" * 32} 0 /dev/ram$n 0"; done; udevadm settle'
    )
    time.sleep(0.5)
    explained = client.explain(AES)
    assert explained["free"] == []
    assert {(user["kind"], user["name"]) for user in explained["users"]} == {
        ("crypto", "xts(aes)"),
        ("crypto", "__xts(aes)"),
    }
    assert explained["users"][0]["detail"].endswith("used 2 times, perhaps through dm_crypt")
    vm.check("dmsetup remove secret0; dmsetup remove secret1; udevadm settle; modprobe -r brd dm_crypt")


@explains("the cipher of a TCP socket with TLS", "kill")
def test_cipher_of_tls(vm: Machine, client: Client) -> None:
    vm.check(f"modprobe {AES}; modprobe tcp_diag; modprobe tls")
    made = (
        "(lambda server: (server.bind(('127.0.0.1', 0)), server.listen(), (lambda peer: (peer, "
        "peer.connect(server.getsockname()), peer.setsockopt(6, 31, b'tls'), "
        "peer.setsockopt(282, 1, bytes.fromhex('03033300') + bytes(36))))(socket.socket()), server))(socket.socket())"
    )
    pid = hold(vm, made)
    explained = freed(vm, client, AES, f"kill {pid}")
    assert [user["detail"] for user in explained["users"] if user["kind"] == "process"] == [
        f"pid {pid} socket TCP with tls"
    ]


@explains("the cipher of a socket of the crypto API", "kill")
def test_algorithm_of_a_socket(vm: Machine, client: Client) -> None:
    vm.check(f"modprobe {AES}; modprobe -r dm_crypt || true")
    pid = hold(vm, "(lambda each: (each, each.bind(('skcipher', 'xts(aes)'))))(socket.socket(38, 5))")
    freed(vm, client, AES, f"kill {pid}")


@explains("the cipher of an interface with MACsec", "ip link delete")
def test_cipher_of_macsec(vm: Machine, client: Client) -> None:
    """An interface without a key has none, and is not named."""
    vm.check(
        f"modprobe {AES}; ip link add low type dummy; ip link add link low sec5 type macsec; ip link add link low sec6 type macsec port 2; "
        f"ip macsec add sec5 tx sa 0 pn 1 on key 01 {'0f' * 16}; ip macsec add sec5 rx port 1 address 02:00:00:00:00:05; "
        f"ip macsec add sec5 rx port 1 address 02:00:00:00:00:05 sa 0 pn 1 on key 02 {'1e' * 16}"
    )
    explained = freed(vm, client, AES, "ip link delete dev sec5")
    assert [user["detail"] for user in explained["users"] if user["kind"] == "netdev"] == ["gcm(aes) of 2 associations"]
    vm.check(f"modprobe {AES}; ip link del low; modprobe -r dummy")


@explains("the checksum of a file system of btrfs", "umount")
def test_checksum_of_btrfs(vm: Machine, client: Client) -> None:
    vm.check(
        "modprobe brd rd_nr=1 rd_size=131072; mkfs.btrfs -q --csum xxhash /dev/ram0; mount /dev/ram0 /mnt; udevadm settle"
    )
    explained = freed(vm, client, HASH, "umount /mnt")
    assert "checksum xxhash64" in explained["users"][0]["detail"]
    vm.check("udevadm settle; modprobe -r brd")


# --- tracing ----------------------------------------------------------------------------------------------------------

TRACING = "/sys/kernel/tracing"
EVENT = "btrfs_sync_fs"


@explains("an event that a trigger or a function enables", "echo")
def test_trigger_of_an_event(vm: Machine, client: Client) -> None:
    """Each is removed by its own command, and no other goes with it."""
    other = f"{TRACING}/events/oom/mark_victim/trigger"
    vm.check(
        f"modprobe btrfs; echo enable_event:btrfs:{EVENT} >{other}; echo stacktrace:1 >>{other}; "
        f"echo do_exit:enable_event:btrfs:{EVENT} >>{TRACING}/set_ftrace_filter; "
        f"mkdir {TRACING}/instances/mine; echo enable_event:btrfs:{EVENT}:3 >{other.replace('events', 'instances/mine/events')}"
    )
    write = """sh -c 'echo "$1" >>"$2"' sh"""
    freed(
        vm,
        client,
        "btrfs",
        f"{write} '!do_exit:enable_event:btrfs:{EVENT}' {TRACING}/set_ftrace_filter",
        f"{write} '!enable_event:btrfs:{EVENT}' {other}",
        f"{write} '!enable_event:btrfs:{EVENT}:count=3' {other.replace('events', 'instances/mine/events')}",
    )
    assert vm.check(f"cat {other}").startswith("stacktrace:")
    vm.check(f"echo '!stacktrace' >{other}; rmdir {TRACING}/instances/mine")


@explains("an event of another name than its module", "echo")
def test_trigger_of_an_event_of_another_name(vm: Machine, client: Client) -> None:
    """The system `target` is of target_core_mod: the symbols of the module tell, in instances as well."""
    other, event = f"{TRACING}/instances/mine/events/oom/mark_victim/trigger", "target:target_cmd_complete"
    vm.check(
        f"modprobe target_core_mod; mkdir {TRACING}/instances/mine; echo enable_event:{event} >{other}; "
        f"echo 'e:mine/done {event.replace(':', '.')} tag=$tag' >>{TRACING}/dynamic_events"
    )
    write = """sh -c 'echo "$1" >>"$2"' sh"""
    freed(
        vm,
        client,
        "target_core_mod",
        f"{write} -:mine/done {TRACING}/dynamic_events",
        f"{write} '!enable_event:{event}' {other}",
    )
    vm.check(f"rmdir {TRACING}/instances/mine")


@explains("a probe on an event", "echo")
def test_probe_on_an_event(vm: Machine, client: Client) -> None:
    vm.check(f"modprobe btrfs; echo 'e:mine/sync btrfs.{EVENT} wait=$wait' >>{TRACING}/dynamic_events")
    remove = f"""sh -c 'echo "$1" >>"$2"' sh -:mine/sync {TRACING}/dynamic_events"""
    freed(vm, client, "btrfs", remove)
    vm.check(f"modprobe btrfs; echo 'e:mine/sync btrfs.{EVENT} wait=$wait' >>{TRACING}/dynamic_events")
    vm.check(f"echo 1 >{TRACING}/events/mine/sync/enable")
    freed(vm, client, "btrfs", f"""sh -c 'echo 0 >"$1"' sh {TRACING}/events/mine/sync/enable""", remove)


def test_what_goes_with_the_module(vm: Machine, client: Client) -> None:
    """An event that is enabled, a probe on a function and a filter hold nothing."""
    vm.check(
        f"modprobe btrfs; cd {TRACING}; function=$(grep '\\[btrfs\\]' available_filter_functions | head -n 1 | cut -d' ' -f1); "
        "echo $function >set_ftrace_filter; echo function >current_tracer; echo 1 >events/btrfs/enable; "
        "echo p:mine/probe $function >kprobe_events; echo 1 >events/mine/probe/enable"
    )
    assert client.explain("btrfs")["references"] == 0
    assert client.unload("btrfs") == ["btrfs"]
    vm.check(
        f"modprobe btrfs; cd {TRACING}; echo nop >current_tracer; echo >set_ftrace_filter; echo 0 >events/mine/probe/enable; "
        "echo >kprobe_events; modprobe -r btrfs"
    )


PERF = """
import ctypes, struct, time
number = int(open("/sys/kernel/tracing/events/btrfs/btrfs_sync_fs/id").read())
attributes = struct.pack("=IIQQQQQ", 2, 120, number, 0, 0, 0, 1).ljust(120, b"\\0")
assert ctypes.CDLL(None).syscall(298, attributes, -1, 0, -1, 0) > 0
print("open", flush=True)
time.sleep(600)
"""
BPF = """
import ctypes, struct, time
libc, code = ctypes.CDLL(None), ctypes.create_string_buffer(struct.pack("=QQ", 0xB7, 0x95))
licence, name = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(b"btrfs_sync_fs")
program = libc.syscall(321, 5, struct.pack("=IIQQ", 17, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(120, b"\\0"), 120)
assert program > 0
link = libc.syscall(321, 17, struct.pack("=QI4x", ctypes.addressof(name), program), 16)
assert link > 0
print("open", flush=True)
time.sleep(600)
"""


FUNCTION = r"""
import ctypes, struct, sys, time

libc = ctypes.CDLL(None)

def bpf(command, attributes):
    return libc.syscall(321, command, ctypes.create_string_buffer(attributes, 144), 128)

def strings_and_types(name):
    data = open(f"/sys/kernel/btf/{name}", "rb").read()
    head, types, length, strings, size = struct.unpack_from("=4xIIIII", data)
    return data[head + strings:head + strings + size], data[head + types:head + types + length]

# What follows a type of each kind, alone or for each of its members (linux/btf.h).
ALONE, EACH = {1: 4, 3: 12, 14: 4, 17: 4}, {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
base, types = strings_and_types("vmlinux")
strings, further = strings_and_types(sys.argv[1])
number = place = 0
for end, data in ((len(types), types), (len(further), further)):
    place = 0
    while place < end:
        number += 1
        name, info = struct.unpack_from("=II", data, place)
        kind, count = info >> 24 & 31, info & 0xFFFF
        if kind == 12 and data is further and name >= len(base):
            if strings[name - len(base):].split(b"\0", 1)[0].decode() == sys.argv[2]:
                break
        place += 12 + ALONE.get(kind, 0) + EACH.get(kind, 0) * count
# The object of type information that has the name of the module: BPF_BTF_GET_NEXT_ID, _GET_FD_BY_ID, BPF_OBJ_GET_INFO_BY_FD.
identifier, information = 0, -1
while information < 0:
    asked = ctypes.create_string_buffer(struct.pack("=I", identifier), 144)
    assert libc.syscall(321, 23, asked, 128) == 0
    (identifier,) = struct.unpack_from("=I", asked.raw, 4)
    file, text = bpf(19, struct.pack("=I", identifier)), ctypes.create_string_buffer(64)
    answer = ctypes.create_string_buffer(struct.pack("=QIIQI", 0, 0, 0, ctypes.addressof(text), 64), 32)
    bpf(15, struct.pack("=IIQ", file, 32, ctypes.addressof(answer)))
    if text.value.decode() == sys.argv[1]:
        information = file
code, licence = ctypes.create_string_buffer(struct.pack("=QQ", 0xB7, 0x95)), ctypes.create_string_buffer(b"GPL")
# BPF_PROG_TYPE_TRACING and BPF_TRACE_FENTRY.
head = struct.pack("=IIQQ", 26, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(68, b"\0")
program = bpf(5, (head + struct.pack("=I", 24)).ljust(108, b"\0") + struct.pack("=II", number, information))
assert program > 0
assert bpf(17, struct.pack("=QI4x", 0, program)) > 0
print("open", flush=True)
time.sleep(600)
"""


@explains("a program of BPF on a function", "kill")
def test_program_on_a_function(vm: Machine, client: Client) -> None:
    """Where all are on functions of one module it is known which; where another module has one as well, it is not."""
    vm.check("modprobe btrfs; modprobe dummy numdummies=0")
    pid = run(vm, FUNCTION, "btrfs", "btrfs_sync_fs")
    explained = freed(vm, client, "btrfs", f"kill {pid}")
    assert [user["detail"] for user in explained["users"]] == [
        f"pid {pid} anon_inode:bpf_link tracing on a function of it"
    ]
    vm.check("modprobe btrfs")
    pids = [run(vm, FUNCTION, "btrfs", "btrfs_sync_fs"), run(vm, FUNCTION, "dummy", "dummy_xmit")]
    explained = client.explain("btrfs")
    assert [user["kind"] for user in explained["users"]] == ["candidate", "candidate", "kernel"]
    assert explained["free"] == []
    vm.check(f"kill {' '.join(pids)}; sleep 1; kmodctl unload btrfs; kmodctl unload dummy")


def test_perf_event(vm: Machine, client: Client) -> None:
    """The kernel does not show of which event it is: the process is named, and no command printed."""
    vm.check("modprobe btrfs")
    pid = run(vm, PERF)
    explained = client.explain("btrfs")
    assert explained["references"] == 1
    assert [user["kind"] for user in explained["users"]] == ["candidate", "kernel"]
    assert (
        explained["users"][0]["detail"] == f"pid {pid} anon_inode:[perf_event], which may be of one of its trace events"
    )
    assert "command" not in explained["users"][0]
    assert explained["free"] == []
    refused = client.refused("Unload", "btrfs", {})
    assert refused.message.startswith("btrfs is in use by 1 process that may use it")
    vm.check(f"kill {pid}; while kill -0 {pid}; do sleep 0.1; done 2>/dev/null; kmodctl unload btrfs")


@explains("a program of BPF on a tracepoint", "kill")
def test_program_on_a_tracepoint(vm: Machine, client: Client) -> None:
    vm.check("modprobe btrfs")
    pid = run(vm, BPF)
    explained = freed(vm, client, "btrfs", f"kill {pid}")
    assert [user["detail"] for user in explained["users"]] == [f"pid {pid} anon_inode:bpf_link raw_tracepoint {EVENT}"]


def run(vm: Machine, code: str, *arguments: str) -> str:
    """The pid of a process of root that runs this until it is killed."""
    vm.write_file("/tmp/run.py", code)
    process = vm.start(["python3", "/tmp/run.py", *arguments])
    process.wait_for_output("open")
    time.sleep(0.5)  # It is not in an answer that is still kept.
    return vm.check("pgrep -nf '^python3 /tmp/run.py'").strip()


def test_nothing_was_denied(vm: Machine) -> None:
    assert "Traceback" not in vm.journal()
    assert 'apparmor="DENIED"' not in vm.journal("_TRANSPORT=kernel")
