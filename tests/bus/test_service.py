# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a well-behaved client sees."""

import asyncio
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kmodd.core.api import HistoryChanged
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
    assert (await root.call("Explain", "s", "dummy"))["state"].value == "available"
    assert (await root.call("Explain", "s", "no-such"))["state"].value == "absent"
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


async def test_batch_answers_each_operation(root: Client) -> None:
    operations = [["load", "dummy", {}], ["load", "loop", {}]]
    results = await root.call("Batch", "a(ssa{ss})a{sv}", operations, {})
    assert [row[:3] for row in results] == [["dummy", "changed", ""], ["loop", "changed", ""]] or results[1][
        1
    ] == "unchanged"


async def test_a_job_that_is_over_in_a_moment_is_told_by_its_end_alone(service: Bench, root: Client) -> None:
    await root.listen()
    await root.call("Load", "sa{ss}a{sv}", "dummy", {}, {})
    await asyncio.sleep(0.2)
    await service.settled()
    assert [body[1:] for body in root.heard("JobFinished")] == [["load", "dummy", "done"]]
    told = [body[0] for name in ("InterfacesAdded", "InterfacesRemoved") for body in root.heard(name)]
    assert not [path for path in told if "/job/" in path]


async def test_the_history_is_told_of_without_a_word_of_it(service: Bench, root: Client) -> None:
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
