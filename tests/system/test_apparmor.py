# SPDX-License-Identifier: LGPL-2.1-or-later
"""The AppArmor profiles: loaded and enforced, every process is confined, work is not hindered and everything else is denied."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.service import CALL, main_pid, serves, show, workers

if TYPE_CHECKING:
    from tests.system.client import Client, Kmodctl
    from tests.vm.machine import Machine

PROFILES = (
    "kmodd",
    "kmodd-worker",
    "kmodd-parser",
    "kmodd-inspector",
    "kmodd-inspector-tables",
    "kmodd-inspector-namespaces",
    "kmodd-watcher",
    "kmodd-gateway",
    "kmodd-notifier",
)
T = "kmodd_test_"
DENIED = re.compile(r'apparmor="DENIED".*profile="kmodd[^"]*"')


def confinement(vm: Machine, pid: int) -> str:
    """As the kernel has it, such as `kmodd (enforce)`."""
    return vm.read_file(f"/proc/{pid}/attr/current").decode().strip("\n\0")


def denials(vm: Machine) -> list[str]:
    """What the kernel says that it denied to processes of kmodd's."""
    return [line for line in vm.check(["journalctl", "-k", "-b", "-o", "cat"]).splitlines() if DENIED.search(line)]


def test_every_profile_is_enforced(vm: Machine) -> None:
    loaded = vm.check(["cat", "/sys/kernel/security/apparmor/profiles"]).splitlines()
    assert {f"{profile} (enforce)" for profile in PROFILES} <= set(loaded)


def test_every_process_is_confined(vm: Machine) -> None:
    assert serves(vm)
    assert confinement(vm, main_pid(vm)) == "kmodd (enforce)"
    assert {confinement(vm, pid) for pid in workers(vm)} == {"kmodd-worker (enforce)"}
    for name, program in (
        ("parser", "modules/[p]arser"),
        ("inspector-tables", "users/[i]nspector"),
        ("inspector", "users/[i]nspector"),
        ("watcher", "watcher/[w]atcher"),
    ):
        script = (
            "import socket, subprocess\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            f"s.connect('/run/kmodd-{name}.socket'); s.recv(64)\n"
            f"pids = subprocess.run(['pgrep', '-f', '{program}'], capture_output=True, text=True).stdout.split()\n"
            "print(*(open(f'/proc/{pid}/attr/current').read().strip() for pid in pids), sep='\\n')\n"
        )
        # Where others of the program are running, they are confined as well.
        assert f"kmodd-{name} (enforce)" in (lines := vm.check(["python3", "-c", script]).splitlines())
        assert all(line.startswith("kmodd-") for line in lines)
    vm.check(["make", "-C", "/usr/src/kmodd", "install-gateway"], timeout=300)
    for unit in ("kmodd-notifier", "kmodd-gateway"):
        vm.check("kmodctl token create tour --scope read > /tmp/token; true")
        vm.check(["systemctl", "start", f"{unit}.service"], timeout=60)
        assert confinement(vm, main_pid_of(vm, unit)) == f"{unit} (enforce)"


def main_pid_of(vm: Machine, unit: str) -> int:
    return int(show(vm, "MainPID", f"{unit}.service"))


def test_work_is_not_hindered(vm: Machine, client: Client, kmodctl: Kmodctl) -> None:
    """A tour of what kmodd does; nothing of it is denied."""
    for module in (f"{T}xz", f"{T}zst", f"{T}params", "vfat", "dummy", "loop"):
        client.load(module)
    client.call("SetParameter", f"{T}params", "level", "6")
    client.reload(f"{T}params", {"an_int": "5"})
    vm.check("truncate -s 4M /tmp/disk; losetup /dev/loop0 /tmp/disk")
    for module in ("loop", "vfat", "dummy"):
        client.explain(module)
    vm.check("losetup -d /dev/loop0")
    client.unload("vfat")
    for arguments in (
        ("list",),
        ("status",),
        ("show", f"{T}params"),
        ("config", "autoload", "dummy"),
        ("config", "options", "loop", "max_loop=4"),
        ("config", "blacklist", "nfsd"),
        ("config", "show"),
        ("config", "drift"),
        ("log",),
    ):
        ended = kmodctl(*arguments)
        assert ended.code in {0, 1}, (arguments, ended.err)
    vm.check(
        "cp /lib/modules/*/updates/kmodd-test/kmodd_test_good.ko /tmp && rm /lib/modules/*/updates/kmodd-test/kmodd_test_good.ko && depmod"
    )
    for command in (
        ("store", "import", "/tmp/kmodd_test_good.ko", "--version", "1"),
        ("store", "activate", f"{T}good", "1", "--load"),
        ("store", "list"),
        ("store", "deactivate", f"{T}good"),
    ):
        ended = kmodctl(*command, seconds=120)
        assert ended.code == 0, (command, ended.err)
    assert vm.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' dummy 0 0", user="alice").code != 0
    vm.check(["systemctl", "reload", "kmodd.service"], timeout=60)
    vm.check(["systemctl", "restart", "kmodd.service"], timeout=60)
    assert serves(vm)
    assert denials(vm) == []


FORBIDDEN = """
import json, os, socket, sys
def tries(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return 0
def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
def run(program):
    pid = os.posix_spawn(program, [program, "-c", ":"], {})
    os.waitpid(pid, 0)
release = os.uname().release
print(json.dumps({
    "memory of another process": tries(lambda: os.close(os.open("/proc/1/mem", os.O_RDWR))),
    "its own memory": tries(lambda: os.close(os.open("/proc/self/mem", os.O_RDWR))),
    "passwords": tries(lambda: open("/etc/shadow").close()),
    "files of the system": tries(lambda: write("/etc/cron.d/x")),
    "programs": tries(lambda: write("/usr/bin/x")),
    "root's own": tries(lambda: write("/root/x")),
    "modules of the distribution": tries(lambda: write(f"/usr/lib/modules/{release}/kernel/x.ko")),
    "somebody else's rules": tries(lambda: write("/etc/modprobe.d/x.conf")),
    "kernel settings": tries(lambda: write("/proc/sys/kernel/core_pattern")),
    "a parameter": tries(lambda: write("/sys/module/kmodd_test_params/parameters/level")),
    "the network": tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()),
    "a shell": tries(lambda: run("/bin/sh")),
}))
"""
MAY = {
    "kmodd": set[str](),
    "kmodd-worker": {"a parameter"},
    "kmodd-parser": set[str](),
    "kmodd-inspector": set[str](),
    "kmodd-inspector-tables": set[str](),
    "kmodd-inspector-namespaces": set[str](),
    "kmodd-watcher": set[str](),
    "kmodd-gateway": {"the network"},
    "kmodd-notifier": {"the network"},
}


def attempt(vm: Machine, profile: str) -> dict[str, Any]:
    """The errno of each forbidden thing, for root under a profile and without any other sandbox."""
    confined = ["aa-exec", "-p", profile, "--"] if profile else []
    answer: dict[str, Any] = json.loads(vm.check([*confined, "/usr/bin/python3", "-I", "-S", "-c", FORBIDDEN]))
    return answer


def test_root_without_a_profile_may_do_all_of_it(vm: Machine) -> None:
    """What the next test shows is the profiles' doing."""
    vm.check(["modprobe", f"{T}params"])
    assert set(attempt(vm, "").values()) == {0}
    vm.check("rm -f /etc/cron.d/x /usr/bin/x /root/x /usr/lib/modules/*/kernel/x.ko /etc/modprobe.d/x.conf")


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_not_its_work_is_denied(vm: Machine, profile: str) -> None:
    vm.check(["modprobe", f"{T}params"])
    allowed = {what for what, code in attempt(vm, profile).items() if code == 0}
    assert allowed == MAY[profile]
