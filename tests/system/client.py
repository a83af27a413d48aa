# SPDX-License-Identifier: LGPL-2.1-or-later
"""Talking to the daemon in the machine: over D-Bus, through kmodctl, and to the journal about it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tests.clock import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.vm.machine import Machine

T = TypeVar("T")

MANAGER = "org.kmodd1.Manager"
ROOT = "/org/kmodd1"
SIGNATURES = {
    "Load": "sa{ss}a{sv}",
    "Unload": "sa{sv}",
    "Reload": "sa{ss}a{sv}",
    "Batch": "a(ssa{ss})a{sv}",
    "Plan": "a(ssa{ss})a{sv}",
    "SetParameter": "sss",
    "Explain": "sa{sv}",
    "Describe": "s",
    "ListModules": "a{sv}",
    "GetHealth": "",
    "GetMetrics": "",
    "GetHistory": "a{sv}",
    "ResetFailed": "s",
}
OPTIONS = {
    "timeout": "u",
    "reason": "s",
    "state": "s",
    "match": "s",
    "module": "s",
    "since": "t",
    "limit": "u",
    "only-modules": "as",
}
"""Types of options; all others are booleans."""
PATIENCE = 60.0


def soon(look: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """Look again until the answer is true; AssertionError after so many seconds."""
    deadline = clock() + seconds
    while not (found := look()):
        assert clock() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
    return found


class BusError(Exception):
    """An error reply."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name.removeprefix("org.kmodd1.Error.").removeprefix("org.freedesktop.DBus.Error.")
        self.message = message


class Process:
    """A program in the machine that speaks in lines of JSON."""

    def __init__(self, vm: Machine, argv: Sequence[str], *, user: str = "root") -> None:
        self.vm = vm
        self.lines: list[dict[str, Any]] = []
        self._rest = b""
        self._said = b""
        self._news = threading.Condition()
        self.command = vm.start(argv, user=user, on_output=self._take)

    def send(self, line: object) -> None:
        """One line."""
        self.command.write(json.dumps(line).encode() + b"\n")

    def wait(self, find: Callable[[Sequence[dict[str, Any]]], T | None], what: str, seconds: float = PATIENCE) -> T:
        """Wait until something is found in the lines so far."""
        deadline = clock() + seconds
        with self._news:
            while (found := find(self.lines)) is None:
                left = deadline - clock()
                if left <= 0:
                    self.vm.check_alive()
                    raise AssertionError(f"not within {seconds:.0f} s: {what}\n{self._said.decode(errors='replace')}")
                self._news.wait(left)
        return found

    def end(self) -> None:
        """Let it go."""
        self.command.end_input()
        self.command.kill()

    def _take(self, kind: str, data: bytes) -> None:
        with self._news:
            if kind == "err":
                self._said += data
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.lines += [json.loads(line) for line in lines]
            self._news.notify_all()


@dataclass
class Pending:
    """A call under way."""

    client: Client
    number: int
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        """It was answered."""
        return any(line.get("id") == self.number for line in tuple(self.client.process.lines))

    def result(self, seconds: float = PATIENCE) -> Any:
        """The answer, a list of several only where there are several; BusError."""
        answer = self.client.process.wait(
            lambda lines: next((line for line in lines if line.get("id") == self.number), None), "an answer", seconds
        )
        self.seconds = answer["seconds"]
        if "error" in answer:
            raise BusError(answer["error"], answer["message"])
        value = answer["value"]
        return value[0] if len(value) == 1 else value


class Client:
    """A client on the machine's system bus."""

    restarted = False
    """Set by tests that restart the daemon."""

    def __init__(self, vm: Machine, *, user: str = "root") -> None:
        vm.write_file("/tmp/guest_client.py", Path(__file__).with_name("guest_client.py").read_bytes())
        self.process = Process(vm, ["/usr/bin/python3", "-B", "/tmp/guest_client.py"], user=user)
        self._last = 0
        self.name: str = self.process.wait(
            lambda lines: next((line["ready"] for line in lines if "ready" in line), None), "the client is on the bus"
        )

    def begin(
        self, member: str, *arguments: Any, path: str = ROOT, interface: str = MANAGER, signature: str | None = None
    ) -> Pending:
        """Call without waiting."""
        self._last += 1
        takes = SIGNATURES.get(member, "") if signature is None else signature
        self.process.send(
            {
                "id": self._last,
                "path": path,
                "interface": interface,
                "member": member,
                "signature": takes,
                "arguments": arguments,
            }
        )
        return Pending(self, self._last)

    def call(self, member: str, *arguments: Any, seconds: float = PATIENCE, **where: Any) -> Any:
        """Call and wait for the answer; BusError."""
        return self.begin(member, *arguments, **where).result(seconds)

    def load(self, module: str, parameters: Mapping[str, str] | None = None, **options: object) -> Any:
        """`Load`."""
        return self.call("Load", module, parameters or {}, named(options))

    def unload(self, module: str, **options: object) -> Any:
        """`Unload`."""
        return self.call("Unload", module, named(options))

    def reload(self, module: str, parameters: Mapping[str, str] | None = None, **options: object) -> Any:
        """`Reload`."""
        return self.call("Reload", module, parameters or {}, named(options))

    def plan(self, *operations: tuple[str, str, dict[str, str]], **options: object) -> Any:
        """`Plan`."""
        return self.call("Plan", operations, named(options))

    def hold(self, module: str) -> int:
        """`Hold`; the answer is for `release`."""
        self._last += 1
        self.process.send({"id": self._last, "hold": module})
        lease: int = Pending(self, self._last).result()
        return lease

    def release(self, lease: int) -> None:
        """Close a lease's descriptor."""
        self._last += 1
        self.process.send({"id": self._last, "release": lease})
        Pending(self, self._last).result()

    def is_over(self, lease: int) -> bool:
        """The lease's descriptor reads the end of the file."""
        return {"over": lease} in self.process.lines

    def set_parameter(self, module: str, parameter: str, value: str, **options: object) -> Any:
        """`SetParameter`."""
        return self.call("SetParameter", module, parameter, value, named(options), signature="sssa{sv}")

    def batch(self, *operations: tuple[str, str, dict[str, str]], **options: object) -> Any:
        """`Batch`."""
        return self.call("Batch", operations, named(options))

    def explain(self, module: str) -> Any:
        """`Explain`."""
        return self.call("Explain", module, {})

    def history(self, **options: object) -> Any:
        """`GetHistory`."""
        return self.call("GetHistory", named(options))

    def properties(self, path: str, interface: str) -> Any:
        """All properties of an object."""
        return self.call("GetAll", interface, path=path, interface="org.freedesktop.DBus.Properties", signature="s")

    def objects(self) -> Any:
        """`GetManagedObjects`."""
        return self.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager", signature="")

    def follow(self) -> list[str]:
        """Have a Gio.DBusObjectManagerClient follow the objects; answers those there are."""
        self._last += 1
        self.process.send({"id": self._last, "follow": True})
        found: list[str] = Pending(self, self._last).result()
        return found

    def mark(self) -> int:
        """A place in what was heard."""
        return len(self.process.lines)

    def signal(
        self, member: str, mark: int, what: str, *, fits: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> dict[str, Any]:
        """The first such signal after the mark."""
        return self.process.wait(
            lambda lines: next((one for one in lines[mark:] if one.get("signal") == member and fits(one)), None), what
        )

    def refused(self, member: str, *arguments: Any, **where: Any) -> BusError:
        """The error a call is answered with."""
        try:
            value = self.call(member, *arguments, **where)
        except BusError as error:
            return error
        raise AssertionError(f"{member}{arguments} succeeded: {value}")


def named(options: Mapping[str, object]) -> dict[str, object]:
    """Options as variants; `dry_run=True` is `dry-run`."""
    names = {key.replace("_", "-"): value for key, value in options.items()}
    return {key: {"variant": [OPTIONS.get(key, "b"), value]} for key, value in names.items()}


@dataclass(frozen=True)
class Ended:
    """How a run of kmodctl ended."""

    code: int
    out: str
    err: str


class Kmodctl:
    """kmodctl in the machine; started anew after a reboot."""

    def __init__(self, vm: Machine, *, user: str = "root") -> None:
        self._vm, self._user = vm, user
        self._start()

    def __call__(self, *arguments: str, seconds: float = PATIENCE) -> Ended:
        if self.process.command.code is not None:
            self._start()
        self._runs += 1
        self.process.send(arguments)
        answer = self.process.wait(
            lambda lines: lines[self._runs - 1] if len(lines) >= self._runs else None,
            f"kmodctl {arguments} ends",
            seconds,
        )
        return Ended(answer["code"], answer["out"], answer["err"])

    def _start(self) -> None:
        self._vm.write_file("/tmp/guest_kmodctl.py", Path(__file__).with_name("guest_kmodctl.py").read_bytes())
        package = "/usr/local/lib/kmodd"
        argv = ["/usr/bin/python3", "-B", "/tmp/guest_kmodctl.py", package]
        self.process = Process(self._vm, argv, user=self._user)
        self._runs = 0


UNSIGNED = "module.unsigned"


def records(vm: Machine, *matches: str) -> list[dict[str, Any]]:
    """The daemon's records in the journal that match, oldest first; a field that came several times is a list.

    That a module has no valid signature, as no test module has, is a record beside that of its load; who wants it asks for it.
    """
    text = vm.check(["journalctl", "-b", "--no-pager", "-o", "json", "--all", "_SYSTEMD_UNIT=kmodd.service", *matches])
    found = [json.loads(line) for line in text.splitlines()]
    wanted = f"KMODD_EVENT={UNSIGNED}" in matches
    return [one for one in found if wanted or one.get("KMODD_EVENT") != UNSIGNED]


def record(vm: Machine, *matches: str) -> dict[str, Any]:
    """The only record that matches; it is written right after the answer."""
    found = soon(lambda: records(vm, *matches), f"a record of {matches}")
    assert len(found) == 1, [one["MESSAGE"] for one in found]
    return found[0]


def texts(value: object) -> list[str]:
    """A field as a list."""
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def loaded(vm: Machine) -> set[str]:
    """Test modules in /proc/modules, without their prefix."""
    return {
        line.split()[0].removeprefix("kmodd_test_")
        for line in vm.check("cat /proc/modules").splitlines()
        if line.startswith("kmodd_test_")
    }


def clear(vm: Machine) -> None:
    """Remove the test modules and the rules about them; what has no exit stays."""
    script = """
        rm -f /etc/modprobe.d/test.conf
        for turn in 1 2 3 4; do
            left=$(grep -o '^kmodd_test_[a-z_0-9]*' /proc/modules | grep -v permanent)
            [ -z "$left" ] && exit 0
            for module in $left; do rmmod $module; done 2>/dev/null
        done
        grep '^kmodd_test_' /proc/modules"""
    assert vm.run(script).stdout == ""
