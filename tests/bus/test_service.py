# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a well-behaved client sees."""

import asyncio
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.core.events import HistoryChanged
from kmodd.core.planning.planner import PlanReadings
from kmodd.dbus.transport import BusLostError, Transport
from kmodd.kernel.simulated.modules import Fault
from kmodd.model import Rule, User
from kmodd.names import ModuleName
from tests.bus.bench import Bench, bench
from tests.bus.buses import PATH, Client, Reply

OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"
MODULE = "org.kmodd1.Module"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


@pytest.fixture
async def root(service: Bench) -> AsyncIterator[Client]:
    async with service.client() as client:
        yield client


async def test_load_answers_what_was_inserted(service: Bench, root: Client) -> None:
    assert await root.call("Load", "sa{ss}a{sv}", "dummy", {}, {}) == ["dummy"]
    assert service.kernel.loaded.read(ModuleName("dummy")) is not None
    assert await root.call("Load", "sa{ss}a{sv}", "dummy", {}, {}) == []


async def test_unload_answers_what_was_removed(root: Client) -> None:
    await root.call("Load", "sa{ss}a{sv}", "dummy", {}, {})
    assert await root.call("Unload", "sa{sv}", "dummy", {}) == ["dummy"]


async def test_known_errors_keep_their_names(root: Client) -> None:
    with pytest.raises(Reply) as refused:
        await root.call("Load", "sa{ss}a{sv}", "nosuchthing", {}, {})
    assert refused.value.name == "org.kmodd1.Error.NoSuchModule"


async def test_describe_and_explain_and_list(root: Client) -> None:
    assert (await root.call("Describe", "s", "dummy"))["name"].value == "dummy"
    assert (await root.call("Explain", "sa{sv}", "dummy", {}))["state"].value == "available"
    assert (await root.call("Explain", "sa{sv}", "no-such", {}))["state"].value == "absent"
    everything = await root.call("ListModules", "a{sv}", {"state": root.transport.variant("s", "all")})
    assert {row["state"].value for row in everything} >= {"live", "available", "builtin"}
    before = await root.call("ListModules", "a{sv}", {})
    await root.call("Load", "sa{ss}a{sv}", "dummy", {}, {})
    after = await root.call("ListModules", "a{sv}", {})
    assert {row["name"].value for row in after} - {row["name"].value for row in before} == {"dummy"}


async def test_plan_health_metrics_history(service: Bench, root: Client) -> None:
    steps = await root.call("Plan", "a(ssa{ss})a{sv}", [["load", "dummy", {}], ["load", "nosuch", {}]], {})
    assert (steps[0]["action"].value, steps[0]["module"].value) == ("insert", "dummy")
    assert steps[1]["error"].value == "NoSuchModule"
    assert (await root.call("GetHealth"))["status"].value == "ok"
    assert (await root.call("GetMetrics"))[0][0] == "kmodd_modules"
    assert await root.call("GetHistory", "a{sv}", {}) == []
    assert service.polkit.asked == []


BATCH = "a(ssa{ss})a{sv}"
PARTS = {"atomic": Variant("b", False)}
AGENT = User("process", "agent", "pid 7 /dev/loop0", pid=7, exe="/usr/bin/agent", owner=1001)


def plain(rows: list[dict[str, Variant]]) -> list[dict[str, Any]]:
    """Rows without their variants."""
    bare = [{key: value.value for key, value in row.items()} for row in rows]
    return [
        {
            key: plain(value) if value and isinstance(value, list) and isinstance(value[0], dict) else value
            for key, value in row.items()
        }
        for row in bare
    ]


async def test_batch_answers_each_operation(root: Client) -> None:
    operations = [["load", "dummy", {}], ["load", "dummy", {}], ["reload", "vfat", {}], ["unload", "dummy", {}]]
    assert plain(await root.call("Batch", BATCH, operations, {})) == [
        {"module": "dummy", "action": "load", "result": "changed", "changed": ["dummy"]},
        {"module": "dummy", "action": "load", "result": "unchanged", "changed": []},
        {"module": "vfat", "action": "reload", "result": "changed", "changed": ["fat", "vfat"]},
        {"module": "dummy", "action": "unload", "result": "changed", "changed": ["dummy"]},
    ]


async def test_batch_sets_parameters_and_resets_failures(service: Bench, root: Client) -> None:
    operations = [
        ["load", "overlay", {}],
        ["set-parameter", "overlay", {"redirect-max": "64"}],
        ["set-parameter", "overlay", {"redirect-max": "64"}],
        ["reset-failed", "dummy", {}],
    ]
    planned = plain(await root.call("Plan", BATCH, operations, {}))
    assert [(row["action"], row["parameters"], row["operation"]) for row in planned] == [
        ("insert", "", 0),
        ("set-parameter", "redirect_max=64", 1),
        ("set-parameter", "redirect_max=64", 2),
    ]
    assert plain(await root.call("Batch", BATCH, operations, {})) == [
        {"module": "overlay", "action": "load", "result": "changed", "changed": ["overlay"]},
        {"module": "overlay", "action": "set-parameter", "result": "changed", "changed": ["overlay"]},
        {"module": "overlay", "action": "set-parameter", "result": "unchanged", "changed": []},
        {"module": "dummy", "action": "reset-failed", "result": "unchanged", "changed": []},
    ]


@pytest.mark.parametrize(
    "operation",
    [
        ["set-parameter", "overlay", {}],
        ["set-parameter", "pci:v1d1", {"redirect_max": "1"}],
        ["set-parameter", "overlay", {"redirect_max": 'a"b'}],
        ["set-parameter", "../x", {"redirect_max": "1"}],
        ["reset-failed", "overlay", {"redirect_max": "1"}],
        ["unload", "overlay", {"redirect_max": "1"}],
        ["set_parameter", "overlay", {"redirect_max": "1"}],
    ],
)
async def test_malformed_operations_of_a_batch(root: Client, operation: list[object]) -> None:
    with pytest.raises(Reply) as refused:
        await root.call("Batch", BATCH, [operation], {})
    assert refused.value.name == "org.freedesktop.DBus.Error.InvalidArgs"


async def test_what_failed_in_a_batch_comes_with_its_evidence(service: Bench, root: Client) -> None:
    service.kernel.modprobe("loop")
    service.kernel.hold("loop", AGENT)
    service.kernel.fail_next("kmodd_test_fail", Fault(errno=5, log=("kmodd_test_fail: no answer",)))
    service.kernel.change_rules(Rule("blacklist", "vfat", "", "/etc/modprobe.d/local.conf", 3, "blacklist vfat"))
    operations = [["unload", "loop", {}], ["load", "kmodd_test_fail", {}], ["load", "vfat", {}], ["load", "dummy", {}]]
    busy, failed, disabled, done = plain(await root.call("Batch", BATCH, operations, PARTS))
    assert (busy["error"], busy["result"], busy["changed"]) == ("InUse", "failed", [])
    assert busy["message"] == "loop is in use by 1 process"
    assert busy["hint"] == "end the processes that have its devices open"
    assert busy["users"] == [
        {"kind": "process", "name": "agent", "detail": "pid 7 /dev/loop0", "pid": 7, "exe": "/usr/bin/agent"}
    ]
    assert (failed["error"], failed["errno"]) == ("InitFailed", 5)
    assert failed["kernel-log"][-1] == "kmodd_test_fail: no answer"
    assert disabled["error"] == "DisabledByPolicy"
    assert (disabled["file"], disabled["line"]) == ("/etc/modprobe.d/local.conf", 3)
    assert (disabled["rule"], disabled["rule-kind"]) == ("blacklist vfat", "blacklist")
    assert "override-policy" in disabled["hint"]
    assert "error" not in done
    assert not [row for row in (busy, failed, disabled, done) if "withheld" in row]


@pytest.mark.parametrize(
    ("allowed", "public", "withheld"),
    [
        ((), False, [["users"], ["kernel-log"]]),
        (("org.kmodd1.read-history",), False, [["users"], []]),
        (("org.kmodd1.inspect",), False, [[], []]),
        (("org.kmodd1.inspect",), True, [["users"], ["kernel-log"]]),
    ],
)
async def test_a_batch_tells_no_more_of_others_than_the_caller_may_see(
    service: Bench, allowed: tuple[str, ...], public: bool, withheld: list[list[str]]
) -> None:
    service.kernel.modprobe("loop")
    service.kernel.hold("loop", AGENT)
    service.kernel.fail_next("kmodd_test_fail", Fault(errno=5, log=("kmodd_test_fail: no answer",)))
    service.polkit.granted = frozenset({"org.kmodd1.load", "org.kmodd1.unload", *allowed})
    operations = [["unload", "loop", {}], ["load", "kmodd_test_fail", {}]]
    async with service.client(1000) as user:
        rows = plain(
            await user.call("Batch", BATCH, operations, {**PARTS, "public": Variant("b", public)}, interactive=True)
        )
    assert [row.get("withheld", []) for row in rows] == withheld
    (user,) = rows[0]["users"]
    assert user["detail"] == ("1 process of other users" if withheld[0] else "pid 7 /dev/loop0")
    assert ("kernel-log" in rows[1]) == (not withheld[1])
    assert [row["error"] for row in rows] == ["InUse", "InitFailed"]
    # The deed is done: nobody is asked for a password only to see more of it.
    prompts = {action for _, action, _, flags in service.polkit.asked if flags}
    assert not prompts & {"org.kmodd1.inspect", "org.kmodd1.read-history"}
    assert not [1 for _, action, *_ in service.polkit.asked if public and action == "org.kmodd1.inspect"]


async def test_a_plan_says_what_to_do_about_what_will_fail(service: Bench, root: Client) -> None:
    service.kernel.change_rules(Rule("blacklist", "vfat", "", "/etc/modprobe.d/local.conf", 3, "blacklist vfat"))
    first, second = plain(await root.call("Plan", BATCH, [["load", "dummy", {}], ["load", "vfat", {}]], {}))
    assert first.keys() == {"action", "module", "path", "parameters", "because", "consequences", "operation"}
    assert first["consequences"] == []
    assert second["error"] == "DisabledByPolicy"
    assert (second["file"], second["line"]) == ("/etc/modprobe.d/local.conf", 3)
    assert "override-policy" in second["hint"]


async def test_a_short_job_is_announced_by_its_end_alone(service: Bench, root: Client) -> None:
    await root.listen()
    await root.call("Load", "sa{ss}a{sv}", "dummy", {}, {})
    await asyncio.sleep(0.2)
    await service.settled()
    assert [body[1:] for body in root.heard("JobFinished")] == [["load", "dummy", "done"]]
    told = [body[0] for name in ("InterfacesAdded", "InterfacesRemoved") for body in root.heard(name)]
    assert not [path for path in told if "/job/" in path]


async def test_history_changed_carries_no_record(service: Bench, root: Client) -> None:
    await root.listen()
    service.hub.publish(HistoryChanged())
    await asyncio.sleep(0.05)
    await service.settled()
    assert root.heard("HistoryChanged") == [[]]


async def until(told: Callable[[], bool]) -> None:
    """Wait until it was told, on a busy machine too."""
    for _ in range(1000):
        if told():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it was not told")


async def test_objects_come_and_go_with_modules(service: Bench, root: Client) -> None:
    await root.listen()
    await root.call("Load", "sa{ss}a{sv}", "dummy", {}, {})
    await until(lambda: any("LoadedCount" in body[1] for body in root.heard("PropertiesChanged")))
    assert ["dummy"] in root.heard("ModuleAdded")
    (path, interfaces) = next(body for body in root.heard("InterfacesAdded") if body[0].endswith("/dummy"))
    assert interfaces[MODULE]["Name"].value == "dummy"
    assert path in await root.call("GetManagedObjects", interface=OBJECT_MANAGER)
    assert await root.get("State", path=path, interface=MODULE) == "live"
    changed = [body for body in root.heard("PropertiesChanged") if "LoadedCount" in body[1]]
    assert changed[-1][1]["LoadedCount"].value == len(service.registry)
    service.kernel.rmmod("dummy")
    await until(lambda: ["dummy"] in root.heard("ModuleRemoved"))
    assert [path, [MODULE]] in root.heard("InterfacesRemoved")
    assert ["dummy"] in root.heard("ModuleRemoved")
    with pytest.raises(Reply, match="UnknownObject"):
        await root.get("State", path=path, interface=MODULE)
    assert path not in await root.call("GetManagedObjects", interface=OBJECT_MANAGER)


async def test_signals_come_from_the_managers_path(service: Bench, root: Client) -> None:
    await root.listen()
    service.kernel.modprobe("dummy")
    await asyncio.sleep(0.1)
    await service.settled()
    origins = {path for path, _, member, _ in root.signals if member.startswith(("Interfaces", "Module"))}
    assert origins == {PATH}


async def test_properties(service: Bench, root: Client) -> None:
    everything = await root.call("GetAll", "s", "org.kmodd1.Manager", interface=PROPERTIES)
    assert everything["LoadedCount"].value == len(service.registry)
    assert everything["BootId"].value == "01234567-89ab-cdef-0123-456789abcdef"
    assert set(await root.call("GetAll", "s", "", interface=PROPERTIES)) == set(everything)
    value = root.transport.variant("s", "9")
    with pytest.raises(Reply, match="PropertyReadOnly"):
        await root.call("Set", "ssv", "org.kmodd1.Manager", "Version", value, interface=PROPERTIES)
    with pytest.raises(Reply, match="UnknownProperty"):
        await root.get("NoSuch")
    with pytest.raises(Reply, match="UnknownInterface"):
        await root.get("Version", interface="org.kmodd1.Module")


async def test_every_module_property_can_be_read(service: Bench, root: Client) -> None:
    objects = await root.call("GetManagedObjects", interface=OBJECT_MANAGER)
    assert len(objects) == len(service.registry)
    for path, interfaces in objects.items():
        again = await root.call("GetAll", "s", MODULE, path=path, interface=PROPERTIES)
        assert {key: value.signature for key, value in again.items()} == {
            key: value.signature for key, value in interfaces[MODULE].items()
        }


async def test_introspection_has_every_object(service: Bench, root: Client) -> None:
    async def children(path: str) -> list[str]:
        text = await root.call("Introspect", path=path, interface=INTROSPECTABLE)
        return [node.get("name", "") for node in ET.fromstring(text).findall("node")]  # noqa: S314 - our own answer

    assert await children("/") == ["org"]
    assert await children("/org") == ["kmodd1"]
    assert await children(PATH) == ["job", "module"]
    assert len(await children(PATH + "/module")) == len(service.registry)
    assert await children(PATH + "/job") == []
    with pytest.raises(Reply, match="UnknownObject"):
        await children(PATH + "/nothing")


async def test_peer_is_answered_everywhere(root: Client) -> None:
    assert await root.call("Ping", interface=PEER, path="/any/where") == []
    assert len(await root.call("GetMachineId", interface=PEER)) == 32


async def test_a_job_is_an_object_that_its_owner_may_cancel(service: Bench) -> None:
    async with service.client(1000) as user, service.client(1001) as other:
        release = service.deeds.occupy("dummy")
        load = asyncio.create_task(user.call("Load", "sa{ss}a{sv}", "dummy", {}, {}))
        await asyncio.sleep(0.1)
        objects = await user.call("GetManagedObjects", interface=OBJECT_MANAGER)
        (path,) = [path for path in objects if "/job/" in path]
        assert objects[path]["org.kmodd1.Job"]["State"].value == "waiting"
        service.polkit.mode = "deny"
        with pytest.raises(Reply, match="AccessDenied"):
            await other.call("Cancel", path=path, interface="org.kmodd1.Job")
        asked = len(service.polkit.asked)
        await user.call("Cancel", path=path, interface="org.kmodd1.Job")
        assert len(service.polkit.asked) == asked
        with pytest.raises(Reply, match=r"Error\.Conflict"):
            await load
        release()
        assert service.kernel.loaded.read(ModuleName("dummy")) is None


async def test_ordinary_tools_understand_it(service: Bench) -> None:
    async def run(*command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"DBUS_SYSTEM_BUS_ADDRESS": service.bus.address},
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    tree = await run("busctl", "--system", "--no-pager", "--list", "tree", "org.kmodd1")
    assert len([line for line in tree.splitlines() if "/module/" in line]) == len(service.registry)
    shown = await run("busctl", "--system", "--no-pager", "introspect", "org.kmodd1", PATH)
    assert ".LoadedCount" in shown
    assert "emits-change" in shown
    called = await run(
        "busctl", "--system", "call", "org.kmodd1", PATH, "org.kmodd1.Manager", "Load", "sa{ss}a{sv}", "dummy", "0", "0"
    )
    assert called.strip() == 'as 1 "dummy"'


async def test_a_request_of_root_is_planned_no_more_often_than_it_has_to(
    service: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = service.deeds._planner
    made: list[PlanReadings | None] = []
    work = planner.work

    def counting(*arguments: Any, look: PlanReadings | None = None, **options: Any) -> Any:
        made.append(look)
        return work(*arguments, look=look, **options)

    monkeypatch.setattr(planner, "work", counting)
    async with service.client(0) as root:
        await root.call("Load", "sa{ss}a{sv}", "vfat", {}, {})
        assert made == [None]
        made.clear()
        await root.call("Unload", "sa{sv}", "vfat", {})
    first, second = made
    assert first is None, "what it removes"
    assert second is not None, "with what goes with that"


@pytest.mark.parametrize("listens", [True, False], ids=["hangs up during authentication", "does not listen"])
async def test_a_bus_that_cannot_be_had_is_lost_and_leaves_no_descriptor(tmp_path: Path, listens: bool) -> None:
    path = tmp_path / "bus"
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), path) if listens else None
    with pytest.raises(BusLostError):
        await Transport(f"unix:path={path}").connect()
    if server is not None:
        server.close()
        await server.wait_closed()
