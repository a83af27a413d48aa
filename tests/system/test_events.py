# SPDX-License-Identifier: LGPL-2.1-or-later
"""What anyone loads or unloads shows as signals, objects, properties and history within a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.system.client import Client, records, soon
from tests.system.service import main_pid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

T = "kmodd_test_"
MODULE = "org.kmodd1.Module"
SECOND = 1.0


@pytest.fixture(autouse=True)
def nothing_left(vm: Machine, client: Client) -> Iterator[None]:
    """No test module is loaded before a test, and all is told."""
    yield
    vm.run(
        f"for turn in 1 2 3; do for m in $(grep -o '^{T}[a-z_0-9]*' /proc/modules); do rmmod $m; done; done 2>/dev/null"
    )
    soon(lambda: not any(path_of(T) in path for path in client.objects()), "no object is left")


def path_of(module: str) -> str:
    """The object of a module; `_` is escaped as systemd does."""
    return "/org/kmodd1/module/" + module.replace("_", "_5f")


def at(vm: Machine, command: str) -> float:
    """Run it; when it was done by the machine's clock."""
    return float(vm.check(f"{command} && date +%s.%N").split()[-1])


def about(module: str) -> Any:
    """Picks signals about a module."""
    return lambda one: one["arguments"] == [module]


@pytest.mark.parametrize(
    ("load", "unload"),
    [
        (f"modprobe {T}good", f"modprobe -r {T}good"),
        (f"insmod /lib/modules/$(uname -r)/updates/kmodd-test/{T}good.ko", f"rmmod {T}good"),
        (f"modprobe {T}good", f"rmmod --force {T}good 2>/dev/null || rmmod {T}good"),
    ],
    ids=["modprobe", "insmod", "rmmod"],
)
def test_changes_by_others_are_announced_within_a_second(vm: Machine, client: Client, load: str, unload: str) -> None:
    module, path = f"{T}good", path_of(f"{T}good")
    count = client.properties("/org/kmodd1", "org.kmodd1.Manager")["LoadedCount"]
    mark = client.mark()
    done = at(vm, load)
    assert client.signal("ModuleAdded", mark, "it came", fits=about(module))["time"] - done < SECOND
    added = client.signal("InterfacesAdded", mark, "its object", fits=lambda one: one["arguments"][0] == path)
    assert added["path"] == "/org/kmodd1"
    assert added["arguments"][1][MODULE]["Name"] == module
    assert client.properties(path, MODULE)["State"] == "live"
    assert client.properties("/org/kmodd1", "org.kmodd1.Manager")["LoadedCount"] == count + 1
    client.signal("PropertiesChanged", mark, "the count", fits=lambda one: "LoadedCount" in one["arguments"][1])
    rows = soon(lambda: client.history(module=module), "history")
    # What came without a valid signature has a second record after it.
    last = [row for row in rows if row["event"] != "module.unsigned"][-1]
    assert (last["event"], last["action"], "uid" in last) == ("module.appeared", "load", False)

    mark = client.mark()
    done = at(vm, unload)
    assert client.signal("ModuleRemoved", mark, "it went", fits=about(module))["time"] - done < SECOND
    removed = client.signal("InterfacesRemoved", mark, "its object", fits=lambda one: one["arguments"][0] == path)
    assert removed["arguments"][1] == [MODULE]
    soon(lambda: client.history(module=module)[-1]["event"] == "module.disappeared", "history")
    assert path not in client.objects()


def test_loads_by_udev_are_announced(vm: Machine, client: Client) -> None:
    rule = f'ACTION=="add", KERNEL=="null", SUBSYSTEM=="mem", RUN{{builtin}}+="kmod load {T}dep_b"\n'
    vm.write_file("/run/udev/rules.d/99-test.rules", rule)
    mark = client.mark()
    done = at(vm, "udevadm control --reload && udevadm trigger --action=add --settle /dev/null")
    seen = [client.signal("ModuleAdded", mark, "it came", fits=about(f"{T}{name}")) for name in ("dep_a", "dep_b")]
    assert max(one["time"] for one in seen) - done < SECOND
    # In the order in which they came.
    names = [one["arguments"][0] for one in client.process.lines[mark:] if one.get("signal") == "ModuleAdded"]
    assert names == [f"{T}dep_a", f"{T}dep_b"]
    vm.check("rm /run/udev/rules.d/99-test.rules; udevadm control --reload")


def test_own_operations_are_announced_once_with_their_origin(vm: Machine, client: Client) -> None:
    mark, since = client.mark(), int(vm.check("date +%s%6N"))
    client.load(f"{T}dep_b", reason="ours")
    client.signal("ModuleAdded", mark, "it came", fits=about(f"{T}dep_b"))
    finished = client.signal("JobFinished", mark, "the job ended")
    assert finished["arguments"][1:] == ["load", f"{T}dep_b", "done"]
    assert client.explain(f"{T}dep_b")["loaded-by"]["reason"] == "ours"
    properties = client.properties(path_of(f"{T}dep_b"), MODULE)
    assert properties["LoadedAt"] > 0
    assert properties["LoadDurationUSec"] > 0
    assert client.properties(path_of(f"{T}dep_a"), MODULE)["Holders"] == [f"{T}dep_b"]
    client.unload(f"{T}dep_b", unused_dependencies=True)
    client.signal("ModuleRemoved", mark, "it went", fits=about(f"{T}dep_a"))
    heard = [one["arguments"][0] for one in client.process.lines[mark:] if one.get("signal") == "ModuleAdded"]
    assert heard == [f"{T}dep_a", f"{T}dep_b"]
    events = [row["event"] for name in "ab" for row in client.history(module=f"{T}dep_{name}", since=since)]
    assert "module.appeared" not in events
    assert "module.disappeared" not in events


def test_job_and_holders_are_objects_and_properties(client: Client) -> None:
    client.load(f"{T}dep_a")
    mark = client.mark()
    client.load(f"{T}slow")  # a job that is over in a moment is no object
    job = client.signal("InterfacesAdded", mark, "the job", fits=lambda one: "/job/" in one["arguments"][0])
    assert job["arguments"][1]["org.kmodd1.Job"]["Module"] == f"{T}slow"
    client.signal("InterfacesRemoved", mark, "it ended", fits=lambda one: one["arguments"][0] == job["arguments"][0])
    client.unload(f"{T}slow")
    client.load(f"{T}dep_b")
    changed = client.signal(
        "PropertiesChanged", mark, "dep_a has a holder", fits=lambda one: one["path"] == path_of(f"{T}dep_a")
    )
    assert changed["arguments"][0] == MODULE
    assert "Holders" in [*changed["arguments"][1], *changed["arguments"][2]]


def test_glib_object_manager_sees_objects_come_and_go(vm: Machine, client: Client) -> None:
    there = client.follow()
    assert set(there) == {path for path in client.objects() if "/module/" in path}
    mark = client.mark()
    vm.check(f"modprobe {T}dep_b")

    def told(what: str, module: str) -> None:
        path = path_of(module)
        client.process.wait(
            lambda lines: next((1 for one in lines[mark:] if one.get("manager") == what and one["path"] == path), None),
            f"{module} {what}",
        )

    told("added", f"{T}dep_a")
    told("added", f"{T}dep_b")
    vm.check(f"rmmod {T}dep_b")
    told("removed", f"{T}dep_b")
    assert path_of(f"{T}dep_a") in client.objects()


@pytest.mark.parametrize(("event", "present"), [("add", True), ("remove", True), ("add", False)])
def test_forged_event_is_not_believed(vm: Machine, client: Client, event: str, present: bool) -> None:
    name = f"{T}good" if present else "loop"
    vm.check(["modprobe", name])
    soon(lambda: path_of(name) in client.objects(), "it is known")
    mark, before = client.mark(), len(records(vm, f"KMODD_MODULE={name}"))
    vm.check(f"for n in 1 2 3; do echo {event} > /sys/module/{name}/uevent; done")
    # Whatever comes later is dealt with later.
    vm.check(f"modprobe {T}dep_a")
    client.signal("ModuleAdded", mark, "a real one", fits=about(f"{T}dep_a"))
    heard = [one for one in client.process.lines[mark:] if one.get("signal", "").startswith("Module")]
    assert [one["arguments"] for one in heard] == [[f"{T}dep_a"]]
    assert client.properties(path_of(name), MODULE)["State"] == "live"
    assert len(records(vm, f"KMODD_MODULE={name}")) == before


def test_lost_events_are_made_up_for(vm: Machine, client: Client) -> None:
    vm.check(f"modprobe {T}xz")
    soon(lambda: path_of(f"{T}xz") in client.objects(), "it is known")
    mark, pid = client.mark(), main_pid(vm)
    vm.check(["kill", "-STOP", str(pid)])
    try:
        # /sys/module/*/uevent: far more than the socket's buffer takes.
        vm.check("for n in $(seq 6000); do echo change > /sys/module/virtio/uevent; done", timeout=25)
        vm.check(f"modprobe {T}dep_b; rmmod {T}xz")
    finally:
        vm.check(["kill", "-CONT", str(pid)])
    done = float(vm.check("date +%s.%N"))
    for member, name in (("ModuleAdded", "dep_a"), ("ModuleAdded", "dep_b"), ("ModuleRemoved", "xz")):
        seen = client.signal(member, mark, f"{member} {name}", fits=about(f"{T}{name}"))
        assert seen["time"] - done < 3 * SECOND
    assert main_pid(vm) == pid
    metrics = {name: value for name, _, labels, value in client.call("GetMetrics") if not labels}
    assert metrics["kmodd_uevent_overflows_total"] >= 1
    checks = {check["name"]: check for check in client.call("GetHealth")["checks"]}
    assert "lost" in checks["events"]["message"]
    # And it goes on listening.
    mark = client.mark()
    vm.check(f"rmmod {T}dep_b")
    client.signal("ModuleRemoved", mark, "after the overflow", fits=about(f"{T}dep_b"))


def test_failed_load_of_others_is_no_module(vm: Machine, client: Client) -> None:
    mark = client.mark()
    assert vm.run(["modprobe", f"{T}fail"]).code == 1
    vm.check(["modprobe", f"{T}dep_a"])
    client.signal("ModuleAdded", mark, "a real one", fits=about(f"{T}dep_a"))
    heard = [one["arguments"] for one in client.process.lines[mark:] if one.get("signal") == "ModuleAdded"]
    assert heard == [[f"{T}dep_a"]]
