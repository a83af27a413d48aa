# SPDX-License-Identifier: LGPL-2.1-or-later
"""Callers who read while a getter hangs: they are answered, and so is everybody else."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from kmodd.model import Outcome
from kmodd.names import ModuleName
from tests.bus.bench import Bench, bench
from tests.bus.buses import PATH, Reply

MODULE = "org.kmodd1.Module"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
OBJECT = f"{PATH}/module/kmodd_5ftest_5fparams"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, loaded=["kmodd_test_params", "loop"]) as made:
        yield made


async def test_getter_that_hangs_blocks_only_its_readers(service: Bench) -> None:
    entered, gate = asyncio.Event(), asyncio.Event()
    read = service.kernel.executor.read_parameters
    asked: list[ModuleName] = []

    async def hang(name: ModuleName, parameters: Sequence[str], *, timeout: float) -> tuple[Outcome, Mapping[str, str]]:
        asked.append(name)
        if name != "kmodd_test_params":
            return await read(name, parameters, timeout=timeout)
        entered.set()
        await gate.wait()
        return Outcome("timed-out", worker=7), {}

    service.kernel.executor.read_parameters = hang  # type: ignore[method-assign]
    async with service.client(uid=1000) as stranger, service.client(uid=1001) as other:
        reading = [
            asyncio.create_task(stranger.call("GetAll", "s", MODULE, path=OBJECT, interface=PROPERTIES))
            for _ in range(3)
        ]
        await entered.wait()
        # While they wait: what does not run code of the module answers at once.
        assert (await other.call("Get", "ss", MODULE, "State", path=OBJECT, interface=PROPERTIES)).value == "live"
        assert await other.call("ListModules", "a{sv}", {})
        assert (await other.call("Explain", "sa{sv}", "kmodd_test_params", {}))["state"].value == "live"
        gate.set()
        for answer in await asyncio.gather(*reading):
            assert answer["Parameters"].value == {}
            assert answer["State"].value == "live"
        assert asked == ["kmodd_test_params"]
        # From now on nobody is sent in, and everything is told without its values.
        objects = await other.call("GetManagedObjects", "", path=PATH, interface=OBJECT_MANAGER)
        assert objects[OBJECT][MODULE]["Parameters"].value == {}
        assert objects[f"{PATH}/module/loop"][MODULE]["Parameters"].value
        assert asked.count(ModuleName("kmodd_test_params")) == 1


async def test_load_with_the_parameters_that_are_live_is_known_before_a_password(service: Bench) -> None:
    """The values are read before the plan, so that polkit is asked for nothing that cannot be."""
    async with service.client(uid=1000) as caller:
        with pytest.raises(Reply) as refused:
            await caller.call("Load", "sa{ss}a{sv}", "kmodd_test_params", {"an_int": "77"}, {})
        assert refused.value.name == "org.kmodd1.Error.Conflict"
        assert service.polkit.asked == []
    async with service.client() as root:
        live = await root.call("Get", "ss", MODULE, "Parameters", path=OBJECT, interface=PROPERTIES)
        assert await root.call("Load", "sa{ss}a{sv}", "kmodd_test_params", {"an_int": live.value["an_int"]}, {}) == []


@pytest.mark.parametrize("value", ["77", "4711"])
async def test_plan_and_batch_are_made_of_the_values_as_they_are_now(service: Bench, value: str) -> None:
    asked = [["load", "kmodd_test_params", {"an_int": value}], ["load", "vfat", {}]]
    async with service.client(uid=1000) as caller:
        planned = await caller.call("Plan", "a(ssa{ss})a{sv}", asked, {})
        assert [row["error"].value for row in planned if "error" in row] == ["Conflict"]
        service.kernel.loaded.write_parameter(ModuleName("kmodd_test_params"), "an_int", value)
        service.values.forget(ModuleName("kmodd_test_params"))  # a reading counts for a second
        planned = await caller.call("Plan", "a(ssa{ss})a{sv}", asked, {})
        assert [row["error"].value for row in planned if "error" in row] == []
        service.values.forget(ModuleName("kmodd_test_params"))
        with pytest.raises(Reply) as refused:
            await caller.call("Batch", "a(ssa{ss})a{sv}", [["load", "kmodd_test_params", {"an_int": "1"}]], {})
        assert refused.value.name == "org.kmodd1.Error.Conflict"
        assert service.polkit.asked == []
